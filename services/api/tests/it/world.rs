//! A suite of fakes around the edge: events are appended by stores of the owners' names, so that the real
//! projector builds the views.

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    http::{Method, Request as HttpRequest, StatusCode},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bus::{Bus, Responder, route, unknown};
use contracts::{
    Actor, Envelope, Event, NewEvent, Refusal, Request, RequestError, conductor::*, contexts::*, delivery::*,
    domain::*, output::*, permissions::CheckPermission, pipelines::*,
};
use eventstore::{Key, Store};
use http_body_util::BodyExt;
use ids::*;
use kit::keys::Keys;
use live::{Live, LocalLive};
use model::{
    plan::{Executor, JobDefinition},
    status::{JobStatus, WorkflowStatus},
};
use serde_json::Value;
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub const TOKEN: &str = "gantry-token-of-the-admin";
pub const READER: &str = "gantry-token-of-a-reader";

pub struct World {
    pub db: testkit::TestDb,
    pub bus: Bus,
    pub keys: Keys,
    pub router: Router,
    pub service: gantry_api::Service,
    pub owners: Arc<Owners>,
    /// Held: it is removed with the world.
    _git_root: tempfile::TempDir,
    pub stop: CancellationToken,
}

/// Answers for every owner.
pub struct Owners {
    pub project: Project,
    pub admin: User,
    pub reader: User,
    pub projects: Mutex<Vec<Project>>,
    pub asked: Mutex<Vec<Request>>,
    pub steps: Mutex<Vec<StepPlace>>,
    pub log: Mutex<Vec<u8>>,
    pub pipeline: Mutex<Option<PipelineView>>,
}

pub struct As(pub Arc<Owners>);

#[async_trait]
impl Responder for As {
    async fn respond(&self, req: Request) -> Result<Value, RequestError> {
        let owners = &self.0;
        owners.asked.lock().unwrap().push(req.clone());
        match req.name.as_str() {
            "token.verify" => {
                route::<VerifyToken, _, _>(&req, |ask, _| async move {
                    use sha2::{Digest, Sha256};
                    if ask.sha256 == hex::encode(Sha256::digest(TOKEN)) {
                        Ok(owners.admin.clone())
                    } else if ask.sha256 == hex::encode(Sha256::digest(READER)) {
                        Ok(owners.reader.clone())
                    } else {
                        Err(Refusal::new("unauthenticated", "unknown token").into())
                    }
                })
                .await
            }
            "project.get" => {
                route::<GetProject, _, _>(&req, |ask, _| async move {
                    let projects = owners.projects.lock().unwrap();
                    projects
                        .iter()
                        .find(|project| {
                            project.slug == ask.reference || project.id.to_string() == ask.reference
                        })
                        .cloned()
                        .ok_or_else(|| Refusal::not_found("project").into())
                })
                .await
            }
            "project.ensure" => {
                route::<EnsureProject, _, _>(&req, |ask, _| async move {
                    let mut projects = owners.projects.lock().unwrap();
                    let project = Project {
                        id: ProjectId::new(),
                        slug: format!("git/{}/{}", ask.org, ask.repo),
                        name: ask.repo,
                        ..owners.project.clone()
                    };
                    projects.push(project.clone());
                    Ok(project)
                })
                .await
            }
            "token.create" => {
                route::<CreateToken, _, _>(&req, |ask, _| async move {
                    Ok(TokenInfo { id: TokenId::new(), label: ask.label, created_at: chrono::Utc::now() })
                })
                .await
            }
            "variable.set" => {
                route::<SetVariable, _, _>(&req, |ask, _| async move {
                    let at = chrono::Utc::now();
                    Ok(VariableInfo {
                        name: ask.name,
                        masked: "xxxx12ab".into(),
                        created_at: at,
                        updated_at: at,
                        version: 1,
                        updated_by: None,
                        last_used_at: None,
                    })
                })
                .await
            }
            "variable.list" => {
                route::<ListVariables, _, _>(&req, |_, _| async move {
                    let at = chrono::Utc::now();
                    let masked = "xxxx12ab".to_owned();
                    Ok(vec![VariableInfo {
                        name: "TOKEN".into(),
                        masked,
                        created_at: at,
                        updated_at: at,
                        version: 3,
                        updated_by: None,
                        last_used_at: Some(at),
                    }])
                })
                .await
            }
            "variable.remove" => route::<RemoveVariable, _, _>(&req, |_, _| async move { Ok(()) }).await,
            "context.get" => {
                route::<GetContext, _, _>(&req, |ask, _| async move {
                    let org_id = Some(owners.project.org_id);
                    Ok(ContextInfo {
                        id: ask.id,
                        org_id,
                        name: "deploy".into(),
                        created_at: chrono::Utc::now(),
                    })
                })
                .await
            }
            "restriction.add" => {
                route::<AddRestriction, _, _>(&req, |ask, _| async move {
                    let (context_id, kind, value) = (ask.context_id, ask.kind, ask.value);
                    Ok(Restriction { id: RestrictionId::new(), context_id, kind, value })
                })
                .await
            }
            "org.list" => {
                route::<ListOrgs, _, _>(&req, |_, _| async move {
                    Ok(vec![Org { id: owners.project.org_id, name: owners.project.org.clone() }])
                })
                .await
            }
            "permission.check" => {
                route::<CheckPermission, _, _>(&req, |ask, _| async move { Ok(ask.permission == "read") })
                    .await
            }
            "delivery.decision" => {
                route::<GetDecision, _, _>(&req, |_, _| async move {
                    let made = owners
                        .asked
                        .lock()
                        .unwrap()
                        .iter()
                        .filter(|req| req.name == "delivery.decision")
                        .count();
                    Ok(Decision::Pipeline { id: PipelineId::new(), number: i64::try_from(made).unwrap() })
                })
                .await
            }
            "pipeline.trigger" => {
                route::<TriggerPipeline, _, _>(&req, |_, _| async move {
                    Ok(owners.pipeline.lock().unwrap().clone().unwrap())
                })
                .await
            }
            "pipeline.get" => {
                route::<GetPipeline, _, _>(&req, |ask, _| async move {
                    let known = owners.pipeline.lock().unwrap().clone();
                    known
                        .filter(|view| view.id == ask.id)
                        .ok_or_else(|| Refusal::not_found("pipeline").into())
                })
                .await
            }
            "workflow.cancel" => {
                route::<CancelWorkflow, _, _>(&req, |ask, _| async move {
                    Ok(WorkflowState { id: ask.id, version: 1, status: WorkflowStatus::Canceled })
                })
                .await
            }
            "job.approve" => {
                route::<ApproveJob, _, _>(&req, |_, _| async move {
                    Err(Refusal::new("already_decided", "somebody was faster").into())
                })
                .await
            }
            "step.get" => {
                route::<GetStep, _, _>(&req, |ask, _| async move {
                    let steps = owners.steps.lock().unwrap();
                    let found = steps.iter().find(|place| place.step.step_id == ask.step_id);
                    found.cloned().ok_or_else(|| Refusal::not_found("step").into())
                })
                .await
            }
            "log.read" => {
                route::<ReadLog, _, _>(&req, |ask, _| async move {
                    let log = owners.log.lock().unwrap();
                    let start = usize::try_from(ask.offset).unwrap().min(log.len());
                    // Small windows, so that readers have to put them together.
                    let end = (start + 7).min(log.len());
                    Ok(LogWindow {
                        data: STANDARD.encode(&log[start..end]),
                        next: end as u64,
                        total: log.len() as u64,
                        sealed: true,
                    })
                })
                .await
            }
            _ => Err(unknown(&req)),
        }
    }
}

impl World {
    pub async fn new() -> Self {
        Self::with_live(Arc::new(LocalLive::default())).await
    }

    /// With live state that projector and edge share.
    pub async fn with_live(live: Arc<dyn Live>) -> Self {
        Self::with(live, |_| {}).await
    }

    /// The same with other settings.
    pub async fn with(live: Arc<dyn Live>, set: impl FnOnce(&mut gantry_api::Config)) -> Self {
        let db = testkit::postgres().await;
        let bus = Bus::local(db.pool.clone());
        let stop = CancellationToken::new();
        let org_id = OrgId::new();
        let project = Project {
            id: ProjectId::new(),
            org_id,
            org: "local".to_owned(),
            name: "demo".to_owned(),
            slug: "git/local/demo".to_owned(),
            default_branch: "main".to_owned(),
        };
        let owners = Arc::new(Owners {
            admin: User { id: UserId::new(), login: "admin".to_owned(), admin: true },
            reader: User { id: UserId::new(), login: "reader".to_owned(), admin: false },
            projects: Mutex::new(vec![project.clone()]),
            project,
            asked: Mutex::default(),
            steps: Mutex::default(),
            log: Mutex::default(),
            pipeline: Mutex::default(),
        });
        for service in ["domain", "permissions", "pipelines", "conductor", "output-processor", "contexts"] {
            bus.respond(service, Arc::new(As(owners.clone())));
        }
        projector::start(
            projector::Deps { pool: db.pool.clone(), bus: bus.clone(), live: live.clone() },
            stop.clone(),
        )
        .await
        .unwrap();
        let git_root = tempfile::tempdir().unwrap();
        let keys = Keys::from_bytes([3; 32]);
        let secrets = Arc::new(secrets::Keyring::open_or_create(git_root.path().join("keyring")).unwrap());
        let mut config = gantry_api::Config::new("http://gantry.test/", git_root.path().join("git"));
        set(&mut config);
        let blobs = blobs::FsBlobs::open(&git_root.path().join("blobs"), &["key"]).await.unwrap();
        let deps = gantry_api::Deps {
            pool: db.pool.clone(),
            bus: bus.clone(),
            blobs: Arc::new(blobs),
            live,
            secrets,
            keys: keys.clone(),
            config,
        };
        let service = gantry_api::start(deps, stop.clone()).await.unwrap();
        let router = service.router();
        Self { db, bus, keys, router, service, owners, _git_root: git_root, stop }
    }

    pub async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let mut request = HttpRequest::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("circle-token", token);
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let response = self
            .router
            .clone()
            .oneshot(request.header("content-type", "application/json").body(body).unwrap())
            .await
            .unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        (status, value)
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, Some(TOKEN), None).await
    }

    pub async fn append(
        &self,
        store: &Store,
        aggregate: &'static str,
        id: uuid::Uuid,
        events: &[NewEvent],
    ) -> Vec<Envelope> {
        let mut tx = store.begin(&[Key::new(aggregate, id)]).await.unwrap();
        let made = tx.append(events).await.unwrap();
        tx.commit().await.unwrap();
        made
    }

    pub async fn owner(&self, service: &'static str) -> Store {
        let store = Store::open(self.db.pool.clone(), service, &eventstore::NO_MIGRATIONS).await.unwrap();
        self.bus.register_source(&store);
        store
    }
}

pub struct Run {
    pub pipeline: PipelineId,
    pub workflow: WorkflowId,
    pub build: JobId,
    pub hold: JobId,
    pub step: StepId,
}

fn event<E: Event>(kind: &'static str, id: uuid::Uuid, body: &E) -> NewEvent {
    NewEvent::new(kind, id, Actor::service("test"), body)
}

/// A pipeline with a job that ran and an approval that waits.
pub async fn history(world: &World) -> Run {
    let run = Run {
        pipeline: PipelineId::new(),
        workflow: WorkflowId::new(),
        build: JobId::new(),
        hold: JobId::new(),
        step: StepId::new(),
    };
    let project = world.owners.project.clone();
    let now = chrono::Utc::now();
    let domain = world.owner("domain").await;
    let id = project.id.uuid();
    world
        .append(&domain, "project", id, &[event("project", id, &ProjectCreated { project: project.clone() })])
        .await;
    let pipelines = world.owner("pipelines").await;
    let vcs = Vcs { revision: "a".repeat(40), branch: Some("main".to_owned()), tag: None };
    let trigger = Trigger {
        kind: "webhook".to_owned(),
        actor: Some(world.owners.admin.id),
        actor_login: Some("admin".to_owned()),
        received_at: now,
    };
    let id = run.pipeline.uuid();
    let created = PipelineCreated {
        pipeline_id: run.pipeline,
        project: project.clone(),
        number: 1,
        trigger: trigger.clone(),
        vcs: vcs.clone(),
        setup: false,
        errors: vec![],
        plan: None,
        plan_digest: None,
    };
    let created = event("pipeline", id, &created).with_personal(serde_json::json!({ "subject": "Greet" }));
    world.append(&pipelines, "pipeline", id, &[created]).await;
    let conductor = world.owner("conductor").await;
    let id = run.workflow.uuid();
    let node = |job_id, name: &str, kind: &str, requires| JobNode {
        job_id,
        name: name.to_owned(),
        kind: kind.to_owned(),
        status: JobStatus::Blocked,
        requires,
    };
    let made = WorkflowCreated {
        workflow_id: run.workflow,
        pipeline_id: run.pipeline,
        pipeline_number: 1,
        project: project.clone(),
        name: "main".to_owned(),
        started_by: Some(world.owners.admin.id),
        rerun_of: None,
        total: 2,
        plan_digest: None,
        jobs: vec![
            node(run.build, "build", "build", vec![]),
            node(
                run.hold,
                "hold",
                "approval",
                vec![Edge { job_id: run.build, accepts: [JobStatus::Success].into() }],
            ),
        ],
    };
    let ready = JobReady {
        job_id: run.build,
        workflow_id: run.workflow,
        workflow_name: "main".to_owned(),
        workspace_id: run.workflow,
        pipeline_id: run.pipeline,
        pipeline_number: 1,
        project,
        name: "build".to_owned(),
        number: 1,
        previous_number: None,
        vcs,
        trigger,
        upstream: vec![],
        contexts: vec!["deploy".to_owned()],
        acting_user: None,
        failed_tests_of: None,
        ssh: None,
        definition: JobDefinition {
            executor: Executor::Machine { image: None },
            resource_class: "medium".to_owned(),
            environment: vec![],
            working_directory: "~/project".to_owned(),
            shell: None,
            parallelism: 1,
            steps: vec![],
            continues: false,
            auto_rerun_on_infra_fail: 0,
            cache_days: None,
        },
    };
    let ended =
        JobEnded { job_id: run.build, status: JobStatus::Success, reason: None, approved_by: None, at: now };
    world
        .append(
            &conductor,
            "workflow",
            id,
            &[
                event("workflow", id, &made),
                event("workflow", id, &ready),
                event("workflow", id, &JobRunning { job_id: run.build, at: now }),
                event("workflow", id, &ended),
                event("workflow", id, &JobOnHold { job_id: run.hold }),
                event("workflow", id, &WorkflowStatusChanged { status: WorkflowStatus::OnHold }),
            ],
        )
        .await;
    let output = world.owner("output-processor").await;
    let task_id = TaskId::new();
    let step = StepRecord {
        step_id: run.step,
        number: 101,
        index: 0,
        name: "echo hello".to_owned(),
        status: "success".to_owned(),
        bash_command: Some("#!/bin/bash -eo pipefail\necho hello".to_owned()),
        exit_code: Some(0),
        background: false,
        started_at: now,
        ended_at: Some(now),
        bytes: 6,
        log_state: "complete".to_owned(),
        sha256: None,
    };
    world.owners.steps.lock().unwrap().push(StepPlace { job_id: run.build, task_id, step: step.clone() });
    let reported = StepReported { task_id, job_id: run.build, step };
    let id = task_id.uuid();
    world.append(&output, "record", id, &[event("record", id, &reported)]).await;
    testkit::until("the views are filled", std::time::Duration::from_secs(20), || async {
        let steps = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM projector.steps")
            .fetch_one(&world.db.pool)
            .await
            .unwrap();
        let held =
            sqlx::query_scalar::<_, i64>("SELECT count(*) FROM projector.workflows WHERE status = 'on_hold'")
                .fetch_one(&world.db.pool)
                .await
                .unwrap();
        let projects = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM projector.projects")
            .fetch_one(&world.db.pool)
            .await
            .unwrap();
        let pipelines = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM projector.pipelines")
            .fetch_one(&world.db.pool)
            .await
            .unwrap();
        steps + held + projects + pipelines == 4
    })
    .await;
    run
}

/// Live state that is away.
#[derive(Debug)]
pub struct NoLive;

#[async_trait]
impl Live for NoLive {
    async fn publish(&self, _: &str, _: bytes::Bytes) -> live::Result<()> {
        Err(live::Error("away".to_owned()))
    }

    async fn subscribe(&self, _: &str) -> live::Result<live::Subscription> {
        Err(live::Error("away".to_owned()))
    }

    async fn take(&self, _: &str, _: live::Quota) -> live::Result<live::Taken> {
        Err(live::Error("away".to_owned()))
    }

    async fn touch(&self, _: &str, _: &str, _: std::time::Duration) -> live::Result<()> {
        Err(live::Error("away".to_owned()))
    }

    async fn leave(&self, _: &str, _: &str) -> live::Result<()> {
        Err(live::Error("away".to_owned()))
    }

    async fn present(&self, _: &str) -> live::Result<Vec<String>> {
        Err(live::Error("away".to_owned()))
    }

    async fn count(&self, _: &str, _: i64, _: std::time::Duration) -> live::Result<i64> {
        Err(live::Error("away".to_owned()))
    }
}
