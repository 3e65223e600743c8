//! A conductor with everything around it played by the test.

use async_trait::async_trait;
use blobs::{Blobs, FsBlobs};
use bus::{AskOptions, Bus, Responder};
use contracts::{
    Actor, Envelope, Event, NewEvent, Request, RequestError,
    conductor::{JobReady, WorkflowCreated, WorkflowFinished},
    dispatcher::{JobFinished, JobStarted, RevokeJobs},
    domain::{GetProjectSettings, ListUserKeys, Project, ProjectSettings, UserKey, UserKeys},
    permissions::CheckPermission,
    pipelines::{PipelineCreated, Trigger, Vcs},
    request::Ask,
};
use eventstore::{NO_MIGRATIONS, Store};
use gantry_conductor::{Deps, Service};
use ids::{JobId, MessageId, OrgId, PipelineId, ProjectId, UserId, WorkflowId};
use model::{
    plan::{Executor, JobDefinition, JobKind, JobPlan, Plan, Requirement, RunStep, Step, WorkflowPlan},
    status::{JobStatus, WorkflowStatus},
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub const LIMIT: Duration = Duration::from_secs(30);

/// What the stand-ins were asked, and how they answer.
#[derive(Default)]
pub struct Others {
    pub revoked: Mutex<Vec<JobId>>,
    pub dispatcher_away: Mutex<bool>,
    pub forbidden: Mutex<Vec<(UserId, String)>>,
    pub ssh_keys: Mutex<Vec<UserKey>>,
    /// The project's setting.
    pub disable_ssh: Mutex<bool>,
}

struct StandIn(Arc<Others>);

#[async_trait]
impl Responder for StandIn {
    async fn respond(&self, req: Request) -> Result<Value, RequestError> {
        match req.name.as_str() {
            RevokeJobs::NAME => {
                bus::route::<RevokeJobs, _, _>(&req, |ask, _| async move {
                    if *self.0.dispatcher_away.lock().unwrap() {
                        return Err(RequestError::Failed { service: "dispatcher".into() });
                    }
                    self.0.revoked.lock().unwrap().extend(ask.job_ids);
                    Ok(())
                })
                .await
            }
            CheckPermission::NAME => {
                bus::route::<CheckPermission, _, _>(&req, |ask, _| async move {
                    Ok(!self.0.forbidden.lock().unwrap().contains(&(ask.user_id, ask.permission)))
                })
                .await
            }
            GetProjectSettings::NAME => {
                bus::route::<GetProjectSettings, _, _>(&req, |_, _| async move {
                    let disable_ssh = *self.0.disable_ssh.lock().unwrap();
                    Ok(ProjectSettings { disable_ssh, ..ProjectSettings::default() })
                })
                .await
            }
            ListUserKeys::NAME => {
                bus::route::<ListUserKeys, _, _>(&req, |_, _| async move {
                    Ok(UserKeys { login: "ada".into(), keys: self.0.ssh_keys.lock().unwrap().clone() })
                })
                .await
            }
            _ => Err(bus::unknown(&req)),
        }
    }
}

pub struct World {
    pub pool: PgPool,
    pub bus: Bus,
    pub others: Arc<Others>,
    pub project: Project,
    pub user: UserId,
    /// Branch of the next pipelines.
    pub branch: String,
    pub config: gantry_conductor::Config,
    pub blobs: Arc<dyn Blobs>,
    _folder: TempDir,
    pipelines: Store,
    dispatcher: Store,
    log: Store,
    running: Option<(Service, CancellationToken)>,
    started: u64,
}

impl World {
    pub async fn new() -> Self {
        let pool = testkit::postgres().await.pool;
        let pipelines = Store::open(pool.clone(), "pipelines", &NO_MIGRATIONS).await.unwrap();
        let dispatcher = Store::open(pool.clone(), "dispatcher", &NO_MIGRATIONS).await.unwrap();
        let org_id = OrgId::new();
        let project = Project {
            id: ProjectId::new(),
            org_id,
            org: "local".into(),
            name: "demo".into(),
            slug: "git/local/demo".into(),
            default_branch: "main".into(),
        };
        let bus = Bus::local(pool.clone());
        let others = Arc::new(Others::default());
        let folder = tempfile::tempdir().unwrap();
        let mut world = Self {
            blobs: Arc::new(FsBlobs::open(folder.path(), &[[1u8; 32]]).await.unwrap()),
            _folder: folder,
            // Its common tables only; the conductor brings its own to the same schema.
            log: Store::open(pool.clone(), "conductor", &NO_MIGRATIONS).await.unwrap(),
            pool,
            bus,
            config: gantry_conductor::Config::default(),
            others,
            project,
            user: UserId::new(),
            branch: "main".into(),
            pipelines,
            dispatcher,
            running: None,
            started: 0,
        };
        world.start().await;
        world
    }

    /// Starts a conductor process, or another one after [`World::stop`].
    pub async fn start(&mut self) {
        self.bus = Bus::local(self.pool.clone());
        self.bus.register_source(&self.pipelines);
        self.bus.register_source(&self.dispatcher);
        self.bus.respond("dispatcher", Arc::new(StandIn(Arc::clone(&self.others))));
        self.bus.respond("permissions", Arc::new(StandIn(Arc::clone(&self.others))));
        self.bus.respond("domain", Arc::new(StandIn(Arc::clone(&self.others)))); // SSH keys of people
        let stop = CancellationToken::new();
        let deps = Deps {
            pool: self.pool.clone(),
            bus: self.bus.clone(),
            blobs: Arc::clone(&self.blobs),
            config: self.config,
        };
        self.running = Some((gantry_conductor::start(deps, stop.clone()).await.unwrap(), stop));
    }

    pub async fn stop(&mut self) {
        if let Some((service, stop)) = self.running.take() {
            stop.cancel();
            service.join().await.unwrap();
        }
    }

    pub fn actor(&self) -> Actor {
        Actor::User { id: self.user }
    }

    /// Says that a pipeline was created, and waits for its workflows.
    pub async fn push(&mut self, workflows: Vec<WorkflowPlan>) -> Vec<WorkflowCreated> {
        let n = workflows.len();
        let pipeline_id = self.announce_pipeline(workflows).await;
        until("the workflows exist", LIMIT, async || self.workflows(pipeline_id).await.len() == n).await;
        self.workflows(pipeline_id).await
    }

    pub async fn announce_pipeline(&mut self, workflows: Vec<WorkflowPlan>) -> PipelineId {
        self.started += 1;
        let pipeline_id = PipelineId::new();
        let plan = Plan { workflows, ..Plan::default() };
        let bytes = serde_json::to_vec(&plan).unwrap();
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        let (plan, plan_digest) = if bytes.len() < 64 * 1024 {
            (Some(plan), hex::encode(digest))
        } else {
            let key = blobs::Key::new(format!("plans/{}", hex::encode(digest))).unwrap();
            self.blobs.put(&key, blobs::body(bytes), digest).await.unwrap();
            (None, hex::encode(digest))
        };
        let body = PipelineCreated {
            pipeline_id,
            project: self.project.clone(),
            number: i64::try_from(self.started).unwrap(),
            trigger: Trigger {
                kind: "webhook".into(),
                actor: Some(self.user),
                actor_login: Some("ada".into()),
                received_at: chrono::Utc::now(),
            },
            vcs: Vcs { revision: "0a1b2c".into(), branch: Some(self.branch.clone()), tag: None },
            setup: false,
            errors: Vec::new(),
            plan,
            plan_digest: Some(plan_digest),
        };
        let event = NewEvent::new("pipeline", pipeline_id.uuid(), self.actor(), &body);
        append(&self.pipelines, event).await;
        pipeline_id
    }

    pub async fn workflows(&self, pipeline: PipelineId) -> Vec<WorkflowCreated> {
        let mut found: Vec<WorkflowCreated> = self.events::<WorkflowCreated>().await;
        found.retain(|created| created.pipeline_id == pipeline && created.rerun_of.is_none());
        found
    }

    /// Bodies of all events of a type, oldest first.
    pub async fn events<E: Event>(&self) -> Vec<E> {
        let mut found = Vec::new();
        let mut after = Default::default();
        loop {
            let page = self.log.read_after(after, 1000).await.unwrap();
            let (n, unsettled) = (page.events.len(), page.unsettled);
            for (position, event) in page.events {
                after = position;
                if event.is::<E>() {
                    found.push(event.body_as().unwrap());
                }
            }
            if unsettled {
                // A transaction of another test holds the horizon back: the database ends it after 5 s.
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            } else if n == 0 {
                return found;
            }
        }
    }

    pub async fn history(&self, workflow: WorkflowId) -> Vec<Envelope> {
        self.log.history("workflow", workflow.uuid(), 0).await.unwrap()
    }

    /// The dispatcher says that a job started.
    pub async fn job_started(&self, workflow_id: WorkflowId, job_id: JobId) {
        let body = JobStarted { job_id, workflow_id, at: chrono::Utc::now() };
        let event = NewEvent::new("run", job_id.uuid(), Actor::service("dispatcher"), &body);
        append(&self.dispatcher, event).await;
    }

    /// The dispatcher says that a job ended.
    pub async fn job_finished(&self, workflow_id: WorkflowId, job_id: JobId, status: JobStatus) {
        self.job_settled(workflow_id, job_id, status, false).await;
    }

    /// The same, of one whose steps had ended when it was stopped.
    pub async fn job_settled(
        &self,
        workflow_id: WorkflowId,
        job_id: JobId,
        status: JobStatus,
        settled: bool,
    ) {
        let body = JobFinished { job_id, workflow_id, status, reason: None, settled, at: chrono::Utc::now() };
        let event = NewEvent::new("run", job_id.uuid(), Actor::service("dispatcher"), &body);
        append(&self.dispatcher, event).await;
    }

    /// Ends every job that becomes ready, by name; the others succeed. Returns when the workflow has ended.
    pub async fn run_to_end(&self, workflow: WorkflowId, ends: &[(&str, JobStatus)]) -> WorkflowStatus {
        let mut done = Vec::new();
        let mut result = None;
        until("the workflow ends", LIMIT, async || {
            for ready in self.events::<JobReady>().await {
                if ready.workflow_id == workflow && !done.contains(&ready.job_id) {
                    done.push(ready.job_id);
                    let end = ends.iter().find(|(name, _)| *name == ready.name);
                    self.job_started(workflow, ready.job_id).await;
                    self.job_finished(workflow, ready.job_id, end.map_or(JobStatus::Success, |(_, s)| *s))
                        .await;
                }
            }
            result = self.finished(workflow).await;
            result.is_some()
        })
        .await;
        result.unwrap()
    }

    pub async fn finished(&self, workflow: WorkflowId) -> Option<WorkflowStatus> {
        let history = self.history(workflow).await;
        let last = history.iter().find(|event| event.is::<WorkflowFinished>())?;
        Some(last.body_as::<WorkflowFinished>().unwrap().status)
    }

    pub async fn workflow_status(&self, workflow: WorkflowId) -> String {
        sqlx::query_scalar("SELECT status FROM conductor.workflows WHERE id = $1")
            .bind(workflow.uuid())
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Status of every job by name.
    pub async fn jobs(&self, workflow: WorkflowId) -> HashMap<String, String> {
        sqlx::query_as::<_, (String, String)>(
            "SELECT name, status FROM conductor.jobs WHERE workflow_id = $1",
        )
        .bind(workflow.uuid())
        .fetch_all(&self.pool)
        .await
        .unwrap()
        .into_iter()
        .collect()
    }

    pub async fn until_job(&self, workflow: WorkflowId, name: &str, status: &str) {
        let what = format!("{name} is {status}");
        until(&what, LIMIT, async || self.jobs(workflow).await[name] == status).await;
    }

    pub async fn until_workflow(&self, workflow: WorkflowId, status: &str) {
        let what = format!("the workflow is {status}");
        until(&what, LIMIT, async || self.workflow_status(workflow).await == status).await;
    }

    pub async fn ask<A: Ask>(&self, ask: &A) -> Result<A::Reply, RequestError> {
        self.bus.ask(&self.actor(), ask).await
    }

    pub async fn ask_again<A: Ask>(&self, id: MessageId, ask: &A) -> Result<A::Reply, RequestError> {
        let opts = AskOptions { id: Some(id), ..AskOptions::default() };
        self.bus.ask_with(opts, &self.actor(), ask).await
    }

    pub async fn dead_letters(&self) -> i64 {
        sqlx::query_scalar(
            "SELECT (SELECT count(*) FROM conductor.dead_letters) + (SELECT count(*) FROM conductor.parked)",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap()
    }

    /// everything that has not ended has a time or somebody who looks after it; and the counts are right.
    pub async fn check_rows(&self) {
        let wrong: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM conductor.workflows w WHERE counts <> coalesce((SELECT jsonb_object_agg(status, n) \
                 FROM (SELECT status, count(*) n FROM conductor.jobs WHERE workflow_id = w.id GROUP BY status) s), '{}')",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        assert_eq!(wrong, 0, "workflows whose counts are not those of their jobs");
        let wrong: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM conductor.workflows w WHERE version <> \
                 (SELECT max(version) FROM conductor.events WHERE aggregate_kind = 'workflow' AND aggregate_id = w.id)",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        assert_eq!(wrong, 0, "workflows whose version is not that of their last event");
        assert_eq!(self.dead_letters().await, 0, "messages that could not be handled");
    }
}

pub async fn append(store: &Store, event: NewEvent) {
    let mut tx = store.begin(&[eventstore::Key::new(event.aggregate, event.aggregate_id)]).await.unwrap();
    tx.append(&[event]).await.unwrap();
    tx.commit().await.unwrap();
}

pub fn workflow(name: &str, jobs: Vec<JobPlan>) -> WorkflowPlan {
    WorkflowPlan { name: name.into(), jobs, max_auto_reruns: 0 }
}

pub fn build(name: &str, requires: &[&str]) -> JobPlan {
    node(name, JobKind::Build { definition: Box::new(definition()) }, requires)
}

pub fn approval(name: &str, requires: &[&str]) -> JobPlan {
    node(name, JobKind::Approval, requires)
}

pub fn no_op(name: &str, requires: &[&str]) -> JobPlan {
    node(name, JobKind::NoOp, requires)
}

/// `name` or `name:status,status`.
pub fn node(name: &str, kind: JobKind, requires: &[&str]) -> JobPlan {
    let requires = requires
        .iter()
        .map(|edge| {
            let (job, accepts) = edge.split_once(':').unwrap_or((edge, "success"));
            let accepts = accepts.split(',').map(|word| JobStatus::parse(word).unwrap()).collect();
            Requirement { job: job.into(), accepts }
        })
        .collect();
    JobPlan { name: name.into(), kind, requires, contexts: vec!["deploy".into()], serial_group: None }
}

pub fn definition() -> JobDefinition {
    JobDefinition {
        executor: Executor::Machine { image: None },
        resource_class: String::new(),
        environment: Vec::new(),
        working_directory: "~/project".into(),
        shell: None,
        parallelism: 1,
        steps: vec![Step::Run(RunStep {
            name: "true".into(),
            command: "true".into(),
            no_output_timeout_secs: 600,
            ..RunStep::default()
        })],
        continues: false,
        auto_rerun_on_infra_fail: 0,
        cache_days: None,
    }
}

pub fn id_of(created: &WorkflowCreated, name: &str) -> JobId {
    created.jobs.iter().find(|job| job.name == name).unwrap().job_id
}

pub fn code<T: std::fmt::Debug>(answer: Result<T, RequestError>) -> String {
    match answer.unwrap_err() {
        RequestError::Refused(refusal) => refusal.code,
        other => panic!("{other:?}"),
    }
}

/// Waits until a condition holds, and says for what it waited in vain.
pub async fn until(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition().await {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
