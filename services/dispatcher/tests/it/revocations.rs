use crate::support::{LIMIT, World, code, machine, patient};
use agent_api::{Commands, Renew, Renewed};
use contracts::{
    Actor,
    dispatcher::{RevokeJobs, TaskQueued, TaskRevoked},
};
use gantry_dispatcher::Config;
use ids::{ClaimId, JobId};
use model::status::JobStatus;

async fn revoke(world: &World, job: JobId) {
    world.bus.ask(&Actor::service("conductor"), &RevokeJobs { job_ids: vec![job] }).await.unwrap();
}

#[tokio::test]
async fn after_a_revocation_nothing_is_handed_out() {
    let world = World::new(Config { slots: 1, ..patient() }).await;
    let one = world.ready(1, machine()).await;
    let queued = world.queued(1).await.remove(0);
    let two = world.ready(1, machine()).await;
    revoke(&world, one).await;
    assert_eq!(code(world.claim_as(ClaimId::new(), queued.task_id, queued.epoch).await), "stale_lease");
    assert_eq!(world.job_finished(one).await.status, JobStatus::Canceled);
    assert_eq!(world.queued(2).await[1].job_id, two, "the slot went to the next in line");
    revoke(&world, one).await;
    world.halt().await;
}

#[tokio::test]
async fn a_job_that_becomes_ready_after_its_revocation_is_canceled() {
    let world = World::new(patient()).await;
    let job = JobId::new();
    revoke(&world, job).await;
    world.announce(job, 2, machine()).await;
    assert_eq!(world.job_finished(job).await.status, JobStatus::Canceled);
    assert!(world.all::<TaskQueued>().await.is_empty());
    world.halt().await;
}

#[tokio::test]
async fn a_running_task_is_told_at_once_and_its_late_success_changes_nothing() {
    let world = World::new(patient()).await;
    let job = world.ready(1, machine()).await;
    let lease = world.claim(&world.queued(1).await[0]).await;
    let path = format!("/v1/tasks/{}/commands?wait_ms=25000", lease.task_id);
    let polled = async { world.get::<Commands>(&path, &lease.fence).await.unwrap() };
    let (told, ()) = tokio::time::timeout(LIMIT / 2, async { tokio::join!(polled, revoke(&world, job)) })
        .await
        .expect("the poll ends with the revocation, not with its own time");
    assert!(told.cancel);
    let renew = format!("/v1/tasks/{}/renew", lease.task_id);
    assert!(world.post::<Renewed>(&renew, Some(&lease.fence), &Renew {}).await.unwrap().cancel);
    assert_eq!(world.all::<TaskRevoked>().await.len(), 1);
    world.finish(&lease, JobStatus::Success).await.unwrap();
    assert_eq!(world.job_finished(job).await.status, JobStatus::Canceled);
    world.halt().await;
}

#[tokio::test]
async fn a_stop_waits_for_no_poll() {
    let world = World::new(patient()).await;
    world.ready(1, machine()).await;
    let lease = world.claim(&world.queued(1).await[0]).await;
    let path = format!("/v1/tasks/{}/commands?wait_ms=25000", lease.task_id);
    let polled = async { world.get::<Commands>(&path, &lease.fence).await.unwrap() };
    let stopped = async { world.stop.cancel() };
    let (told, ()) = tokio::time::timeout(LIMIT / 2, async { tokio::join!(polled, stopped) })
        .await
        .expect("the poll ends with the service");
    assert!(!told.cancel);
    world.halt().await;
}
