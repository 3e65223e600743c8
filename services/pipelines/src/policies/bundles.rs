//! Bundles: pushed whole, kept for the decisions that they made.

use super::{KIND, failed, lock};
use crate::State;
use bus::once::{Begun, Failure, Once};
use contracts::{
    NewEvent, Refusal, Request,
    policies::{BundleChanges, GetPolicyBundle, PolicyBundlePushed, PolicyView, PushPolicyBundle},
};
use ids::{OrgId, PolicyBundleId, Timestamp, UserId};
use policy::Bundle;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, Row, types::Json};
use std::collections::BTreeMap;

/// A policy as its bundle's row holds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) content: String,
    created_at: Timestamp,
    created_by: Option<UserId>,
}

/// A bundle.
pub(super) struct Stored {
    pub(super) id: PolicyBundleId,
    pub(super) files: BTreeMap<String, String>,
    pub(super) policies: BTreeMap<String, Kept>,
}

pub(crate) async fn get(
    state: &State,
    _: &Request,
    ask: GetPolicyBundle,
) -> Result<Vec<PolicyView>, Failure> {
    let mut conn = state.store.pool().acquire().await?;
    let found = match ask.decision {
        None => current(&mut conn, ask.org_id).await?,
        Some(decision) => {
            let id: Option<Option<uuid::Uuid>> = sqlx::query_scalar(
                "SELECT bundle_id FROM pipelines.policy_decisions WHERE id = $1 AND org_id = $2",
            )
            .bind(decision.uuid())
            .bind(ask.org_id.uuid())
            .fetch_optional(&mut *conn)
            .await?;
            match id.ok_or_else(|| Refusal::not_found("Decision"))? {
                Some(id) => by_id(&mut conn, PolicyBundleId(id)).await?,
                None => None,
            }
        }
    };
    drop(conn);
    let mut views = Vec::new();
    for (name, kept) in found.map(|stored| stored.policies).unwrap_or_default() {
        views.push(PolicyView {
            name,
            content: blobs::text::send(state.blobs.as_ref(), kept.content).await.map_err(failed)?,
            created_at: kept.created_at,
            created_by: kept.created_by,
        });
    }
    Ok(views)
}

pub(crate) async fn push(
    state: &State,
    request: &Request,
    ask: PushPolicyBundle,
) -> Result<BundleChanges, Failure> {
    let text = blobs::text::receive(state.blobs.as_ref(), ask.files).await.map_err(failed)?;
    let files: BTreeMap<String, String> = serde_json::from_str(&text)
        .map_err(|error| Refusal::new("invalid", format!("`policies` maps file names to texts: {error}")))?;
    let size: usize = files.values().map(String::len).sum();
    if size > policy::MAX_BYTES {
        let message = format!("the bundle has {size} bytes; at most {} are allowed", policy::MAX_BYTES);
        return Err(Refusal::new("too_large", message).into());
    }
    let parsing = files.clone();
    let bundle = tokio::task::spawn_blocking(move || Bundle::parse(&parsing)).await.map_err(failed)?;
    let bundle = bundle.map_err(|error| Refusal::new("invalid", error.0.join("\n")))?;

    let mut once = match Once::begin(&state.store, request, &[lock(ask.org_id)]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let former = current(once.tx.conn(), ask.org_id).await?.map(|stored| stored.policies).unwrap_or_default();
    let (now, by) = (chrono::Utc::now(), request.actor.user());
    let mut policies = BTreeMap::new();
    let mut changes = BundleChanges::default();
    for found in bundle.policies() {
        let kept = match former.get(&found.name) {
            Some(kept) if kept.content == found.content => kept.clone(),
            other => {
                let list = if other.is_some() { &mut changes.modified } else { &mut changes.created };
                list.push(found.name.clone());
                Kept { content: found.content.clone(), created_at: now, created_by: by }
            }
        };
        policies.insert(found.name.clone(), kept);
    }
    changes.deleted = former.into_keys().filter(|name| !policies.contains_key(name)).collect();
    if ask.dry {
        return Ok(changes);
    }
    if changes != BundleChanges::default() {
        let id = PolicyBundleId::new();
        sqlx::query(
            "INSERT INTO pipelines.policy_bundles (id, org_id, created_at, created_by, files, policies)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(id.uuid())
        .bind(ask.org_id.uuid())
        .bind(now)
        .bind(by.map(UserId::uuid))
        .bind(Json(&files))
        .bind(Json(&policies))
        .execute(once.tx.conn())
        .await?;
        let digests =
            policies.iter().map(|(name, kept)| (name.clone(), hex::encode(Sha256::digest(&kept.content))));
        let body = PolicyBundlePushed { org_id: ask.org_id, bundle_id: id, policies: digests.collect() };
        let mut event = NewEvent::new(KIND, ask.org_id.uuid(), request.actor.clone(), &body);
        event.org_id = Some(ask.org_id);
        once.tx.append(&[event.caused_by(request.id)]).await?;
    }
    once.commit(changes).await
}

/// The bundle that decides now.
pub(super) async fn current(conn: &mut PgConnection, org: OrgId) -> sqlx::Result<Option<Stored>> {
    let row = sqlx::query(
        "SELECT id, files, policies FROM pipelines.policy_bundles WHERE org_id = $1
         ORDER BY created_at DESC, id DESC LIMIT 1",
    )
    .bind(org.uuid())
    .fetch_optional(conn)
    .await?;
    row.map(stored).transpose()
}

async fn by_id(conn: &mut PgConnection, id: PolicyBundleId) -> sqlx::Result<Option<Stored>> {
    let row = sqlx::query("SELECT id, files, policies FROM pipelines.policy_bundles WHERE id = $1")
        .bind(id.uuid())
        .fetch_optional(conn)
        .await?;
    row.map(stored).transpose()
}

fn stored(row: sqlx::postgres::PgRow) -> sqlx::Result<Stored> {
    Ok(Stored {
        id: PolicyBundleId(row.try_get("id")?),
        files: row.try_get::<Json<_>, _>("files")?.0,
        policies: row.try_get::<Json<_>, _>("policies")?.0,
    })
}
