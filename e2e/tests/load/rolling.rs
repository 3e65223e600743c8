//! Processes are drained and started again one after another while jobs run and a client asks all the time (reliability R-39).

use crate::{
    client::Client,
    world::{Load, World},
};
use gantry_e2e::ledger::Fan;
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Jobs that run for some seconds and print all the while.
const FAN: Fan = Fan { jobs: 5, lines: 40, between: "sleep 0.1", class: None, more: ("", "") };
/// Workflows of them at a time.
const AT_A_TIME: usize = 2;

pub async fn restarts_go_unnoticed(world: &World) -> anyhow::Result<()> {
    used_all_the_while(world, roll(world)).await
}

/// Lets jobs run and a client ask while something is done, and judges both.
pub async fn used_all_the_while(
    world: &World,
    what: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let client = Client::new(world).await?;
    let stop = CancellationToken::new();
    let load = Mutex::new(Load { fan: &FAN, projects: Vec::new() });
    let jobs = async {
        while !stop.is_cancelled() {
            let next = world.push("rolling", &FAN, AT_A_TIME).await?;
            let all = next.projects.len() * (FAN.jobs - 1);
            // The last jobs of these run while the next begin.
            let begun = stop.run_until_cancelled(world.wait_begun(&next, all)).await;
            load.lock().expect("no thread panicked").projects.extend(next.projects);
            begun.transpose()?;
        }
        anyhow::Ok(())
    };
    let done = async {
        let done = what.await;
        stop.cancel();
        done
    };
    let (done, jobs, asked) = tokio::join!(done, jobs, client.run(&stop));
    done?;
    jobs?;
    asked?;
    let load = load.into_inner().expect("no thread panicked");
    world.judge(&load, 0).await?;
    println!(
        "  {} jobs ran meanwhile, each once and with every byte of output",
        load.projects.len() * FAN.jobs
    );
    client.judge().await
}

/// Every process of every service ends by SIGTERM and begins again. A full run takes one after another, a short one the first
/// of each service at once and then the second.
pub async fn roll(world: &World) -> anyhow::Result<()> {
    let begun = Instant::now();
    let services = world.stack.services()?;
    let rounds: Vec<Vec<&String>> = if world.full {
        services.values().flatten().map(|name| vec![name]).collect()
    } else {
        (0..2).map(|nth| services.values().filter_map(|names| names.get(nth)).collect()).collect()
    };
    let mut slowest = (Duration::ZERO, String::new());
    for round in &rounds {
        let ended = round.iter().map(|name| async move {
            let begun = Instant::now();
            world.stack.stop(name, "TERM").await?;
            let took = begun.elapsed();
            world.stack.start(name).await?;
            world.stack.ready(name).await?;
            anyhow::Ok((took, (*name).clone()))
        });
        for ended in futures::future::try_join_all(ended).await? {
            slowest = slowest.max(ended);
        }
        // The balancer takes a process back after its next look.
        tokio::time::sleep(BALANCER).await;
    }
    println!(
        "  {} processes were drained and started in {:.1} s; the slowest to end was {} with {:.1} s",
        rounds.iter().map(Vec::len).sum::<usize>(),
        begun.elapsed().as_secs_f64(),
        slowest.1,
        slowest.0.as_secs_f64()
    );
    Ok(())
}

/// Two looks of the balancer (`scripts/stack`): whoever rolls waits for it, as an orchestrator does.
const BALANCER: Duration = Duration::from_secs(1);
