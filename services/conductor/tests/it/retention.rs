//! Workflows whose pipeline is past its retention.

use crate::support::{LIMIT, World, append, approval, build, code, until, workflow};
use contracts::{
    Actor, NewEvent,
    conductor::{RerunWorkflow, WorkflowCreated},
    retention::{Archived, Candidate, PipelineExpired, SettledPipelines, WorkflowExpired},
};
use eventstore::{NO_MIGRATIONS, Store};
use gantry_conductor::Config;
use ids::PipelineId;
use model::status::WorkflowStatus;
use std::{collections::BTreeSet, time::Duration};

/// A world in which a workflow can be rerun for no time at all.
async fn world() -> World {
    let mut world = World::new().await;
    world.stop().await;
    world.config =
        Config { reruns: Duration::from_millis(1), sweep: Duration::from_secs(1), ..Config::default() };
    world.start().await;
    world
}

/// The pipeline with the position of its last event.
async fn candidate(world: &World, pipeline_id: PipelineId) -> Candidate {
    let (xid, seq): (String, i64) = sqlx::query_as(
        "SELECT xid::text, seq FROM pipelines.events WHERE aggregate_id = $1 ORDER BY version DESC LIMIT 1",
    )
    .bind(pipeline_id.uuid())
    .fetch_one(&world.pool)
    .await
    .unwrap();
    Candidate { pipeline_id, xid: xid.parse().unwrap(), seq }
}

async fn settled(world: &World, pipelines: &[PipelineId], ago: i64) -> BTreeSet<PipelineId> {
    let mut candidates = Vec::new();
    for pipeline in pipelines {
        candidates.push(candidate(world, *pipeline).await);
    }
    let before = chrono::Utc::now() - chrono::TimeDelta::milliseconds(ago);
    let ask = SettledPipelines { pipelines: candidates, before };
    world.ask(&ask).await.unwrap().into_iter().collect()
}

/// `pipelines` says that it is gone.
async fn expire(world: &World, pipeline_id: PipelineId) {
    let store = Store::open(world.pool.clone(), "pipelines", &NO_MIGRATIONS).await.unwrap();
    world.bus.register_source(&store);
    let body = PipelineExpired {
        pipeline_id,
        project_id: world.project.id,
        number: 1,
        archived: Archived { archive: ids::ObjectId::new().uuid(), events: 1 },
    };
    append(&store, NewEvent::new("pipeline", pipeline_id.uuid(), Actor::service("pipelines"), &body)).await;
}

async fn workflows_left(world: &World, pipeline: PipelineId) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM conductor.workflows WHERE pipeline_id = $1")
        .bind(pipeline.uuid())
        .fetch_one(&world.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_pipeline_may_go_when_all_its_workflows_are_over_for_good() {
    let mut world = world().await;
    let over =
        world.push(vec![workflow("a", vec![build("x", &[])]), workflow("b", vec![build("y", &[])])]).await;
    let half = world
        .push(vec![workflow("a", vec![build("x", &[])]), workflow("b", vec![approval("hold", &[])])])
        .await;
    let empty = world.announce_pipeline(Vec::new()).await;
    for created in over.iter().chain(&half[..1]) {
        world.run_to_end(created.workflow_id, &[]).await;
    }
    let all = [over[0].pipeline_id, half[0].pipeline_id, empty];
    until("the conductor has heard of all", LIMIT, async || settled(&world, &all, 0).await.contains(&empty))
        .await;
    assert_eq!(
        settled(&world, &all, 0).await,
        BTreeSet::from([over[0].pipeline_id, empty]),
        "one waits for a person"
    );
    assert_eq!(settled(&world, &all, 600_000).await, BTreeSet::from([empty]), "none ended ten minutes ago");

    // Where it can be rerun it stays.
    world.stop().await;
    world.config.reruns = Duration::from_secs(3600);
    world.start().await;
    until("the conductor answers", LIMIT, async || settled(&world, &all, 0).await.contains(&empty)).await;
    assert_eq!(settled(&world, &all, 0).await, BTreeSet::from([empty]));
    let rerun = RerunWorkflow {
        id: over[0].workflow_id,
        from_failed: false,
        jobs: None,
        sparse_tree: false,
        failed_tests: false,
        ssh: false,
    };
    world.ask(&rerun).await.unwrap();
}

#[tokio::test]
async fn a_pipeline_of_which_the_conductor_has_not_heard_does_not_go() {
    let mut world = world().await;
    let known = world.announce_pipeline(Vec::new()).await;
    until("it is heard of", LIMIT, async || settled(&world, &[known], 0).await.contains(&known)).await;
    // A position beyond all that it has handled.
    let mut unheard = candidate(&world, known).await;
    unheard.xid += 1_000_000;
    let ask = SettledPipelines { pipelines: vec![unheard], before: chrono::Utc::now() };
    assert_eq!(world.ask(&ask).await.unwrap(), []);
}

#[tokio::test]
async fn workflows_go_with_their_pipeline_and_their_jobs_are_told() {
    let mut world = world().await;
    let jobs = || vec![build("x", &[]), build("y", &["x"])];
    let gone = world.push(vec![workflow("a", jobs()), workflow("b", jobs())]).await;
    let stays = world.push(vec![workflow("a", jobs())]).await;
    for created in gone.iter().chain(&stays) {
        assert_eq!(world.run_to_end(created.workflow_id, &[]).await, WorkflowStatus::Success);
    }
    let histories: Vec<usize> = {
        let mut lengths = Vec::new();
        for created in &gone {
            lengths.push(world.history(created.workflow_id).await.len());
        }
        lengths
    };
    let pipeline = gone[0].pipeline_id;
    expire(&world, pipeline).await;
    until("the workflows are gone", LIMIT, async || workflows_left(&world, pipeline).await == 0).await;
    assert_eq!(workflows_left(&world, stays[0].pipeline_id).await, 1);

    let told = world.events::<WorkflowExpired>().await;
    assert_eq!(told.len(), 2);
    for (created, length) in gone.iter().zip(histories) {
        let told = told.iter().find(|told| told.workflow_id == created.workflow_id).unwrap();
        assert_eq!(told.pipeline_id, pipeline);
        assert_eq!(told.archived.events, i64::try_from(length).unwrap());
        let jobs =
            |created: &WorkflowCreated| created.jobs.iter().map(|job| job.job_id).collect::<BTreeSet<_>>();
        assert_eq!(told.jobs.iter().copied().collect::<BTreeSet<_>>(), jobs(created));
        assert_eq!(world.history(created.workflow_id).await.len(), 1, "only its last word is left");
    }
    let found = ::retention::audit(&world.pool, "conductor", world.blobs.as_ref(), &[]).await.unwrap();
    assert_eq!((found.archives, found.findings.len()), (1, 0), "{:?}", found.findings);
    let rest: i64 = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM conductor.expiring) + (SELECT count(*) FROM conductor.edges e \
            WHERE NOT EXISTS (SELECT 1 FROM conductor.jobs j WHERE j.id = e.upstream))",
    )
    .fetch_one(&world.pool)
    .await
    .unwrap();
    assert_eq!(rest, 0);
    world.check_rows().await;

    // The same news again changes nothing, and what is gone is not found.
    expire(&world, pipeline).await;
    let rerun = RerunWorkflow {
        id: gone[0].workflow_id,
        from_failed: false,
        jobs: None,
        sparse_tree: false,
        failed_tests: false,
        ssh: false,
    };
    assert_eq!(code(world.ask(&rerun).await), "not_found");
    let rerun = RerunWorkflow { id: stays[0].workflow_id, ..rerun };
    assert_eq!(code(world.ask(&rerun).await), "too_old");
}

#[tokio::test]
async fn a_workflow_that_runs_stays_although_its_pipeline_is_gone() {
    let mut world = world().await;
    let made = world.push(vec![workflow("a", vec![build("x", &[])])]).await;
    let (pipeline, id) = (made[0].pipeline_id, made[0].workflow_id);
    expire(&world, pipeline).await;
    until("it is noted", LIMIT, async || {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM conductor.expiring")
            .fetch_one(&world.pool)
            .await
            .unwrap()
            == 1
    })
    .await;
    assert_eq!(world.run_to_end(id, &[]).await, WorkflowStatus::Success, "it runs on");
    until("it follows when it has ended", LIMIT, async || workflows_left(&world, pipeline).await == 0).await;
    assert_eq!(world.dead_letters().await, 0);
}
