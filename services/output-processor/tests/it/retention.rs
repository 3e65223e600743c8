//! Jobs whose pipeline is past its retention.

use crate::support::{Agent, LIMIT, World, acknowledged};
use blobs::{Blobs, Key};
use chrono::Utc;
use contracts::{
    Actor, NewEvent, RequestError,
    output::GetStep,
    retention::{Archived, WorkflowExpired},
};
use eventstore::{NO_MIGRATIONS, Store};
use gantry_output_processor::Config;
use ids::{JobId, PipelineId, StepId, WorkflowId};
use records::Records;
use std::time::Duration;

async fn world() -> World {
    World::new(Config { retention_sweep: Duration::from_millis(200), ..Config::default() }).await
}

/// A task with one step of output, under way.
async fn begun(world: &World) -> (Agent, StepId) {
    let (agent, step) = (Agent::new(), StepId::new());
    world.known(&agent).await;
    assert_eq!(agent.report(world, step, 101, "running").await.0, 200);
    acknowledged(&agent.chunk(world, step, 0, b"built\n").await);
    (agent, step)
}

async fn ended(world: &World) -> (Agent, StepId) {
    let (agent, step) = begun(world).await;
    assert_eq!(agent.seal(world, step, b"built\n").await.0, 200);
    assert_eq!(agent.report(world, step, 101, "success").await.0, 200);
    world.close(agent.task, 1).await;
    world.finished(agent.task, 1).await;
    world.in_blob(step).await;
    (agent, step)
}

/// The conductor says that their workflow is gone.
async fn expire(world: &World, jobs: &[JobId]) {
    let conductor = Store::open(world.database.pool.clone(), "conductor", &NO_MIGRATIONS).await.unwrap();
    world.bus().register_source(&conductor);
    let workflow_id = WorkflowId::new();
    let body = WorkflowExpired {
        workflow_id,
        pipeline_id: PipelineId::new(),
        jobs: jobs.to_vec(),
        archived: Archived { archive: ids::ObjectId::new().uuid(), events: 1 },
    };
    let mut tx = conductor.begin(&[]).await.unwrap();
    tx.append(&[NewEvent::new("workflow", workflow_id.uuid(), Actor::service("conductor"), &body)])
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

/// Rows of the task that are left, in every table.
async fn rows(world: &World, agent: &Agent) -> i64 {
    sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM output_processor.tasks WHERE task_id = $1)
              + (SELECT count(*) FROM output_processor.fences WHERE task_id = $1)
              + (SELECT count(*) FROM output_processor.events WHERE aggregate_id = $1)
              + (SELECT count(*) FROM output_processor.artifacts WHERE job_id = $2)
              + (SELECT count(*) FROM output_processor.expiring WHERE id = $2)",
    )
    .bind(agent.task.uuid())
    .bind(agent.job.uuid())
    .fetch_one(&world.database.pool)
    .await
    .unwrap()
}

async fn is_there(world: &World, key: String) -> bool {
    world.blobs().head(&Key::new(key).unwrap()).await.unwrap().is_some()
}

/// An artifact of the task, as its commit would have left it.
async fn artifact(world: &World, agent: &Agent) -> String {
    let (object, bytes) = (ids::ObjectId::new().uuid(), b"file".to_vec());
    let key = format!("stores/{object}");
    let sha256 = blobs::digest(&bytes);
    world.blobs().put(&Key::new(key.clone()).unwrap(), blobs::body(bytes), sha256).await.unwrap();
    sqlx::query(
        "WITH o AS (INSERT INTO output_processor.objects (object_id, scope, task_id, epoch, kind, size, sha256, state, due)
                    VALUES ($1, $1, $2, 1, 'artifact', 4, $4, 'live', now() + interval '30 days'))
         INSERT INTO output_processor.artifacts (job_id, index, path, object_id, size, sha256) VALUES ($3, 0, 'a', $1, 4, $4)",
    )
    .bind(object)
    .bind(agent.task.uuid())
    .bind(agent.job.uuid())
    .bind(&sha256[..])
    .execute(&world.database.pool)
    .await
    .unwrap();
    key
}

#[tokio::test]
async fn everything_of_a_job_goes_and_nothing_of_another() {
    let world = world().await;
    let ((gone, old), (stays, other)) = (ended(&world).await, ended(&world).await);
    let (file, kept) = (artifact(&world, &gone).await, artifact(&world, &stays).await);
    let nothing = JobId::new();
    expire(&world, &[gone.job, nothing]).await;
    testkit::until("the job is gone", LIMIT, || async { rows(&world, &gone).await == 0 }).await;
    assert!(!is_there(&world, format!("logs/{old}")).await, "its output");
    assert!(!is_there(&world, format!("records/{}/1", gone.task)).await, "its record");
    assert_eq!(world.records().await.list_by("step", gone.job.uuid()).await.unwrap().len(), 0);
    assert_eq!(world.records().await.list_by("task", gone.job.uuid()).await.unwrap().len(), 0);
    let ask = GetStep { step_id: old };
    let answer = world.bus().ask(&Actor::service("test"), &ask).await;
    assert!(matches!(answer, Err(RequestError::Refused(refusal)) if refusal.code == "not_found"));
    world.service().sweep_stores(Utc::now()).await.unwrap();
    assert!(!is_there(&world, file).await, "its artifact");

    assert_eq!(world.output(other).await, b"built\n");
    assert!(is_there(&world, kept).await);
    assert_eq!(world.steps(stays.job).await.len(), 1);
    let blobs = world.blobs();
    let found = ::retention::audit(&world.database.pool, "output-processor", &blobs, &[]).await.unwrap();
    assert_eq!((found.archives, found.findings.len()), (1, 0), "{:?}", found.findings);
}

#[tokio::test]
async fn a_task_that_is_not_put_away_yet_stays_until_it_is() {
    let world = world().await;
    let ((open, step), (gone, _)) = (begun(&world).await, ended(&world).await);
    expire(&world, &[open.job, gone.job]).await;
    testkit::until("the other is gone", LIMIT, || async { rows(&world, &gone).await == 0 }).await;
    assert_eq!(world.output(step).await, b"built\n", "it is all there");
    world.close(open.task, 1).await;
    testkit::until("it follows", LIMIT, || async { rows(&world, &open).await == 0 }).await;
    assert!(!is_there(&world, format!("logs/{step}")).await);
    let blobs = world.blobs();
    let found = ::retention::audit(&world.database.pool, "output-processor", &blobs, &[]).await.unwrap();
    assert_eq!((found.archives, found.findings.len()), (2, 0), "{:?}", found.findings);
}
