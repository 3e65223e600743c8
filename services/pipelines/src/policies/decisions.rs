//! Decisions that somebody asks for, and those that were made.

use super::{failed, judge};
use crate::State;
use bus::once::Failure;
use contracts::{
    Refusal, Request,
    policies::{DecidePolicy, ListPolicyDecisions, PolicyDecisionView},
};
use ids::{PipelineId, PolicyDecisionId, ProjectId};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha512};
use sqlx::{Row, types::Json};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Decisions of one page.
const PAGE: i64 = 20;

/// Nothing is kept of it: it is about no pipeline.
pub(crate) async fn decide(state: &State, _: &Request, ask: DecidePolicy) -> Result<Value, Failure> {
    let text = blobs::text::receive(state.blobs.as_ref(), ask.input).await.map_err(failed)?;
    let input = judge::read("input", &text).map_err(|why| Refusal::new("invalid", why))?;
    let mut conn = state.store.pool().acquire().await?;
    let made = judge::decide(state, &mut conn, ask.org_id, Ok(input), ask.metadata).await.map_err(failed)?;
    Ok(serde_json::to_value(made.decision)?)
}

/// The part of a bundle's policies that digests need.
#[derive(Deserialize)]
struct Content {
    content: String,
}

pub(crate) async fn list(
    state: &State,
    _: &Request,
    ask: ListPolicyDecisions,
) -> Result<Vec<PolicyDecisionView>, Failure> {
    let rows = sqlx::query(
        "SELECT d.id, d.created_at, d.time_taken_ms, d.decision, d.metadata, d.pipeline_id, b.policies
         FROM pipelines.policy_decisions d LEFT JOIN pipelines.policy_bundles b ON b.id = d.bundle_id
         WHERE d.org_id = $1 AND ($2::uuid IS NULL OR d.id = $2) AND ($3::text IS NULL OR d.status = $3)
            AND ($4::timestamptz IS NULL OR d.created_at > $4) AND ($5::timestamptz IS NULL OR d.created_at < $5)
            AND ($6::text IS NULL OR d.branch = $6) AND ($7::uuid IS NULL OR d.project_id = $7)
            AND ($8::bigint IS NULL OR d.build_number = $8)
         ORDER BY d.created_at DESC, d.id DESC LIMIT $9 OFFSET $10",
    )
    .bind(ask.org_id.map(ids::OrgId::uuid))
    .bind(ask.id.map(PolicyDecisionId::uuid))
    .bind(&ask.status)
    .bind(ask.after)
    .bind(ask.before)
    .bind(&ask.branch)
    .bind(ask.project_id.map(ProjectId::uuid))
    .bind(ask.build_number)
    .bind(PAGE)
    .bind(ask.offset.max(0))
    .fetch_all(state.store.pool())
    .await?;
    let mut views = Vec::with_capacity(rows.len());
    for row in rows {
        let policies: Option<Json<BTreeMap<String, Content>>> = row.try_get("policies")?;
        let digest = |(name, policy): (String, Content)| (name, hex::encode(Sha512::digest(policy.content)));
        views.push(PolicyDecisionView {
            id: PolicyDecisionId(row.try_get("id")?),
            created_at: row.try_get("created_at")?,
            time_taken_ms: row.try_get("time_taken_ms")?,
            decision: row.try_get::<Json<Value>, _>("decision")?.0,
            metadata: row.try_get::<Json<Value>, _>("metadata")?.0,
            policies: policies.map(|Json(map)| map.into_iter().map(digest).collect()).unwrap_or_default(),
            pipeline_id: row.try_get::<Option<Uuid>, _>("pipeline_id")?.map(PipelineId),
        });
    }
    Ok(views)
}
