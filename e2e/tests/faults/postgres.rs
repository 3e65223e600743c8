//! `kill -9` of the private Postgres while jobs run; the server brings it back.

use crate::support::{Fan, LIMIT, Place};
use anyhow::{Context, ensure};
use gantry_e2e::until;
use nix::sys::signal::{Signal, kill};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_postgres_comes_back_by_itself_and_no_job_is_lost() -> anyhow::Result<()> {
    let place = Place::new()?;
    let fan = Fan { jobs: 30, lines: 20, between: "sleep 0.05", class: None, more: ("", "") };
    let suite = place.up(&[]).await?;
    place.push(&suite, "database", &fan).await?;
    for jobs in [3, 18] {
        place.begun(jobs).await?;
        let old = place.postmaster().context("no postmaster")?;
        kill(old, Signal::SIGKILL)?;
        until("another postmaster", LIMIT, || async { Ok(place.postmaster().filter(|new| *new != old)) })
            .await?;
    }
    let verdict = place.judge(&suite, "database", &fan).await?;
    ensure!(verdict.status == "success", "the workflow is {}, lost jobs: {:?}", verdict.status, verdict.lost);
    place.verify().await?;
    suite.down().await
}
