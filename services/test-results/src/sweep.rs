//! Forgets what is past its retention.

use crate::State;
use chrono::TimeDelta;
use ids::Timestamp;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Longer than any job runs and waits.
const JOBS: TimeDelta = TimeDelta::days(120);

/// Forgets what is due at `now`. How many reports.
pub(crate) async fn sweep(state: &State, now: Timestamp) -> sqlx::Result<u64> {
    let pool = state.store.pool();
    sqlx::query("DELETE FROM test_results.jobs WHERE known_at < $1").bind(now - JOBS).execute(pool).await?;
    sqlx::query("DELETE FROM test_results.snapshots WHERE taken_at < $1")
        .bind(now - JOBS)
        .execute(pool)
        .await?;
    if state.config.retention_days == 0 {
        return Ok(0);
    }
    let before = now - TimeDelta::days(i64::from(state.config.retention_days));
    let gone =
        sqlx::query("DELETE FROM test_results.reports WHERE at < $1").bind(before).execute(pool).await?;
    Ok(gone.rows_affected())
}

/// Sweeps now and then until `stop`.
pub(crate) async fn run(state: Arc<State>, stop: CancellationToken) {
    let pause = Duration::from_secs(state.config.sweep_seconds.max(1));
    loop {
        match sweep(&state, chrono::Utc::now()).await {
            Ok(0) => {}
            Ok(reports) => tracing::info!(reports, "forgot test results past their retention"),
            Err(error) => tracing::warn!(%error, "old test results stay for now"),
        }
        tokio::select! { () = tokio::time::sleep(pause) => {}, () = stop.cancelled() => return }
    }
}
