//! Orbs and their versions, without their texts.

use super::{check_name, failed, namespaces};
use crate::State;
use bus::once::{Begun, Failure, Once};
use compiler::OrbRef;
use contracts::{
    NewEvent, Refusal, Request,
    orbs::{
        CreateOrb, GetOrb, GetOrbVersion, ListOrbs, Orb, OrbCreated, OrbKey, OrbListed, OrbNamespace,
        OrbPage, OrbSourceView, OrbVersion, SetOrbListed,
    },
};
use eventstore::Key;
use ids::{OrbId, OrbNamespaceId, OrbVersionId, OrgId};
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

pub(super) const KIND: &str = "orb";
/// Versions of one orb that are shown, and orbs of one page.
const VERSIONS: i64 = 200;
const PAGE: u32 = 100;

pub(crate) async fn create(state: &State, request: &Request, ask: CreateOrb) -> Result<Orb, Failure> {
    check_name("an orb", &ask.name)?;
    let mut once = match Once::begin(&state.store, request, &[]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let namespace = namespaces::find(once.tx.conn(), &ask.namespace)
        .await?
        .ok_or_else(|| Refusal::not_found("Namespace"))?;
    let id = OrbId::new();
    let made = sqlx::query(
        "INSERT INTO pipelines.orbs (id, namespace_id, name, is_private) VALUES ($1, $2, $3, $4)
         ON CONFLICT DO NOTHING",
    )
    .bind(id.uuid())
    .bind(namespace.id.uuid())
    .bind(&ask.name)
    .bind(ask.is_private)
    .execute(once.tx.conn())
    .await?;
    let name = format!("{}/{}", namespace.name, ask.name);
    if made.rows_affected() == 0 {
        return Err(Refusal::new("exists", format!("the orb {name} exists already")).into());
    }
    let body = OrbCreated { orb_id: id, name, is_private: ask.is_private };
    once.tx.append(&[event(request, id, namespace.org_id, &body)]).await?;
    let orb = find(once.tx.conn(), &OrbKey::Id(id), None, VERSIONS).await?;
    once.commit(orb.ok_or_else(|| Refusal::not_found("Orb"))?).await
}

pub(crate) async fn get(state: &State, _: &Request, ask: GetOrb) -> Result<Orb, Failure> {
    let mut conn = state.store.pool().acquire().await?;
    let orb = find(&mut conn, &ask.orb, Some(&ask.orgs), VERSIONS).await?;
    Ok(orb.ok_or_else(|| Refusal::not_found("Orb"))?)
}

pub(crate) async fn list(state: &State, _: &Request, ask: ListOrbs) -> Result<OrbPage, Failure> {
    let orgs: Vec<Uuid> = ask.orgs.iter().map(|org| org.uuid()).collect();
    let first = i64::from(ask.first.min(PAGE));
    let mut conn = state.store.pool().acquire().await?;
    let total: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pipelines.orbs o JOIN pipelines.orb_namespaces n ON n.id = o.namespace_id
         WHERE o.listed AND ($1::text IS NULL OR n.name = $1) AND ($2::bool IS NULL OR o.is_private = $2)
            AND (NOT o.is_private OR n.org_id = ANY ($3))",
    )
    .bind(&ask.namespace)
    .bind(ask.private)
    .bind(&orgs)
    .fetch_one(&mut *conn)
    .await?;
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "SELECT o.id FROM pipelines.orbs o JOIN pipelines.orb_namespaces n ON n.id = o.namespace_id
         WHERE o.listed AND ($1::text IS NULL OR n.name = $1) AND ($2::bool IS NULL OR o.is_private = $2)
            AND (NOT o.is_private OR n.org_id = ANY ($3))
            AND ($4::text IS NULL OR n.name || '/' || o.name > $4)
         ORDER BY n.name || '/' || o.name LIMIT $5",
    )
    .bind(&ask.namespace)
    .bind(ask.private)
    .bind(&orgs)
    .bind(&ask.after)
    .bind(first + 1)
    .fetch_all(&mut *conn)
    .await?;
    let more = ids.len() as u64 > first.unsigned_abs();
    let mut orbs = Vec::new();
    for id in ids.into_iter().take(usize::try_from(first).unwrap_or_default()) {
        orbs.extend(find(&mut conn, &OrbKey::Id(OrbId(id)), Some(&ask.orgs), 1).await?);
    }
    Ok(OrbPage { orbs, total, more })
}

pub(crate) async fn version(
    state: &State,
    _: &Request,
    ask: GetOrbVersion,
) -> Result<OrbSourceView, Failure> {
    let reference =
        if ask.reference.contains('@') { ask.reference } else { format!("{}@volatile", ask.reference) };
    let wrong = |why: &dyn std::fmt::Display| Refusal::new("invalid", format!("{reference:.200}: {why}"));
    let reference: OrbRef = reference.parse().map_err(|error| wrong(&error))?;
    let mut conn = state.store.pool().acquire().await?;
    let text = super::resolve(&mut conn, &reference, &ask.orgs)
        .await?
        .map_err(|_| Refusal::not_found(&format!("Orb {reference}")))?;
    let Some((name, number)) = text.resolved.split_once('@') else {
        return Err(failed(format!("{} has no version", text.resolved)));
    };
    let orb = find(&mut conn, &OrbKey::Name(name.to_owned()), Some(&ask.orgs), VERSIONS)
        .await?
        .ok_or_else(|| Refusal::not_found("Orb"))?;
    let row = sqlx::query(
        "SELECT id, version, digest, created_at FROM pipelines.orb_versions WHERE orb_id = $1 AND version = $2",
    )
    .bind(orb.id.uuid())
    .bind(number)
    .fetch_one(&mut *conn)
    .await?;
    let version = version_of(&row)?;
    drop(conn);
    let source = blobs::text::send(state.blobs.as_ref(), text.text.to_string()).await.map_err(failed)?;
    Ok(OrbSourceView { orb, version, source })
}

pub(crate) async fn set_listed(state: &State, request: &Request, ask: SetOrbListed) -> Result<Orb, Failure> {
    let mut once = match Once::begin(&state.store, request, &[Key::new(KIND, ask.id.uuid())]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let changed = sqlx::query("UPDATE pipelines.orbs SET listed = $2 WHERE id = $1 AND listed <> $2")
        .bind(ask.id.uuid())
        .bind(ask.listed)
        .execute(once.tx.conn())
        .await?;
    let orb = find(once.tx.conn(), &OrbKey::Id(ask.id), None, VERSIONS)
        .await?
        .ok_or_else(|| Refusal::not_found("Orb"))?;
    if changed.rows_affected() > 0 {
        let body = OrbListed { listed: ask.listed };
        once.tx.append(&[event(request, ask.id, orb.namespace.org_id, &body)]).await?;
    }
    once.commit(orb).await
}

/// An orb with its highest versions, if the organisations may see it; `None` for organisations: in any case.
pub(super) async fn find(
    conn: &mut PgConnection,
    key: &OrbKey,
    orgs: Option<&[OrgId]>,
    versions: i64,
) -> sqlx::Result<Option<Orb>> {
    let (id, name) = match key {
        OrbKey::Id(id) => (Some(id.uuid()), None),
        OrbKey::Name(name) => (None, name.split_once('/')),
    };
    let orgs: Option<Vec<Uuid>> = orgs.map(|orgs| orgs.iter().map(|org| org.uuid()).collect());
    let row = sqlx::query(
        "SELECT o.id, o.name, o.is_private, o.listed, o.created_at, n.id AS namespace_id,
            n.name AS namespace, n.org_id, n.created_at AS namespace_created_at
         FROM pipelines.orbs o JOIN pipelines.orb_namespaces n ON n.id = o.namespace_id
         WHERE (o.id = $1 OR n.name = $2 AND o.name = $3)
            AND ($4::uuid[] IS NULL OR NOT o.is_private OR n.org_id = ANY ($4))",
    )
    .bind(id)
    .bind(name.map(|name| name.0))
    .bind(name.map(|name| name.1))
    .bind(orgs)
    .fetch_optional(&mut *conn)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let id: Uuid = row.try_get("id")?;
    let rows = sqlx::query(
        "SELECT id, version, digest, created_at FROM pipelines.orb_versions
         WHERE orb_id = $1 AND major IS NOT NULL ORDER BY major DESC, minor DESC, patch DESC LIMIT $2",
    )
    .bind(id)
    .bind(versions)
    .fetch_all(conn)
    .await?;
    let namespace = OrbNamespace {
        id: OrbNamespaceId(row.try_get("namespace_id")?),
        name: row.try_get("namespace")?,
        org_id: OrgId(row.try_get("org_id")?),
        created_at: row.try_get("namespace_created_at")?,
    };
    Ok(Some(Orb {
        id: OrbId(id),
        name: format!("{}/{}", namespace.name, row.try_get::<String, _>("name")?),
        namespace,
        is_private: row.try_get("is_private")?,
        listed: row.try_get("listed")?,
        created_at: row.try_get("created_at")?,
        versions: rows.iter().map(version_of).collect::<sqlx::Result<_>>()?,
    }))
}

pub(super) fn version_of(row: &PgRow) -> sqlx::Result<OrbVersion> {
    Ok(OrbVersion {
        id: OrbVersionId(row.try_get("id")?),
        version: row.try_get("version")?,
        digest: row.try_get("digest")?,
        created_at: row.try_get("created_at")?,
    })
}

pub(super) fn event<E: contracts::Event>(request: &Request, orb: OrbId, org: OrgId, body: &E) -> NewEvent {
    let mut event = NewEvent::new(KIND, orb.uuid(), request.actor.clone(), body).caused_by(request.id);
    event.org_id = Some(org);
    event
}
