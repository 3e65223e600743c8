//! A running service and an agent's side of its protocol.

use agent_api::{CHUNK_CRC, Problem, Seal, StepReport};
use axum::{
    body::Body,
    http::{Request, header},
};
use base64::Engine;
use blobs::{Blobs, FsBlobs};
use bus::Bus;
use chrono::Utc;
use contracts::{
    Actor, RequestError,
    dispatcher::CloseEpoch,
    output::{GetStep, GetSteps, LogWindow, ReadLog, StepPlace, StepRecord},
};
use gantry_output_processor::{Config, Deps, Service, start};
use ids::{JobId, StepId, TaskId};
use kit::keys::{FenceClaims, Keys};
use live::{Live, LocalLive};
use records::{Document, NewDocument, PostgresRecords, Records};
use serde_json::Value;
use sha2::Digest;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use testkit::TestDb;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

pub const LIMIT: Duration = Duration::from_secs(20);

pub struct World {
    pub database: Arc<TestDb>,
    pub folder: Arc<TempDir>,
    pub keys: Keys,
    pub live: LocalLive,
    pub config: Config,
    /// Where other processes serve on the same database and folder: the blobs that all of them use.
    shared: Option<Arc<FsBlobs>>,
    /// How often the store of records will not answer.
    pub away: Arc<AtomicU32>,
    running: Option<Running>,
}

struct Running {
    bus: Bus,
    service: Service,
    stop: CancellationToken,
}

/// A store of records that does not answer as often as it is told.
#[derive(Debug)]
struct Sometimes {
    records: PostgresRecords,
    away: Arc<AtomicU32>,
}

#[async_trait::async_trait]
impl Records for Sometimes {
    async fn prepare(&self) -> records::Result<()> {
        self.records.prepare().await
    }

    async fn put(&self, documents: &[NewDocument]) -> records::Result<Vec<bool>> {
        self.records.put(documents).await
    }

    async fn get(&self, kind: &str, id: Uuid) -> records::Result<Option<Document>> {
        self.records.get(kind, id).await
    }

    async fn list_by(&self, kind: &str, group: Uuid) -> records::Result<Vec<Document>> {
        let one_less = |left: u32| left.checked_sub(1);
        match self.away.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
            Ok(_) => Err(sqlx::Error::PoolTimedOut.into()),
            Err(_) => self.records.list_by(kind, group).await,
        }
    }

    async fn remove(&self, kind: &str, ids: &[Uuid]) -> records::Result<()> {
        self.records.remove(kind, ids).await
    }

    async fn flush(&self) -> records::Result<()> {
        self.records.flush().await
    }
}

impl World {
    pub async fn new(config: Config) -> Self {
        let mut world = Self::make(config).await;
        world.start().await;
        world
    }

    async fn make(config: Config) -> Self {
        Self {
            database: Arc::new(testkit::postgres().await),
            folder: Arc::new(tempfile::tempdir().unwrap()),
            keys: Keys::from_bytes([9; 32]),
            live: LocalLive::new(),
            config,
            shared: None,
            away: Arc::default(),
            running: None,
        }
    }

    /// Two processes on one database and one folder, which reach each other.
    pub async fn two(config: Config) -> (Self, Self) {
        let mut first = Self::make(config).await;
        let blobs = FsBlobs::open(&first.folder.path().join("blobs"), &[[1u8; 32]]).await.unwrap();
        first.shared = Some(Arc::new(blobs));
        let mut second = Self {
            database: Arc::clone(&first.database),
            folder: Arc::clone(&first.folder),
            keys: first.keys.clone(),
            live: first.live.clone(),
            config: first.config.clone(),
            shared: first.shared.clone(),
            away: Arc::default(),
            running: None,
        };
        first.start().await;
        second.start().await;
        (first, second)
    }

    pub async fn start(&mut self) {
        let bus = Bus::local(self.database.pool.clone());
        let stop = CancellationToken::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let blobs = match &self.shared {
            Some(blobs) => Arc::clone(blobs),
            None => Arc::new(FsBlobs::open(&self.folder.path().join("blobs"), &[[1u8; 32]]).await.unwrap()),
        };
        let deps = Deps {
            pool: self.database.pool.clone(),
            bus: bus.clone(),
            keys: self.keys.clone(),
            blobs,
            live: Arc::new(self.live.clone()),
            records: Arc::new(Sometimes { records: self.records().await, away: Arc::clone(&self.away) }),
            journal_dir: self.journal(),
            peer_url: self.shared.as_ref().map(|_| url),
            config: self.config.clone(),
        };
        let service = start(deps, stop.clone()).await.unwrap();
        let (router, ended) = (service.agent_router(), stop.clone());
        tokio::spawn(async move {
            axum::serve(listener, router).with_graceful_shutdown(ended.cancelled_owned()).await.unwrap();
        });
        self.running = Some(Running { bus, service, stop });
    }

    /// Stops the service in good order.
    pub async fn stop(&mut self) {
        let running = self.running.take().unwrap();
        running.stop.cancel();
        running.service.join().await;
        self.live.flush();
    }

    pub fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    /// The blobs beside the service; opening them again would sweep what it is writing.
    pub fn blobs(&self) -> FsBlobs {
        FsBlobs::open_for_audit(&self.folder.path().join("blobs"))
    }

    pub async fn records(&self) -> PostgresRecords {
        PostgresRecords::open(self.database.pool.clone()).await.unwrap()
    }

    pub fn bus(&self) -> &Bus {
        &self.running.as_ref().unwrap().bus
    }

    pub fn service(&self) -> &Service {
        &self.running.as_ref().unwrap().service
    }

    pub async fn read(&self, step: StepId, offset: u64, wait_ms: u64) -> Result<LogWindow, RequestError> {
        let ask = ReadLog { step_id: step, offset, limit: 128 * 1024, wait_ms };
        self.bus().ask(&Actor::service("test"), &ask).await
    }

    /// All output of a step, window by window.
    pub async fn output(&self, step: StepId) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let window = self.read(step, all.len() as u64, 0).await.unwrap();
            let data = base64::engine::general_purpose::STANDARD.decode(&window.data).unwrap();
            assert_eq!(window.next, (all.len() + data.len()) as u64);
            all.extend(data);
            if all.len() as u64 >= window.total {
                return all;
            }
        }
    }

    /// The dispatcher has told of the task.
    pub async fn known(&self, agent: &Agent) {
        sqlx::query("INSERT INTO output_processor.tasks (task_id, job_id, index) VALUES ($1, $2, 0)")
            .bind(agent.task.uuid())
            .bind(agent.job.uuid())
            .execute(&self.database.pool)
            .await
            .unwrap();
    }

    pub async fn steps(&self, job: JobId) -> Vec<StepRecord> {
        self.bus().ask(&Actor::service("test"), &GetSteps { job_id: job }).await.unwrap()
    }

    pub async fn step(&self, step: StepId) -> StepPlace {
        self.bus().ask(&Actor::service("test"), &GetStep { step_id: step }).await.unwrap()
    }

    pub async fn close(&self, task: TaskId, epoch: i64) {
        self.bus().ask(&Actor::service("test"), &CloseEpoch { task_id: task, epoch }).await.unwrap();
    }

    /// Waits until the record of the task is complete and the journal has let it go.
    pub async fn finished(&self, task: TaskId, epoch: i64) {
        testkit::until("the record is complete", LIMIT, || async move {
            let fence: Option<i64> =
                sqlx::query_scalar("SELECT closed_to FROM output_processor.fences WHERE task_id = $1")
                    .bind(task.uuid())
                    .fetch_optional(&self.database.pool)
                    .await
                    .unwrap();
            fence == Some(epoch)
        })
        .await;
    }

    pub async fn in_blob(&self, step: StepId) {
        let blobs = self.blobs();
        let key = blobs::Key::new(format!("logs/{step}")).unwrap();
        testkit::until("the output is in the blob store", LIMIT, || async {
            blobs.head(&key).await.unwrap().is_some()
        })
        .await;
    }

    /// Every `step.reported` of a task.
    pub async fn events(&self, task: TaskId) -> Vec<Value> {
        sqlx::query_scalar(
            "SELECT body FROM output_processor.events WHERE aggregate_id = $1 ORDER BY version",
        )
        .bind(task.uuid())
        .fetch_all(&self.database.pool)
        .await
        .unwrap()
    }

    pub async fn listen(&self, topic: &str) -> live::Subscription {
        self.live.subscribe(topic).await.unwrap()
    }

    pub async fn document(&self, kind: &str, id: Uuid) -> Option<records::Document> {
        self.records().await.get(kind, id).await.unwrap()
    }
}

/// The holder of a lease.
pub struct Agent {
    pub task: TaskId,
    pub job: JobId,
    pub epoch: i64,
    pub expires_in_ms: i64,
}

/// Status and body of an answer.
pub type Answer = (u16, Value);

/// Status and code of an answer.
pub fn code(answer: &Answer) -> (u16, String) {
    let problem: Problem = serde_json::from_value(answer.1.clone()).unwrap();
    (answer.0, problem.code)
}

pub fn acknowledged(answer: &Answer) -> u64 {
    assert_eq!(answer.0, 200, "{answer:?}");
    answer.1["next_offset"].as_u64().unwrap()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(sha2::Sha256::digest(bytes))
}

impl Agent {
    pub fn new() -> Self {
        Self { task: TaskId::new(), job: JobId::new(), epoch: 1, expires_in_ms: 60_000 }
    }

    pub fn token(&self, world: &World) -> String {
        let expires_at = Utc::now().timestamp_millis() + self.expires_in_ms;
        let claims = FenceClaims {
            task_id: self.task,
            job_id: self.job,
            epoch: self.epoch,
            expires_at,
            public_key: Default::default(),
            trace: None,
        };
        world.keys.seal_claims("fence", &claims)
    }

    pub async fn send(
        &self,
        world: &World,
        method: &str,
        path: &str,
        crc: Option<u32>,
        body: Vec<u8>,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/v1/tasks/{}/{path}", self.task))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token(world)));
        if let Some(crc) = crc {
            request = request.header(CHUNK_CRC, format!("{crc:08x}"));
        }
        let request = request.body(Body::from(body)).unwrap();
        let response = world.service().agent_router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub async fn chunk(&self, world: &World, step: StepId, offset: u64, data: &[u8]) -> Answer {
        let path = format!("streams/{step}/chunks?offset={offset}");
        self.send(world, "PUT", &path, Some(crc32c::crc32c(data)), data.to_vec()).await
    }

    pub async fn seal(&self, world: &World, step: StepId, content: &[u8]) -> Answer {
        let total_bytes = content.len() as u64;
        let seal = Seal { total_bytes, sha256: sha256(content), produced_bytes: total_bytes };
        self.seal_with(world, step, &seal).await
    }

    pub async fn seal_with(&self, world: &World, step: StepId, seal: &Seal) -> Answer {
        let path = format!("streams/{step}/seal");
        self.send(world, "POST", &path, None, serde_json::to_vec(seal).unwrap()).await
    }

    pub async fn report(&self, world: &World, step: StepId, number: u32, status: &str) -> Answer {
        let ended = status != "running";
        let report = StepReport {
            step_id: step,
            number,
            name: format!("step {number}"),
            status: status.to_owned(),
            bash_command: Some("#!/bin/bash -eo pipefail\necho \0".to_owned()),
            exit_code: ended.then_some(0),
            background: false,
            started_at: Utc::now(),
            ended_at: ended.then(Utc::now),
        };
        self.send(world, "POST", "steps", None, serde_json::to_vec(&report).unwrap()).await
    }
}
