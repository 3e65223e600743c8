use crate::support::{World, machine, patient};
use contracts::{
    Actor,
    dispatcher::{ExplainJob, TaskQueued},
};
use gantry_dispatcher::Config;
use ids::JobId;
use model::status::JobStatus;
use std::time::Duration;

#[tokio::test]
async fn with_one_slot_the_second_job_waits_for_the_first() {
    let world = World::new(Config { slots: 1, ..patient() }).await;
    let one = world.ready(1, machine()).await;
    let first = world.queued(1).await.remove(0);
    assert_eq!(first.job_id, one);
    let two = world.ready(1, machine()).await;
    testkit::until("the second job is in line", crate::support::LIMIT, || async {
        let said = world.bus.ask(&Actor::service("test"), &ExplainJob { job_id: two }).await;
        said.is_ok_and(|said| {
            said.first()
                .is_some_and(|wait| wait.kind == "slot" && wait.place == Some(1) && wait.line == Some(1))
        })
    })
    .await;
    assert_eq!(world.all::<TaskQueued>().await.len(), 1);
    let lease = world.claim(&first).await;
    world.finish(&lease, JobStatus::Failed).await.unwrap();
    // Announced in the transaction that freed the slot.
    let queued = world.all::<TaskQueued>().await;
    assert_eq!(queued.len(), 2);
    assert_eq!(queued[1].job_id, two);
    assert_eq!(world.job_finished(one).await.status, JobStatus::Failed);
    world.halt().await;
}

#[tokio::test]
async fn three_tasks_make_one_outcome() {
    let world = World::new(Config { slots: 2, ..patient() }).await;
    let job = world.ready(3, machine()).await;
    let queued = world.queued(2).await;
    let (one, two) = (world.claim(&queued[0]).await, world.claim(&queued[1]).await);
    assert_eq!((one.spec.index, two.spec.index, one.spec.total), (0, 1, 3));
    world.finish(&one, JobStatus::Success).await.unwrap();
    world.finish(&two, JobStatus::Failed).await.unwrap();
    let three = world.claim(&world.queued(3).await[2]).await;
    assert!(world.all::<contracts::dispatcher::JobFinished>().await.is_empty(), "one task still runs");
    world.finish(&three, JobStatus::Success).await.unwrap();
    assert_eq!(world.job_finished(job).await.status, JobStatus::Failed);
    assert_eq!(world.all::<contracts::dispatcher::JobStarted>().await.len(), 1);
    world.halt().await;
}

#[tokio::test]
async fn the_limit_is_never_exceeded_and_no_slot_leaks() {
    let world = World::new(Config { slots: 3, ..patient() }).await;
    for _ in 0..6 {
        world.ready(2, machine()).await;
    }
    let mut done = 0;
    while done < 12 {
        let queued = world.queued(done + 1).await;
        let held: i64 =
            sqlx::query_scalar("SELECT count(*) FROM dispatcher.tasks WHERE state IN ('queued', 'leased')")
                .fetch_one(&world.pool)
                .await
                .unwrap();
        assert!(held <= 3, "{held} slots are held");
        let lease = world.claim(&queued[done]).await;
        world.finish(&lease, JobStatus::Success).await.unwrap();
        done += 1;
    }
    assert_eq!(world.said::<contracts::dispatcher::JobFinished>(6).await.len(), 6);
    world.halt().await;
}

#[tokio::test]
async fn a_larger_limit_after_a_restart_fills_the_new_slots() {
    let world = World::new(Config { slots: 1, ..patient() }).await;
    world.ready(3, machine()).await;
    world.queued(1).await;
    let world = world.restart(Duration::ZERO, Config { slots: 3, ..patient() }).await;
    assert_eq!(world.queued(3).await.len(), 3);
    world.halt().await;
}

/// What a job is said to wait for, once it waits for this.
async fn waits_for(world: &World, job: JobId, kind: &str) -> contracts::conductor::Wait {
    let found = std::sync::Mutex::new(None);
    testkit::until(&format!("it waits for {kind}"), crate::support::LIMIT, || async {
        let said =
            world.bus.ask(&Actor::service("test"), &ExplainJob { job_id: job }).await.unwrap_or_default();
        *found.lock().unwrap() = said.into_iter().find(|wait| wait.kind == kind);
        found.lock().unwrap().is_some()
    })
    .await;
    found.into_inner().unwrap().unwrap()
}

#[tokio::test]
async fn each_limit_is_exact_and_named() {
    let limits = [
        (Config { org_slots: Some(1), ..patient() }, "org_limit", "dispatcher.org_slots"),
        (Config { project_slots: Some(1), ..patient() }, "project_limit", "dispatcher.project_slots"),
        (
            Config { class_slots: [("medium".to_owned(), 1)].into(), ..patient() },
            "class_limit",
            "dispatcher.class_slots",
        ),
    ];
    for (config, kind, key) in limits {
        let world = World::new(Config { slots: 8, ..config }).await;
        world.ready(1, machine()).await;
        let first = world.queued(1).await.remove(0);
        let second = world.ready(1, machine()).await;
        let wait = waits_for(&world, second, kind).await;
        assert_eq!((wait.key.as_deref(), wait.place), (Some(key), Some(1)));
        assert!(wait.since.is_some() && wait.text.contains(key), "{}", wait.text);
        assert_eq!(world.all::<TaskQueued>().await.len(), 1);
        let lease = world.claim(&first).await;
        world.finish(&lease, JobStatus::Success).await.unwrap();
        assert_eq!(world.queued(2).await[1].job_id, second);
        world.halt().await;
    }
}

#[tokio::test]
async fn a_long_line_of_one_organisation_does_not_hold_up_another() {
    let world = World::new(Config { slots: 2, ..patient() }).await;
    for _ in 0..10 {
        world.ready(1, machine()).await;
    }
    let first = world.queued(2).await;
    let other = contracts::domain::Project {
        id: ids::ProjectId::new(),
        org_id: ids::OrgId::new(),
        ..world.project.clone()
    };
    let job = JobId::new();
    world.announce_in(&other, job, 1, machine()).await;
    assert_eq!(waits_for(&world, job, "slot").await.place, Some(1), "it is next, behind ten others");
    let lease = world.claim(&first[0]).await;
    world.finish(&lease, JobStatus::Success).await.unwrap();
    assert_eq!(world.queued(3).await[2].job_id, job);
    world.halt().await;
}
