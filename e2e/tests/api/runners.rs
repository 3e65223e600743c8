//! A self-hosted runner from a job that waits for it to its drain (execution §25).

use crate::support::{LIMIT, World};
use anyhow::Context;
use gantry_e2e::{Suite, binary, ledger::processes, stack, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{env, fs, path::Path, time::Duration};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

const CLASS: &str = "local/bench";

fn config(command: &str) -> String {
    let build = json!({
        "machine": true, "resource_class": CLASS,
        "steps": ["checkout", { "run": { "name": "work", "command": command } }],
    });
    let local = json!({ "machine": true, "steps": [{ "run": "true" }] });
    json!({
        "version": 2.1,
        "jobs": { "build": build, "local": local },
        "workflows": { "main": { "jobs": ["build", "local"] } },
    })
    .to_string()
}

/// A runner with a token, several tasks at once.
fn start(world: &World, token: &str) -> anyhow::Result<Child> {
    let work = world.work.path().join("runner");
    start_with(world, token, &format!("  working_directory: {}\n", work.display()))
}

/// The same with more of its own section.
fn start_with(world: &World, token: &str, more: &str) -> anyhow::Result<Child> {
    let folder = world.work.path().join("etc");
    fs::create_dir_all(&folder)?;
    let file = folder.join("runner.yml");
    let text = format!(
        "api:\n  auth_token: {token}\n  url: {}\nrunner:\n  name: bench-1\n  concurrency: 2\n{more}",
        world.suite.url
    );
    fs::write(&file, text)?;
    let program = binary().with_file_name("gantry-runner");
    Ok(Command::new(program).arg("--config").arg(file).kill_on_drop(true).spawn()?)
}

async fn explained(world: &World, job: &Value, text: &str) -> anyhow::Result<()> {
    let path = format!("/api/private/jobs/{}/explanation", job["id"].as_str().context("no id")?);
    until(&format!("the explanation `{text}`"), LIMIT, || async {
        let found = world.suite.get(&path).await?;
        Ok(found["waits"].to_string().contains(text).then_some(()))
    })
    .await
}

async fn ended(world: &World, pipeline: &str) -> anyhow::Result<()> {
    let workflow = world.workflow(pipeline, |workflow| workflow["stopped_at"].is_string()).await?;
    anyhow::ensure!(workflow["status"] == "success", "{workflow}");
    Ok(())
}

fn touch(path: &Path) -> anyhow::Result<()> {
    Ok(fs::write(path, "")?)
}

// Rules: runner.class
#[tokio::test]
async fn a_job_waits_for_a_runner_of_its_class_and_runs_there() -> anyhow::Result<()> {
    let world = World::up(&[]).await?;
    let flags = world.work.path().join("flags");
    fs::create_dir_all(&flags)?;
    let (began, go) = (flags.join("began"), flags.join("go"));
    let waits = format!("touch {}; until [ -e {} ]; do sleep 0.05; done", began.display(), go.display());

    // Nobody knows the class: the job waits, and says for what. Others do not wait behind it.
    let first = world.push("runners", &config("echo \"on $(id -un)\"")).await?;
    let workflow = world.workflow(&first, |_| true).await?;
    let build = world.job(&workflow, "build").await?;
    explained(&world, &build, "no such class").await?;
    world.because("runners", "build", "waits for a runner of the resource class local/bench").await?;
    until("the local job", LIMIT, || async {
        Ok((world.job(&workflow, "local").await?["status"] == "success").then_some(()))
    })
    .await?;
    assert_eq!(world.job(&workflow, "build").await?["status"], "queued");

    let token = world.suite.runner_token(CLASS).await?;
    explained(&world, &build, "no runner has ever connected").await?;
    let unclaimed = world.suite.get(&format!("/api/v3/runner/tasks?resource-class={CLASS}")).await?;
    assert_eq!(unclaimed["unclaimed_task_count"], 1);

    let mut runner = start(&world, token["token"].as_str().context("no token")?)?;
    ended(&world, &first).await?;
    let seen = world.suite.get(&format!("/api/v3/runner?resource-class={CLASS}")).await?;
    assert_eq!(
        (&seen["items"][0]["name"], &seen["items"][0]["status"]),
        (&json!("bench-1"), &json!("online"))
    );

    // Told to end, it takes nothing more and finishes what it has.
    let second = world.push("drained", &config(&waits)).await?;
    until("the job on the runner", LIMIT, || async { Ok(began.exists().then_some(())) }).await?;
    let pid = i32::try_from(runner.id().context("the runner has ended")?)?;
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    let third = world.push("after", &config("true")).await?;
    let workflow = world.workflow(&third, |_| true).await?;
    let later = world.job(&workflow, "build").await?;
    explained(&world, &later, "waits for a runner").await?;
    assert!(runner.try_wait()?.is_none(), "it waits for its task");
    touch(&go)?;
    ended(&world, &second).await?;
    let status = tokio::time::timeout(LIMIT, runner.wait()).await??;
    assert!(status.success(), "{status}");
    assert_eq!(world.job(&workflow, "build").await?["status"], "queued");
    assert_eq!(fs::read_dir(world.work.path().join("runner"))?.count(), 0, "nothing of the tasks is left");

    // Another one takes over; with a token that was revoked it does not.
    let mut runner = start(&world, token["token"].as_str().context("no token")?)?;
    ended(&world, &third).await?;
    let id = token["id"].as_str().context("no id")?;
    let answer = world.suite.request("DELETE", &format!("/api/v3/runner/token/{id}")).send().await?;
    assert_eq!(answer.status(), 200);
    let status = tokio::time::timeout(LIMIT, runner.wait()).await??;
    assert_eq!(status.code(), Some(1), "it ends when its token is refused");
    world.suite.down().await
}

// Rules: runner.own-limits
#[tokio::test]
async fn the_owner_of_a_machine_says_how_long_and_by_what_tasks_run_there() -> anyhow::Result<()> {
    let world = World::up(&[]).await?;
    let token = world.suite.runner_token(CLASS).await?;
    let (work, seen) = (world.work.path().join("runner"), world.work.path().join("seen"));
    let more = format!(
        "  working_directory: {}/of-%s\n  command_prefix: [nice, -n, '7']\n  max_run_time: 4s\n  isolation: none\n",
        work.display()
    );
    let _runner = start_with(&world, token["token"].as_str().context("no token")?, &more)?;
    let command = format!("{{ nice; ls {}; }} > {}; sleep 600", work.display(), seen.display());
    let pipeline = world.push("limited", &config(&command)).await?;
    let workflow = world.workflow(&pipeline, |workflow| workflow["stopped_at"].is_string()).await?;
    let build = world.job(&workflow, "build").await?;
    anyhow::ensure!(build["status"] == "timedout", "{build}");
    let seen = fs::read_to_string(seen)?;
    let lines: Vec<&str> = seen.lines().collect();
    anyhow::ensure!(matches!(lines[..], ["7", folder] if folder.starts_with("of-")), "{seen}");
    until("the task's folder is gone", LIMIT, || async {
        Ok((fs::read_dir(&work)?.count() == 0).then_some(()))
    })
    .await?;
    world.suite.down().await
}

// Rules: runner.ready-agent
#[tokio::test]
async fn an_agent_stands_ready_for_the_next_task_and_does_not_outlive_its_runner() -> anyhow::Result<()> {
    let world = World::up(&[]).await?;
    let token = world.suite.runner_token(CLASS).await?;
    let (work, seen) = (world.work.path().join("runner"), world.work.path().join("seen"));
    let more = format!("  working_directory: {}/of-%s\n  isolation: none\n", work.display());
    let mut runner = start_with(&world, token["token"].as_str().context("no token")?, &more)?;
    let agents =
        || processes(|line| line.contains("--task-dir") && line.contains(&work.display().to_string()));
    let ready = || async {
        let agents = agents();
        let folders: Vec<_> = fs::read_dir(&work)?.flatten().map(|entry| entry.file_name()).collect();
        anyhow::Ok((agents.len() == 1 && folders.len() == 1).then(|| (agents[0], folders)))
    };
    let pass = config(&format!("ls {} > {}", work.display(), seen.display()));

    // The task is run where an agent stood before there was a task, and another one stands there afterwards.
    let (_, before) = until("an agent without a task", LIMIT, ready).await?;
    ended(&world, &world.push("ready", &pass).await?).await?;
    let at_work = fs::read_to_string(&seen)?;
    assert!(before[0].to_str().is_some_and(|name| at_work.contains(name)), "{before:?} is not in {at_work}");
    let (agent, after) = until("the next agent without a task", LIMIT, ready).await?;
    assert_ne!(before, after, "every task has a folder of its own");

    // Without the one that stood there, the task is run all the same.
    kill(agent, Signal::SIGKILL)?;
    ended(&world, &world.push("without", &pass).await?).await?;

    until("an agent without a task again", LIMIT, ready).await?;
    runner.kill().await?;
    until("the end of the agent without a runner", LIMIT, || async { Ok(agents().is_empty().then_some(())) })
        .await?;
    world.suite.down().await
}

/// It ends, or is ended, while it asks: the balancer has to let go of its question too. Else the next task is given to
/// nobody, and waits until that is noticed.
#[tokio::test]
async fn a_runner_that_is_gone_is_given_no_task_on_the_stack() -> anyhow::Result<()> {
    let (Some(suite), Some(folder)) = (Suite::stack().await?, env::var_os("GANTRY_STACK")) else {
        eprintln!("left out: GANTRY_TEST_STACK and GANTRY_STACK are not set");
        return Ok(());
    };
    let world = World { suite, work: tempfile::tempdir()? };
    let token = world.suite.runner_token(CLASS).await?;
    let token = token["token"].as_str().context("no token")?;
    let port = stack::port(&Path::new(&folder).join("ports"), "agents").context("no port for agents")?;
    let ask = || {
        let question = json!({
            "name": "gone-1", "hostname": "here", "version": env!("CARGO_PKG_VERSION"), "free": 1, "wait_ms": 20_000,
        });
        let url = format!("http://127.0.0.1:{port}/api/v3/runner/claim");
        reqwest::Client::new().post(url).bearer_auth(token).json(&question).send()
    };
    assert!(timeout(Duration::from_secs(1), ask()).await.is_err(), "there was nothing to be given");

    let pipeline = world.push("gone", &config("true")).await?;
    let workflow = world.workflow(&pipeline, |_| true).await?;
    until("time for whoever still asks", LIMIT, || async {
        Ok((world.job(&workflow, "local").await?["status"] == "success").then_some(()))
    })
    .await?;
    let task = until("a task for the one who asks now", LIMIT, || async {
        let answer = ask().await?.error_for_status()?.bytes().await?;
        Ok((!answer.is_empty()).then(|| serde_json::from_slice::<Value>(&answer)).transpose()?)
    })
    .await?;
    let cancel = format!("/api/v2/workflow/{}/cancel", workflow["id"].as_str().context("no id")?);
    let (status, said) = world.suite.post(&cancel, &json!({})).await?;
    assert_eq!(status, 202, "{said}");
    assert_eq!(task["epoch"], 1, "it was given to somebody before: {task}");
    Ok(())
}
