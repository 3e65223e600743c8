//! Reads of the current state.

use crate::State;
use bus::once::Failure;
use contracts::{
    Refusal, Request,
    delivery::{Decision, GetDecision},
    domain::Project,
    pipelines::{
        GetPipeline, GetPipelineConfig, PipelineConfig, PipelineError, PipelineView, SetupConfig, Trigger,
        Vcs,
    },
};
use ids::{DeliveryId, PipelineId, Timestamp};
use sqlx::{Row, types::Json};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

/// Longest wait for a decision; the asker's own deadline is shorter or near it.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Between looks when no news comes: another process may have decided.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn get(state: &State, _: &Request, ask: GetPipeline) -> Result<PipelineView, Failure> {
    let row = sqlx::query(
        "SELECT id, number, state, created_at, errors, project, vcs, subject, trigger
         FROM pipelines.pipelines WHERE id = $1",
    )
    .bind(ask.id.uuid())
    .fetch_optional(state.store.pool())
    .await?
    .ok_or_else(|| Refusal::not_found("Pipeline"))?;
    Ok(PipelineView {
        id: PipelineId(row.try_get("id")?),
        number: row.try_get("number")?,
        state: row.try_get("state")?,
        created_at: row.try_get::<Timestamp, _>("created_at")?,
        errors: row.try_get::<Json<Vec<PipelineError>>, _>("errors")?.0,
        project: row.try_get::<Json<Project>, _>("project")?.0,
        vcs: row.try_get::<Json<Vcs>, _>("vcs")?.0,
        subject: row.try_get("subject")?,
        trigger: row.try_get::<Json<Trigger>, _>("trigger")?.0,
    })
}

pub(crate) async fn config(
    state: &State,
    _: &Request,
    ask: GetPipelineConfig,
) -> Result<PipelineConfig, Failure> {
    type Row = (String, String, Option<String>, Option<String>);
    let row: Option<Row> = sqlx::query_as(
        "SELECT source, compiled, setup_source, setup_compiled FROM pipelines.pipelines WHERE id = $1",
    )
    .bind(ask.id.uuid())
    .fetch_optional(state.store.pool())
    .await?;
    let (source, compiled, first, first_compiled) = row.ok_or_else(|| Refusal::not_found("Pipeline"))?;
    let blobs = state.blobs.as_ref();
    let failed = |error: blobs::Error| Failure(bus::failed(crate::NAME)(error));
    Ok(PipelineConfig {
        source: blobs::text::send(blobs, source).await.map_err(failed)?,
        compiled: blobs::text::send(blobs, compiled).await.map_err(failed)?,
        setup: match (first, first_compiled) {
            (Some(source), Some(compiled)) => Some(SetupConfig {
                source: blobs::text::send(blobs, source).await.map_err(failed)?,
                compiled: blobs::text::send(blobs, compiled).await.map_err(failed)?,
            }),
            _ => None,
        },
    })
}

pub(crate) async fn decision(state: &State, _: &Request, ask: GetDecision) -> Result<Decision, Failure> {
    let until = Instant::now() + Duration::from_millis(ask.wait_ms).min(LONGEST_WAIT);
    // Subscribed before the first look, so that no news falls between.
    let mut decided = state.decided.subscribe();
    loop {
        if let Some(decision) = decision_of(state, ask.delivery_id).await? {
            return Ok(decision);
        }
        if Instant::now() >= until {
            return Ok(Decision::Pending);
        }
        // News, a look in any case, or the end: each leads to the next look.
        let _ = timeout_at(until.min(Instant::now() + LOOK), decided.changed()).await;
    }
}

async fn decision_of(state: &State, delivery: DeliveryId) -> sqlx::Result<Option<Decision>> {
    let row: Option<(Option<Uuid>, Option<i64>, Option<String>)> = sqlx::query_as(
        "SELECT d.pipeline_id, coalesce(p.number, x.number), d.reason
         FROM pipelines.decisions d LEFT JOIN pipelines.pipelines p ON p.id = d.pipeline_id
         LEFT JOIN pipelines.expired x ON x.id = d.pipeline_id WHERE d.delivery_id = $1",
    )
    .bind(delivery.uuid())
    .fetch_optional(state.store.pool())
    .await?;
    Ok(match row {
        None => None,
        Some((Some(id), Some(number), _)) => Some(Decision::Pipeline { id: PipelineId(id), number }),
        Some((_, _, reason)) => Some(Decision::Skipped { reason: reason.unwrap_or_default() }),
    })
}
