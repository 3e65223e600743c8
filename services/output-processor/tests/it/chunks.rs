//! The table of reliability §8.1, case by case, and reading.

use crate::support::{Agent, LIMIT, World, acknowledged, code, sha256};
use agent_api::Seal;
use futures::StreamExt;
use gantry_output_processor::Config;
use ids::{StepId, TaskId};
use std::sync::Arc;

#[tokio::test]
async fn the_chunk_table() {
    let world = World::new(Config::default()).await;
    let (agent, step) = (Agent::new(), StepId::new());

    assert_eq!(acknowledged(&agent.chunk(&world, step, 0, b"hello ").await), 6, "the next bytes");
    assert_eq!(acknowledged(&agent.chunk(&world, step, 0, b"hello ").await), 6, "a repeat");
    assert_eq!(acknowledged(&agent.chunk(&world, step, 2, b"ll").await), 6, "a part of it");
    assert_eq!(acknowledged(&agent.chunk(&world, step, 4, b"o wor").await), 9, "straddles");
    assert_eq!(code(&agent.chunk(&world, step, 0, b"hallo").await), (409, "log_conflict".into()));
    assert_eq!(
        code(&agent.chunk(&world, step, 6, b"WORLD").await),
        (409, "log_conflict".into()),
        "straddles, differs"
    );
    let gap = agent.chunk(&world, step, 10, b"d").await;
    assert_eq!((code(&gap), gap.1["next_offset"].as_u64()), ((409, "offset_gap".into()), Some(9)));
    let path = format!("streams/{step}/chunks?offset=9");
    let damaged = agent.send(&world, "PUT", &path, Some(1), b"ld".to_vec()).await;
    assert_eq!(code(&damaged), (422, "checksum_mismatch".into()));
    assert_eq!(code(&agent.send(&world, "PUT", &path, None, b"ld".to_vec()).await), (400, "invalid".into()));
    let large = vec![b'x'; agent_api::MAX_CHUNK + 1];
    assert_eq!(code(&agent.chunk(&world, step, 9, &large).await), (413, "too_large".into()));
    assert_eq!(acknowledged(&agent.chunk(&world, step, 9, b"ld").await), 11);
    assert_eq!(world.output(step).await, b"hello world", "nothing refused left a trace");

    let early = agent.seal(&world, step, b"hello world!").await;
    assert_eq!((code(&early), early.1["next_offset"].as_u64()), ((409, "seal_mismatch".into()), Some(11)));
    let other = agent.seal(&world, step, b"hello_world").await;
    assert_eq!((code(&other), other.1["next_offset"].as_u64()), ((409, "seal_mismatch".into()), Some(0)));
    assert_eq!(agent.seal(&world, step, b"hello world").await.0, 200);
    assert_eq!(agent.seal(&world, step, b"hello world").await.0, 200, "a repeat");
    assert_eq!(code(&agent.seal(&world, step, b"hello").await), (409, "stream_sealed".into()));

    // The same answers while the bytes are in the journal and after they moved.
    for moved in [false, true] {
        if moved {
            world.in_blob(step).await;
        }
        assert_eq!(acknowledged(&agent.chunk(&world, step, 6, b"world").await), 11, "{moved}");
        assert_eq!(
            code(&agent.chunk(&world, step, 6, b"WORLD").await),
            (409, "stream_sealed".into()),
            "{moved}"
        );
        assert_eq!(
            code(&agent.chunk(&world, step, 11, b"!").await),
            (409, "stream_sealed".into()),
            "{moved}"
        );
        assert_eq!(
            code(&agent.chunk(&world, step, 20, b"!").await),
            (409, "stream_sealed".into()),
            "{moved}"
        );
        assert_eq!(world.output(step).await, b"hello world", "{moved}");
    }
}

#[tokio::test]
async fn only_the_holder_of_the_lease_writes() {
    let world = World::new(Config::default()).await;
    let (agent, step) = (Agent::new(), StepId::new());
    acknowledged(&agent.chunk(&world, step, 0, b"mine").await);

    let expired = Agent { expires_in_ms: -1, ..Agent::new() };
    assert_eq!(code(&expired.chunk(&world, StepId::new(), 0, b"x").await), (401, "fence_expired".into()));
    let later = Agent { epoch: 2, task: agent.task, job: agent.job, ..Agent::new() };
    assert_eq!(
        code(&later.chunk(&world, step, 4, b"x").await),
        (409, "stale_lease".into()),
        "one writer per stream"
    );
    let foreign = Agent::new();
    assert_eq!(code(&foreign.chunk(&world, step, 4, b"x").await), (403, "forbidden".into()));
    assert_eq!(code(&foreign.seal(&world, step, b"mine").await), (403, "forbidden".into()));

    // A token of one task does not write to another.
    let token = foreign.token(&world);
    for (task, bearer, expected) in [
        (agent.task, token.clone(), (403, "forbidden")),
        (TaskId::new(), token.replace('.', "x."), (401, "unauthenticated")),
        (TaskId::new(), String::new(), (401, "unauthenticated")),
    ] {
        let request = axum::http::Request::builder()
            .method("POST")
            .uri(format!("/v1/tasks/{task}/steps"))
            .header("authorization", format!("Bearer {bearer}"))
            .body(axum::body::Body::empty())
            .unwrap();
        let response = tower::ServiceExt::oneshot(world.service().agent_router(), request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
        assert_eq!(code(&(status, serde_json::from_slice(&body).unwrap())), (expected.0, expected.1.into()));
    }
    assert_eq!(world.output(step).await, b"mine");
}

#[tokio::test]
async fn output_beyond_the_limit_is_counted_and_not_stored() {
    let world = World::new(Config { max_step_bytes: 10, max_task_bytes: 15, ..Config::default() }).await;
    let (agent, step, second) = (Agent::new(), StepId::new(), StepId::new());
    agent.report(&world, step, 101, "running").await;
    let answer = agent.chunk(&world, step, 0, b"0123456789abc").await;
    assert_eq!((acknowledged(&answer), answer.1["limit_reached"].as_bool()), (10, Some(true)));
    let answer = agent.chunk(&world, step, 10, b"abc").await;
    assert_eq!((acknowledged(&answer), answer.1["limit_reached"].as_bool()), (10, Some(true)));
    let seal = Seal { total_bytes: 10, sha256: sha256(b"0123456789"), produced_bytes: 13 };
    assert_eq!(agent.seal_with(&world, step, &seal).await.0, 200);
    assert_eq!(world.step(step).await.step.log_state, "truncated_by_limit");
    assert_eq!(world.output(step).await, b"0123456789");
    let answer = agent.chunk(&world, second, 0, b"0123456789").await;
    assert_eq!(
        (acknowledged(&answer), answer.1["limit_reached"].as_bool()),
        (5, Some(true)),
        "the task's limit"
    );
}

#[tokio::test]
async fn a_reader_waits_for_bytes_and_for_the_end() {
    let world = Arc::new(World::new(Config::default()).await);
    let (agent, step) = (Agent::new(), StepId::new());
    let mut topic = world.listen(&live::step_topic(step)).await;
    acknowledged(&agent.chunk(&world, step, 0, b"one").await);
    let told = tokio::time::timeout(LIMIT, topic.next()).await.unwrap();
    assert_eq!(told, Some(live::Message::Data("3".into())));

    let waiting = |offset| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.read(step, offset, 60_000).await.unwrap() })
    };
    let reader = waiting(3);
    acknowledged(&agent.chunk(&world, step, 3, b"two").await);
    let window = reader.await.unwrap();
    assert_eq!((window.next, window.total, window.sealed), (6, 6, false));
    let reader = waiting(6);
    world.live.flush(); // what is live may be lost at any moment
    agent.seal(&world, step, b"onetwo").await;
    let window = reader.await.unwrap();
    assert_eq!((window.next, window.total, window.sealed), (6, 6, true));
    let past = world.read(step, 100, 0).await.unwrap();
    assert_eq!((past.next, past.total, past.data.as_str()), (100, 6, ""));
    assert!(world.read(StepId::new(), 0, 0).await.is_err(), "an unknown step");
}

#[tokio::test]
async fn many_streams_at_once_keep_their_bytes_apart_and_in_order() {
    let world = Arc::new(World::new(Config { segment_bytes: 64 * 1024, ..Config::default() }).await);
    let writers = (0..8u8).map(|n| {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            let (agent, step) = (Agent::new(), StepId::new());
            let mut content = Vec::new();
            for round in 0..20u8 {
                let data = vec![n.wrapping_mul(31).wrapping_add(round); 3_000 + usize::from(n) * 100];
                let next = acknowledged(&agent.chunk(&world, step, content.len() as u64, &data).await);
                content.extend(data);
                assert_eq!(next, content.len() as u64);
            }
            (agent, step, content)
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        let (agent, step, content) = writer.await.unwrap();
        assert_eq!(world.output(step).await, content);
        assert_eq!(agent.seal(&world, step, &content).await.0, 200);
        world.in_blob(step).await;
        assert_eq!(world.output(step).await, content);
        world.close(agent.task, 1).await;
        world.finished(agent.task, 1).await;
        assert_eq!(world.output(step).await, content);
    }
    testkit::until("the journal is let go", LIMIT, || async {
        let files = std::fs::read_dir(world.journal()).unwrap().map(|file| file.unwrap().path());
        files.filter(|file| file.extension().is_some_and(|kind| kind == "journal")).count() == 1
    })
    .await;
}
