use crate::support::{World, code, docker, machine, patient, quick};
use agent_api::{Lease, Renew, Renewed};
use contracts::{
    Actor,
    dispatcher::{RevokeJobs, TaskQueued},
};
use gantry_dispatcher::{Config, Docker};
use ids::{ClaimId, JobId};
use model::status::JobStatus;
use std::time::Duration;

/// Queued tasks are queued again soon.
fn impatient() -> Config {
    Config { claim_timeout: Duration::from_millis(100), ..quick() }
}

#[tokio::test]
async fn a_lost_agent_is_an_infrastructure_failure_and_is_not_run_again() {
    let world = World::new(quick()).await;
    let job = world.ready(1, machine()).await;
    let lease = world.claim(&world.queued(1).await[0]).await;
    let finished = world.job_finished(job).await;
    assert_eq!(
        (finished.status, finished.reason.as_deref()),
        (JobStatus::InfrastructureFail, Some("runner_lost"))
    );
    assert_eq!(world.all::<TaskQueued>().await.len(), 1);
    assert_eq!(code(world.finish(&lease, JobStatus::Success).await), "stale_lease");
    let evidence: i64 = sqlx::query_scalar("SELECT count(*) FROM dispatcher.late_reports")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(evidence, 1);
    assert_eq!(*world.receiver.0.lock().unwrap(), vec![(lease.task_id, 1)]);
    world.halt().await;
}

/// The machine of the first may be out of reach for a minute; its agent is told so, and the other's loss changes nothing.
#[tokio::test]
async fn a_class_may_be_out_of_reach_for_longer() {
    let tolerance = [("large".to_owned(), Duration::from_secs(60))].into();
    let world = World::new(Config { disconnect_tolerance: tolerance, ..quick() }).await;
    let far = JobId::new();
    world.announce_class(&world.project, far, 1, machine(), "large").await;
    let of_far = world.claim(&world.queued(1).await[0]).await;
    let near = world.ready(1, machine()).await;
    let of_near = world.claim(&world.queued(2).await[1]).await;
    assert_eq!(of_far.timing.self_stop_ms, 60_000);
    let margin = |lease: &Lease| lease.timing.lease_ms - lease.timing.self_stop_ms;
    assert_eq!(margin(&of_far), margin(&of_near), "the server waits as much longer than the agent");
    assert_eq!(world.job_finished(near).await.reason.as_deref(), Some("runner_lost"));
    // Without the long lease it would have been over long before: it was claimed first.
    let path = format!("/v1/tasks/{}/renew", of_far.task_id);
    world.post::<Renewed>(&path, Some(&of_far.fence), &Renew {}).await.unwrap();
    let deadline: f64 = sqlx::query_scalar(
        "SELECT extract(epoch FROM deadline - renewed_at)::float8 FROM dispatcher.tasks WHERE task_id = $1",
    )
    .bind(of_far.task_id.uuid())
    .fetch_one(&world.pool)
    .await
    .unwrap();
    assert!(deadline > 60.0, "a renewal keeps the length: {deadline}");
    world.finish(&of_far, JobStatus::Success).await.unwrap();
    assert_eq!(world.job_finished(far).await.status, JobStatus::Success);
    world.halt().await;
}

#[tokio::test]
async fn a_task_that_nobody_claims_is_queued_again_and_then_given_up() {
    let world = World::new(Config { max_requeues: 2, ..impatient() }).await;
    let job = world.ready(1, machine()).await;
    let finished = world.job_finished(job).await;
    assert_eq!(
        (finished.status, finished.reason.as_deref()),
        (JobStatus::InfrastructureFail, Some("no_runner"))
    );
    let epochs: Vec<i64> = world.all::<TaskQueued>().await.iter().map(|queued| queued.epoch).collect();
    assert_eq!(epochs, [1, 2, 3]);
    world.halt().await;
}

#[tokio::test]
async fn a_task_that_waits_too_long_for_a_slot_is_given_up_and_those_that_run_are_not() {
    let config = Config { slots: 1, queue_timeout: Some(Duration::from_secs(4)), ..patient() };
    let world = World::new(config).await;
    let runs = world.ready(1, machine()).await;
    let lease = world.claim(&world.queued(1).await[0]).await;
    let waits = world.ready(1, machine()).await;
    let finished = world.job_finished(waits).await;
    assert_eq!((finished.status, finished.reason.as_deref()), (JobStatus::Timedout, Some("queue_timeout")));
    world.finish(&lease, JobStatus::Success).await.unwrap();
    assert_eq!(world.job_finished(runs).await.status, JobStatus::Success);
    assert_eq!(world.all::<TaskQueued>().await.len(), 1, "it was never placed");
    // Whoever gets a slot in time goes on.
    let last = world.ready(1, machine()).await;
    let lease = world.claim(&world.queued(2).await[1]).await;
    world.finish(&lease, JobStatus::Success).await.unwrap();
    assert_eq!(world.job_finished(last).await.status, JobStatus::Success);
    world.halt().await;
}

#[tokio::test]
async fn an_agent_of_an_earlier_epoch_gets_nothing() {
    let world = World::new(Config { max_requeues: 1000, ..impatient() }).await;
    world.ready(1, machine()).await;
    let queued = world.queued(2).await;
    assert_eq!(code(world.claim_as(ClaimId::new(), queued[0].task_id, queued[0].epoch).await), "stale_lease");
    world.halt().await;
}

#[tokio::test]
async fn a_canceled_task_whose_agent_is_gone_ends_as_canceled() {
    let world = World::new(quick()).await;
    let job = world.ready(1, machine()).await;
    world.claim(&world.queued(1).await[0]).await;
    world.bus.ask(&Actor::service("conductor"), &RevokeJobs { job_ids: vec![job] }).await.unwrap();
    assert_eq!(world.job_finished(job).await.status, JobStatus::Canceled);
    world.halt().await;
}

#[tokio::test]
async fn time_during_which_we_were_down_does_not_count() {
    let world = World::new(quick()).await;
    let job = world.ready(1, machine()).await;
    let lease = world.claim(&world.queued(1).await[0]).await;
    // Down for longer than the lease.
    let world = world
        .restart(Duration::from_millis(2000), Config { recovery_grace: Duration::from_secs(60), ..quick() })
        .await;
    let path = format!("/v1/tasks/{}/renew", lease.task_id);
    world.post::<Renewed>(&path, Some(&lease.fence), &Renew {}).await.unwrap();
    world.finish(&lease, JobStatus::Success).await.unwrap();
    assert_eq!(world.job_finished(job).await.status, JobStatus::Success);
    world.halt().await;
}

#[tokio::test]
async fn a_container_job_without_an_engine_says_which_setting_decides() {
    let world = World::new(Config { docker: Docker::Refuse, ..patient() }).await;
    let job = world.ready(2, docker()).await;
    let finished = world.job_finished(job).await;
    assert_eq!(finished.status, JobStatus::InfrastructureFail);
    assert!(finished.reason.unwrap().contains("`[executors] docker"));
    assert!(world.all::<TaskQueued>().await.is_empty());
    world.halt().await;
}

#[tokio::test]
async fn finished_rows_cannot_be_changed() {
    let world = World::new(patient()).await;
    let job = world.ready(1, machine()).await;
    let lease = world.claim(&world.queued(1).await[0]).await;
    world.finish(&lease, JobStatus::Success).await.unwrap();
    world.job_finished(job).await;
    sqlx::query("UPDATE dispatcher.tasks SET status = 'failed'").execute(&world.pool).await.unwrap_err();
    sqlx::query("UPDATE dispatcher.runs SET status = 'failed'").execute(&world.pool).await.unwrap_err();
    let task = world.task_finished(lease.task_id).await;
    assert_eq!(task.status, JobStatus::Success);
    world.halt().await;
}
