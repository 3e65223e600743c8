//! Files that jobs keep come back bit for bit: through caches and workspaces, and the blob store between them.

use crate::support::World;
use anyhow::{Context, ensure};
use gantry_e2e::until;
use std::{process::Command, time::Duration};

const LIMIT: Duration = Duration::from_secs(900);
const SCRIPT: &str = include_str!("files/tree.py");

/// With `GANTRY_FULL` a hundred thousand files and one of 4 GiB with holes; without it enough of both to be several
/// chunks and many windows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_come_back_bit_for_bit() -> anyhow::Result<()> {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("NOT TESTED: odd files are made and listed with python3");
        return Ok(());
    }
    let (files, gib) = if std::env::var_os("GANTRY_FULL").is_some() { (100_000, 4.0) } else { (3_000, 0.25) };
    let world = World::up(&[]).await?;
    let script = SCRIPT.lines().map(|line| format!("          {line}")).collect::<Vec<_>>().join("\n");
    let write = format!("run: |\n          cat > tree.py <<'END'\n{script}\n          END");
    let config = format!(
        r#"version: 2.1
jobs:
  make:
    machine: true
    steps:
      - {write}
      - run: umask 022; python3 tree.py make {files} {gib}; python3 tree.py list > wanted; tail -n 1 wanted
      - save_cache: {{ key: tree, paths: [tree] }}
      - persist_to_workspace: {{ root: ., paths: [tree, wanted] }}
  cache:
    machine: true
    steps:
      - {write}
      - restore_cache: {{ key: tree }}
      - run: {{ name: list, command: python3 tree.py list > found; tail -n 1 found }}
      - attach_workspace: {{ at: other }}
      - run: {{ name: cache, command: diff -a other/wanted found && echo the same }}
      - run: {{ name: workspace, when: always, command: "cd other; python3 ../tree.py list > found; diff -a wanted found && echo the same" }}
      # Folders that nobody may write go with the rest.
      - run: {{ when: always, command: chmod -R u+rwx tree other; rm -rf tree other }}
workflows: {{ main: {{ jobs: [make, {{ cache: {{ requires: [make] }} }}] }} }}
"#
    );
    let pipeline = world.push("files", &config).await?;
    let workflow = until("the jobs' end", LIMIT, || async {
        let found = world.suite.items(&format!("/api/v2/pipeline/{pipeline}/workflow")).await?;
        Ok(found.into_iter().find(|workflow| !workflow["stopped_at"].is_null()))
    })
    .await?;
    let mut said = String::new();
    for name in ["make", "cache"] {
        let job = world.job(&workflow, name).await?;
        let Some(number) = job["job_number"].as_i64() else { continue };
        let build = world.suite.get(&format!("/api/v1.1/project/git/local/files/{number}")).await?;
        for step in build["steps"].as_array().into_iter().flatten() {
            let id = step["actions"][0]["step_id"].as_str().context("no step id")?;
            let log = world.suite.bytes(&format!("/logs/{id}/raw")).await?;
            let (shown, took) = (&log[..log.len().min(3000)], &step["actions"][0]["run_time_millis"]);
            said.push_str(&format!("{} ({took} ms):\n{}\n", step["name"], String::from_utf8_lossy(shown)));
        }
    }
    println!("{said}");
    ensure!(workflow["status"] == "success", "{}: {said}", workflow["status"]);
    ensure!(said.matches("the same\n").count() == 2, "{said}");
    world.suite.down().await
}
