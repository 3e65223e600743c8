//! Reruns with SSH, from the key's registration to the end of the job, with the command line and the client of OpenSSH
//! (execution §26).

use crate::support::{LIMIT, World};
use anyhow::{Context, ensure};
use gantry_e2e::{binary, until};
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};
use tokio::process::Command;

const CONFIG: &str = "version: 2.1
jobs:
  before: { machine: true, steps: [{ run: echo before }] }
  broken:
    machine: true
    environment: { OF_JOB: job value }
    steps:
      - run: { name: leaves, command: 'echo \"export LEFT=behind\" >> \"$BASH_ENV\"; echo kept > file' }
      - run: { name: breaks, command: exit 3 }
  after: { machine: true, steps: [{ run: echo after }] }
workflows:
  main:
    jobs:
      - before
      - broken: { requires: [before] }
      - after: { requires: [broken] }
";

struct Person<'w> {
    world: &'w World,
    keys: tempfile::TempDir,
}

impl Person<'_> {
    fn key(&self, name: &str) -> PathBuf {
        self.keys.path().join(name)
    }

    fn make(&self, name: &str) -> anyhow::Result<()> {
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
            .arg(self.key(name))
            .status()?;
        ensure!(made.success(), "no key was made");
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(["--project", "git/local/ssh"])
            .args(arguments)
            .env("GANTRY_SERVER", &self.world.suite.url)
            .env("GANTRY_TOKEN", &self.world.suite.token)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn gantry(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String, String)> {
        said(tokio::time::timeout(LIMIT, self.command(arguments).output()).await.context("in time")??)
    }

    /// The client alone, with a key.
    async fn ssh(&self, to: &str, key: &str, script: &str) -> anyhow::Result<(Option<i32>, String, String)> {
        let words: Vec<&str> = to.split_whitespace().skip(1).collect();
        let run = Command::new("ssh")
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "IdentityAgent=none",
            ])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i"])
            .arg(self.key(key))
            .args(words)
            .arg(script)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        said(tokio::time::timeout(LIMIT, run).await.context("in time")??)
    }

    /// The newest job of this name, as v1.1 shows it.
    async fn newest(&self) -> anyhow::Result<Value> {
        let found = self.world.suite.get("/api/v1.1/project/git/local/ssh").await?;
        let mut builds = found.as_array().cloned().unwrap_or_default();
        builds.retain(|build| build["workflows"]["job_name"] == "broken");
        let newest = builds.into_iter().max_by_key(|build| build["build_num"].as_i64());
        let number = newest.context("no job")?["build_num"].clone();
        self.world.suite.get(&format!("/api/v1.1/project/git/local/ssh/{number}")).await
    }

    async fn ended(&self, how: &str) -> anyhow::Result<Value> {
        let build = until("the job's end", LIMIT, || async {
            let build = self.newest().await?;
            Ok((build["lifecycle"] == "finished").then_some(build))
        })
        .await?;
        ensure!(build["status"] == how, "the job is {} and not {how}", build["status"]);
        Ok(build)
    }
}

fn said(output: Output) -> anyhow::Result<(Option<i32>, String, String)> {
    Ok((output.status.code(), String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

fn steps(build: &Value) -> Vec<String> {
    let steps = build["steps"].as_array().cloned().unwrap_or_default();
    steps.iter().filter_map(|step| Some(step["name"].as_str()?.to_owned())).collect()
}

/// The number of a job, as commands take it.
fn number_of(build: &Value) -> String {
    build["build_num"].to_string()
}

// Rules: ssh.rerun, ssh.keys, ssh.step, ssh.session, ssh.status, ssh.idle, ssh.no-key, route.v1-user-ssh-key, route.v1-ssh
#[tokio::test(flavor = "multi_thread")]
async fn a_person_enters_a_failed_job_and_leaves_it() -> anyhow::Result<()> {
    let client = std::process::Command::new("ssh").arg("-V").stderr(Stdio::null()).status();
    if !client.is_ok_and(|status| status.success()) {
        eprintln!("NOT TESTED: there is no ssh (openssh-client)");
        return Ok(());
    }
    let world = World::up(&[("GANTRY_EXECUTORS_SSH_IDLE", "8s")]).await?;
    let person = Person { world: &world, keys: tempfile::tempdir()? };
    person.make("mine")?;
    person.make("theirs")?;
    let pipeline = world.push("ssh", CONFIG).await?;
    let workflow = world.workflow(&pipeline, |workflow| workflow["stopped_at"].is_string()).await?;
    let (id, broken) = (workflow["id"].as_str().context("id")?, world.job(&workflow, "broken").await?);
    let rerun = format!("/api/v2/workflow/{id}/rerun");

    // Who has no key is told by the command line; by the API the job runs as any other.
    let number = broken["job_number"].to_string();
    let (code, _, err) = person.gantry(&["job", "ssh", &number]).await?;
    ensure!(code == Some(10) && err.contains("gantry user-key add"), "{code:?} {err}");
    let (status, _) = world.suite.post(&rerun, &json!({ "enable_ssh": true })).await?;
    ensure!(status == 400, "without jobs: {status}");
    let body = json!({ "enable_ssh": true, "jobs": [broken["id"]] });
    let (status, answer) = world.suite.post(&rerun, &body).await?;
    ensure!(status == 202 && answer["workflow_id"].is_string(), "{status} {answer}");
    let shown = until("the rerun's end", LIMIT, || async {
        let build = person.newest().await?;
        Ok((number_of(&build) != number && build["lifecycle"] == "finished").then_some(build))
    })
    .await?;
    ensure!(shown["status"] == "failed" && !steps(&shown).join(",").contains("SSH"), "{:?}", steps(&shown));

    // A key: only its public half, once.
    let (mine, public) =
        (person.key("mine").display().to_string(), person.key("mine.pub").display().to_string());
    let (code, _, err) = person.gantry(&["user-key", "add", &mine]).await?;
    ensure!(code == Some(2) && err.contains("private key"), "{code:?} {err}");
    let (code, fingerprint, err) = person.gantry(&["user-key", "add", &public, "--label", "laptop"]).await?;
    ensure!(code == Some(0) && fingerprint.starts_with("SHA256:"), "{code:?} {err}");
    let (code, _, _) = person.gantry(&["user-key", "add", &public]).await?;
    ensure!(code == Some(10), "a second time: {code:?}");
    let (_, list, _) = person.gantry(&["user-key", "list"]).await?;
    ensure!(list.starts_with(&format!("{}\tlaptop\t", fingerprint.trim())), "{list}");

    // In, and what is there: the environment of the steps.
    let script = "echo $OF_JOB, $LEFT, $CIRCLE_JOB; cat file; exit 7";
    let (code, out, err) = person.gantry(&["job", "ssh", &number, "-i", &mine, "--", script]).await?;
    ensure!(out == "job value, behind, broken\nkept\n", "{out} {err}");
    ensure!(code == Some(1) && err.contains("exit code 7"), "{code:?} {err}");
    // A session that stays: the job does not end by being idle.
    let build = person.newest().await?;
    let again = number_of(&build);
    let stays = person.command(&["job", "ssh", &again, "-i", &mine, "--", "echo in; sleep 1000"]).spawn()?;
    // Nothing is rerun for it.
    let (code, to, err) = person.gantry(&["job", "ssh", &again, "--print"]).await?;
    ensure!(code == Some(0) && to.starts_with("ssh -p ") && to.ends_with(" 127.0.0.1\n"), "{to} {err}");
    let (code, out, err) = person.ssh(&to, "theirs", "echo in").await?;
    ensure!((code, out.as_str()) == (Some(255), ""), "another's key entered: {out}");
    ensure!(err.contains("Permission denied (publickey)"), "{err}");
    let waiting = until("the step that waits", LIMIT, || async {
        let build = person.newest().await?;
        Ok(steps(&build).iter().any(|name| name == "Wait for SSH").then_some(build))
    })
    .await?;
    ensure!(number_of(&waiting) == again && waiting["lifecycle"] == "running", "{waiting}");
    ensure!(steps(&waiting)[..3] == ["Spin up environment", "Preparing environment variables", "Enable SSH"]);
    until("the session", LIMIT, || async {
        Ok(person.ssh(&to, "mine", "pgrep -f 'sleep 1000'").await?.0.filter(|code| *code == 0))
    })
    .await?;

    // A cancel ends the wait; the job is what its steps made it.
    let job = waiting["workflows"]["job_id"].as_str().context("id")?.to_owned();
    let (status, _) = world.suite.post(&format!("/api/v2/jobs/{job}/cancel"), &json!({})).await?;
    ensure!(status == 200, "{status}");
    let (_, out, err) = said(tokio::time::timeout(LIMIT, stays.wait_with_output()).await??)?;
    ensure!(out == "in\n" && err.contains("The job was canceled."), "{out} {err}");
    let build = person.ended("failed").await?;
    let wait = build["steps"].as_array().and_then(|steps| steps.last()).context("steps")?;
    ensure!(wait["name"] == "Wait for SSH" && wait["actions"][0]["status"] == "canceled", "{wait}");

    // Another, by the route of v1.1, that nobody enters: it ends by itself.
    let (status, made) =
        world.suite.post(&format!("/api/v1.1/project/git/local/ssh/{again}/ssh"), &json!({})).await?;
    ensure!(status == 200 && made["retry_of"].as_i64() == again.parse().ok(), "{status} {made}");
    until("the next job", LIMIT, || async {
        Ok((number_of(&person.newest().await?) != again).then_some(()))
    })
    .await?;
    let build = person.ended("failed").await?;
    ensure!(steps(&build).last().is_some_and(|name| name == "Wait for SSH"), "{:?}", steps(&build));
    let action = &build["steps"].as_array().and_then(|steps| steps.last()).context("steps")?["actions"][0];
    let log = world.suite.bytes(&format!("/logs/{}/raw", action["step_id"].as_str().context("id")?)).await?;
    let log = String::from_utf8(log)?;
    ensure!(log.contains("Nobody was connected for 8s."), "{log}");
    // A rerun of all of such an instance has SSH too.
    let instance = build["workflows"]["workflow_id"].as_str().context("id")?.to_owned();
    let number = number_of(&build);
    let (status, _) = world.suite.post(&format!("/api/v2/workflow/{instance}/rerun"), &json!({})).await?;
    ensure!(status == 202, "{status}");
    until("the step of the next job", LIMIT, || async {
        let build = person.newest().await?;
        let new = number_of(&build) != number;
        Ok((new && steps(&build).iter().any(|name| name == "Enable SSH")).then_some(()))
    })
    .await?;

    // The key goes, and with it the way in.
    let (code, _, err) = person.gantry(&["user-key", "remove", fingerprint.trim()]).await?;
    ensure!(code == Some(0), "{err}");
    let (code, _, _) = person.gantry(&["user-key", "remove", fingerprint.trim()]).await?;
    ensure!(code == Some(5), "{code:?}");
    person.ended("failed").await?;
    world.suite.down().await
}

// Rules: ssh.off
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_want_it_says_so() -> anyhow::Result<()> {
    let world = World::up(&[("GANTRY_EXECUTORS_SSH_ENABLED", "false")]).await?;
    let pipeline = world.push("ssh", CONFIG).await?;
    let workflow = world.workflow(&pipeline, |workflow| workflow["stopped_at"].is_string()).await?;
    let broken = world.job(&workflow, "broken").await?;
    let path = format!("/api/v2/workflow/{}/rerun", workflow["id"].as_str().context("id")?);
    let (status, answer) =
        world.suite.post(&path, &json!({ "enable_ssh": true, "jobs": [broken["id"]] })).await?;
    ensure!(status >= 400 && answer.to_string().contains("[executors.ssh] enabled"), "{status} {answer}");
    tokio::time::timeout(Duration::from_secs(60), world.suite.down()).await?
}

// Rules: ssh.off
#[tokio::test(flavor = "multi_thread")]
async fn a_project_that_does_not_want_it_says_so() -> anyhow::Result<()> {
    let world = World::up(&[]).await?;
    let pipeline = world.push("ssh", CONFIG).await?;
    let workflow = world.workflow(&pipeline, |workflow| workflow["stopped_at"].is_string()).await?;
    let broken = world.job(&workflow, "broken").await?;
    let settings = "/api/v2/project/git/local/ssh/settings";
    let disable =
        world.suite.request("PATCH", settings).json(&json!({ "advanced": { "disable_ssh": true } }));
    let answer: Value = disable.send().await?.error_for_status()?.json().await?;
    ensure!(answer["advanced"] == json!({ "autocancel_builds": false, "disable_ssh": true }), "{answer}");
    let path = format!("/api/v2/workflow/{}/rerun", workflow["id"].as_str().context("id")?);
    let (status, answer) =
        world.suite.post(&path, &json!({ "enable_ssh": true, "jobs": [broken["id"]] })).await?;
    ensure!(status >= 400 && answer.to_string().contains("disable_ssh"), "{status} {answer}");
    let number = broken["job_number"].as_i64().context("a number")?;
    let build = world.suite.get(&format!("/api/v1.1/project/git/local/ssh/{number}")).await?;
    ensure!(build["ssh_disabled"] == true, "{build}");
    // Without it the job is run again as any other.
    let (status, answer) = world.suite.post(&path, &json!({ "jobs": [broken["id"]] })).await?;
    ensure!(status == 202, "{status} {answer}");
    world.suite.down().await
}

/// The same client enters the primary container of a job, as its user, and not the machine.
// Rules: ssh.session
#[tokio::test(flavor = "multi_thread")]
async fn a_person_enters_a_container() -> anyhow::Result<()> {
    let client = std::process::Command::new("ssh").arg("-V").stderr(Stdio::null()).status();
    if !client.is_ok_and(|status| status.success()) {
        eprintln!("NOT TESTED: there is no ssh (openssh-client)");
        return Ok(());
    }
    let Some(engine) = testkit::docker::engine() else { return Ok(()) };
    let socket = engine.socket.display().to_string();
    let world = World::up(&[
        ("GANTRY_EXECUTORS_DOCKER", "engine"),
        ("GANTRY_EXECUTORS_ENGINE_SOCKET", &socket),
        ("GANTRY_EXECUTORS_ENGINE_PULL", "never"),
    ])
    .await?;
    let person = Person { world: &world, keys: tempfile::tempdir()? };
    person.make("mine")?;
    let config = format!(
        "version: 2.1
jobs:
  broken:
    docker: [{{ image: {image}, user: circleci }}, {{ image: {image}, name: side, command: [sleep, \"1000\"] }}]
    resource_class: small
    environment: {{ OF_JOB: job value }}
    steps: [{{ run: echo kept > file; exit 3 }}]
workflows: {{ main: {{ jobs: [broken] }} }}
",
        image = testkit::docker::IMAGE
    );
    let pipeline = world.push("ssh", &config).await?;
    let workflow = world.workflow(&pipeline, |workflow| workflow["stopped_at"].is_string()).await?;
    let number = world.job(&workflow, "broken").await?["job_number"].to_string();
    let public = person.key("mine.pub").display().to_string();
    let (code, _, err) = person.gantry(&["user-key", "add", &public]).await?;
    ensure!(code == Some(0), "{err}");
    let (code, to, err) = person.gantry(&["job", "ssh", &number, "--print"]).await?;
    ensure!(code == Some(0) && to.starts_with("ssh -p "), "{to} {err}");
    let script = "cat /etc/hostname; id -un; pwd; cat file; echo $OF_JOB; exit 7";
    let (code, out, err) = until("the way in", LIMIT, || async {
        let entered = person.ssh(&to, "mine", script).await?;
        // The steps begin after the door is open.
        Ok(entered.1.contains("kept").then_some(entered))
    })
    .await?;
    ensure!(code == Some(7), "{code:?} {out} {err}");
    let lines: Vec<&str> = out.lines().collect();
    let running = engine.client(&["ps", "-q", "--filter", "label=gantry.placement"]);
    ensure!(
        lines[0].len() == 12 && running.lines().any(|id| id == lines[0]),
        "{} is none of {running}",
        lines[0]
    );
    ensure!(lines[1..] == ["circleci", "/home/circleci/project", "kept", "job value"], "{out}");
    // Cancelled, it goes with its containers.
    let build = person.newest().await?;
    let job = build["workflows"]["job_id"].as_str().context("id")?.to_owned();
    let (status, _) = world.suite.post(&format!("/api/v2/jobs/{job}/cancel"), &json!({})).await?;
    ensure!(status == 200, "{status}");
    person.ended("failed").await?;
    until("nothing is left", LIMIT, || async {
        Ok(engine.client(&["ps", "-aq", "--filter", "label=gantry.placement"]).is_empty().then_some(()))
    })
    .await?;
    world.suite.down().await
}
