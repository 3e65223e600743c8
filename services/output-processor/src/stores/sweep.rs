//! Ends retentions: what is due is invisible at once, its bytes go a day later (reliability §8.4).

use super::objects;
use crate::hub::Hub;
use chrono::TimeDelta;
use ids::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Jobs are forgotten after the longest wait that a workflow may have, and all that came after it.
const FORGET_JOBS: TimeDelta = TimeDelta::days(120);

/// Removes what is due at `now`. How many objects went.
pub(crate) async fn sweep(hub: &Hub, now: Timestamp) -> anyhow::Result<usize> {
    let pool = hub.store.pool();
    for statement in [
        "DELETE FROM output_processor.caches WHERE due <= $1",
        "DELETE FROM output_processor.layers WHERE due <= $1",
        "DELETE FROM output_processor.archives WHERE due <= $1",
    ] {
        sqlx::query(statement).bind(now).execute(pool).await?;
    }
    sqlx::query("DELETE FROM output_processor.jobs WHERE known_at <= $1")
        .bind(now - FORGET_JOBS)
        .execute(pool)
        .await?;
    objects::sweep(hub, pool, now).await
}

/// Sweeps now and then until `stop`.
pub(crate) async fn sweep_loop(hub: Arc<Hub>, stop: CancellationToken) {
    let pause = Duration::from_secs(hub.config.sweep_seconds.max(1));
    loop {
        match sweep(&hub, chrono::Utc::now()).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "removed stored files past their retention"),
            Err(error) => {
                tracing::warn!(error = %format_args!("{error:#}"), "the sweep of stored files did not finish");
            }
        }
        tokio::select! { () = tokio::time::sleep(pause) => {}, () = stop.cancelled() => return }
    }
}
