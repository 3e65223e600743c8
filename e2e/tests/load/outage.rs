//! The message broker is away for long while jobs run: they renew, log and finish; what is new waits for it and then goes on.

use crate::world::{World, number};
use anyhow::ensure;
use gantry_e2e::{ledger::Fan, until};
use std::time::{Duration, Instant};

/// Ten jobs side by side in each of two projects, which print for most of the outage: half a minute, or nine minutes.
const SHORT: Fan = Fan { jobs: 12, lines: 100, between: "sleep 0.3", class: None, more: ("", "") };
/// Of a class of which this machine can run twenty at once. Only what runs meanwhile takes long: not the first and the last.
const LONG: Fan =
    Fan { between: "case $CIRCLE_JOB in j0 | j11) ;; *) sleep 5.4 ;; esac", class: Some("tiny"), ..SHORT };

pub async fn jobs_go_on_without_the_broker(world: &World) -> anyhow::Result<()> {
    let outage = Duration::from_secs(number("GANTRY_OUTAGE", world.pick(60, 600))?);
    let (fan, at_once) = world.pick((&SHORT, 10), (&LONG, 20));
    let load = world.push("outage", fan, 2).await?;
    // The first job of each, and as many of the others as are to run meanwhile.
    world.wait_begun(&load, 2 + at_once).await?;
    let running = world.begun(&load)?;
    let before = (world.finished_tasks("true").await?, world.finished_tasks("status <> 'success'").await?);
    world.stack.stop("rabbitmq", "TERM").await?;
    let begun = Instant::now();
    println!("  the broker is away at {running} jobs begun, for {} s", outage.as_secs());
    // The outage itself: what is looked at meanwhile must never fail.
    while begun.elapsed() < outage {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let badly = world.finished_tasks("status <> 'success'").await?;
        ensure!(badly == before.1, "{} tasks ended badly", badly - before.1);
    }
    let meanwhile = world.begun(&load)?;
    let ended = world.finished_tasks("true").await? - before.0;
    println!("  {meanwhile} jobs had begun when it came back, {ended} tasks had finished");
    ensure!(ended >= at_once as u64, "only {ended} tasks finished while the broker was away");
    world.stack.start("rabbitmq").await?;
    let back = Instant::now();
    world.judge(&load, 0).await?;
    println!("  all {} jobs were over {:.1} s after its return", 2 * fan.jobs, back.elapsed().as_secs_f64());
    until("new work", gantry_e2e::ledger::LIMIT, || async { world.probe().await.map(Some) }).await
}
