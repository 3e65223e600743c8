//! The service with a real database and real files.

use agent_api::stores::{FailedTests, Timings};
use archive::Source;
use axum::{body::Body, http::Request};
use blobs::{Blobs, FsBlobs, Key};
use bus::Bus;
use chrono::{TimeDelta, Utc};
use contracts::{
    Actor, NewEvent,
    retention::{Archived, WorkflowExpired},
    test_results::{ListTests, TestPage},
};
use gantry_test_results::{Config, Deps, MIGRATOR, Service, start};
use ids::{JobId, TaskId};
use kit::keys::{FenceClaims, Keys};
use std::{sync::Arc, time::Duration};
use testkit::TestDb;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

/// An id of something that nobody has heard of.
fn fresh() -> Uuid {
    ids::MessageId::new().uuid()
}

const LIMIT: Duration = Duration::from_secs(20);

struct World {
    database: TestDb,
    folder: tempfile::TempDir,
    keys: Keys,
    project: Uuid,
}

impl World {
    async fn new() -> Self {
        let database = testkit::postgres().await;
        eventstore::Store::open(database.pool.clone(), "test-results", &MIGRATOR).await.unwrap();
        let (folder, keys) = (tempfile::tempdir().unwrap(), Keys::from_bytes([9; 32]));
        Self { database, folder, keys, project: fresh() }
    }

    async fn blobs(&self) -> FsBlobs {
        FsBlobs::open(&self.folder.path().join("blobs"), &[[1u8; 32]]).await.unwrap()
    }

    /// An upload that waits to be read.
    async fn upload(&self, job: JobId, branch: &str, ago: TimeDelta, packed: Vec<u8>) {
        let object = fresh();
        let key = Key::new(format!("stores/{object}")).unwrap();
        let sum = blobs::digest(&packed);
        self.blobs().await.put(&key, blobs::body(packed), sum).await.unwrap();
        sqlx::query(
            "INSERT INTO test_results.reports \
                 (object_id, job_id, index, project_id, job_name, branch, revision, blob, at) \
             VALUES ($1, $2, 0, $3, 'test', $4, 'abc', $5, $6)",
        )
        .bind(object)
        .bind(job.uuid())
        .bind(self.project)
        .bind(branch)
        .bind(key.as_str())
        .bind(Utc::now() - ago)
        .execute(&self.database.pool)
        .await
        .unwrap();
    }

    async fn announce(&self, job: JobId, branch: &str) {
        sqlx::query(
            "INSERT INTO test_results.jobs (job_id, project_id, name, branch) VALUES ($1, $2, 'test', $3)",
        )
        .bind(job.uuid())
        .bind(self.project)
        .bind(branch)
        .execute(&self.database.pool)
        .await
        .unwrap();
    }

    async fn start(&self, config: Config) -> (Bus, Service) {
        let bus = Bus::local(self.database.pool.clone());
        let deps = Deps {
            pool: self.database.pool.clone(),
            bus: bus.clone(),
            keys: self.keys.clone(),
            blobs: Arc::new(self.blobs().await),
            config,
        };
        let service = start(deps, CancellationToken::new()).await.unwrap();
        testkit::until("all reports are read", LIMIT, || async {
            let waiting: i64 =
                sqlx::query_scalar("SELECT count(*) FROM test_results.reports WHERE state = 'waiting'")
                    .fetch_one(&self.database.pool)
                    .await
                    .unwrap();
            waiting == 0
        })
        .await;
        (bus, service)
    }

    async fn timings(&self, service: &Service, job: JobId) -> (u16, Timings) {
        self.told(service, job, "timings").await
    }

    async fn told<T: serde::de::DeserializeOwned + Default>(
        &self,
        service: &Service,
        job: JobId,
        what: &str,
    ) -> (u16, T) {
        let task_id = TaskId::new();
        let expires_at = Utc::now().timestamp_millis() + 60_000;
        let claims =
            FenceClaims { task_id, job_id: job, epoch: 1, expires_at, public_key: None, trace: None };
        let request = Request::get(format!("/v1/tasks/{task_id}/{what}"))
            .header("authorization", format!("Bearer {}", self.keys.seal_claims("fence", &claims)))
            .body(Body::empty())
            .unwrap();
        let response = service.agent_router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }
}

fn pack(files: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let sources = files.iter().map(|(name, text)| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Source { name: name.into(), path }
    });
    let mut packed = Vec::new();
    archive::pack(&mut packed, &sources.collect::<Vec<_>>()).unwrap();
    zstd::encode_all(&packed[..], 3).unwrap()
}

fn run(times: &[(&str, f64)]) -> Vec<u8> {
    let cases = times.iter().map(|(file, time)| {
        format!("<testcase name=\"n\" classname=\"C\" file=\"{file}\" time=\"{time}\"/>")
    });
    pack(&[("0", &format!("<testsuite>{}</testsuite>", cases.collect::<String>()))])
}

async fn list(bus: &Bus, job: JobId, offset: u64, limit: u32) -> TestPage {
    bus.ask(&Actor::service("test"), &ListTests { job_id: job, offset, limit }).await.unwrap()
}

#[tokio::test]
async fn reports_are_read_and_listed_and_bad_ones_are_named() {
    let world = World::new().await;
    let (job, other, large) = (JobId::new(), JobId::new(), JobId::new());
    let good = "<testsuite><testcase name='a\u{fffe}' classname='A'><failure>no</failure></testcase>\
                <testcase name='b' time='1.5'/></testsuite>";
    world.upload(job, "main", TimeDelta::zero(), pack(&[("0", good), ("1", "<coverage/>")])).await;
    world.upload(other, "main", TimeDelta::zero(), b"no archive".to_vec()).await;
    world.upload(large, "main", TimeDelta::zero(), pack(&[("0", &" ".repeat(200_000))])).await;
    let config = Config { max_expanded_bytes: 100_000, ..Config::default() };
    let (bus, service) = world.start(config).await;

    let page = list(&bus, job, 0, 1).await;
    assert_eq!((page.total, page.items.len()), (2, 1));
    assert_eq!((page.items[0].result.as_str(), page.items[0].message.as_str()), ("failure", "no"));
    assert_eq!(page.problems, ["1: invalid top level element: coverage"]);
    let page = list(&bus, job, 1, 10).await;
    assert_eq!((page.items[0].name.as_str(), page.items[0].run_time), ("b", 1.5));
    for job in [other, large] {
        let page = list(&bus, job, 0, 10).await;
        assert_eq!(page.total, 0);
        assert!(page.problems[0].starts_with("test_report_rejected: "), "{:?}", page.problems);
    }
    assert_eq!(service.sweep(Utc::now() + TimeDelta::days(29)).await.unwrap(), 0);
    assert_eq!(service.sweep(Utc::now() + TimeDelta::days(31)).await.unwrap(), 3);
    assert_eq!(list(&bus, job, 0, 10).await.total, 0);
}

#[tokio::test]
async fn all_tasks_of_a_job_are_told_the_same_times_of_the_latest_runs() {
    let world = World::new().await;
    let old = TimeDelta::hours;
    world.upload(JobId::new(), "main", old(1), run(&[("a.rb", 1.0), ("a.rb", 2.0), ("b.rb", 4.0)])).await;
    world.upload(JobId::new(), "main", old(2), run(&[("a.rb", 5.0)])).await;
    world.upload(JobId::new(), "main", old(9), run(&[("a.rb", 500.0), ("gone.rb", 1.0)])).await;
    world.upload(JobId::new(), "side", old(0), run(&[("a.rb", 100.0), ("side.rb", 7.0)])).await;
    let (job, side) = (JobId::new(), JobId::new());
    world.announce(job, "main").await;
    world.announce(side, "side").await;
    let config = Config { timed_runs: 2, ..Config::default() };
    let (_bus, service) = world.start(config).await;

    let (status, first) = world.timings(&service, job).await;
    assert_eq!(status, 200);
    let files: Vec<_> = first.files.iter().map(|(name, ms)| (name.as_str(), *ms)).collect();
    assert_eq!(files, [("a.rb", 4000), ("b.rb", 4000)], "the two latest of the branch");
    assert_eq!(first.classes["C"], 6000);
    // The branch has one run: the newest of others fills up.
    assert_eq!(world.timings(&service, side).await.1.files["side.rb"], 7000);
    // What becomes known later changes nothing for the job that has begun.
    sqlx::query("UPDATE test_results.tests SET run_time = 1000").execute(&world.database.pool).await.unwrap();
    assert_eq!(world.timings(&service, job).await.1, first);
    assert_eq!(world.timings(&service, JobId::new()).await.0, 503);
}

#[tokio::test]
async fn a_job_is_told_where_tests_of_the_job_before_failed() {
    let world = World::new().await;
    let (before, job, whole) = (JobId::new(), JobId::new(), JobId::new());
    let report = "<testsuite><testcase name='a' classname='A' file='./a.rb'><failure>no</failure></testcase>\
                  <testcase name='b' classname='A' file='b.rb'/><testcase name='s' file='s.rb'><skipped/></testcase>\
                  <testcase name='e'><error>crashed</error></testcase></testsuite>";
    world.upload(before, "main", TimeDelta::zero(), pack(&[("0", report)])).await;
    world.announce(job, "main").await;
    world.announce(whole, "main").await;
    sqlx::query("UPDATE test_results.jobs SET failed_tests_of = $2 WHERE job_id = $1")
        .bind(job.uuid())
        .bind(before.uuid())
        .execute(&world.database.pool)
        .await
        .unwrap();
    let (_bus, service) = world.start(Config::default()).await;
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let failed = FailedTests { files: set(&["a.rb"]), classes: set(&["A"]), tests: set(&["a", "e"]) };
    assert_eq!(world.told(&service, job, "failed-tests").await, (200, failed));
    assert_eq!(world.told(&service, whole, "failed-tests").await, (200, FailedTests::default()));
    assert_eq!(world.told::<FailedTests>(&service, JobId::new(), "failed-tests").await.0, 503);
    // A report that is still to be read may say more.
    let waiting = "UPDATE test_results.reports SET state = 'waiting', due = 'infinity'";
    sqlx::query(waiting).execute(&world.database.pool).await.unwrap();
    assert_eq!(world.told::<FailedTests>(&service, job, "failed-tests").await.0, 503);
}

#[tokio::test]
async fn a_job_whose_pipeline_is_past_its_retention_is_forgotten() {
    let world = World::new().await;
    let (gone, stays) = (JobId::new(), JobId::new());
    for job in [gone, stays] {
        world.announce(job, "main").await;
        world.upload(job, "main", TimeDelta::zero(), run(&[("a.rb", 1.0)])).await;
    }
    let (bus, service) = world.start(Config::default()).await;
    for job in [gone, stays] {
        assert_eq!(world.timings(&service, job).await.0, 200);
        assert_eq!(list(&bus, job, 0, 10).await.total, 1);
    }
    let conductor =
        eventstore::Store::open(world.database.pool.clone(), "conductor", &eventstore::NO_MIGRATIONS)
            .await
            .unwrap();
    bus.register_source(&conductor);
    let body = WorkflowExpired {
        workflow_id: fresh().into(),
        pipeline_id: fresh().into(),
        jobs: vec![gone],
        archived: Archived { archive: fresh(), events: 1 },
    };
    let mut tx = conductor.begin(&[]).await.unwrap();
    tx.append(&[NewEvent::new("workflow", body.workflow_id.uuid(), Actor::service("conductor"), &body)])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    testkit::until("it is forgotten", LIMIT, || async { list(&bus, gone, 0, 10).await.total == 0 }).await;
    testkit::until("and what its tasks were told", LIMIT, || async {
        world.timings(&service, gone).await.0 == 503
    })
    .await;
    assert_eq!(list(&bus, stays, 0, 10).await.total, 1);
    assert_eq!(world.timings(&service, stays).await.0, 200);
}
