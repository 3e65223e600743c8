//! Rows whose victims are lines.

use crate::{proxy::Way, world::Case};
use gantry_e2e::until;
use std::time::{Duration, Instant};

/// F17: jobs go on and their output comes later.
pub async fn agents_cut(case: &Case<'_>) -> anyhow::Result<()> {
    agents_line(case, Way::Cut, "agents' line cut").await
}

/// F18: what ran is ended by its agent before the suite gives it up, and is said to be lost; nothing of it goes on.
pub async fn agents_lost(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    let cut = Instant::now();
    stack.way("agents", Way::Cut)?;
    let running = stack.agents();
    // Some agents hold a lease and have not begun.
    case.may_lose(case.ran()? + running.len());
    case.saw(format!("agents' line cut, {} jobs begun, {} agents", case.ran()?, running.len()));
    let gone = until("the end of who lost its lease", case.outage, || async {
        let left = stack.agents();
        Ok((!running.iter().any(|agent| left.contains(agent))).then(|| cut.elapsed()))
    });
    let gone = gone.await.map(|after| format!("after {:.0} s", after.as_secs_f64()));
    case.claim("agents that ran have ended", gone);
    tokio::time::sleep(case.outage.saturating_sub(cut.elapsed())).await;
    case.back();
    stack.way("agents", Way::Through)
}

/// F19: what was open stays silent, and nobody says that it is dead. Harder than a dead line, since TCP's own probes are
/// answered: only limits of whoever waits can notice.
pub async fn half_open(case: &Case<'_>) -> anyhow::Result<()> {
    agents_line(case, Way::Silent, "agents' connections half-open").await
}

/// Takes the agents' line away in one way, and gives it back.
async fn agents_line(case: &Case<'_>, way: Way, what: &str) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    stack.way("agents", way)?;
    case.saw(format!("{what}, {} jobs begun", case.ran()?));
    case.last().await;
    case.none_failed().await;
    case.back();
    stack.way("agents", Way::Through)
}

/// F40: half a second more on every answer of every store, and one parcel in twenty lost.
pub async fn slow(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    stack.all(Way::Slow { by: Duration::from_millis(250), lost: 5 });
    case.saw(format!("250 ms each way, 5 % lost, {} jobs begun", case.ran()?));
    case.last().await;
    case.none_failed().await;
    case.back();
    stack.all(Way::Through);
    Ok(())
}
