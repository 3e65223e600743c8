//! Cancel of workflows and jobs.

use crate::support::{LIMIT, World, approval, build, code, id_of, until, workflow};
use contracts::{
    RequestError,
    conductor::{CancelJob, CancelWorkflow, JobReady},
};
use ids::{MessageId, WorkflowId};
use model::status::{JobStatus, WorkflowStatus};

#[tokio::test]
async fn r12_a_workflow_cancel_is_revoked_before_it_is_answered() {
    let mut world = World::new().await;
    let jobs = vec![
        build("a", &[]),
        build("b", &[]),
        approval("hold", &[]),
        build("c", &["a"]),
        build("on-cancel", &["a:canceled"]),
    ];
    let created = world.push(vec![workflow("main", jobs)]).await.remove(0);
    let id = created.workflow_id;
    world.job_started(id, id_of(&created, "a")).await;
    world.until_job(id, "a", "running").await;

    let ask = CancelWorkflow { id };
    let command = MessageId::new();
    let answer = world.ask_again(command, &ask).await.unwrap();
    assert_eq!(answer.status, WorkflowStatus::Running);
    let mut revoked = world.others.revoked.lock().unwrap().clone();
    revoked.sort();
    let mut expected = vec![id_of(&created, "a"), id_of(&created, "b")];
    expected.sort();
    assert_eq!(revoked, expected, "revoked when the answer came");
    let jobs = world.jobs(id).await;
    for name in ["hold", "c", "on-cancel"] {
        assert_eq!(jobs[name], "canceled", "{name}");
    }
    // A repeat of the command, and another one, find it done.
    assert_eq!(world.ask_again(command, &ask).await.unwrap().version, answer.version);
    assert_eq!(world.ask(&ask).await.unwrap().version, answer.version);

    // A job that had succeeded when the revocation came does not bring the workflow back.
    world.job_finished(id, id_of(&created, "a"), JobStatus::Success).await;
    world.job_finished(id, id_of(&created, "b"), JobStatus::Canceled).await;
    world.until_workflow(id, "canceled").await;
    assert_eq!(world.jobs(id).await["on-cancel"], "canceled");
    assert_eq!(world.events::<JobReady>().await.len(), 2);
    world.ask(&ask).await.unwrap();
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn a_job_cancel_runs_what_waits_for_it() {
    let mut world = World::new().await;
    let jobs = vec![
        build("a", &[]),
        build("next", &["a"]),
        build("on-cancel", &["a:canceled"]),
        approval("hold", &[]),
        build("held", &["hold"]),
    ];
    let created = world.push(vec![workflow("main", jobs)]).await.remove(0);
    let id = created.workflow_id;
    world.ask(&CancelJob { job_id: id_of(&created, "hold") }).await.unwrap();
    assert_eq!(world.jobs(id).await["held"], "not_run");
    world.ask(&CancelJob { job_id: id_of(&created, "a") }).await.unwrap();
    assert_eq!(*world.others.revoked.lock().unwrap(), [id_of(&created, "a")]);
    world.job_finished(id, id_of(&created, "a"), JobStatus::Canceled).await;
    world.until_job(id, "on-cancel", "queued").await;
    world.job_finished(id, id_of(&created, "on-cancel"), JobStatus::Success).await;
    world.until_workflow(id, "canceled").await;
    assert_eq!(world.jobs(id).await["next"], "not_run");
    assert_eq!(code(world.ask(&CancelJob { job_id: id_of(&created, "on-cancel") }).await), "already_ended");
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn who_may_not_cancel_and_what_cannot_be() {
    let mut world = World::new().await;
    let created = world.push(vec![workflow("main", vec![build("a", &[])])]).await.remove(0);
    let ask = CancelWorkflow { id: created.workflow_id };
    world.others.forbidden.lock().unwrap().push((world.user, "cancel".into()));
    assert_eq!(code(world.ask(&ask).await), "forbidden");
    assert_eq!(world.workflow_status(created.workflow_id).await, "running");
    world.others.forbidden.lock().unwrap().clear();
    assert_eq!(code(world.ask(&CancelWorkflow { id: WorkflowId::new() }).await), "not_found");
    world.run_to_end(created.workflow_id, &[]).await;
    assert_eq!(code(world.ask(&ask).await), "already_ended");
    world.stop().await;
}

#[tokio::test]
async fn a_revocation_that_was_not_asked_for_is_made_up_for() {
    let mut world = World::new().await;
    let created = world.push(vec![workflow("main", vec![build("a", &[])])]).await.remove(0);
    let id = created.workflow_id;
    *world.others.dispatcher_away.lock().unwrap() = true;
    let answer = world.ask(&CancelWorkflow { id }).await;
    assert!(matches!(answer, Err(RequestError::Failed { .. })), "not acknowledged: {answer:?}");
    // The process ends before it tries again; the time of the retry comes.
    world.stop().await;
    *world.others.dispatcher_away.lock().unwrap() = false;
    sqlx::query("UPDATE conductor.workflows SET next_action_at = now()").execute(&world.pool).await.unwrap();
    world.start().await;
    until("the sweep asks for it", LIMIT, async || {
        *world.others.revoked.lock().unwrap() == [id_of(&created, "a")]
    })
    .await;
    world.stop().await;
}

#[tokio::test]
async fn after_90_days_a_workflow_is_canceled() {
    let mut world = World::new().await;
    let jobs = vec![approval("hold", &[]), build("a", &["hold"])];
    let created = world.push(vec![workflow("main", jobs)]).await.remove(0);
    world.stop().await;
    sqlx::query(
        "UPDATE conductor.workflows SET next_action_at = now(), created_at = now() - interval '91 days'",
    )
    .execute(&world.pool)
    .await
    .unwrap();
    world.start().await;
    world.until_workflow(created.workflow_id, "canceled").await;
    let reason: String = sqlx::query_scalar("SELECT reason FROM conductor.jobs WHERE name = 'hold'")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(reason, "approval_expired");
    world.check_rows().await;
    world.stop().await;
}
