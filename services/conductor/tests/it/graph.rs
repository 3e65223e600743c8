//! Expansion, fan-in and fan-out, approvals.

use crate::support::{LIMIT, World, approval, build, code, id_of, no_op, until, workflow};
use contracts::{
    RequestError,
    conductor::{ApproveJob, JobEnded, JobReady},
};
use ids::{JobId, UserId, WorkflowId};
use model::status::{JobStatus, WorkflowStatus};

#[tokio::test]
async fn a_diamond_runs_in_order_and_numbers_are_dense() {
    let mut world = World::new().await;
    let jobs = vec![
        build("build", &[]),
        build("unit", &["build"]),
        build("lint", &["build"]),
        no_op("checked", &["unit", "lint"]),
        build("deploy", &["checked"]),
    ];
    let created = world.push(vec![workflow("main", jobs.clone()), workflow("other", jobs)]).await;
    assert_eq!(created[0].jobs.len(), 5, "readers see all jobs at once");
    for created in &created {
        assert_eq!(world.run_to_end(created.workflow_id, &[]).await, WorkflowStatus::Success);
        let history: Vec<String> =
            world.history(created.workflow_id).await.into_iter().map(|e| e.kind).collect();
        assert_eq!(history.first().unwrap(), "workflow.created");
        assert_eq!(history.last().unwrap(), "workflow.finished");
    }
    let ready = world.events::<JobReady>().await;
    let mut numbers: Vec<i64> = ready.iter().map(|ready| ready.number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=8).collect::<Vec<_>>());
    let deploy = ready.iter().find(|ready| ready.name == "deploy").unwrap();
    let main = created.iter().find(|created| created.workflow_id == deploy.workflow_id).unwrap();
    assert_eq!(deploy.upstream, [id_of(main, "checked")]);
    assert_eq!(deploy.acting_user, Some(world.user));
    assert_eq!(deploy.workspace_id, deploy.workflow_id);
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn a_failure_is_passed_on_as_far_as_it_goes() {
    let mut world = World::new().await;
    let jobs = vec![
        build("a", &[]),
        build("b", &["a"]),
        build("c", &["b"]),
        build("on-failure", &["a:failed"]),
        build("anyway", &["c:success,failed,canceled,unauthorized,not_run"]),
        build("apart", &[]),
    ];
    let created = world.push(vec![workflow("main", jobs)]).await.remove(0);
    let id = created.workflow_id;
    assert_eq!(world.run_to_end(id, &[("a", JobStatus::Timedout)]).await, WorkflowStatus::Failed);
    let jobs = world.jobs(id).await;
    let expected = [
        ("a", "timedout"),
        ("b", "not_run"),
        ("c", "not_run"),
        ("on-failure", "success"),
        ("anyway", "success"),
        ("apart", "success"),
    ];
    assert_eq!(jobs, expected.map(|(name, status)| (name.to_owned(), status.to_owned())).into());
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn a_workflow_that_nobody_has_to_run_ends_at_once() {
    let mut world = World::new().await;
    let created =
        world.push(vec![workflow("main", vec![no_op("a", &[]), no_op("b", &["a"])])]).await.remove(0);
    assert_eq!(world.finished(created.workflow_id).await, Some(WorkflowStatus::Success));
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn duplicates_and_late_messages_change_nothing() {
    let mut world = World::new().await;
    let jobs = vec![build("a", &[]), build("b", &["a"])];
    let created = world.push(vec![workflow("main", jobs)]).await.remove(0);
    let (id, a) = (created.workflow_id, id_of(&created, "a"));
    world.job_started(id, a).await;
    world.job_started(id, a).await;
    world.job_finished(id, a, JobStatus::Success).await;
    world.job_finished(id, a, JobStatus::Failed).await;
    world.job_started(id, a).await;
    assert_eq!(world.run_to_end(id, &[]).await, WorkflowStatus::Success);
    let before = world.history(id).await.len();
    world.job_finished(id, id_of(&created, "b"), JobStatus::Failed).await;
    // A later message of another workflow on every lane shows that this one was handled.
    let witness = world.push(vec![workflow("witness", vec![build("w", &[])])]).await.remove(0);
    world.run_to_end(witness.workflow_id, &[]).await;
    let handled = "SELECT count(*) FROM dispatcher.events e WHERE NOT EXISTS (SELECT 1 FROM conductor.cursors c \
         WHERE c.group_name = 'conductor.jobs' AND c.seq >= e.seq)";
    until("all messages were handled", LIMIT, async || {
        sqlx::query_scalar::<_, i64>(handled).fetch_one(&world.pool).await.unwrap() == 0
    })
    .await;
    assert_eq!(world.history(id).await.len(), before);
    assert_eq!(world.jobs(id).await["b"], "success");
    assert_eq!(world.events::<JobReady>().await.iter().filter(|ready| ready.workflow_id == id).count(), 2);
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn r13_one_approval_decision() {
    let mut world = World::new().await;
    let jobs = vec![build("a", &[]), approval("hold", &["a"]), build("deploy", &["hold"])];
    let created = world.push(vec![workflow("main", jobs)]).await.remove(0);
    let (id, hold) = (created.workflow_id, id_of(&created, "hold"));
    let ask = ApproveJob { workflow_id: Some(id), job_id: hold };
    assert_eq!(code(world.ask(&ask).await), "not_on_hold");
    world.job_finished(id, id_of(&created, "a"), JobStatus::Success).await;
    world.until_workflow(id, "on_hold").await;

    let nobody = ApproveJob { workflow_id: Some(WorkflowId::new()), job_id: hold };
    assert_eq!(code(world.ask(&nobody).await), "not_found");
    assert_eq!(code(world.ask(&ApproveJob { workflow_id: None, job_id: JobId::new() }).await), "not_found");
    let denied = UserId::new();
    world.others.forbidden.lock().unwrap().push((denied, "approve".into()));
    let denied = contracts::Actor::User { id: denied };
    assert_eq!(code(world.bus.ask(&denied, &ask).await), "forbidden");

    // Many at once: one wins.
    let others: Vec<_> = (0..6).map(|_| contracts::Actor::User { id: UserId::new() }).collect();
    let answers = futures::future::join_all(others.iter().map(|actor| world.bus.ask(actor, &ask))).await;
    let winners: Vec<usize> = (0..6).filter(|i| answers[*i].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{answers:?}");
    for (i, answer) in answers.into_iter().enumerate() {
        if i != winners[0] {
            let Err(RequestError::Refused(refusal)) = answer else { panic!("{answer:?}") };
            assert_eq!(refusal.code, "already_decided");
            let winner = others[winners[0]].user().unwrap();
            assert!(refusal.message.contains(&winner.to_string()), "{}", refusal.message);
        }
    }
    world.bus.ask(&others[winners[0]], &ask).await.unwrap();

    assert_eq!(world.run_to_end(id, &[]).await, WorkflowStatus::Success);
    let deploy = world.events::<JobReady>().await.into_iter().find(|ready| ready.name == "deploy").unwrap();
    assert_eq!(deploy.acting_user, others[winners[0]].user(), "the approver acts below an approval");
    let decisions = world.events::<JobEnded>().await.iter().filter(|ended| ended.job_id == hold).count();
    assert_eq!(decisions, 1);
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn r9_rows_that_have_ended_refuse_to_change() {
    let mut world = World::new().await;
    let created = world.push(vec![workflow("main", vec![build("a", &[])])]).await.remove(0);
    world.run_to_end(created.workflow_id, &[]).await;
    for sql in [
        "UPDATE conductor.workflows SET status = 'failed'",
        "UPDATE conductor.jobs SET reason = 'x'",
        "DELETE FROM conductor.jobs",
        "DELETE FROM conductor.workflows",
    ] {
        let error = sqlx::query(sql).execute(&world.pool).await.unwrap_err();
        assert!(error.to_string().contains("it has ended"), "{sql}: {error}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_stop_in_the_middle_changes_nothing_but_timing() {
    let mut world = World::new().await;
    let jobs = vec![build("a", &[]), build("b", &["a"]), build("c", &["b"])];
    let created = world.push(vec![workflow("main", jobs)]).await.remove(0);
    world.stop().await;
    let id = created.workflow_id;
    world.job_started(id, id_of(&created, "a")).await;
    world.job_finished(id, id_of(&created, "a"), JobStatus::Success).await;
    world.start().await;
    world.until_job(id, "b", "queued").await;
    world.stop().await;
    world.start().await;
    assert_eq!(world.run_to_end(id, &[]).await, WorkflowStatus::Success);
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn a_plan_that_is_too_large_for_a_message_runs_too() {
    let mut world = World::new().await;
    let mut jobs = vec![build("first", &[])];
    jobs.extend((0..400).map(|n| build(&format!("job-{n}"), &["first"])));
    jobs.push(build("last", &["job-0", "job-399"]));
    let created = world.push(vec![workflow("main", jobs)]).await.remove(0);
    let id = created.workflow_id;
    assert_eq!(created.jobs.len(), 402);
    world.job_finished(id, id_of(&created, "first"), JobStatus::Failed).await;
    world.until_workflow(id, "failed").await;
    assert!(world.jobs(id).await.iter().all(|(name, status)| name == "first" || status == "not_run"));
    world.check_rows().await;
    world.stop().await;
}
