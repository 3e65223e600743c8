//! The longest run of a job.

use crate::support::World;
use anyhow::ensure;

const CONFIG: &str = "version: 2.1
jobs:
  long:
    machine: true
    steps:
      - run: echo begun; sleep 600
      - run: { name: never, command: echo never, when: always }
  handles: { machine: true, steps: [{ run: echo handles }] }
workflows:
  main:
    jobs:
      - long
      - handles: { requires: [{ long: failed }] }
";

// Rules: job.timedout, requires.timedout
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_runs_too_long_is_ended_and_counts_as_failed() -> anyhow::Result<()> {
    let world = World::up(&[("GANTRY_DISPATCHER_JOB_TIMEOUT", "2s")]).await?;
    let pipeline = world.push("long", CONFIG).await?;
    let workflow = world.workflow(&pipeline, |workflow| !workflow["stopped_at"].is_null()).await?;
    ensure!(workflow["status"] == "failed", "the workflow is {}", workflow["status"]);
    let (long, handles) = (world.job(&workflow, "long").await?, world.job(&workflow, "handles").await?);
    ensure!(long["status"] == "timedout", "the job is {}", long["status"]);
    ensure!(handles["status"] == "success", "what handles it is {}", handles["status"]);
    let build = world.suite.get(&format!("/api/v1.1/project/git/local/long/{}", long["job_number"])).await?;
    ensure!(!build["steps"].to_string().contains("never"), "a step ran after the end: {}", build["steps"]);
    world.suite.down().await
}
