//! Every service, each of its processes, and every server is killed again and again, at moments that a seed gives, while jobs run.

use crate::world::{World, number};
use anyhow::Context;
use gantry_e2e::ledger::Fan;
use std::time::{Duration, Instant};

/// Of five jobs each.
const PROJECTS: usize = 40;
const SHORT: Fan = Fan { jobs: 5, lines: 30, between: "sleep 0.1", class: None, more: ("", "") };
/// Two hundred jobs that run nearly as long as the storm.
const LONG: Fan = Fan { between: "sleep 6", class: Some("tiny"), ..SHORT };
/// Servers of the stack. A killed Nomad keeps its tasks; its clients are machines, which no storm takes away.
const SERVERS: [&str; 8] = ["postgres", "redis", "rabbitmq", "s3", "vault", "mongo", "nomad", "haproxy"];
/// Between two kills on the average: so that a run of two kills for each service takes two minutes.
const EVERY: Duration = Duration::from_millis(1_500);
/// What is down comes back after this at most.
const AWAY: Duration = Duration::from_millis(1_500);

/// Stands for one of the agents that run.
const AGENT: &str = "an agent";

struct Kill {
    after: Duration,
    name: String,
    away: Duration,
    /// Of the agents.
    which: usize,
}

/// So many kills of each name, in an order and at moments that the seed gives.
fn plan(names: &[(String, usize)], seed: u64) -> Vec<Kill> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut order: Vec<&String> =
        names.iter().flat_map(|(name, kills)| std::iter::repeat_n(name, *kills)).collect();
    random.shuffle(&mut order);
    let between = |random: &mut fastrand::Rng, most: Duration| {
        Duration::from_millis(random.u64(0..u64::try_from(most.as_millis()).unwrap_or(u64::MAX)))
    };
    order
        .into_iter()
        .map(|name| Kill {
            after: between(&mut random, EVERY * 2),
            name: name.clone(),
            away: between(&mut random, AWAY),
            which: random.usize(0..100),
        })
        .collect()
}

pub async fn kills_lose_nothing(world: &World) -> anyhow::Result<()> {
    let kills = usize::try_from(number("GANTRY_KILLS", world.pick(2, 20))?)?;
    for seed in world.seeds() {
        storm(world, kills, seed).await.with_context(|| format!("replay it with GANTRY_SEEDS={seed}"))?;
    }
    Ok(())
}

async fn storm(world: &World, kills: usize, seed: u64) -> anyhow::Result<()> {
    let stack = &world.stack;
    // So often each service, whichever of its processes.
    let mut names: Vec<(String, usize)> = stack
        .services()?
        .into_values()
        .flat_map(|processes| {
            let each = kills.div_ceil(processes.len());
            processes.into_iter().map(move |name| (name, each))
        })
        .collect();
    // Where MongoDB or Nomad are not part of the stack they are not killed.
    if world.full {
        // Their jobs are known to be lost when their leases have ended, after minutes.
        names.push((AGENT.to_owned(), kills));
    }
    names.extend(SERVERS.iter().filter(|name| stack.has(name)).map(|name| ((*name).to_owned(), kills)));
    let plan = plan(&names, seed);
    println!(
        "  seed {seed}: {} kills of {} processes, {kills} of each service and server",
        plan.len(),
        names.len()
    );
    let fan = world.pick(&SHORT, &LONG);
    let load = world.push("storm", fan, PROJECTS).await?;
    world.wait_begun(&load, 1).await?;
    let (begun, mut agents) = (Instant::now(), 0);
    for kill in &plan {
        // Not a wait for anything: the moment of the kill is what is random.
        tokio::time::sleep(kill.after).await;
        let at = begun.elapsed().as_secs_f64();
        println!("  {at:>6.1} s {} for {:.1} s", kill.name, kill.away.as_secs_f64());
        if kill.name == AGENT {
            agents += usize::from(stack.kill_agent(kill.which));
            continue;
        }
        if let Err(error) = stack.stop(&kill.name, "KILL").await {
            // One that starts while what it needs is away may have given up.
            println!("           it had ended: {error:#}");
        }
        tokio::time::sleep(kill.away).await;
        stack.start(&kill.name).await?;
    }
    let killed = begun.elapsed();
    stack.suite().await.context("the stack is not whole")?;
    world.all_ready().await?;
    let lost = world.judge(&load, agents).await?;
    world.probe().await?;
    let jobs = load.projects.len() * fan.jobs;
    println!(
        "  {} kills in {:.1} s; {jobs} jobs, {lost} said to be lost, the others ran once with every byte; whole {:.1} s after the last kill",
        plan.len(),
        killed.as_secs_f64(),
        (begun.elapsed() - killed).as_secs_f64()
    );
    Ok(())
}
