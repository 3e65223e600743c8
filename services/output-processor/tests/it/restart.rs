//! What a restart finds in the journal.

use crate::support::{Agent, LIMIT, World, acknowledged, code};
use gantry_output_processor::Config;
use ids::StepId;
use std::{
    fs,
    io::Write,
    sync::{Arc, atomic::Ordering},
};

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
    let mut segments: Vec<_> =
        fs::read_dir(world.journal()).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    let last = segments.last().unwrap();
    fs::OpenOptions::new()
        .append(true)
        .open(last)
        .unwrap()
        .write_all(&[200, 1, 0, 0, 1, 2, 3, 4, 1, 1])
        .unwrap();
    world.start().await;

    assert_eq!(world.output(open).await, content);
    assert_eq!(world.output(sealed).await, b"done");
    assert_eq!(
        acknowledged(&agent.chunk(&world, open, 1000, &content[1000..3000]).await),
        15_000,
        "a repeat"
    );
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
    assert!(
        steps
            .iter()
            .any(|step| step.step_id == open && step.status == "success" && step.log_state == "complete")
    );
}

/// No service ends because a store is away (reliability R-38).
#[tokio::test]
async fn a_start_waits_for_a_store_that_is_away() {
    let mut world = World::new(Config::default()).await;
    let (agent, step) = (Agent::new(), StepId::new());
    world.known(&agent).await;
    agent.report(&world, step, 101, "running").await;
    acknowledged(&agent.chunk(&world, step, 0, b"kept").await);
    world.stop().await;
    world.away.store(2, Ordering::SeqCst);
    world.start().await;
    assert_eq!(world.away.load(Ordering::SeqCst), 0, "it asked until there was an answer");
    assert_eq!(world.output(step).await, b"kept");
    assert_eq!(acknowledged(&agent.chunk(&world, step, 4, b" on").await), 7);
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

#[tokio::test]
async fn a_kill_loses_nothing_that_was_acknowledged() {
    let world = Arc::new(World::new(Config { segment_bytes: 16 * 1024, ..Config::default() }).await);
    let before = tempfile::tempdir().unwrap();
    let content = |n: u8, bytes: usize| (0..bytes).map(|at| (at % 241) as u8 ^ n).collect::<Vec<u8>>();
    let writers: Vec<_> = (0..4u8)
        .map(|n| {
            (n, Arc::new((Agent::new(), StepId::new())), Arc::new(std::sync::atomic::AtomicUsize::new(0)))
        })
        .collect();
    let running: Vec<_> = writers
        .iter()
        .cloned()
        .map(|(n, writer, acked)| {
            let world = Arc::clone(&world);
            let all = content(n, 60_000);
            tokio::spawn(async move {
                for (nth, data) in all.chunks(1500).enumerate() {
                    let next = acknowledged(&writer.0.chunk(&world, writer.1, nth as u64 * 1500, data).await);
                    acked.store(usize::try_from(next).unwrap(), std::sync::atomic::Ordering::SeqCst);
                }
            })
        })
        .collect();
    let load = |acked: &Arc<std::sync::atomic::AtomicUsize>| acked.load(std::sync::atomic::Ordering::SeqCst);
    testkit::until("some is written", LIMIT, || async {
        writers.iter().all(|(_, _, acked)| load(acked) > 10_000)
    })
    .await;
    // What a kill would leave: the files in the middle of it all.
    let acked: Vec<usize> = writers.iter().map(|(_, _, acked)| load(acked)).collect();
    let mut files: Vec<_> =
        fs::read_dir(world.journal()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        fs::copy(&file, before.path().join(file.file_name().unwrap())).unwrap();
    }
    for writer in running {
        writer.await.unwrap();
    }
    let mut world = Arc::into_inner(world).unwrap();
    world.stop().await;
    fs::remove_dir_all(world.journal()).unwrap();
    fs::rename(before.path(), world.journal()).unwrap();
    world.start().await;
    for ((n, writer, _), acked) in writers.iter().zip(acked) {
        let stored = world.output(writer.1).await;
        assert!(stored.len() >= acked, "{} of {acked}", stored.len());
        assert_eq!(stored, content(*n, 60_000)[..stored.len()]);
        // The agent goes on from what was acknowledged, which may be less than what is stored.
        let all = content(*n, 60_000);
        let next = acknowledged(&writer.0.chunk(&world, writer.1, acked as u64, &all[acked..]).await);
        assert_eq!(next, 60_000);
        assert_eq!(writer.0.seal(&world, writer.1, &all).await.0, 200);
    }
}
