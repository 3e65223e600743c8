//! `gantry why` names what a job waits for, whatever it is.

use crate::support::{LIMIT, World};
use anyhow::Context;
use gantry_e2e::{binary, until};
use serde_json::{Value, json};
use std::fs;
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

    let config = json!({
        "version": 2.1,
        "jobs": { "slow": job("true"), "fails": job("exit 3"), "gated": job("true") },
        "workflows": { "main": { "jobs": ["slow", "fails", { "gated": { "context": "missing" } }] } },
    });
    let pipeline = world.push("whys", &config.to_string()).await?;
    world.because("whys", "slow", "in line for a slot").await?;
    fs::write(&go, "")?;
    world.workflow(&pipeline, |workflow| workflow["stopped_at"].is_string()).await?;
    world.because("whys", "gated", "Context missing not found").await?;
    world.because("whys", "fails", "failed with exit code 3").await?;
    assert_eq!(world.why("whys", "slow").await?["status"], "success");
    let number = world.job(&world.workflow(&pipeline, |_| true).await?, "fails").await?;
    let number = number["job_number"].as_i64().context("no number")?;
    world.because("whys", &number.to_string(), "failed with exit code 3").await?;
    world.suite.down().await
}
