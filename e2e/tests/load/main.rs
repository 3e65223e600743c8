//! Two processes of every service under load, on real servers: work is shared, restarts and upgrades that roll go unnoticed,
//! kills at random lose nothing, and jobs go on while the message broker is away for long.
//!
//! Runs where `GANTRY_TEST_STACK` is set. `GANTRY_LOAD=share,rolling` picks parts, `GANTRY_LOAD=full` takes all of them with
//! larger numbers, `full,storm` one of them so. `GANTRY_KILLS=20` says how often each service is killed in the storm, `GANTRY_SEEDS=7` replays one,
//! `GANTRY_OUTAGE=600` says for how many seconds the broker is away, `GANTRY_EVENTS=60000` how many events pass a consumer, and `GANTRY_OTHER_BIN` names the folder of the other
//! build of an upgrade. `GANTRY_BIN` names the folder of the programs; it takes what `scripts/stack` takes.

mod client;
mod consumer;
mod keys;
mod outage;
mod rolling;
mod share;
mod storm;
mod upgrade;
mod world;

use crate::world::World;
use anyhow::Context;
use futures::future::LocalBoxFuture;
use std::{
    env,
    process::ExitCode,
    time::{Duration, Instant},
};

/// A part that does not end within it is broken.
const LIMIT: Duration = Duration::from_secs(3600);

/// What a part does, and whether a short run has it.
type Part = (&'static str, bool, for<'a> fn(&'a World) -> LocalBoxFuture<'a, anyhow::Result<()>>);

const PARTS: [Part; 7] = [
    ("share", true, |world| Box::pin(share::work_is_shared(world))),
    ("rolling", true, |world| Box::pin(rolling::restarts_go_unnoticed(world))),
    ("storm", false, |world| Box::pin(storm::kills_lose_nothing(world))),
    ("outage", false, |world| Box::pin(outage::jobs_go_on_without_the_broker(world))),
    ("consumer", false, |world| Box::pin(consumer::others_do_not_wait_for_a_consumer(world))),
    ("keys", false, |world| Box::pin(keys::a_new_key_goes_unnoticed(world))),
    ("upgrade", false, |world| Box::pin(upgrade::builds_change_unnoticed(world))),
];

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    if env::var_os("GANTRY_TEST_STACK").is_none() {
        // A run of all tests of this crate has no stack.
        eprintln!("load on two processes of each service is left out: GANTRY_TEST_STACK is not set");
        return Ok(ExitCode::SUCCESS);
    }
    let wanted = env::var("GANTRY_LOAD").unwrap_or_default();
    let mut names: Vec<&str> = wanted.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let full = names.contains(&"full");
    names.retain(|name| *name != "full");
    let chosen =
        |(name, quick, _): &&Part| if names.is_empty() { full || *quick } else { names.contains(name) };
    let parts: Vec<&Part> = PARTS.iter().filter(chosen).collect();
    let begun = Instant::now();
    let world = World::up(full).await?;
    println!("two processes of each service after {:.1} s", begun.elapsed().as_secs_f64());
    let mut failed = Vec::new();
    for (name, _, part) in &parts {
        let begun = Instant::now();
        let ended = tokio::time::timeout(LIMIT, async {
            part(&world).await?;
            world.suite.verify().await.context("what the stores hold")
        })
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("it did not end within {LIMIT:?}")));
        let took = begun.elapsed().as_secs_f64();
        match ended {
            Ok(()) => println!("{name}: ok after {took:.1} s"),
            Err(error) => {
                // Errors of git name the address that it was given, token and all.
                let text = format!("{error:#}").replace(&world.suite.token, "…");
                println!("{name} --- FAILED after {took:.1} s: {text}\n{}", world.stack.complaints(3));
                failed.push(*name);
            }
        }
    }
    world.stack.down().await?;
    println!("{} of {} failed", failed.len(), parts.len());
    Ok(if failed.is_empty() && !parts.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
