//! Runs and tasks whose pipeline is past its retention.

use crate::support::{LIMIT, World, machine, patient};
use contracts::{
    Actor, NewEvent,
    retention::{Archived, WorkflowExpired},
};
use ids::{JobId, PipelineId, WorkflowId};
use model::status::JobStatus;
use retention::Fold;

const FOLDS: [Fold; 2] = [
    Fold { aggregate: "run", event: "job.finished", value: "status" },
    Fold { aggregate: "task", event: "task.finished", value: "status" },
];

async fn expire(world: &World, jobs: &[JobId]) {
    let workflow_id = WorkflowId::new();
    let body = WorkflowExpired {
        workflow_id,
        pipeline_id: PipelineId::new(),
        jobs: jobs.to_vec(),
        archived: Archived { archive: ids::ObjectId::new().uuid(), events: 1 },
    };
    world.tell(NewEvent::new("workflow", workflow_id.uuid(), Actor::service("conductor"), &body)).await;
}

async fn left(world: &World, job: JobId) -> (i64, i64) {
    sqlx::query_as(
        "SELECT (SELECT count(*) FROM dispatcher.runs WHERE job_id = $1), (SELECT count(*) FROM dispatcher.tasks WHERE job_id = $1)",
    )
    .bind(job.uuid())
    .fetch_one(&world.pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn what_ended_goes_with_its_history_and_what_runs_stays() {
    let world = World::new(patient()).await;
    let gone = world.ready(2, machine()).await;
    let tasks = world.queued(2).await;
    for queued in &tasks {
        let lease = world.claim(queued).await;
        world.finish(&lease, JobStatus::Success).await.unwrap();
    }
    assert_eq!(world.job_finished(gone).await.status, JobStatus::Success);
    let runs = world.ready(1, machine()).await;
    let queued = world.queued(3).await.pop().unwrap();
    let lease = world.claim(&queued).await;
    let unknown = JobId::new();
    expire(&world, &[gone, runs, unknown]).await;
    testkit::until("the run is gone", LIMIT, || async { left(&world, gone).await == (0, 0) }).await;
    assert_eq!(left(&world, runs).await, (1, 1), "it has not ended");
    let of_it: i64 =
        sqlx::query_scalar("SELECT count(*) FROM dispatcher.events WHERE aggregate_id = ANY($1)")
            .bind(vec![gone.uuid(), tasks[0].task_id.uuid(), tasks[1].task_id.uuid()])
            .fetch_one(&world.pool)
            .await
            .unwrap();
    assert_eq!(of_it, 0, "its events are in the archive only");
    let found = ::retention::audit(&world.pool, "dispatcher", world.files.0.as_ref(), &FOLDS).await.unwrap();
    assert_eq!((found.archives, found.findings.len()), (1, 0), "{:?}", found.findings);

    // An agent that comes back after all is told so, as always for a task that is over.
    assert!(world.claim_as(ids::ClaimId::new(), tasks[0].task_id, tasks[0].epoch).await.is_err());
    // The slot of what runs is still counted, and it ends as usual.
    world.finish(&lease, JobStatus::Success).await.unwrap();
    assert_eq!(world.job_finished(runs).await.status, JobStatus::Success);
    // Told again, it follows.
    expire(&world, &[gone, runs]).await;
    testkit::until("the other is gone too", LIMIT, || async { left(&world, runs).await == (0, 0) }).await;
    let found = ::retention::audit(&world.pool, "dispatcher", world.files.0.as_ref(), &FOLDS).await.unwrap();
    assert_eq!((found.archives, found.findings.len()), (2, 0), "{:?}", found.findings);
    world.halt().await;
}

#[tokio::test]
async fn nobody_else_deletes_runs_and_tasks() {
    let world = World::new(patient()).await;
    world.ready(1, machine()).await;
    world.queued(1).await;
    for sql in ["DELETE FROM dispatcher.tasks", "DELETE FROM dispatcher.runs"] {
        assert!(sqlx::query(sql).execute(&world.pool).await.is_err(), "{sql}");
    }
}
