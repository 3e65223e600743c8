//! Rows whose victims are agents, and who starts them.

use crate::world::Case;
use gantry_e2e::until;
use nix::sys::signal::{Signal, kill};
use std::time::Duration;

/// F15: an agent that Nomad started is part of its job: that job ends as lost with its lease, the others go on.
pub async fn killed(case: &Case<'_>) -> anyhow::Result<()> {
    let found = until("an agent", Duration::from_secs(60), || async {
        let found = case.world.stack.agents();
        Ok((!found.is_empty()).then_some(found))
    })
    .await?;
    let victim = found[case.draw(found.len())];
    kill(victim, Signal::SIGKILL)?;
    case.may_lose(1);
    case.saw(format!("one of {} agents killed", found.len()));
    case.back();
    Ok(())
}

/// F35: what runs goes on and renews without Nomad; what is new waits.
pub async fn nomad_away(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    let signal = case.pick(&["KILL", "INT", "STOP"]);
    stack.stop("nomad", signal).await?;
    case.saw(format!("SIG{signal} to nomad, {} jobs begun", case.ran()?));
    case.push_meanwhile().await;
    case.read_log().await;
    case.last().await;
    case.none_failed().await;
    case.back();
    stack.start("nomad").await
}
