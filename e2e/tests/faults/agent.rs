//! `kill -9` of agents while their jobs run: those jobs end as lost, nothing of them is left, and the rest goes on.

use crate::support::{Fan, LIMIT, Place, agents, processes};
use anyhow::ensure;
use gantry_e2e::until;
use nix::sys::signal::{Signal, kill};
use std::time::Duration;

/// What a dead agent's task leaves must be gone within this time.
const SWEPT: Duration = Duration::from_secs(60);

// Rules: agent.lost
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_killed_agent_s_task_and_the_rest_goes_on() -> anyhow::Result<()> {
    let place = Place::new()?;
    // A number that no other process sleeps for.
    let mark = 9_000_000 + std::process::id();
    let between: &'static str =
        format!("if test $i = 1; then setsid sleep {mark} < /dev/null > /dev/null 2>&1 & fi; sleep 0.1")
            .leak();
    let fan = Fan { jobs: 30, lines: 20, between, class: None, more: ("", "") };
    let left = || processes(|line| line.starts_with(&format!("sleep {mark}")));
    let suite = place.up(&[]).await?;
    place.push(&suite, "lost", &fan).await?;
    // The first job is through: the fan is under way.
    place.begun(6).await?;
    until("what the jobs started", LIMIT, || async { Ok((left().len() >= 3).then_some(())) }).await?;
    let killed = agents(&place.data);
    ensure!(!killed.is_empty(), "no agent runs");
    let orphans = left();
    for pid in &killed {
        // One may have ended by itself.
        let _ = kill(*pid, Signal::SIGKILL);
    }
    until("the end of what the killed agents left", SWEPT, || async {
        let still = left();
        Ok((!orphans.iter().any(|pid| still.contains(pid))).then_some(()))
    })
    .await?;
    let verdict = place.judge(&suite, "lost", &fan).await?;
    ensure!(verdict.status == "failed", "the workflow is {}", verdict.status);
    ensure!(
        (1..=killed.len()).contains(&verdict.lost.len()),
        "{:?} of {} agents' jobs were lost",
        verdict.lost,
        killed.len()
    );
    until("the end of everything", SWEPT, || async { Ok(left().is_empty().then_some(())) }).await?;
    place.verify().await?;
    suite.down().await
}
