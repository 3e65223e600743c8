//! Pipelines that are past their retention: gone everywhere, archived, and their numbers stay taken.

use crate::support::{LIMIT, World};
use anyhow::{Context, ensure};
use gantry_e2e::{Suite, binary, until};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use tokio::process::Command;

const CONFIG: &str = "version: 2.1
jobs:
  build:
    machine: true
    parallelism: 2
    steps:
      - run: |
          echo said
          mkdir -p out reports
          echo $CIRCLE_NODE_INDEX > out/file
          echo '<testsuite><testcase classname=\"c\" name=\"a\" time=\"1\"/></testsuite>' > reports/a.xml
      - store_artifacts: { path: out }
      - store_test_results: { path: reports }
workflows:
  main:
    jobs:
      - build
      - hold: { type: approval, requires: [build] }
  second:
    jobs: [build]
";
/// Kept for no longer than two seconds, for that is what a test can wait for.
const SHORT: [(&str, &str); 4] = [
    ("GANTRY_RETENTION_PIPELINES", "2s"),
    ("GANTRY_RETENTION_RERUNS", "1s"),
    ("GANTRY_RETENTION_SWEEP", "1s"),
    ("GANTRY_LOGS_SWEEP", "1s"),
];

/// Blobs of a data folder.
fn blobs(data: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for folder in fs::read_dir(data.join("blobs/objects"))? {
        for file in fs::read_dir(folder?.path())? {
            files.insert(file?.path());
        }
    }
    Ok(files)
}

async fn status(suite: &Suite, path: &str) -> anyhow::Result<u16> {
    Ok(suite.request("GET", path).send().await?.status().as_u16())
}

/// What a command of an operator prints as JSON.
async fn admin(world: &World, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = Command::new(binary())
        .arg("admin")
        .args(arguments)
        .arg("--json")
        .env("GANTRY_SERVER", &world.suite.url)
        .env("GANTRY_TOKEN", &world.suite.token)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "gantry admin {arguments:?}: {said} {}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

// Rules: retention.pipelines
#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_past_its_retention_is_gone_everywhere_and_archived() -> anyhow::Result<()> {
    let world = World::up(&SHORT).await?;
    let data = world.work.path().join("data");
    let first = world.push("short", CONFIG).await?;
    // While somebody can still approve it stays, whatever its age.
    let on_hold = |workflow: &Value| workflow["name"] == "main" && workflow["status"] == "on_hold";
    let workflow = world.workflow(&first, on_hold).await?;
    let id = workflow["id"].as_str().context("no id")?.to_owned();
    let build = world.job(&workflow, "build").await?;
    let number = build["job_number"].as_i64().context("no number")?;
    let paths = [
        format!("/api/v2/pipeline/{first}"),
        format!("/api/v2/pipeline/{first}/config"),
        "/api/v2/project/git/local/short/pipeline/1".to_owned(),
        format!("/api/v2/workflow/{id}"),
        format!("/api/v2/workflow/{id}/job"),
        format!("/api/v2/project/git/local/short/job/{number}"),
        format!("/api/v2/project/git/local/short/{number}/artifacts"),
        format!("/api/v2/project/git/local/short/{number}/tests"),
        format!("/api/v1.1/project/git/local/short/{number}"),
    ];
    for path in &paths {
        ensure!(status(&world.suite, path).await? == 200, "{path}: {}", status(&world.suite, path).await?);
    }
    // Two jobs of two tasks each: an artifact, a report, a record and some output of each.
    let kept = until("the files of the jobs", LIMIT, || async {
        let kept = blobs(&data)?;
        Ok((kept.len() >= 16).then_some(kept))
    })
    .await?;

    let hold = world.job(&workflow, "hold").await?;
    let path = format!("/api/v2/workflow/{id}/approve/{}", hold["id"].as_str().context("no id")?);
    let (approved, answer) = world.suite.post(&path, &json!({})).await?;
    ensure!(approved == 202, "{approved} {answer}");
    until("it is gone", LIMIT, || async {
        Ok((status(&world.suite, &paths[0]).await? == 404).then_some(()))
    })
    .await?;
    for path in &paths {
        let status = status(&world.suite, path).await?;
        ensure!(status == 404, "{path} answers {status}");
    }
    let list = world.suite.items("/api/v2/project/git/local/short/pipeline").await?;
    ensure!(list.is_empty(), "{list:?}");
    let answer = world.graphql(&format!("{{ pipeline(id: \"{first}\") {{ number }} }}")).await?;
    ensure!(answer.0 < 500, "{answer:?}");

    // What belongs to it follows: nothing stays but the archives.
    until("its files are gone", LIMIT, || async { Ok(blobs(&data)?.is_disjoint(&kept).then_some(())) })
        .await?;
    let report = until("every owner has archived", LIMIT, || async {
        let report = world.suite.get("/internal/verify").await?;
        ensure!(report["clean"] == true, "{report}");
        Ok((report["archives"].as_u64() >= Some(4)).then_some(report))
    })
    .await?;
    ensure!(report["blobs"].as_u64() == report["archives"].as_u64(), "only archives are left: {report}");
    let invariants = admin(&world, &["invariants"]).await?;
    ensure!(invariants["clean"] == true, "{invariants}");

    // The next one gets the next number, and stays while it waits.
    let second = world.push("short", &CONFIG.replace("said", "said again")).await?;
    world.workflow(&second, on_hold).await?;
    let pipeline = world.suite.get(&format!("/api/v2/pipeline/{second}")).await?;
    ensure!(pipeline["number"] == 2, "{pipeline}");
    let look = admin(&world, &["retention", "--dry-run"]).await?;
    ensure!(look["pipelines"] == 0, "{look}");
    let letters = admin(&world, &["dead-letter", "list"]).await?;
    ensure!(letters == json!([]), "{letters}");
    world.suite.down().await?;

    // The same without a server, in the folder as it lies there.
    let output =
        Command::new(binary()).args(["admin", "verify", "--json", "--data"]).arg(&data).output().await?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.success() && report["clean"] == true, "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_lets_pipelines_go_at_once() -> anyhow::Result<()> {
    let mut seldom = SHORT;
    seldom[2].1 = "1h";
    let world = World::up(&seldom).await?;
    let config = "version: 2.1\njobs:\n  a: { machine: true, steps: [{ run: echo a }] }\nworkflows:\n  main: { jobs: [a] }\n";
    let pipeline = world.push("asked", config).await?;
    world.workflow(&pipeline, |workflow| !workflow["stopped_at"].is_null()).await?;
    until("it would go", LIMIT, || async {
        let look = admin(&world, &["retention", "--dry-run"]).await?;
        Ok((look["projects"][0]["project"] == "git/local/asked" && look["pipelines"] == 1).then_some(()))
    })
    .await?;
    ensure!(
        status(&world.suite, &format!("/api/v2/pipeline/{pipeline}")).await? == 200,
        "a look changes nothing"
    );
    let done = admin(&world, &["retention"]).await?;
    ensure!(done["pipelines"] == 1 && done["left"] == false, "{done}");
    until("it is gone", LIMIT, || async {
        Ok((status(&world.suite, &format!("/api/v2/pipeline/{pipeline}")).await? == 404).then_some(()))
    })
    .await?;
    world.suite.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_that_would_take_what_can_be_rerun_is_refused() -> anyhow::Result<()> {
    let work = tempfile::tempdir()?;
    let data = work.path().join("data");
    let Err(error) = Suite::up_with(&data, &[], &[("GANTRY_RETENTION_PIPELINES", "30d")]).await else {
        anyhow::bail!("it started");
    };
    let said = error.to_string();
    ensure!(said.contains("retention.pipelines (30d) must be at least retention.reruns (90d)"), "{said}");
    // Without a limit everything is kept, and a command says how to set one.
    let suite = Suite::up(&data, &[]).await?;
    let answer = suite.request("GET", "/internal/retention").send().await?;
    ensure!(answer.status() == 409, "{}", answer.status());
    let problem: Value = answer.json().await?;
    ensure!(problem["code"] == "retention_off", "{problem}");
    suite.down().await
}

/// At each owner: an archive is stored, and what it holds is still in the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_archive_and_removal_loses_nothing_and_doubles_nothing() -> anyhow::Result<()> {
    let work = tempfile::tempdir()?;
    let data = work.path().join("data");
    let keep = Suite::up(&data, &[]).await?;
    let world = World { suite: keep, work };
    let config = "version: 2.1\njobs:\n  a: { machine: true, steps: [{ run: echo a }] }\nworkflows:\n  main: { jobs: [a] }\n";
    let pipeline = world.push("killed", config).await?;
    world.workflow(&pipeline, |workflow| !workflow["stopped_at"].is_null()).await?;
    let World { suite, work } = world;
    suite.down().await?;
    // Two of them follow the same event: whichever is first ends the process, and the other has its turn after it.
    let mut left = vec!["pipelines", "conductor", "dispatcher", "output-processor"];
    while !left.is_empty() {
        let points =
            left.iter().map(|owner| format!("{owner}.archive.stored=kill")).collect::<Vec<_>>().join(",");
        let mut armed = SHORT.to_vec();
        armed.push(("GANTRY_FAILPOINTS", &points));
        // It may die before it has said that it is ready.
        if let Ok(suite) = Suite::up_with(&data, &[], &armed).await {
            suite
                .ended(LIMIT)
                .await
                .with_context(|| format!("of {left:?} nobody has anything to archive"))?;
        }
        let said = fs::read_to_string(data.with_extension("log"))?;
        let killed = |owner: &&str| said.contains(&format!("failpoint {owner}.archive.stored: killed"));
        let before = left.len();
        left.retain(|owner| !killed(owner));
        ensure!(left.len() + 1 == before, "one of them was to be killed, {left:?} are left: {said}");
        let output =
            Command::new(binary()).args(["admin", "verify", "--json", "--data"]).arg(&data).output().await?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(report["clean"] == true, "after a kill, with {left:?} left: {report}");
    }
    let world = World { suite: Suite::up_with(&data, &[], &SHORT).await?, work };
    let report = until("every owner has archived", LIMIT, || async {
        let report = world.suite.get("/internal/verify").await?;
        ensure!(report["clean"] == true, "{report}");
        Ok((report["archives"].as_u64() == Some(4)).then_some(report))
    })
    .await?;
    ensure!(report["blobs"].as_u64() == Some(4), "what the killed ones had stored is gone: {report}");
    ensure!(status(&world.suite, &format!("/api/v2/pipeline/{pipeline}")).await? == 404, "it is still there");
    world.suite.down().await
}
