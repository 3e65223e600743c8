//! The start permit: code never runs without one on record, so its absence proves that a second try is safe, and
//! its presence forbids a silent one (reliability §7).

use crate::{
    http::Refused,
    state::State,
    store::{self, TaskRow},
};
use kit::keys::FenceClaims;

/// Gives the permit; a repeat is given the same one.
pub async fn give(state: &State, fence: &FenceClaims) -> Result<(), Refused> {
    let known = store::peek(state.store.pool(), fence.task_id).await?.ok_or(Refused::NotFound)?;
    if given(&known, fence)? {
        return Ok(());
    }
    let mut tx = state.store.begin(&store::of_task(&known)).await?;
    let task = store::task(&mut tx, fence.task_id).await?;
    if given(&task, fence)? {
        return Ok(());
    }
    sqlx::query(
        "UPDATE dispatcher.tasks SET permit_at = clock_timestamp(), next_action_at = deadline WHERE task_id = $1",
    )
    .bind(task.task_id)
    .execute(tx.conn())
    .await?;
    tx.commit().await?;
    Ok(())
}

/// Whether the permit is on record; refused where it cannot be given.
fn given(task: &TaskRow, fence: &FenceClaims) -> Result<bool, Refused> {
    if task.state != "leased" || task.epoch != fence.epoch {
        return Err(Refused::Stale("the lease has ended"));
    }
    if task.permit_at.is_none() && task.cancel_requested {
        return Err(Refused::Canceled);
    }
    Ok(task.permit_at.is_some())
}
