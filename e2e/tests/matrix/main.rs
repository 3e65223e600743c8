//! The failure matrix (reliability §4) on the suite as separate processes on real servers: each row breaks one thing while
//! jobs run, and one judge says what became of them.
//!
//! `GANTRY_ROWS=F1,F27` picks rows, `GANTRY_SEEDS=7,8` or `GANTRY_SEED_COUNT=3` the seeds from which the moment and the
//! victim are drawn, `GANTRY_MATRIX=full` takes the outages of the matrix instead of seconds, `GANTRY_UPDATE=1` writes
//! `docs/reference/failure-matrix.md`. `GANTRY_BIN` names the folder of the programs; it takes what `scripts/stack` takes.

mod agents;
mod clock;
mod network;
mod page;
mod proxy;
mod rows;
mod services;
mod stack;
mod stores;
mod world;

use crate::{
    page::{Outcome, Verdict},
    rows::{Proof, ROWS, Row},
    world::{Case, World},
};
use anyhow::Context;
use std::{
    env,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The same each time, so that a change is judged by the same failures as the one before.
const SEEDS: [u64; 3] = [11, 12, 13];
/// A row that does not end within it is broken.
const ROW: Duration = Duration::from_secs(600);

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    if env::var_os("GANTRY_TEST_STACK").is_none() {
        // A run of all tests of this crate has no stack.
        eprintln!("the failure matrix is left out: GANTRY_TEST_STACK is not set");
        return Ok(ExitCode::SUCCESS);
    }
    let full = env::var("GANTRY_MATRIX").is_ok_and(|value| value == "full");
    let wanted = env::var("GANTRY_ROWS").ok();
    let wanted: Option<Vec<&str>> = wanted.as_deref().map(|text| text.split(',').map(str::trim).collect());
    let chosen = |row: &Row| match (&wanted, &row.proof) {
        (_, Proof::Not(_)) => false,
        (Some(names), _) => names.contains(&row.id),
        (None, Proof::Here { quick, .. }) => full || *quick,
    };
    let mut world = World::up().await?;
    let (mut outcomes, mut failed) = (Vec::new(), 0);
    for row in ROWS.iter().filter(|row| chosen(row)) {
        if let Proof::Here { needs: Some(name), .. } = row.proof
            && !world.stack.has(name)
        {
            println!(
                "{} NOT TESTED: this stack has no {name} (scripts/stack says why when it starts)",
                row.id
            );
            continue;
        }
        for seed in seeds(full) {
            let outcome = Box::pin(run(&world, row, seed, full)).await;
            println!("{}", outcome.line());
            let broken = outcome.verdict == Verdict::Broken;
            let left_broken = broken && outcome.recovered.is_none();
            outcomes.push(outcome);
            if env::var_os("GANTRY_UPDATE").is_some() {
                page::write(&outcomes, world.health, full)?;
            }
            if broken {
                failed += 1;
            }
            if left_broken {
                println!("{}", world.stack.complaints(2));
                // Nothing of what it left is to be taken for the next row's.
                if let Err(error) = world.stack.down().await {
                    println!("the stack does not end: {error:#}");
                }
                std::fs::remove_dir_all(&world.stack.folder)?;
                world = World::up().await?;
            }
        }
    }
    world.stack.down().await?;
    println!("{failed} of {} failed", outcomes.len());
    Ok(if failed == 0 && !outcomes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn seeds(full: bool) -> Vec<u64> {
    if let Ok(text) = env::var("GANTRY_SEEDS") {
        return text.split(',').filter_map(|seed| seed.trim().parse().ok()).collect();
    }
    match env::var("GANTRY_SEED_COUNT").ok().and_then(|text| text.parse::<u64>().ok()) {
        Some(count) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let first = u64::try_from(now.as_millis()).unwrap_or_default();
            (first..first + count).collect()
        }
        None => SEEDS[..if full { SEEDS.len() } else { 1 }].to_vec(),
    }
}

/// One row with one seed.
async fn run(world: &World, row: &Row, seed: u64, full: bool) -> Outcome {
    let Proof::Here { outage, within, run, .. } = row.proof else { unreachable!("only these are chosen") };
    let outage = Duration::from_secs(if full { outage.1 } else { outage.0 });
    let case = Case::new(world, row.id, seed, outage);
    let begun = Instant::now();
    let mark = |stage: &str| println!("  {:>5.1} s {} {stage}", begun.elapsed().as_secs_f64(), row.id);
    let done = async {
        case.push().await?;
        // The moment: from the first job, over the middle of the fan, to near its end.
        let moment = 1 + case.draw(4);
        case.begun(moment).await?;
        case.saw(format!("at {moment} jobs begun"));
        mark("the failure");
        run(&case).await?;
        mark("over");
        let recovered = case.recovered().await.context("recovery")?;
        mark("recovered");
        case.judge().await.context("judge")?;
        mark("judged");
        world.suite.verify().await?;
        mark("verified");
        anyhow::Ok(recovered)
    };
    let ended = match tokio::time::timeout(ROW, done).await {
        Ok(ended) => ended,
        Err(_) => Err(anyhow::anyhow!("it did not end within {ROW:?}")),
    };
    let broken = case.broken();
    for promise in &broken {
        case.saw(promise.clone());
    }
    let (verdict, recovered) = match ended {
        Ok(took) if !broken.is_empty() => (Verdict::Broken, Some(took)),
        Ok(took) if within.is_some_and(|limit| took > Duration::from_secs(limit) + world.health) => {
            (Verdict::Late, Some(took))
        }
        Ok(took) => (Verdict::AsPromised, Some(took)),
        Err(error) => {
            case.saw(format!("{error:#}"));
            (Verdict::Broken, None)
        }
    };
    // Errors of git name the address that it was given, token and all.
    let notes = case.notes().into_iter().map(|note| note.replace(&world.suite.token, "…")).collect();
    Outcome { row: row.id, seed, outage, notes, recovered, verdict }
}
