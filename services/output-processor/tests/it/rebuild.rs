//! Documents that the store of records lost are made again.

use crate::support::{Agent, LIMIT, World, acknowledged, sha256};
use blobs::{Blobs, Key};
use chrono::{TimeDelta, Utc};
use contracts::{
    Actor,
    output::{RebuildRecords, RebuiltRecords, UnreadableRecord},
};
use gantry_output_processor::Config;
use ids::{StepId, TaskId};
use records::{NewDocument, Records};
use serde_json::{Value, json};
use std::{fs, path::Path};
use uuid::Uuid;

type Row = (Uuid, Uuid, i64, Value);

/// All documents of steps, without the times at which they were stored.
async fn documents(world: &World) -> Vec<Row> {
    sqlx::query_as(
        "SELECT id, group_id, version, body FROM records.documents WHERE kind = 'step' ORDER BY id",
    )
    .fetch_all(&world.database.pool)
    .await
    .unwrap()
}

async fn sql(world: &World, statement: &'static str) {
    sqlx::query(statement).execute(&world.database.pool).await.unwrap();
}

async fn rebuild(world: &World, after: Option<TaskId>) -> RebuiltRecords {
    world.bus().ask(&Actor::service("test"), &RebuildRecords { after }).await.unwrap()
}

/// How many documents a rebuild wrote that could read everything.
fn made(done: &RebuiltRecords) -> u64 {
    assert_eq!((done.unreadable.as_slice(), done.next), (&[][..], None));
    done.written
}

/// Only from what is sealed: a task whose record is complete is in memory a moment longer.
async fn from_sealed(world: &World) -> RebuiltRecords {
    rebuild(world, Some(TaskId(Uuid::nil()))).await
}

/// One step, ended, with its output whole.
async fn step(world: &World, agent: &Agent, number: u32) -> StepId {
    let (step, line) = (StepId::new(), format!("line of {number}\n").into_bytes());
    assert_eq!(agent.report(world, step, number, "running").await.0, 200);
    acknowledged(&agent.chunk(world, step, 0, &line).await);
    assert_eq!(agent.seal(world, step, &line).await.0, 200);
    assert_eq!(agent.report(world, step, number, "success").await.0, 200);
    step
}

/// A task of two steps whose record is complete.
async fn ended(world: &World) -> (Agent, [StepId; 2]) {
    let agent = Agent::new();
    world.known(&agent).await;
    let steps = [step(world, &agent, 101).await, step(world, &agent, 102).await];
    world.close(agent.task, 1).await;
    world.finished(agent.task, 1).await;
    (agent, steps)
}

/// The document says this of a step.
async fn written(world: &World, step: StepId, status: &str) {
    testkit::until("the document is written", LIMIT, || async {
        world.document("step", step.uuid()).await.is_some_and(|found| found.body["step"]["status"] == status)
    })
    .await;
}

#[tokio::test]
async fn documents_that_were_dropped_are_made_again_as_they_were() {
    let world = World::new(Config::default()).await;
    let (_, [first, second]) = ended(&world).await;
    // A task that was begun twice, and each time something ran.
    let agent = Agent::new();
    let old = step(&world, &agent, 101).await;
    world.close(agent.task, 1).await;
    let next = Agent { epoch: 2, task: agent.task, job: agent.job, ..Agent::new() };
    let new = step(&world, &next, 101).await;
    world.close(agent.task, 2).await;
    world.finished(agent.task, 2).await;
    // One that runs, and one of which nobody ever heard.
    let running = Agent::new();
    let over = step(&world, &running, 101).await;
    let open = StepId::new();
    assert_eq!(running.report(&world, open, 102, "running").await.0, 200);
    written(&world, over, "success").await;
    written(&world, open, "running").await;
    // One of which nothing ran at first, and that runs now: it has no record, and none is lost.
    let later = Agent { epoch: 2, ..Agent::new() };
    world.close(later.task, 1).await;
    world.finished(later.task, 1).await;
    written(&world, step(&world, &later, 101).await, "success").await;
    let silent = Agent::new();
    world.close(silent.task, 2).await;
    world.finished(silent.task, 2).await;
    let before = documents(&world).await;
    assert_eq!(before.len(), 7);

    sql(&world, "DROP SCHEMA records CASCADE").await;
    assert_eq!(made(&rebuild(&world, None).await), 7);
    assert_eq!(documents(&world).await, before);
    assert_eq!(world.output(first).await, b"line of 101\n");
    assert_eq!(world.output(second).await, b"line of 102\n");
    assert_eq!(world.output(new).await, world.output(old).await);
    let again = rebuild(&world, None).await;
    assert_eq!(made(&again), 0, "a repeat finds all of it");
    assert!(again.current >= 7 && again.tasks >= 6, "{again:?}");
    assert_eq!(documents(&world).await, before);

    // What ran meanwhile goes on from there.
    assert_eq!(running.report(&world, open, 102, "success").await.0, 200);
    written(&world, open, "success").await;
    world.close(running.task, 1).await;
    world.finished(running.task, 1).await;
    assert_eq!(world.steps(running.job).await.len(), 2);
    assert_eq!(made(&rebuild(&world, None).await), 0);
}

#[tokio::test]
async fn a_newer_document_stays_and_an_older_one_does_not() {
    let world = World::new(Config::default()).await;
    let (agent, [first, second]) = ended(&world).await;
    let before = documents(&world).await;
    let version = |step: StepId| before.iter().find(|row| row.0 == step.uuid()).unwrap().2;
    sql(&world, "TRUNCATE records.documents").await;
    let put = |step: StepId, version: i64| NewDocument {
        kind: "step",
        id: step.uuid(),
        group: agent.job.uuid(),
        version,
        body: json!({ "from": "elsewhere" }),
    };
    let records = world.records().await;
    records.put(&[put(first, version(first) - 1), put(second, version(second) + 1)]).await.unwrap();
    assert_eq!(made(&rebuild(&world, None).await), 1);
    let after = documents(&world).await;
    assert!(after.contains(before.iter().find(|row| row.0 == first.uuid()).unwrap()));
    assert_eq!(world.document("step", second.uuid()).await.unwrap().body["from"], "elsewhere");
}

#[tokio::test]
async fn a_rebuild_goes_on_where_it_ended() {
    let world = World::new(Config::default()).await;
    let mut tasks = Vec::new();
    for _ in 0..3 {
        tasks.push(ended(&world).await);
    }
    tasks.sort_by_key(|(agent, _)| agent.task);
    sql(&world, "TRUNCATE records.documents").await;
    let some = rebuild(&world, Some(tasks[0].0.task)).await;
    assert_eq!((some.tasks, made(&some), some.current), (2, 4, 0));
    assert!(world.document("step", tasks[0].1[0].uuid()).await.is_none());
    let none = rebuild(&world, Some(tasks[2].0.task)).await;
    assert_eq!((none.tasks, made(&none), none.current), (0, 0, 0));
    let all = from_sealed(&world).await;
    assert_eq!((all.tasks, made(&all), all.current), (3, 2, 4));
}

#[tokio::test]
async fn records_that_cannot_be_read_are_named_and_hold_nothing_up() {
    let world = World::new(Config::default()).await;
    let (lost, damaged, sound) = (ended(&world).await, ended(&world).await, ended(&world).await);
    let key = |agent: &Agent| Key::new(format!("records/{}/1", agent.task)).unwrap();
    world.blobs().delete(&key(&lost.0)).await.unwrap();
    damage(world.folder.path(), &damaged.0.task.to_string());
    sql(&world, "TRUNCATE records.documents").await;
    let first = from_sealed(&world).await;
    assert_eq!((first.tasks, first.written, first.current, first.next), (3, 2, 0, None));
    testkit::until("nobody holds the lost one", LIMIT, || async {
        from_sealed(&world).await.unreadable.len() == 2
    })
    .await;
    let mut unreadable = from_sealed(&world).await.unreadable;
    unreadable.sort_by_key(|one| one.what != key(&lost.0).as_str());
    let [UnreadableRecord { what: first, why: gone }, UnreadableRecord { what: second, why: other }] =
        &unreadable[..]
    else {
        panic!("{unreadable:?}")
    };
    assert_eq!([first.as_str(), second], [key(&lost.0).as_str(), key(&damaged.0).as_str()]);
    assert!(gone.contains("not there") && gone.contains("step"), "{gone}");
    assert!(other.contains("damaged"), "{other}");
    assert_eq!(world.output(sound.1[0]).await, b"line of 101\n");
}

/// Changes a byte of the file that holds the record of a task.
fn damage(folder: &Path, task: &str) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            damage(&path, task);
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        let text = format!("{{\"task_id\":\"{task}\"");
        if !path.starts_with(folder.join("journal"))
            && let Some(at) = bytes.windows(text.len()).position(|window| window == text.as_bytes())
        {
            bytes[at + text.len() + 20] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
}

#[tokio::test]
async fn what_another_process_holds_is_written_too() {
    let (first, second) = World::two(Config::default()).await;
    let (here, there) = (Agent::new(), Agent::new());
    let steps = [step(&first, &here, 101).await, step(&second, &there, 101).await];
    for step in steps {
        written(&first, step, "success").await;
    }
    let before = documents(&first).await;
    sql(&first, "TRUNCATE records.documents").await;
    assert_eq!(made(&rebuild(&first, None).await), 2);
    assert_eq!(documents(&first).await, before);
    // A process that is gone, and whose journal nobody can take over, is named.
    let nobody = TaskId::new().uuid();
    sqlx::query("INSERT INTO output_processor.owners VALUES ($1, $1)")
        .bind(nobody)
        .execute(&first.database.pool)
        .await
        .unwrap();
    let done = rebuild(&second, None).await;
    assert_eq!((done.written, done.current, done.unreadable.len()), (0, 2, 1));
    assert_eq!(done.unreadable[0].what, format!("journal {nobody}"));
}

#[tokio::test]
async fn everything_is_there_after_a_drop_under_load() {
    let world = World::new(Config { gather_ms: 1, ..Config::default() }).await;
    let running = async |nth: u32| {
        let agent = Agent::new();
        world.known(&agent).await;
        let mut steps = Vec::new();
        for number in 101..105 {
            steps.push(step(&world, &agent, number).await);
            tokio::time::sleep(std::time::Duration::from_millis(u64::from(nth * 7 % 40))).await;
        }
        world.close(agent.task, 1).await;
        world.finished(agent.task, 1).await;
        (agent, steps)
    };
    let dropping = async {
        for _ in 0..4 {
            tokio::time::sleep(std::time::Duration::from_millis(60)).await;
            sql(&world, "TRUNCATE records.documents").await;
            rebuild(&world, None).await;
        }
    };
    let (done, ()) = tokio::join!(futures::future::join_all((0..24).map(running)), dropping);
    for (agent, steps) in &done {
        let key = Key::new(format!("records/{}/1", agent.task)).unwrap();
        let record = world.blobs().get(&key, None).await.unwrap().bytes().await.unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        assert_eq!(record["steps"].as_array().unwrap().len(), steps.len());
        for sealed in record["steps"].as_array().unwrap() {
            let id: StepId = serde_json::from_value(sealed["step_id"].clone()).unwrap();
            let document = world.document("step", id.uuid()).await.expect("every step has its document");
            assert_eq!(json!(document.version), sealed["version"]);
            assert_eq!(document.body["step"]["sha256"], sealed["sha256"]);
            assert_eq!(document.body["step"]["log_state"], "complete");
        }
        let line = b"line of 104\n";
        assert_eq!(world.output(steps[3]).await, line);
        assert_eq!(world.step(steps[3]).await.step.sha256, Some(sha256(line)));
    }
    assert_eq!(made(&rebuild(&world, None).await), 0, "nothing is missing any more");
}

#[tokio::test]
async fn the_sweep_needs_no_documents_and_leaves_nothing_to_be_made_again() {
    let world = World::new(Config { retention_days: 30, ..Config::default() }).await;
    let (agent, steps) = ended(&world).await;
    let (young, _) = ended(&world).await;
    sqlx::query(
        "UPDATE output_processor.fences SET closed_at = closed_at - interval '31 days' WHERE task_id = $1",
    )
    .bind(agent.task.uuid())
    .execute(&world.database.pool)
    .await
    .unwrap();
    sql(&world, "TRUNCATE records.documents").await;
    // The age of a task is that of its end, not that of its documents.
    assert_eq!(made(&from_sealed(&world).await), 2, "what is about to go is not made again");
    assert_eq!(world.service().sweep(Utc::now()).await.unwrap(), 1);
    for key in [format!("logs/{}", steps[0]), format!("records/{}/1", agent.task)] {
        assert_eq!(world.blobs().head(&Key::new(key).unwrap()).await.unwrap(), None);
    }
    assert_eq!(made(&from_sealed(&world).await), 0);
    assert_eq!(world.service().sweep(Utc::now() + TimeDelta::days(31)).await.unwrap(), 1);
    assert!(documents(&world).await.is_empty());
    let key = Key::new(format!("records/{}/1", young.task)).unwrap();
    assert_eq!(world.blobs().head(&key).await.unwrap(), None);
}
