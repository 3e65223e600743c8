//! The start permit of jobs whose environment is prepared, and what resource classes mean.

use crate::support::{World, code, docker, machine, patient, quick};
use agent_api::Renewed;
use contracts::{
    Actor,
    dispatcher::{RevokeJobs, TaskQueued},
};
use gantry_dispatcher::{
    Config, Docker,
    classes::{Class, Classes, For},
};
use model::{
    plan::{Executor, JobDefinition},
    status::JobStatus,
};
use std::time::Duration;

fn engine(config: Config) -> Config {
    Config { docker: Docker::Engine, ..config }
}

#[tokio::test]
async fn a_prepared_environment_asks_for_its_permit() {
    let world = World::new(engine(patient())).await;
    world.ready(1, docker()).await;
    world.ready(1, machine()).await;
    let queued = world.queued(2).await;
    let lease = world.claim(&queued[0]).await;
    assert!(!lease.permit && lease.spec.containers);
    assert_eq!(lease.spec.resources.memory_bytes, Some(4 << 30));
    let of_machine = world.claim(&queued[1]).await;
    assert!(of_machine.permit && !of_machine.spec.containers);
    let path = format!("/v1/tasks/{}/start", lease.task_id);
    for _ in 0..2 {
        world.post::<serde_json::Value>(&path, Some(&lease.fence), &()).await.unwrap();
    }
    let given: bool =
        sqlx::query_scalar("SELECT permit_at IS NOT NULL FROM dispatcher.tasks WHERE task_id = $1")
            .bind(lease.task_id.uuid())
            .fetch_one(&world.pool)
            .await
            .unwrap();
    assert!(given);
    world.finish(&lease, JobStatus::Success).await.unwrap();
    assert_eq!(code(world.post::<serde_json::Value>(&path, Some(&lease.fence), &()).await), "stale_lease");
    world.halt().await;
}

#[tokio::test]
async fn an_agent_lost_before_its_permit_costs_nothing_and_one_after_it_is_not_replaced() {
    let world = World::new(engine(quick())).await;
    let job = world.ready(1, docker()).await;
    let first = world.claim(&world.queued(1).await[0]).await;
    // Silent: it is queued again under a new epoch, and the first agent is fenced.
    let queued = world.queued(2).await.remove(1);
    assert_eq!((queued.task_id, queued.epoch), (first.task_id, first.epoch + 1));
    let path = format!("/v1/tasks/{}/start", first.task_id);
    assert_eq!(code(world.post::<serde_json::Value>(&path, Some(&first.fence), &()).await), "stale_lease");
    let second = world.claim(&queued).await;
    world.post::<serde_json::Value>(&path, Some(&second.fence), &()).await.unwrap();
    let finished = world.job_finished(job).await;
    assert_eq!(
        (finished.status, finished.reason.as_deref()),
        (JobStatus::InfrastructureFail, Some("runner_lost"))
    );
    assert_eq!(world.all::<TaskQueued>().await.len(), 2);
    world.halt().await;
}

#[tokio::test]
async fn preparing_for_too_long_queues_the_task_again_though_the_agent_renews() {
    let permit_timeout = Duration::from_millis(300);
    let world = World::new(engine(Config { permit_timeout, ..quick() })).await;
    world.ready(1, docker()).await;
    let lease = world.claim(&world.queued(1).await[0]).await;
    let path = format!("/v1/tasks/{}/renew", lease.task_id);
    testkit::until("the task is queued again", crate::support::LIMIT, || async {
        let renewed = world.post::<Renewed>(&path, Some(&lease.fence), &serde_json::json!({})).await;
        renewed.is_err() && world.all::<TaskQueued>().await.len() == 2
    })
    .await;
    world.halt().await;
}

#[tokio::test]
async fn a_canceled_task_gets_no_permit() {
    let world = World::new(engine(patient())).await;
    let job = world.ready(1, docker()).await;
    let lease = world.claim(&world.queued(1).await[0]).await;
    world.bus.ask(&Actor::service("conductor"), &RevokeJobs { job_ids: vec![job] }).await.unwrap();
    let path = format!("/v1/tasks/{}/start", lease.task_id);
    assert_eq!(code(world.post::<serde_json::Value>(&path, Some(&lease.fence), &()).await), "canceled");
    world.finish(&lease, JobStatus::Canceled).await.unwrap();
    assert_eq!(world.job_finished(job).await.status, JobStatus::Canceled);
    world.halt().await;
}

#[test]
fn classes_mean_what_the_configuration_says() {
    let of = |executor: Executor, class: &str| JobDefinition {
        executor,
        resource_class: class.to_owned(),
        environment: Vec::new(),
        working_directory: "~/project".to_owned(),
        shell: None,
        parallelism: 1,
        steps: Vec::new(),
        continues: false,
        auto_rerun_on_infra_fail: 0,
        cache_days: None,
    };
    let mut classes = Classes::default();
    let cpu = |classes: &Classes, executor, class| classes.resolve(&of(executor, class)).unwrap().cpu_millis;
    assert_eq!(cpu(&classes, docker(), ""), Some(2000));
    assert_eq!(cpu(&classes, docker(), "large"), Some(4000));
    assert_eq!(cpu(&classes, docker(), "2xlarge+.gen2"), Some(20_000));
    assert_eq!(cpu(&classes, machine(), "2xlarge+"), Some(32_000));
    assert_eq!(cpu(&classes, machine(), "acme/runner"), None, "of a runner: its machine is what it is");
    let error = classes.resolve(&of(machine(), "small")).unwrap_err();
    assert!(error.contains("small") && error.contains("2xlarge, 2xlarge+, arm.2xlarge"), "{error}");
    classes.set(For::Machine, "small", Class { cpu_millis: 500, memory_bytes: 1 << 30 });
    assert_eq!(cpu(&classes, machine(), "small"), Some(500));
}
