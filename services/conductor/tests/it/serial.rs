//! Serial groups and what is said about waiting (execution §7).

use crate::support::{LIMIT, World, build, code, id_of, node, until, workflow};
use contracts::conductor::{
    CancelJob, CancelWorkflow, ExplainWait, Explanation, JobReady, ReleaseTurn, RerunWorkflow,
    WorkflowCreated,
};
use ids::JobId;
use model::{
    plan::{JobKind, JobPlan, Requirement},
    status::{JobStatus, WorkflowStatus},
};

fn serial(name: &str, requires: &[&str]) -> JobPlan {
    JobPlan { serial_group: Some("prod".into()), ..build(name, requires) }
}

async fn push(world: &mut World, jobs: Vec<JobPlan>) -> WorkflowCreated {
    world.push(vec![workflow("main", jobs)]).await.remove(0)
}

async fn ready(world: &World) -> Vec<JobId> {
    world.events::<JobReady>().await.into_iter().map(|ready| ready.job_id).collect()
}

async fn explain(world: &World, job_id: JobId) -> Explanation {
    world.ask(&ExplainWait { job_id }).await.unwrap()
}

/// Waits until a job stands in line at this place.
async fn until_place(world: &World, job: JobId, place: u64) {
    until(&format!("place {place}"), LIMIT, async || {
        explain(world, job).await.waits.first().and_then(|wait| wait.place) == Some(place)
    })
    .await;
}

/// Waits until no serial group has members.
async fn until_nobody_is_left(world: &World) {
    until("nobody is left", LIMIT, async || {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM conductor.serial_members")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        left == 0
    })
    .await;
}

#[tokio::test]
async fn r22_jobs_of_a_serial_group_take_turns_in_the_order_in_which_they_came() {
    let mut world = World::new().await;
    let first = push(&mut world, vec![serial("deploy", &[])]).await;
    let a = id_of(&first, "deploy");
    until("the first has its turn", LIMIT, async || ready(&world).await == [a]).await;

    let second = push(&mut world, vec![serial("deploy", &[]), build("report", &["deploy"])]).await;
    let third = push(&mut world, vec![serial("deploy", &[])]).await;
    let (b, c) = (id_of(&second, "deploy"), id_of(&third, "deploy"));
    until_place(&world, b, 1).await;
    until_place(&world, c, 2).await;
    assert_eq!(ready(&world).await, [a], "one at a time");
    world.until_workflow(second.workflow_id, "queued").await;
    let explained = explain(&world, c).await;
    assert_eq!(explained.status, JobStatus::Queued);
    assert!(explained.since.is_some());
    let wait = &explained.waits[0];
    assert_eq!((wait.kind.as_str(), wait.line, wait.jobs.as_slice()), ("serial_group", Some(2), &[a][..]));
    assert!(wait.text.contains("number 2 of 2") && wait.text.contains("prod"), "{}", wait.text);
    let blocked = explain(&world, id_of(&second, "report")).await;
    assert_eq!(blocked.waits[0].kind, "requirement");
    assert!(blocked.waits[0].text.contains("deploy"), "{}", blocked.waits[0].text);

    // Whichever way the holder ends, the next one starts.
    world.job_started(first.workflow_id, a).await;
    world.job_finished(first.workflow_id, a, JobStatus::InfrastructureFail).await;
    until("the second has its turn", LIMIT, async || ready(&world).await == [a, b]).await;
    world.until_workflow(second.workflow_id, "running").await;
    world.job_finished(second.workflow_id, b, JobStatus::Success).await;
    until("the third has its turn", LIMIT, async || ready(&world).await.contains(&c)).await;
    world.job_finished(third.workflow_id, c, JobStatus::Success).await;
    world.until_workflow(third.workflow_id, "success").await;
    until_nobody_is_left(&world).await;
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn an_older_pipeline_of_the_project_is_passed_over() {
    let mut world = World::new().await;
    let older =
        push(&mut world, vec![build("slow", &[]), serial("deploy", &["slow"]), build("after", &["deploy"])])
            .await;
    let newer = push(&mut world, vec![serial("deploy", &[])]).await;
    let holder = id_of(&newer, "deploy");
    until("the newer one has its turn", LIMIT, async || ready(&world).await.contains(&holder)).await;
    world.job_finished(older.workflow_id, id_of(&older, "slow"), JobStatus::Success).await;
    until("it is over", LIMIT, async || world.finished(older.workflow_id).await.is_some()).await;
    assert_eq!(world.finished(older.workflow_id).await, Some(WorkflowStatus::Success));
    let jobs = world.jobs(older.workflow_id).await;
    assert_eq!((jobs["deploy"].as_str(), jobs["after"].as_str()), ("not_run", "not_run"));
    let reason = explain(&world, id_of(&older, "deploy")).await.reason;
    assert_eq!(reason.as_deref(), Some("newer_pipeline_in_serial_group"));
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn who_leaves_the_line_holds_nobody_up_and_a_lock_can_be_taken_away() {
    let mut world = World::new().await;
    let [first, second, third] = [
        push(&mut world, vec![serial("deploy", &[])]).await,
        push(&mut world, vec![serial("deploy", &[])]).await,
        push(&mut world, vec![serial("deploy", &[])]).await,
    ];
    let [a, b, c] = [&first, &second, &third].map(|workflow| id_of(workflow, "deploy"));
    until_place(&world, b, 1).await;
    until_place(&world, c, 2).await;
    world.ask(&CancelJob { job_id: b }).await.unwrap();
    world.until_workflow(second.workflow_id, "canceled").await;
    assert!(world.others.revoked.lock().unwrap().is_empty(), "the dispatcher never had it");
    until_place(&world, c, 1).await;

    assert_eq!(code(world.ask(&ReleaseTurn { job_id: c }).await), "not_holding");
    world.ask(&ReleaseTurn { job_id: a }).await.unwrap();
    until("the next may start", LIMIT, async || ready(&world).await.contains(&c)).await;
    assert_eq!(world.jobs(first.workflow_id).await["deploy"], "queued", "who held the lock goes on");
    world.job_finished(first.workflow_id, a, JobStatus::Success).await;
    world.until_workflow(first.workflow_id, "success").await;
    assert_eq!(code(world.ask(&ReleaseTurn { job_id: a }).await), "not_holding");

    // A wait that is too long ends by itself.
    let fourth = push(&mut world, vec![serial("deploy", &[])]).await;
    until_place(&world, id_of(&fourth, "deploy"), 1).await;
    sqlx::query("UPDATE conductor.jobs SET turn_wanted_at = now() - interval '6 hours' WHERE id = $1")
        .bind(id_of(&fourth, "deploy").uuid())
        .execute(&world.pool)
        .await
        .unwrap();
    world.stop().await;
    world.start().await;
    world.until_workflow(fourth.workflow_id, "canceled").await;
    let reason = explain(&world, id_of(&fourth, "deploy")).await.reason;
    assert_eq!(reason.as_deref(), Some("serial_wait_timeout"));
    world.check_rows().await;
    world.stop().await;
}

fn grouped(key: &str) -> Vec<JobPlan> {
    let ends = [
        JobStatus::Success,
        JobStatus::Failed,
        JobStatus::Canceled,
        JobStatus::Unauthorized,
        JobStatus::NotRun,
    ];
    let after = |job: &str| Requirement { job: job.into(), accepts: ends.into_iter().collect() };
    let key = Some(key.to_owned());
    let mut unlock = JobPlan { serial_group: key.clone(), ..node("unlock", JobKind::Unlock, &["lock"]) };
    unlock.requires.extend([after("a"), after("b")]);
    vec![
        JobPlan { serial_group: key, ..node("lock", JobKind::Lock, &[]) },
        build("a", &["lock"]),
        build("b", &["lock"]),
        unlock,
        build("after", &["a"]),
    ]
}

#[tokio::test]
async fn r22_a_locked_group_of_jobs_keeps_its_turn_until_all_of_them_have_ended() {
    let mut world = World::new().await;
    let first = push(&mut world, grouped("prod")).await;
    let [a, b] = ["a", "b"].map(|name| id_of(&first, name));
    until("the group has begun", LIMIT, async || ready(&world).await.len() == 2).await;
    assert_eq!(world.jobs(first.workflow_id).await["lock"], "success");
    let second = push(&mut world, vec![serial("deploy", &[])]).await;
    let deploy = id_of(&second, "deploy");
    until_place(&world, deploy, 1).await;
    let wait = explain(&world, deploy).await.waits.remove(0);
    assert_eq!(wait.jobs, [id_of(&first, "lock")], "{}", wait.text);

    // One of them fails; the other one goes on, and so does the lock.
    world.job_finished(first.workflow_id, a, JobStatus::Failed).await;
    world.until_workflow(first.workflow_id, "failing").await;
    until_place(&world, deploy, 1).await;
    assert!(!ready(&world).await.contains(&deploy));
    assert_eq!(world.jobs(first.workflow_id).await["unlock"], "blocked");
    world.job_finished(first.workflow_id, b, JobStatus::Success).await;
    until("the next one has its turn", LIMIT, async || ready(&world).await.contains(&deploy)).await;
    assert_eq!(world.jobs(first.workflow_id).await["unlock"], "success");
    world.until_workflow(first.workflow_id, "failed").await;

    // A rerun of what failed takes the lock again, and `b` is kept.
    world.job_finished(second.workflow_id, deploy, JobStatus::Success).await;
    world.until_workflow(second.workflow_id, "success").await;
    let ask = RerunWorkflow {
        id: first.workflow_id,
        from_failed: true,
        jobs: None,
        sparse_tree: false,
        failed_tests: false,
        ssh: false,
    };
    let again = world.ask(&ask).await.unwrap();
    world.until_job(again.id, "a", "queued").await;
    let jobs = world.jobs(again.id).await;
    assert_eq!((jobs["lock"].as_str(), jobs["b"].as_str()), ("success", "success"));
    let third = push(&mut world, vec![serial("deploy", &[])]).await;
    let deploy = id_of(&third, "deploy");
    until_place(&world, deploy, 1).await;
    let a = *ready(&world).await.last().unwrap();
    world.job_finished(again.id, a, JobStatus::Success).await;
    until("the next one has its turn", LIMIT, async || ready(&world).await.contains(&deploy)).await;
    world.check_rows().await;
    world.stop().await;
}

#[tokio::test]
async fn a_canceled_group_keeps_its_lock_until_its_last_job_has_ended() {
    let mut world = World::new().await;
    let first = push(&mut world, grouped("prod")).await;
    let [a, b] = ["a", "b"].map(|name| id_of(&first, name));
    until("the group has begun", LIMIT, async || ready(&world).await.len() == 2).await;
    world.job_started(first.workflow_id, a).await;
    world.job_started(first.workflow_id, b).await;
    let second = push(&mut world, vec![serial("deploy", &[])]).await;
    let deploy = id_of(&second, "deploy");
    until_place(&world, deploy, 1).await;
    world.ask(&CancelWorkflow { id: first.workflow_id }).await.unwrap();
    world.job_finished(first.workflow_id, a, JobStatus::Canceled).await;
    until("one has ended", LIMIT, async || world.jobs(first.workflow_id).await["a"] == "canceled").await;
    until_place(&world, deploy, 1).await;
    assert!(!ready(&world).await.contains(&deploy), "b still runs");
    world.job_finished(first.workflow_id, b, JobStatus::Canceled).await;
    until("the next one has its turn", LIMIT, async || ready(&world).await.contains(&deploy)).await;
    world.until_workflow(first.workflow_id, "canceled").await;
    world.job_finished(second.workflow_id, deploy, JobStatus::Success).await;

    // Nobody waits for a group that is canceled while it stands in line itself.
    let third = push(&mut world, vec![serial("deploy", &[])]).await;
    let fourth = push(&mut world, grouped("prod")).await;
    until_place(&world, id_of(&fourth, "lock"), 1).await;
    world.ask(&CancelWorkflow { id: fourth.workflow_id }).await.unwrap();
    world.until_workflow(fourth.workflow_id, "canceled").await;
    world.job_finished(third.workflow_id, id_of(&third, "deploy"), JobStatus::Success).await;
    until_nobody_is_left(&world).await;
    world.check_rows().await;
    world.stop().await;
}
