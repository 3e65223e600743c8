//! `gantry why` names what a job waits for, whatever it is.

use crate::support::{LIMIT, World};
use anyhow::Context;
use gantry_e2e::{Suite, binary, stack::Stack, until};
use serde_json::{Value, json};
use std::{env, fs};
use tokio::process::Command;

impl World {
    /// What the command line says about a job of a project's newest pipeline.
    pub async fn why(&self, project: &str, job: &str) -> anyhow::Result<Value> {
        let output = Command::new(binary())
            .args(["why", job, "--json", "--project", &format!("git/local/{project}")])
            .env("GANTRY_SERVER", &self.suite.url)
            .env("GANTRY_TOKEN", &self.suite.token)
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "gantry why {job}: {said}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Makes a context that only jobs of one project may use.
    async fn context_of(&self, name: &str, slug: &str) -> anyhow::Result<()> {
        let project = self.suite.get(&format!("/api/v2/project/{slug}")).await?;
        let orgs = self.suite.get("/api/v2/me/collaborations").await?;
        let owner = json!({ "id": orgs[0]["id"] });
        let (_, context) =
            self.suite.post("/api/v2/context", &json!({ "name": name, "owner": owner })).await?;
        let id = context["id"].as_str().with_context(|| format!("no context: {context}"))?;
        let restriction = json!({ "restriction_type": "project", "restriction_value": project["id"] });
        let (status, answer) =
            self.suite.post(&format!("/api/v2/context/{id}/restrictions"), &restriction).await?;
        anyhow::ensure!(status == 201, "{answer}");
        Ok(())
    }

    /// Waits until it says this.
    pub async fn because(&self, project: &str, job: &str, text: &str) -> anyhow::Result<()> {
        until(&format!("gantry why {job}: {text}"), LIMIT, || async {
            let said = self.why(project, job).await?;
            Ok(said["reasons"].to_string().contains(text).then_some(()))
        })
        .await
    }
}

#[tokio::test]
async fn every_reason_is_told() -> anyhow::Result<()> {
    let world = World::up(&[("GANTRY_DISPATCHER_SLOTS", "1")]).await?;
    let go = world.work.path().join("go");
    let job = |command: &str| json!({ "machine": true, "steps": [{ "run": { "name": "work", "command": command } }] });
    let config = json!({
        "version": 2.1,
        "jobs": {
            "work": job(&format!("until [ -e {} ]; do sleep 0.05; done", go.display())),
            "next": job("true"),
            "after": job("true"),
        },
        "workflows": { "main": { "jobs": [
            { "work": { "serial-group": "why/work" } },
            { "after": { "requires": ["work"] } },
            { "hold": { "type": "approval" } },
            { "next": { "serial-group": "why/work" } },
        ] } },
    });
    let pipeline = world.push("why", &config.to_string()).await?;
    world.because("why", "after", "work has to end with success").await?;
    world.because("why", "hold", "approve").await?;
    // One of the two has the lock of the group, whichever came first, and the other one waits for it.
    let workflow = world.workflow(&pipeline, |_| true).await?;
    until("a job that waits for the serial group", LIMIT, || async {
        let said = [world.why("why", "work").await?, world.why("why", "next").await?];
        Ok(said
            .iter()
            .any(|said| said["reasons"].to_string().contains("serial group why/work"))
            .then_some(()))
    })
    .await?;
    until("the job that holds the slot", LIMIT, || async {
        Ok((world.job(&workflow, "work").await?["status"] == "running").then_some(()))
    })
    .await?;

    world.context_of("theirs", "git/local/why").await?;
    let config = json!({
        "version": 2.1,
        "jobs": { "slow": job("true"), "fails": job("exit 3"), "gated": job("true"), "denied": job("true") },
        "workflows": { "main": { "jobs": [
            "slow", "fails", { "gated": { "context": "missing" } }, { "denied": { "context": "theirs" } },
        ] } },
    });
    let pipeline = world.push("whys", &config.to_string()).await?;
    world.because("whys", "slow", "in line for a slot").await?;
    fs::write(&go, "")?;
    world.workflow(&pipeline, |workflow| workflow["stopped_at"].is_string()).await?;
    world.because("whys", "gated", "Context missing not found").await?;
    world
        .because("whys", "denied", "Context theirs may not be used by this job: its project restriction")
        .await?;
    world.because("whys", "fails", "failed with exit code 3").await?;
    assert_eq!(world.why("whys", "slow").await?["status"], "success");
    let number = world.job(&world.workflow(&pipeline, |_| true).await?, "fails").await?;
    let number = number["job_number"].as_i64().context("no number")?;
    world.because("whys", &number.to_string(), "failed with exit code 3").await?;
    world.suite.down().await
}

/// The cluster's own reason reaches who asks.
#[tokio::test]
async fn what_no_machine_has_is_told_on_the_stack() -> anyhow::Result<()> {
    let (Some(suite), Some(_)) = (Suite::stack().await?, env::var_os("GANTRY_STACK")) else {
        eprintln!("left out: GANTRY_TEST_STACK and GANTRY_STACK are not set");
        return Ok(());
    };
    if !Stack::new(&[])?.has("nomad") {
        eprintln!("NOT TESTED: Nomad is not part of this stack");
        return Ok(());
    }
    let world = World { suite, work: tempfile::tempdir()? };
    let build = json!({ "machine": true, "resource_class": "giant", "steps": [{ "run": "true" }] });
    let config =
        json!({ "version": 2.1, "jobs": { "build": build }, "workflows": { "main": { "jobs": ["build"] } } });
    let pipeline = world.push("giant", &config.to_string()).await?;
    world
        .because("giant", "build", "there is not enough memory (it asks for 4000000 MiB) on 2 of 2 machines")
        .await?;
    let workflow = world.workflow(&pipeline, |_| true).await?;
    let cancel = format!("/api/v2/workflow/{}/cancel", workflow["id"].as_str().context("no id")?);
    let (status, said) = world.suite.post(&cancel, &json!({})).await?;
    assert_eq!(status, 202, "{said}");
    Ok(())
}
