use crate::support::{LIMIT, World, code, machine, patient};
use agent_api::{Commands, FinalReport, Renew, Renewed, SshSession};
use contracts::{
    Actor,
    dispatcher::{RevokeJobs, TaskQueued, TaskRevoked},
};
use gantry_dispatcher::Config;
use ids::{ClaimId, InstanceId, JobId};
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

/// Two processes of the service: the agent asks one, the cancel comes to the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_task_is_told_whichever_process_takes_the_revocation() {
    let world = World::new(patient()).await;
    let other = world.beside(patient()).await;
    let job = world.ready(1, machine()).await;
    let lease = world.claim(&world.queued(1).await[0]).await;
    let path = format!("/v1/tasks/{}/commands?wait_ms=25000", lease.task_id);
    let polled = async { world.get::<Commands>(&path, &lease.fence).await.unwrap() };
    let revoked = async {
        let ask = RevokeJobs { job_ids: vec![job] };
        other.bus.ask(&Actor::service("conductor"), &ask).await.unwrap();
    };
    let (told, ()) = tokio::time::timeout(LIMIT / 2, async { tokio::join!(polled, revoked) })
        .await
        .expect("the poll ends with the revocation, not with its own time");
    assert!(told.cancel);
    other.halt().await;
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

/// Entering a job by SSH is recorded; a cancel after its steps leaves their status (execution §26).
#[tokio::test]
async fn a_task_that_stays_for_sessions_ends_as_its_steps_did() {
    let world = World::new(patient()).await;
    let job = world.ready(1, machine()).await;
    let queued = world.queued(1).await.remove(0);
    let session = SshSession {
        session_id: InstanceId::new(),
        open: true,
        key: "SHA256:abc".into(),
        from: "192.0.2.7:4711".into(),
    };
    let lease = world.claim(&queued).await;
    let path = format!("/v1/tasks/{}/ssh", lease.task_id);
    let refused = world.post::<serde_json::Value>(&path, Some(&lease.fence), &session).await;
    assert_eq!(code(refused), "invalid", "nobody may enter this one");
    sqlx::query("UPDATE dispatcher.runs SET ready = jsonb_set(ready, '{ssh}', $2) WHERE job_id = $1")
        .bind(job.uuid())
        .bind(serde_json::json!({ "login": "ada", "keys": ["ssh-ed25519 AAAA"] }))
        .execute(&world.pool)
        .await
        .unwrap();
    world.post::<serde_json::Value>(&path, Some(&lease.fence), &session).await.unwrap();
    let closed = SshSession { open: false, ..session };
    world.post::<serde_json::Value>(&path, Some(&lease.fence), &closed).await.unwrap();
    let acts: Vec<(String, serde_json::Value)> = sqlx::query_as(
        "SELECT kind, detail FROM dispatcher.acts WHERE kind LIKE 'job.ssh%' ORDER BY kind DESC",
    )
    .fetch_all(&world.pool)
    .await
    .unwrap();
    let kinds: Vec<&str> = acts.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["job.ssh_session.open", "job.ssh_session.close"]);
    assert_eq!((&acts[0].1["login"], &acts[0].1["key"]), (&"ada".into(), &"SHA256:abc".into()));
    revoke(&world, job).await;
    let report = FinalReport { status: JobStatus::Failed, reason: None, settled: true };
    let path = format!("/v1/tasks/{}/finish", lease.task_id);
    world.post::<serde_json::Value>(&path, Some(&lease.fence), &report).await.unwrap();
    let finished = world.job_finished(job).await;
    assert_eq!((finished.status, finished.settled), (JobStatus::Failed, true));
    world.halt().await;
}
