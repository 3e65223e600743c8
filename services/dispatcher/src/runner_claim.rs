//! A self-hosted runner asks for a task of its class (execution §25). It gets a one-time token; the agent that it
//! starts with it claims the task as every agent does. Such tasks hold none of this server's slots.

use crate::{http::Refused, lease::LONGEST_POLL, state::State, store};
use agent_api::{RunnerClaim, RunnerTask};
use contracts::dispatcher::TaskQueued;
use ids::TaskId;
use kit::keys::PlacementClaims;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

/// Between two looks without a nudge.
const LOOK: Duration = Duration::from_secs(2);

struct Class {
    id: Uuid,
    org_id: Uuid,
    name: String,
}

/// The next task of the token's class, or `None` when the time is up.
pub async fn claim(state: &State, token: &str, claim: &RunnerClaim) -> Result<Option<RunnerTask>, Refused> {
    if claim.name.is_empty()
        || claim.name.len() > 256
        || claim.hostname.len() > 256
        || claim.version.len() > 64
    {
        return Err(Refused::Invalid("a runner says its name, its machine and its version".into()));
    }
    let until = Instant::now() + Duration::from_millis(claim.wait_ms).min(LONGEST_POLL);
    let mut class = class_of(state, token).await?.ok_or(Refused::Unauthorized)?;
    model::version::fit(env!("CARGO_PKG_VERSION"), &claim.version).map_err(Refused::Version)?;
    // Once per call, which is often enough to count as connected: a look without a task writes nothing.
    seen(state, &class, claim).await?;
    loop {
        // Listen before looking, or a task between the two is missed.
        let told = state.for_runners.notified();
        tokio::pin!(told);
        told.as_mut().enable();
        if claim.free > 0
            && state.bus.admission().check().is_ok()
            && let Some(task) = take(state, &class, claim).await?
        {
            return Ok(Some(task));
        }
        let next = (Instant::now() + LOOK).min(until);
        tokio::select! {
            _ = timeout_at(next, told) => {}
            () = state.stop.cancelled() => return Ok(None),
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        // Looked up again: a token that was revoked meanwhile opens nothing.
        class = class_of(state, token).await?.ok_or(Refused::Unauthorized)?;
    }
}

async fn class_of(state: &State, token: &str) -> sqlx::Result<Option<Class>> {
    let row: Option<(Uuid, Uuid, String)> = sqlx::query_as(
        "SELECT c.id, c.org_id, c.name FROM dispatcher.runner_tokens t \
         JOIN dispatcher.runner_classes c ON c.id = t.class_id WHERE t.sha256 = $1",
    )
    .bind(hex::encode(Sha256::digest(token.as_bytes())))
    .fetch_optional(state.store.pool())
    .await?;
    Ok(row.map(|(id, org_id, name)| Class { id, org_id, name }))
}

async fn seen(state: &State, class: &Class, claim: &RunnerClaim) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO dispatcher.runners (class_id, name, hostname, version) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (class_id, name) DO UPDATE SET hostname = excluded.hostname, version = excluded.version, \
             last_connected = clock_timestamp()",
    )
    .bind(class.id)
    .bind(&claim.name)
    .bind(&claim.hostname)
    .bind(&claim.version)
    .execute(state.store.pool())
    .await?;
    Ok(())
}

/// Queues the task that has waited longest, for this runner.
async fn take(state: &State, class: &Class, claim: &RunnerClaim) -> Result<Option<RunnerTask>, Refused> {
    loop {
        let first: Option<Uuid> = sqlx::query_scalar(
            "SELECT task_id FROM dispatcher.tasks WHERE state = 'waiting' AND resource_class LIKE '%/%' \
                 AND org_id = $1 AND resource_class = $2 ORDER BY position LIMIT 1",
        )
        .bind(class.org_id)
        .bind(&class.name)
        .fetch_optional(state.store.pool())
        .await?;
        let Some(first) = first else { return Ok(None) };
        let Some(known) = store::peek(state.store.pool(), TaskId(first)).await? else { continue };
        let mut tx = state.store.begin(&store::of_task(&known)).await?;
        let taken: Option<(i64, i32)> = sqlx::query_as(
            "UPDATE dispatcher.tasks SET state = 'queued', epoch = epoch + 1, runner = $2, \
                 queued_at = clock_timestamp(), next_action_at = clock_timestamp() + $3 \
             WHERE task_id = $1 AND state = 'waiting' RETURNING epoch, index",
        )
        .bind(first)
        .bind(&claim.name)
        .bind(state.config.claim_timeout)
        .fetch_optional(tx.conn())
        .await?;
        // Another runner was faster, or it was canceled.
        let Some((epoch, index)) = taken else { continue };
        sqlx::query(
            "UPDATE dispatcher.runners SET last_used = clock_timestamp() WHERE class_id = $1 AND name = $2",
        )
        .bind(class.id)
        .bind(&claim.name)
        .execute(tx.conn())
        .await?;
        let run = store::run(&mut tx, known.job_id).await?;
        let queued = TaskQueued {
            task_id: TaskId(first),
            job_id: run.job(),
            workflow_id: run.workflow(),
            index: u32::try_from(index).unwrap_or_default(),
            epoch,
            resource_class: class.name.clone(),
            demand: None,
        };
        tx.append(&[run.event("task", first, &queued)]).await?;
        tx.commit().await?;
        state.due.notify_one();
        let token = state.keys.seal_claims("placement", &PlacementClaims { task_id: TaskId(first), epoch });
        return Ok(Some(RunnerTask { task_id: TaskId(first), epoch, token }));
    }
}
