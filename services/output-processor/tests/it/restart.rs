//! What a restart finds in the journal.

use crate::support::{Agent, World, acknowledged, code};
use gantry_output_processor::Config;
use ids::StepId;
use std::{fs, io::Write};

#[tokio::test]
async fn a_restart_goes_on_where_the_journal_ends() {
    let mut world = World::new(Config { segment_bytes: 4096, ..Config::default() }).await;
    let (agent, open, sealed) = (Agent::new(), StepId::new(), StepId::new());
    agent.report(&world, open, 101, "running").await;
    let mut content = Vec::new();
    for round in 0..10u8 {
        let data = vec![round; 1500];
        acknowledged(&agent.chunk(&world, open, content.len() as u64, &data).await);
        content.extend(data);
    }
    acknowledged(&agent.chunk(&world, sealed, 0, b"done").await);
    assert_eq!(agent.seal(&world, sealed, b"done").await.0, 200);
    world.in_blob(sealed).await;
    world.stop().await;

    // The last write was cut off by a crash.
    let mut segments: Vec<_> = fs::read_dir(world.journal()).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    let last = segments.last().unwrap();
    fs::OpenOptions::new().append(true).open(last).unwrap().write_all(&[200, 1, 0, 0, 1, 2, 3, 4, 1, 1]).unwrap();
    world.start().await;

    assert_eq!(world.output(open).await, content);
    assert_eq!(world.output(sealed).await, b"done");
    assert_eq!(acknowledged(&agent.chunk(&world, open, 1000, &content[1000..3000]).await), 15_000, "a repeat");
    assert_eq!(code(&agent.chunk(&world, open, 0, b"other").await), (409, "log_conflict".into()));
    assert_eq!(acknowledged(&agent.chunk(&world, open, 15_000, b"more").await), 15_004);
    content.extend(b"more");
    assert_eq!(agent.seal(&world, sealed, b"done").await.0, 200, "a repeat of the seal");
    assert_eq!(agent.seal(&world, open, &content).await.0, 200, "the digest covers both lives");
    assert_eq!(agent.report(&world, open, 101, "success").await.0, 200);

    world.close(agent.task, 1).await;
    world.stop().await; // perhaps before the record is complete
    world.start().await;
    assert_eq!(code(&agent.chunk(&world, open, 0, b"x").await), (409, "stale_lease".into()));
    world.finished(agent.task, 1).await;
    world.stop().await;
    world.start().await;
    assert_eq!(code(&agent.chunk(&world, open, 0, b"x").await), (409, "stale_lease".into()));
    assert_eq!(world.output(open).await, content);
    let steps = world.steps(agent.job).await;
    assert!(steps.iter().any(|step| step.step_id == open && step.status == "success" && step.log_state == "complete"));
}

#[tokio::test]
async fn a_journal_whose_beginning_was_let_go_is_still_read() {
    let mut world = World::new(Config { segment_bytes: 1024, ..Config::default() }).await;
    let (long, short) = (Agent::new(), Agent::new());
    let (kept, moved) = (StepId::new(), StepId::new());
    // Both write in turns; one moves to the blob store, and its segments stay for the other's sake only.
    let mut content = Vec::new();
    for round in 0..6u8 {
        let data = vec![round; 700];
        acknowledged(&short.chunk(&world, moved, content.len() as u64, &data).await);
        content.extend(data);
    }
    acknowledged(&long.chunk(&world, kept, 0, b"kept").await);
    assert_eq!(short.seal(&world, moved, &content).await.0, 200);
    world.in_blob(moved).await;
    world.stop().await;
    world.start().await;
    assert_eq!(world.output(moved).await, content);
    assert_eq!(world.output(kept).await, b"kept");
    assert_eq!(short.report(&world, moved, 101, "success").await.0, 200);
    world.close(short.task, 1).await;
    world.finished(short.task, 1).await;
    assert_eq!(world.step(moved).await.step.bytes, content.len() as u64);
    world.stop().await;
    world.start().await;
    assert_eq!(world.output(moved).await, content);
    assert_eq!(acknowledged(&long.chunk(&world, kept, 4, b" on").await), 7);
    assert_eq!(world.output(kept).await, b"kept on");
}
