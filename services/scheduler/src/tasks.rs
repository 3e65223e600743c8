//! The loops. Each looks at the rows and moves them one step; running twice is harmless. They wake on a nudge and
//! on a timer, so that after a restart they go on where the rows say.

use crate::{
    placements::{self, Row},
    state::State,
};
use compute::Placement;
use kit::keys::PlacementClaims;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The longest time between two looks without a nudge.
const AT_LEAST_EVERY: Duration = Duration::from_secs(10);
const AT_MOST_EVERY: Duration = Duration::from_millis(20);
/// After how long a folder that no placement knows is removed.
const STRANGER: Duration = Duration::from_secs(3600);

/// Starts what is wanted.
pub async fn starter(state: Arc<State>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let wait = pass(&state, "wanted").await;
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
            () = state.wanted.notified() => {}
        }
    }
}

/// Ends what is to end. A loop of its own: ending waits for processes, and starting must not wait for that.
pub async fn ender(state: Arc<State>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let wait = pass(&state, "ending").await;
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
            () = state.ending.notified() => {}
        }
    }
}

/// Does all that is due in one state; returns how long to wait.
async fn pass(state: &State, which: &'static str) -> Duration {
    let result: anyhow::Result<Duration> = async {
        loop {
            let due = placements::due(state, which).await?;
            if due.is_empty() {
                break;
            }
            for row in &due {
                step(state, which, row).await?;
            }
        }
        Ok(placements::next_due(state, which).await?.unwrap_or(AT_LEAST_EVERY))
    }
    .await;
    let wait = result.unwrap_or_else(|error| {
        tracing::warn!(error = format!("{error:#}"), "the scheduler could not look");
        Duration::from_secs(1)
    });
    wait.clamp(AT_MOST_EVERY, AT_LEAST_EVERY)
}

async fn step(state: &State, which: &'static str, row: &Row) -> anyhow::Result<()> {
    let (done, next) = match which {
        "wanted" => (start(state, row).await, "started"),
        _ => (state.compute.remove(&row.name()).await, "gone"),
    };
    match done {
        Ok(()) => placements::advance(state, row, which, next).await?,
        Err(error) => {
            let error = anyhow::Error::from(error);
            tracing::error!(placement = row.name(), error = format!("{error:#}"), "compute failed; it is tried again");
            placements::postpone(state, row).await?;
        }
    }
    Ok(())
}

async fn start(state: &State, row: &Row) -> Result<(), compute::Error> {
    let (task_id, epoch) = (row.task(), row.epoch);
    let token = state.keys.seal_claims("placement", &PlacementClaims { task_id, epoch });
    state.compute.start(&Placement { name: row.name(), task_id, epoch, token }).await
}

/// Compares what compute runs with what is wanted: ends what dead agents left, and forgets strangers.
pub async fn watcher(state: Arc<State>, stop: CancellationToken) {
    let mut ended = HashSet::new();
    while !stop.is_cancelled() {
        if let Err(error) = watch(&state, &mut ended).await {
            tracing::warn!(error = format!("{error:#}"), "the scheduler could not compare");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(state.config.watch) => {}
        }
    }
}

/// `ended`: dead agents whose remains were ended already.
async fn watch(state: &State, ended: &mut HashSet<String>) -> anyhow::Result<()> {
    let running = state.compute.list().await?;
    if running.is_empty() {
        ended.clear();
        return Ok(());
    }
    let rows: Vec<(Uuid, i64, String)> =
        sqlx::query_as("SELECT task_id, epoch, state FROM scheduler.placements WHERE state <> 'gone'")
            .fetch_all(state.store.pool())
            .await?;
    let known: HashMap<String, String> = rows
        .into_iter()
        .map(|(task_id, epoch, state)| (Placement::name_of(ids::TaskId(task_id), epoch), state))
        .collect();
    for placement in &running {
        match known.get(&placement.name).map(String::as_str) {
            // Its task ends when its lease does; what runs of it has to end now.
            Some("started") if !placement.alive && !ended.contains(&placement.name) => {
                tracing::warn!(placement = placement.name, "the agent is gone before its task ended");
                state.compute.stop(&placement.name).await?;
                ended.insert(placement.name.clone());
            }
            // Not one that was just started: its row may be written again after a crash of the database.
            None if !placement.alive && placement.since.elapsed().is_ok_and(|age| age > STRANGER) => {
                state.compute.remove(&placement.name).await?;
            }
            _ => {}
        }
    }
    ended.retain(|name| known.contains_key(name));
    sqlx::query("DELETE FROM scheduler.placements WHERE state = 'gone' AND ending_at < clock_timestamp() - $1::interval")
        .bind(state.config.remember)
        .execute(state.store.pool())
        .await?;
    Ok(())
}
