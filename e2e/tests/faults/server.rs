//! `kill -9` of the server while jobs run; it comes back on another port.

use crate::support::{Fan, Place};
use anyhow::ensure;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_and_repeats_nothing() -> anyhow::Result<()> {
    let place = Place::new()?;
    let fan = Fan { jobs: 30, lines: 20, between: "sleep 0.05", class: None, more: ("", "") };
    let mut suite = place.up(&[]).await?;
    place.push(&suite, "kill", &fan).await?;
    // At the first job, in the middle of the fan, and near its end.
    for jobs in [1, 12, 28] {
        place.begun(jobs).await?;
        let url = suite.url.clone();
        suite.kill().await?;
        suite = place.up_elsewhere(&url).await?;
    }
    let verdict = place.judge(&suite, "kill", &fan).await?;
    ensure!(verdict.status == "success", "the workflow is {}, lost jobs: {:?}", verdict.status, verdict.lost);
    place.verify().await?;
    suite.down().await
}
