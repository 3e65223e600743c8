//! Steps, seals, and the end of an epoch.

use crate::support::{Agent, LIMIT, World, acknowledged, code, sha256};
use blobs::Blobs;
use chrono::{TimeDelta, Utc};
use contracts::{
    Actor, NewEvent,
    dispatcher::{TaskFinished, TaskQueued},
};
use gantry_output_processor::Config;
use ids::{StepId, WorkflowId};
use model::status::JobStatus;
use serde_json::Value;

#[tokio::test]
async fn a_whole_task_becomes_a_sealed_record() {
    let world = World::new(Config::default()).await;
    let (agent, first, second) = (Agent::new(), StepId::new(), StepId::new());
    assert_eq!(agent.report(&world, first, 101, "running").await.0, 200);
    acknowledged(&agent.chunk(&world, first, 0, b"built\n").await);
    assert_eq!(agent.seal(&world, first, b"built\n").await.0, 200);
    assert_eq!(agent.report(&world, first, 101, "success").await.0, 200);
    assert_eq!(agent.report(&world, first, 101, "failed").await.0, 200, "is answered, and changes nothing");
    assert_eq!(agent.report(&world, second, 102, "running").await.0, 200);
    acknowledged(&agent.chunk(&world, second, 0, b"half").await);
    assert_eq!(code(&agent.report(&world, StepId::new(), 103, "odd").await), (422, "invalid".into()));
    let steps = world.steps(agent.job).await;
    let seen: Vec<_> = steps.iter().map(|s| (s.number, s.status.as_str(), s.log_state.as_str())).collect();
    assert_eq!(seen, [(101, "success", "complete"), (102, "running", "open")]);
    assert_eq!(steps[0].sha256.as_deref(), Some(sha256(b"built\n").as_str()));

    world.close(agent.task, 1).await;
    for step in [first, second, StepId::new()] {
        assert_eq!(code(&agent.chunk(&world, step, 4, b"late").await), (409, "stale_lease".into()));
        assert_eq!(code(&agent.seal(&world, step, b"half").await), (409, "stale_lease".into()));
        assert_eq!(code(&agent.report(&world, step, 102, "success").await), (409, "stale_lease".into()));
    }
    world.finished(agent.task, 1).await;
    world.close(agent.task, 1).await; // a repeat
    assert_eq!(
        code(&agent.chunk(&world, second, 4, b"late").await),
        (409, "stale_lease".into()),
        "also from the row"
    );

    let steps = world.steps(agent.job).await;
    let seen: Vec<_> = steps.iter().map(|s| (s.status.as_str(), s.log_state.as_str(), s.bytes)).collect();
    assert_eq!(seen, [("success", "complete", 6), ("infrastructure_fail", "interrupted", 4)]);
    assert_eq!(world.output(second).await, b"half");
    assert!(world.read(second, 4, 60_000).await.unwrap().sealed);
    assert_eq!(world.step(first).await.task_id, agent.task);

    let key = blobs::Key::new(format!("records/{}/1", agent.task)).unwrap();
    let record = world.blobs().get(&key, None).await.unwrap().bytes().await.unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let sealed: Vec<_> = record["steps"].as_array().unwrap().iter().map(|step| &step["step_id"]).collect();
    assert_eq!(sealed, [&serde_json::json!(first), &serde_json::json!(second)]);
    for step in record["steps"].as_array().unwrap() {
        let id = serde_json::from_value::<StepId>(step["step_id"].clone()).unwrap();
        let document = world.document("step", id.uuid()).await.unwrap();
        assert_eq!(step["version"], document.version, "from the record its document can be made again");
    }

    // The last event of each step says what the record says.
    let events = world.events(agent.task).await;
    for step in &steps {
        let last =
            events.iter().rev().find(|e| e["step"]["step_id"] == serde_json::to_value(step.step_id).unwrap());
        assert_eq!(last.unwrap()["step"], serde_json::to_value(step).unwrap());
    }
}

#[tokio::test]
async fn a_closed_epoch_leaves_the_next_one_open() {
    let world = World::new(Config::default()).await;
    let (agent, old) = (Agent::new(), StepId::new());
    acknowledged(&agent.chunk(&world, old, 0, b"first try").await);
    let next = Agent { epoch: 2, task: agent.task, job: agent.job, ..Agent::new() };
    let step = StepId::new();
    // Before the close, so that the task stays in memory and knows its steps.
    assert_eq!(next.report(&world, step, 101, "running").await.0, 200);
    world.close(agent.task, 1).await;
    acknowledged(&next.chunk(&world, step, 0, b"second try").await);
    assert_eq!(code(&next.chunk(&world, old, 9, b"x").await), (409, "stale_lease".into()));
    assert_eq!(code(&agent.chunk(&world, old, 9, b"x").await), (409, "stale_lease".into()));
    world.close(agent.task, 2).await;
    world.finished(agent.task, 2).await;
    assert_eq!(world.output(old).await, b"first try");
    assert_eq!(world.output(step).await, b"second try");
    assert_eq!(world.steps(agent.job).await.len(), 2);
    // A task of which nobody ever heard can be closed as well.
    let silent = Agent::new();
    world.close(silent.task, 3).await;
    world.finished(silent.task, 3).await;
    assert_eq!(code(&silent.chunk(&world, StepId::new(), 0, b"x").await), (409, "stale_lease".into()));
}

#[tokio::test]
async fn what_the_dispatcher_says_of_a_task_is_heard() {
    let world = World::new(Config::default()).await;
    let (agent, step) = (Agent::new(), StepId::new());
    let dispatcher =
        eventstore::Store::open(world.database.pool.clone(), "dispatcher", &eventstore::NO_MIGRATIONS)
            .await
            .unwrap();
    world.bus().register_source(&dispatcher);
    let queued = TaskQueued {
        task_id: agent.task,
        job_id: agent.job,
        workflow_id: WorkflowId::new(),
        index: 3,
        epoch: 1,
        resource_class: "medium".to_owned(),
        demand: None,
    };
    let mut tx = dispatcher.begin(&[]).await.unwrap();
    let event = NewEvent::new("task", agent.task.uuid(), Actor::service("dispatcher"), &queued);
    tx.append(&[event]).await.unwrap();
    tx.commit().await.unwrap();
    testkit::until("the task is known", LIMIT, || async {
        sqlx::query("SELECT 1 FROM output_processor.tasks WHERE task_id = $1 AND index = 3")
            .bind(agent.task.uuid())
            .fetch_optional(&world.database.pool)
            .await
            .unwrap()
            .is_some()
    })
    .await;
    agent.report(&world, step, 101, "running").await;
    assert_eq!(world.steps(agent.job).await[0].index, 3);
    testkit::until("the event is written", LIMIT, || async { !world.events(agent.task).await.is_empty() })
        .await;
    assert_eq!(world.events(agent.task).await[0]["step"]["index"], 3);

    // Its end is enough, should the request to close have found nobody.
    let finished = TaskFinished {
        task_id: agent.task,
        job_id: agent.job,
        index: 3,
        epoch: 1,
        status: JobStatus::InfrastructureFail,
        reason: None,
        at: Utc::now(),
    };
    let mut tx = dispatcher.begin(&[eventstore::Key::new("task", agent.task.uuid())]).await.unwrap();
    tx.append(&[NewEvent::new("task", agent.task.uuid(), Actor::service("dispatcher"), &finished)])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    world.finished(agent.task, 1).await;
    assert_eq!(world.step(step).await.step.status, "infrastructure_fail");
}

#[tokio::test]
async fn the_sweep_removes_what_is_past_its_retention() {
    let world = World::new(Config { retention_days: 30, ..Config::default() }).await;
    let (agent, step) = (Agent::new(), StepId::new());
    agent.report(&world, step, 101, "running").await;
    acknowledged(&agent.chunk(&world, step, 0, b"old").await);
    world.close(agent.task, 1).await;
    world.finished(agent.task, 1).await;
    assert_eq!(world.service().sweep(Utc::now() + TimeDelta::days(29)).await.unwrap(), 0);
    assert_eq!(world.output(step).await, b"old");
    assert_eq!(world.service().sweep(Utc::now() + TimeDelta::days(31)).await.unwrap(), 1);
    assert!(world.read(step, 0, 0).await.is_err());
    let key = blobs::Key::new(format!("logs/{step}")).unwrap();
    assert_eq!(world.blobs().head(&key).await.unwrap(), None);
}
