//! Rows whose victims are lines.

use crate::{proxy::Way, world::Case};
use std::time::Duration;

/// F17: jobs go on and their output comes later.
pub async fn agents_cut(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    stack.way("agents", Way::Cut)?;
    case.saw(format!("agents' line cut, {} jobs begun", case.ran()?));
    case.last().await;
    case.none_failed().await;
    case.back();
    stack.way("agents", Way::Through)
}

/// F19: what was open stays silent, and nobody says that it is dead. Harder than a dead line, since TCP's own probes are
/// answered: only limits of whoever waits can notice.
pub async fn half_open(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    stack.way("agents", Way::Silent)?;
    case.saw(format!("agents' connections half-open, {} jobs begun", case.ran()?));
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
