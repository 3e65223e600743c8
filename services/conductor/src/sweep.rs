//! Looks after workflows whose time has come: revocations that may not have been asked for, and ends after 90 days.

use crate::{
    State,
    error::Result,
    key, now, redundant, serial,
    step::{self, Cause},
    store,
};
use ids::WorkflowId;
use model::workflow::Walk;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const PERIOD: Duration = Duration::from_secs(10);
const AT_ONCE: i64 = 100;

/// Sweeps until stopped. Several instances may: each look is harmless to repeat.
pub(crate) async fn run(state: State, stop: CancellationToken) {
    let mut timer = tokio::time::interval(PERIOD);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => {}
            () = state.due.notified() => {}
        }
        if let Err(error) = sweep(&state).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "overdue workflows could not be read");
        }
    }
}

async fn sweep(state: &State) -> Result<()> {
    redundant::cancel_older(state).await?;
    serial::end_long_waits(state).await?;
    let due = {
        let mut conn = state.store.pool().acquire().await?;
        store::due(&mut conn, AT_ONCE).await?
    };
    for id in due {
        if let Err(error) = look(state, id).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(workflow.id = %id, error, "workflow {id} is overdue and could not be looked after");
        }
    }
    Ok(())
}

async fn look(state: &State, id: WorkflowId) -> Result<()> {
    let now = now();
    let mut tx = state.store.begin(&[key(id)]).await?;
    let Some(mut workflow) = store::workflow(tx.conn(), id).await? else { return Ok(()) };
    if workflow.root.ended_at.is_some() {
        return Ok(());
    }
    if now - workflow.created_at >= chrono::TimeDelta::days(store::DAYS.into()) && !workflow.root.cancel {
        let open = store::open_jobs(tx.conn(), id).await?;
        let mut walk = Walk::new(workflow.root.clone(), now);
        walk.cancel_workflow(open, Some("approval_expired"))?;
        step::commit(&mut tx, &mut workflow, Vec::new(), &walk.conclude(), &Cause::timer(), now).await?;
    }
    // Later than the request below may take; it sets its own time when it succeeds.
    store::look_again(tx.conn(), id, now + chrono::TimeDelta::days(store::DAYS.into())).await?;
    if !store::to_revoke(tx.conn(), id).await?.is_empty() {
        store::look_again(tx.conn(), id, now + step::REVOKE_RETRY).await?;
    }
    tx.commit().await?;
    state.revoke(id).await
}
