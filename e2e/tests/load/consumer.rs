//! A consumer that nothing waits for is away while very many events pass: nobody else is slower, and it catches up without a
//! hole.

use crate::world::{PROBE, World, number};
use anyhow::{Context, ensure};
use gantry_e2e::{ledger::LIMIT, until};
use serde_json::json;
use std::{
    fs,
    time::{Duration, Instant},
};

/// Without these pages are old and reports unread, and jobs run.
const OPTIONAL: [&str; 2] = ["projector", "test-results"];
/// Jobs of a workflow that do nothing: each is told of, and none takes a slot.
const JOBS: usize = 400;
/// It may take so many times as long as before: what else this machine does is in both.
const SLOWER: u32 = 4;

pub async fn others_do_not_wait_for_a_consumer(world: &World) -> anyhow::Result<()> {
    let wanted = number("GANTRY_EVENTS", world.pick(6_000, 60_000))?;
    let project = world.project("many");
    let files = world.ledger.work.path().join("files").join(&project);
    fs::create_dir_all(files.join(".circleci"))?;
    let names: String = (0..JOBS).map(|n| format!("      - nothing: {{ name: j{n} }}\n")).collect();
    let config =
        format!("version: 2.1\njobs:\n  nothing: {{ type: no-op }}\nworkflows:\n  main:\n    jobs:\n{names}");
    fs::write(files.join(".circleci/config.yml"), config)?;
    world
        .suite
        .push(&world.ledger.work.path().join("repositories"), &project, &files, "refs/heads/main")
        .await?;
    let mut pipelines = 1;

    let usual = way_through(world).await?;
    for role in OPTIONAL {
        for name in world.stack.of(role)? {
            world.stack.stop(&name, "TERM").await?;
        }
    }
    let (before, begun) = (events(world).await?, Instant::now());
    let mut passed = 0;
    while passed < wanted {
        let (status, answer) = world
            .suite
            .post(&format!("/api/v2/project/git/local/{project}/pipeline"), &json!({ "branch": "main" }))
            .await?;
        ensure!(status == 201, "{status} {answer}");
        pipelines += 1;
        ended(world, answer["id"].as_str().context("no id")?).await?;
        passed = events(world).await? - before;
    }
    let rate = passed as f64 / begun.elapsed().as_secs_f64();
    println!(
        "  {passed} events of {pipelines} pipelines passed, {rate:.0}/s, without {}",
        OPTIONAL.join(" and ")
    );
    let without = way_through(world).await?;
    println!("  a job's way: {usual:.2?} before, {without:.2?} now");
    ensure!(without < usual * SLOWER, "a job takes {without:?} without them, {usual:?} with them");

    let back = Instant::now();
    for role in OPTIONAL {
        for name in world.stack.of(role)? {
            world.stack.start(&name).await?;
            world.stack.ready(&name).await?;
        }
    }
    until("all is handled", LIMIT, || async {
        let behind = behind(world).await?;
        Ok((behind == 0).then_some(()))
    })
    .await?;
    println!("  caught up after {:.1} s", back.elapsed().as_secs_f64());
    let shown = world.suite.items(&format!("/api/v2/project/git/local/{project}/pipeline")).await?;
    ensure!(shown.len() == pipelines, "{} of {pipelines} pipelines are shown", shown.len());
    for pipeline in &shown {
        let id = pipeline["id"].as_str().context("no id")?;
        let workflows = world.suite.items(&format!("/api/v2/pipeline/{id}/workflow")).await?;
        let workflow = workflows.first().context("a pipeline without its workflow")?;
        let jobs = world
            .suite
            .items(&format!("/api/v2/workflow/{}/job", workflow["id"].as_str().context("no id")?))
            .await?;
        ensure!(jobs.len() == JOBS, "{} of {JOBS} jobs are shown", jobs.len());
    }
    world.probe().await
}

/// Waits until a pipeline's workflow is over, as its owner knows it: nothing is shown now.
async fn ended(world: &World, pipeline: &str) -> anyhow::Result<()> {
    let ask = format!(
        "SELECT count(*) FROM conductor.workflows WHERE pipeline_id = '{pipeline}' AND ended_at IS NOT NULL"
    );
    until("the workflow's end", LIMIT, || async {
        Ok((world.asked("conductor", &ask).await? == 1).then_some(()))
    })
    .await
}

/// From a push until the job's task is over, by the dispatcher's rows.
async fn way_through(world: &World) -> anyhow::Result<Duration> {
    let count = async || world.finished_tasks("status = 'success'").await;
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let project = world.project("way");
        world.ledger.prepare(&project, &PROBE).await?;
        let (before, begun) = (count().await?, Instant::now());
        world.ledger.push_again(&world.suite, &project).await?;
        until("the task's end", LIMIT, || async { Ok((count().await? > before).then_some(())) }).await?;
        best = best.min(begun.elapsed());
    }
    Ok(best)
}

/// Events of all services so far.
async fn events(world: &World) -> anyhow::Result<u64> {
    let mut all = 0;
    for service in ["pipelines", "conductor", "dispatcher"] {
        let ask = format!("SELECT coalesce(max(seq), 0) FROM {service}.events");
        all += world.asked(service, &ask).await?;
    }
    Ok(all)
}

/// Events that the groups of all services have still to handle.
async fn behind(world: &World) -> anyhow::Result<u64> {
    let shape = world.suite.get("/internal/topology").await?;
    let services = shape["services"].as_array().context("no services")?;
    let groups = services.iter().flat_map(|service| service["groups"].as_array().into_iter().flatten());
    Ok(groups.filter_map(|group| group["behind"]["events"].as_u64()).sum())
}
