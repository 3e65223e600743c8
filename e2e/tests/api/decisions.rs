//! One approval decision.

use crate::support::World;
use anyhow::{Context, ensure};
use serde_json::{Value, json};

const CONFIG: &str = "version: 2.1
jobs:
  after: { machine: true, steps: [{ run: echo after }] }
workflows:
  main:
    jobs:
      - hold: { type: approval }
      - after: { requires: [hold] }
";

// Rules: approval.once
#[tokio::test(flavor = "multi_thread")]
async fn of_concurrent_decisions_one_wins() -> anyhow::Result<()> {
    let world = World::up(&[]).await?;
    let pipeline = world.push("decide", CONFIG).await?;
    let workflow = world.workflow(&pipeline, |workflow| workflow["status"] == "on_hold").await?;
    let hold = world.job(&workflow, "hold").await?;
    let (id, job) = (workflow["id"].as_str().context("no id")?, hold["id"].as_str().context("no id")?);
    let (approve, cancel) =
        (format!("/api/v2/workflow/{id}/approve/{job}"), format!("/api/v2/jobs/{job}/cancel"));
    let nothing = json!({});
    let all = futures::future::join_all(
        [&approve, &cancel, &approve, &cancel, &approve].map(|path| world.suite.post(path, &nothing)),
    )
    .await;
    let statuses: Vec<u16> =
        all.into_iter().map(|answer| answer.map(|(status, _)| status)).collect::<Result<_, _>>()?;
    let (approved, canceled): (Vec<u16>, Vec<u16>) =
        (vec![statuses[0], statuses[2], statuses[4]], vec![statuses[1], statuses[3]]);
    let won = |all: &[u16]| all.iter().any(|status| (200..300).contains(status));
    let ended = world.workflow(&pipeline, |workflow| !workflow["stopped_at"].is_null()).await?;
    let hold: Value = world.job(&ended, "hold").await?;
    ensure!(won(&approved) != won(&canceled), "approved {approved:?}, canceled {canceled:?}");
    let wanted = if won(&approved) { "success" } else { "canceled" };
    ensure!(hold["status"] == wanted, "approved {approved:?}, canceled {canceled:?}, and it is {hold}");
    let losers = if won(&approved) { canceled } else { approved };
    ensure!(losers.iter().all(|status| *status == 409), "the losers were told {losers:?}");
    world.suite.down().await
}
