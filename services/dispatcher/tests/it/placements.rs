//! What compute says of tasks whose agents have not come.

use crate::support::{LIMIT, World, machine, patient, quick};
use contracts::{
    Actor,
    dispatcher::{ExplainJob, PlacementNews, PlacementReport, ReportPlacements, TaskQueued},
};
use gantry_dispatcher::Config;
use std::time::Duration;

async fn report(world: &World, queued: &TaskQueued, news: PlacementNews) {
    let report = PlacementReport { task_id: queued.task_id, epoch: queued.epoch, news };
    let ask = ReportPlacements { placements: vec![report] };
    world.bus.ask(&Actor::service("scheduler"), &ask).await.unwrap();
}

async fn due_in(world: &World, queued: &TaskQueued) -> f64 {
    sqlx::query_scalar(
        "SELECT extract(epoch FROM next_action_at - clock_timestamp())::float8 FROM dispatcher.tasks WHERE task_id = $1",
    )
    .bind(queued.task_id.uuid())
    .fetch_one(&world.pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_task_says_what_it_asks_of_a_machine() {
    let world = World::new(patient()).await;
    world.ready(1, machine()).await;
    let demand = world.queued(1).await.remove(0).demand.unwrap();
    assert_eq!((demand.executor.as_str(), demand.class.as_str()), ("machine", "medium"));
    assert_eq!((demand.cpu_millis, demand.memory_bytes), (Some(2000), Some(15 << 29)));
    world.halt().await;
}

#[tokio::test]
async fn a_task_that_waits_for_a_machine_says_why_and_keeps_its_place() {
    let config = Config { claim_timeout: Duration::from_secs(3600), ..patient() };
    let world = World::new(config).await;
    let job = world.ready(1, machine()).await;
    let queued = world.queued(1).await.remove(0);
    // Its time is nearly up.
    sqlx::query("UPDATE dispatcher.tasks SET next_action_at = clock_timestamp() + interval '60 s'")
        .execute(&world.pool)
        .await
        .unwrap();
    report(&world, &queued, PlacementNews::Waits { why: "there is not enough memory".to_owned() }).await;
    assert!(due_in(&world, &queued).await > 3000.0, "it is given the whole time again");
    let waits = world.bus.ask(&Actor::service("test"), &ExplainJob { job_id: job }).await.unwrap();
    assert_eq!(waits[0].kind, "placement");
    assert!(waits[0].text.contains("waits for a machine: there is not enough memory"), "{}", waits[0].text);

    // News of another epoch are not this one's.
    let stale = TaskQueued { epoch: queued.epoch + 1, ..queued.clone() };
    report(&world, &stale, PlacementNews::Waits { why: "other".to_owned() }).await;
    let waits = world.bus.ask(&Actor::service("test"), &ExplainJob { job_id: job }).await.unwrap();
    assert!(!waits[0].text.contains("other"), "{}", waits[0].text);

    world.claim(&queued).await;
    let before = due_in(&world, &queued).await;
    report(&world, &queued, PlacementNews::Waits { why: "late".to_owned() }).await;
    assert!(due_in(&world, &queued).await <= before, "a claimed task is its lease's");
    world.halt().await;
}

#[tokio::test]
async fn a_task_whose_agent_ended_unclaimed_is_queued_again_at_once() {
    // By itself it would wait for an hour.
    let world = World::new(Config { claim_timeout: Duration::from_secs(3600), ..quick() }).await;
    world.ready(1, machine()).await;
    let queued = world.queued(1).await.remove(0);
    report(&world, &queued, PlacementNews::Ended).await;
    let again = world.queued(2).await.remove(1);
    assert_eq!((again.task_id, again.epoch), (queued.task_id, queued.epoch + 1));
    assert!(again.demand.is_some());

    let lease = world.claim(&again).await;
    report(&world, &again, PlacementNews::Ended).await;
    world.finish(&lease, model::status::JobStatus::Success).await.unwrap();
    assert_eq!(world.all::<TaskQueued>().await.len(), 2, "a claimed task is not queued again");
    testkit::until("it ends as it was reported", LIMIT, || async {
        world.task_finished(queued.task_id).await.status == model::status::JobStatus::Success
    })
    .await;
    world.halt().await;
}
