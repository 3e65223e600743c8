//! Two processes on one database: a task's calls may come to either.

use crate::support::{Agent, LIMIT, World, acknowledged, code, sha256};
use gantry_output_processor::Config;
use ids::StepId;

#[tokio::test]
async fn calls_and_questions_reach_the_process_that_holds_the_task() {
    let (first, second) = World::two(Config::default()).await;
    let (agent, step) = (Agent::new(), StepId::new());
    // By this those who hold tasks of a job are found.
    first.known(&agent).await;
    assert_eq!(agent.report(&first, step, 1, "running").await.0, 200);
    let mut content = Vec::new();
    for (number, world) in [&first, &second, &first, &second].into_iter().enumerate() {
        let line = format!("line {number}\n");
        let at = content.len() as u64;
        let answer = agent.chunk(world, step, at, line.as_bytes()).await;
        content.extend_from_slice(line.as_bytes());
        assert_eq!(acknowledged(&answer), content.len() as u64);
    }
    // A repeat that comes to the other one is known.
    assert_eq!(acknowledged(&agent.chunk(&second, step, 0, &content).await), content.len() as u64);
    assert_eq!(
        code(&agent.chunk(&second, step, content.len() as u64 + 5, b"x").await),
        (409, "offset_gap".into())
    );
    for world in [&first, &second] {
        assert_eq!(world.output(step).await, content, "while it runs");
        let steps = world.steps(agent.job).await;
        assert_eq!(steps.iter().map(|step| step.bytes).collect::<Vec<_>>(), [content.len() as u64]);
        assert_eq!(world.step(step).await.step.log_state, "open");
    }
    assert_eq!(agent.report(&second, step, 1, "success").await.0, 200);
    assert_eq!(agent.seal(&second, step, &content).await.0, 200);
    second.close(agent.task, 1).await;
    assert_eq!(code(&agent.chunk(&first, step, 0, b"late").await), (409, "stale_lease".into()));
    assert_eq!(code(&agent.chunk(&second, step, 0, b"late").await), (409, "stale_lease".into()));
    first.finished(agent.task, 1).await;
    for world in [&first, &second] {
        assert_eq!(world.output(step).await, content, "afterwards");
        assert_eq!(world.step(step).await.step.sha256, Some(sha256(&content)));
        // Whoever comes too late leaves nothing behind.
        assert_eq!(code(&agent.chunk(world, step, 0, b"late").await), (409, "stale_lease".into()));
    }
    let owners: i64 = sqlx::query_scalar("SELECT count(*) FROM output_processor.owners")
        .fetch_one(&first.database.pool)
        .await
        .unwrap();
    assert_eq!(owners, 0, "nobody's task is anybody's");
}

#[tokio::test]
async fn a_process_that_ends_leaves_its_tasks_to_the_other() {
    let (mut first, mut second) = World::two(Config::default()).await;
    let (agent, step) = (Agent::new(), StepId::new());
    assert_eq!(agent.report(&first, step, 1, "running").await.0, 200);
    let mut content = b"before\n".to_vec();
    assert_eq!(acknowledged(&agent.chunk(&first, step, 0, &content).await), 7);
    first.stop().await;
    // Whoever reads meanwhile waits for the one that takes over.
    assert_eq!(second.output(step).await, content);
    testkit::until("the other one takes it", LIMIT, || async {
        agent.chunk(&second, step, 7, b"after\n").await.0 == 200
    })
    .await;
    content.extend_from_slice(b"after\n");
    first.start().await;
    assert_eq!(acknowledged(&agent.chunk(&first, step, 13, b"again\n").await), 19, "it is passed on");
    content.extend_from_slice(b"again\n");
    // And back again, with a version of the record that is newer than any before.
    second.stop().await;
    testkit::until("the first one takes it back", LIMIT, || async {
        agent.report(&first, step, 1, "success").await.0 == 200
    })
    .await;
    assert_eq!(agent.seal(&first, step, &content).await.0, 200);
    first.close(agent.task, 1).await;
    first.finished(agent.task, 1).await;
    assert_eq!(first.output(step).await, content);
    let place = first.step(step).await;
    assert_eq!((place.step.status.as_str(), place.step.log_state.as_str()), ("success", "complete"));
    assert_eq!(place.step.sha256, Some(sha256(&content)));
    second.start().await;
    assert_eq!(second.output(step).await, content);
}
