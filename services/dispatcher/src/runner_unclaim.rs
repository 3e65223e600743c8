//! A standing runner gives back a task whose agent it could not start, so that another runner takes it at once
//! (execution §25, api-v2 §14).

use crate::{http::Refused, placements, state::State};
use agent_api::RunnerUnclaim;
use contracts::dispatcher::{PlacementNews, PlacementReport};
use kit::keys::PlacementClaims;

/// Makes the task wait again. One that was given back too often ends instead, and the runner is told.
pub async fn unclaim(state: &State, ask: &RunnerUnclaim) -> Result<(), Refused> {
    let claims: Option<PlacementClaims> = state.keys.open_claims("placement", &ask.task_token);
    let claims = claims
        .filter(|claims| claims.task_id == ask.task_id)
        .ok_or_else(|| Refused::Invalid("the token is not of this task".into()))?;
    let row: Option<(String, i64, i32)> =
        sqlx::query_as("SELECT state, epoch, requeues FROM dispatcher.tasks WHERE task_id = $1")
            .bind(claims.task_id.uuid())
            .fetch_optional(state.store.pool())
            .await?;
    let (status, epoch, requeues) = row.ok_or(Refused::NotFound)?;
    if status != "queued" || epoch != claims.epoch {
        return Err(Refused::Stale("the task is not this runner's, or its agent has it already"));
    }
    let news = PlacementNews::Ended;
    placements::report(state, vec![PlacementReport { task_id: claims.task_id, epoch, news }]).await?;
    if u32::try_from(requeues).unwrap_or(u32::MAX) >= state.config.max_requeues {
        return Err(Refused::Exhausted);
    }
    Ok(())
}
