//! Kills at random moments. A seed gives the plan; the plan and what was done are printed, so that it can be replayed.

use crate::support::{Fan, LIMIT, Place, agents};
use anyhow::{Context, ensure};
use gantry_e2e::{Suite, until};
use nix::sys::signal::{Signal, kill};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Seeds of an ordinary run: the same each time, so that a change is judged by the same kills as the one before.
/// `GANTRY_SEED_COUNT` draws as many new ones, `GANTRY_SEEDS` names them.
const SEEDS: [u64; 3] = [11, 12, 13];
const FAN: Fan = Fan { jobs: 10, lines: 10, between: "sleep 0.02", class: None, more: ("", "") };

#[derive(Debug)]
enum Event {
    /// The server is killed and started again.
    Server,
    /// The private database is killed.
    Postgres,
    /// One agent is killed, if any runs.
    Agent(usize),
}

/// What happens after how long.
fn plan(seed: u64) -> Vec<(Duration, Event)> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..random.usize(1..=3))
        .map(|_| {
            let pause = Duration::from_millis(random.u64(0..1500));
            let event = match random.u8(0..10) {
                0..6 => Event::Server,
                6..8 => Event::Postgres,
                _ => Event::Agent(random.usize(0..8)),
            };
            (pause, event)
        })
        .collect()
}

fn seeds() -> Vec<u64> {
    if let Ok(text) = std::env::var("GANTRY_SEEDS") {
        return text.split(',').filter_map(|seed| seed.trim().parse().ok()).collect();
    }
    let Some(count) = std::env::var("GANTRY_SEED_COUNT").ok().and_then(|text| text.parse::<u64>().ok())
    else {
        return SEEDS.to_vec();
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = u64::try_from(now.as_millis()).unwrap_or_default();
    (first..first + count).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_lose_nothing_and_repeat_nothing() -> anyhow::Result<()> {
    let place = Place::new()?;
    let mut suite = place.up(&[]).await?;
    for seed in seeds() {
        let plan = plan(seed);
        println!("seed {seed}: {plan:?}");
        suite = run(&place, suite, seed, plan)
            .await
            .with_context(|| format!("replay it with GANTRY_SEEDS={seed}"))?;
    }
    place.verify().await?;
    suite.down().await
}

async fn run(
    place: &Place,
    mut suite: Suite,
    seed: u64,
    plan: Vec<(Duration, Event)>,
) -> anyhow::Result<Suite> {
    let project = format!("seed{seed}");
    let begun = Instant::now();
    place.push(&suite, &project, &FAN).await?;
    let mut may_lose = 0;
    for (pause, event) in plan {
        // Not a wait for anything: the moment of the kill is what is random.
        tokio::time::sleep(pause).await;
        match event {
            Event::Server => {
                let url = suite.url.clone();
                suite.kill().await?;
                suite = place.up_elsewhere(&url).await?;
            }
            Event::Postgres => {
                let old = until("a postmaster", LIMIT, || async { Ok(place.postmaster()) }).await?;
                kill(old, Signal::SIGKILL)?;
                until("another postmaster", LIMIT, || async {
                    Ok(place.postmaster().filter(|new| *new != old))
                })
                .await?;
            }
            Event::Agent(which) => {
                let running = agents(&place.data);
                if let Some(pid) = running.get(which % running.len().max(1)) {
                    may_lose += usize::from(kill(*pid, Signal::SIGKILL).is_ok());
                }
            }
        }
        println!("  {:>5} ms {event:?}, {} jobs begun", begun.elapsed().as_millis(), place.ran()?.len());
    }
    let verdict = place.judge(&suite, &project, &FAN).await?;
    ensure!(
        verdict.lost.len() <= may_lose && (!verdict.lost.is_empty() || verdict.status == "success"),
        "the workflow is {}, lost jobs: {:?}",
        verdict.status,
        verdict.lost
    );
    Ok(suite)
}
