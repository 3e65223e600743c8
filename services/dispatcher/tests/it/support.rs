//! A dispatcher on a real database, with a conductor that says what the test wants.

use agent_api::{Claim, FinalReport, Lease, Problem};
use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use blobs::{Blobs, FsBlobs};
use bus::{Bus, Responder};
use contracts::{
    Actor, Envelope, NewEvent, RequestError,
    conductor::JobReady,
    dispatcher::{CloseEpoch, JobFinished, TaskFinished, TaskQueued},
    domain::Project,
    pipelines::{Trigger, Vcs},
    request::Ask,
};
use eventstore::{NO_MIGRATIONS, Position, Store};
use gantry_dispatcher::{Config, Deps, Docker};
use http_body_util::BodyExt;
use ids::{ClaimId, InstanceId, JobId, OrgId, PipelineId, ProjectId, TaskId, WorkflowId};
use kit::keys::{Keys, PlacementClaims};
use model::{
    plan::{Container, Executor, JobDefinition},
    status::JobStatus,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

pub const LIMIT: Duration = Duration::from_secs(30);

/// Remembers which epochs were closed.
#[derive(Default)]
pub struct Receiver(pub Mutex<Vec<(TaskId, i64)>>);

#[async_trait::async_trait]
impl Responder for Receiver {
    async fn respond(&self, req: contracts::Request) -> Result<serde_json::Value, RequestError> {
        assert_eq!(req.name, CloseEpoch::NAME);
        bus::route::<CloseEpoch, _, _>(&req, |ask, _| async move {
            self.0.lock().unwrap().push((ask.task_id, ask.epoch));
            Ok(())
        })
        .await
    }
}

/// Blobs and the folder where they lie.
pub type Files = (Arc<dyn Blobs>, tempfile::TempDir);

pub struct World {
    pub pool: sqlx::PgPool,
    pub bus: Bus,
    pub keys: Keys,
    pub receiver: Arc<Receiver>,
    pub files: Files,
    router: Router,
    conductor: Store,
    dispatcher: Store,
    pub stop: CancellationToken,
    service: gantry_dispatcher::Service,
    pub project: Project,
}

/// Leases short enough to wait for their end.
pub fn quick() -> Config {
    Config {
        slots: 2,
        recovery_grace: Duration::ZERO,
        lease: Duration::from_millis(1500),
        self_stop: Duration::from_millis(1000),
        renew: Duration::from_millis(50),
        ..patient()
    }
}

/// Nothing runs out of time during a test.
pub fn patient() -> Config {
    Config { slots: 2, recovery_grace: Duration::ZERO, docker: Docker::Host, ..Config::default() }
}

/// One more process of the service on the same database.
pub struct Beside {
    pub bus: Bus,
    service: gantry_dispatcher::Service,
    stop: CancellationToken,
    wakes: Vec<tokio::task::JoinHandle<()>>,
}

impl Beside {
    pub async fn halt(self) {
        self.stop.cancel();
        self.service.join().await.unwrap();
        for wakes in self.wakes {
            wakes.await.unwrap();
        }
    }
}

impl World {
    /// Another process beside this one; the two wake each other.
    pub async fn beside(&self, config: Config) -> Beside {
        let bus = Bus::local(self.pool.clone());
        bus.register_source(&self.conductor);
        bus.respond("output-processor", self.receiver.clone());
        let (service, stop, _) = Self::boot(&self.pool, &bus, &self.keys, &self.files, config).await;
        let wakes = [&self.bus, &bus].map(|bus| bus.across_processes(stop.clone())).into();
        let heard = async {
            let mut hints = self.bus.hints();
            loop {
                bus.hint("test.ping");
                if tokio::time::timeout(Duration::from_millis(50), hints.next()).await.is_ok() {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, heard).await.expect("the two hear each other");
        Beside { bus, service, stop, wakes }
    }

    pub async fn new(config: Config) -> Self {
        let pool = testkit::postgres().await.pool;
        let bus = Bus::local(pool.clone());
        let conductor = Store::open(pool.clone(), "conductor", &NO_MIGRATIONS).await.unwrap();
        bus.register_source(&conductor);
        let receiver = Arc::new(Receiver::default());
        bus.respond("output-processor", receiver.clone());
        let keys = Keys::from_bytes([3; 32]);
        let project = Project {
            id: ProjectId::new(),
            org_id: OrgId::new(),
            org: "local".to_owned(),
            name: "shop".to_owned(),
            slug: "git/local/shop".to_owned(),
            default_branch: "main".to_owned(),
        };
        let folder = tempfile::tempdir().unwrap();
        let blobs: Arc<dyn Blobs> = Arc::new(FsBlobs::open(folder.path(), &["key"]).await.unwrap());
        let files = (blobs, folder);
        let (service, stop, router) = Self::boot(&pool, &bus, &keys, &files, config).await;
        let dispatcher = Store::open(pool.clone(), "dispatcher", &gantry_dispatcher::MIGRATOR).await.unwrap();
        Self { pool, bus, keys, receiver, files, router, conductor, dispatcher, stop, service, project }
    }

    async fn boot(
        pool: &sqlx::PgPool,
        bus: &Bus,
        keys: &Keys,
        files: &Files,
        config: Config,
    ) -> (gantry_dispatcher::Service, CancellationToken, Router) {
        let stop = CancellationToken::new();
        let deps = Deps {
            pool: pool.clone(),
            bus: bus.clone(),
            keys: keys.clone(),
            blobs: Arc::clone(&files.0),
            config,
            public_url: "http://ci.example".to_owned(),
            git_url: "http://127.0.0.1:1".to_owned(),
        };
        let service = gantry_dispatcher::start(deps, stop.clone()).await.unwrap();
        let router = service.agent_router();
        (service, stop, router)
    }

    pub async fn halt(self) {
        self.stop.cancel();
        self.service.join().await.unwrap();
    }

    /// Stops the dispatcher, waits, and starts it with another configuration.
    pub async fn restart(self, down: Duration, config: Config) -> Self {
        let Self {
            pool,
            bus,
            keys,
            receiver,
            files,
            conductor,
            dispatcher,
            stop,
            service,
            project,
            router: _,
        } = self;
        stop.cancel();
        service.join().await.unwrap();
        tokio::time::sleep(down).await;
        let (service, stop, router) = Self::boot(&pool, &bus, &keys, &files, config).await;
        Self { pool, bus, keys, receiver, files, router, conductor, dispatcher, stop, service, project }
    }

    /// A job that the conductor found ready.
    pub async fn ready(&self, parallelism: u32, executor: Executor) -> JobId {
        let job = JobId::new();
        self.announce(job, parallelism, executor).await;
        job
    }

    pub async fn announce(&self, job_id: JobId, parallelism: u32, executor: Executor) {
        self.announce_in(&self.project.clone(), job_id, parallelism, executor).await;
    }

    pub async fn announce_in(&self, project: &Project, job_id: JobId, parallelism: u32, executor: Executor) {
        self.announce_class(project, job_id, parallelism, executor, "medium").await;
    }

    pub async fn announce_class(
        &self,
        project: &Project,
        job_id: JobId,
        parallelism: u32,
        executor: Executor,
        resource_class: &str,
    ) {
        let workflow_id = WorkflowId::new();
        let body = JobReady {
            job_id,
            workflow_id,
            workflow_name: "build".to_owned(),
            workspace_id: workflow_id,
            pipeline_id: PipelineId::new(),
            pipeline_number: 1,
            project: project.clone(),
            name: "test".to_owned(),
            number: 1,
            previous_number: None,
            vcs: Vcs { revision: "abc".to_owned(), branch: Some("main".to_owned()), tag: None },
            trigger: Trigger {
                kind: "webhook".to_owned(),
                actor: None,
                actor_login: Some("ada".to_owned()),
                received_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            },
            upstream: Vec::new(),
            contexts: Vec::new(),
            acting_user: None,
            failed_tests_of: None,
            ssh: None,
            definition: JobDefinition {
                executor,
                resource_class: resource_class.to_owned(),
                environment: Vec::new(),
                working_directory: "~/project".to_owned(),
                shell: None,
                parallelism,
                steps: Vec::new(),
                continues: false,
                auto_rerun_on_infra_fail: 0,
                cache_days: None,
            },
        };
        let mut tx = self.conductor.begin(&[]).await.unwrap();
        let event = NewEvent::new("workflow", workflow_id.uuid(), Actor::service("conductor"), &body)
            .in_project(project.org_id, project.id)
            .of_pipeline(body.pipeline_id);
        tx.append(&[event]).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// The conductor says something.
    pub async fn tell(&self, event: NewEvent) {
        let mut tx = self.conductor.begin(&[]).await.unwrap();
        tx.append(&[event]).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// All events of the dispatcher, in order.
    pub async fn events(&self) -> Vec<Envelope> {
        loop {
            let page = self.dispatcher.read_after(Position::default(), 1000).await.unwrap();
            // An older transaction is open somewhere: newer events are not shown yet.
            if !page.unsettled {
                return page.events.into_iter().map(|(_, envelope)| envelope).collect();
            }
            tokio::task::yield_now().await;
        }
    }

    pub async fn all<E: contracts::Event>(&self) -> Vec<E> {
        self.events()
            .await
            .iter()
            .filter(|event| event.is::<E>())
            .map(|event| event.body_as().unwrap())
            .collect()
    }

    /// Waits until the dispatcher has said `count` of these, or more.
    pub async fn said<E: contracts::Event>(&self, count: usize) -> Vec<E> {
        testkit::until(E::TYPE, LIMIT, || async { self.all::<E>().await.len() >= count }).await;
        self.all().await
    }

    pub async fn queued(&self, count: usize) -> Vec<TaskQueued> {
        self.said(count).await
    }

    pub async fn job_finished(&self, job: JobId) -> JobFinished {
        testkit::until("the job ends", LIMIT, || async {
            self.all::<JobFinished>().await.iter().any(|finished| finished.job_id == job)
        })
        .await;
        self.all::<JobFinished>().await.into_iter().find(|finished| finished.job_id == job).unwrap()
    }

    pub async fn task_finished(&self, task: TaskId) -> TaskFinished {
        testkit::until("the task ends", LIMIT, || async {
            self.all::<TaskFinished>().await.iter().any(|finished| finished.task_id == task)
        })
        .await;
        self.all::<TaskFinished>().await.into_iter().find(|finished| finished.task_id == task).unwrap()
    }

    async fn call<T: DeserializeOwned>(&self, request: Request<Body>) -> Result<T, (StatusCode, Problem)> {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        if status.is_success() {
            // No content is `null` here.
            Ok(serde_json::from_slice(if body.is_empty() { b"null" } else { &body }).unwrap())
        } else {
            Err((status, serde_json::from_slice(&body).unwrap()))
        }
    }

    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        fence: Option<&str>,
        body: &impl Serialize,
    ) -> Result<T, (StatusCode, Problem)> {
        let mut request = Request::post(path).header("content-type", "application/json");
        if let Some(fence) = fence {
            request = request.header("authorization", format!("Bearer {fence}"));
        }
        self.call(request.body(Body::from(serde_json::to_vec(body).unwrap())).unwrap()).await
    }

    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        fence: &str,
    ) -> Result<T, (StatusCode, Problem)> {
        let request = Request::get(path).header("authorization", format!("Bearer {fence}"));
        self.call(request.body(Body::empty()).unwrap()).await
    }

    pub async fn claim_as(
        &self,
        claim_id: ClaimId,
        task_id: TaskId,
        epoch: i64,
    ) -> Result<Lease, (StatusCode, Problem)> {
        let token = self.keys.seal_claims("placement", &PlacementClaims { task_id, epoch });
        let claim = Claim {
            claim_id,
            instance_id: InstanceId::new(),
            token,
            public_key: "a2V5".to_owned(),
            version: "0.1.0".to_owned(),
        };
        self.post("/v1/claim", None, &claim).await
    }

    pub async fn claim(&self, queued: &TaskQueued) -> Lease {
        self.claim_as(ClaimId::new(), queued.task_id, queued.epoch).await.unwrap()
    }

    pub async fn finish(
        &self,
        lease: &Lease,
        status: JobStatus,
    ) -> Result<serde_json::Value, (StatusCode, Problem)> {
        let report = FinalReport { status, reason: None, settled: false };
        self.post(&format!("/v1/tasks/{}/finish", lease.task_id), Some(&lease.fence), &report).await
    }
}

pub fn machine() -> Executor {
    Executor::Machine { image: None }
}

pub fn docker() -> Executor {
    Executor::Docker {
        containers: vec![Container { image: "cimg/base:current".to_owned(), ..Container::default() }],
    }
}

/// The error code of an answer.
pub fn code<T>(answer: Result<T, (StatusCode, Problem)>) -> String {
    answer.err().map(|(_, problem)| problem.code).unwrap_or_default()
}
