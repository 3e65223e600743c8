//! Rows whose victims are lines.

use crate::{proxy::Way, world::Case};
use std::time::Duration;

/// F17: jobs go on and their output comes later.
pub async fn agents_cut(case: &Case<'_>) -> anyhow::Result<()> {
    agents_line(case, Way::Cut, "agents' line cut").await
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
