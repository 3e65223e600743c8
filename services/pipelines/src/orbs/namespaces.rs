//! Namespaces: who may publish under which name.

use super::check_name;
use crate::State;
use bus::once::{Begun, Failure, Once};
use contracts::{
    NewEvent, Refusal, Request,
    orbs::{
        CreateOrbNamespace, DeleteOrbNamespace, GetOrbNamespace, NamespaceKey, OrbNamespace,
        OrbNamespaceCreated, OrbNamespaceDeleted, OrbNamespaceRenamed, RenameOrbNamespace,
    },
};
use eventstore::Key;
use ids::{OrbNamespaceId, OrgId};
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

const KIND: &str = "orb_namespace";

pub(crate) async fn create_namespace(
    state: &State,
    request: &Request,
    ask: CreateOrbNamespace,
) -> Result<OrbNamespace, Failure> {
    check_name("a namespace", &ask.name)?;
    let mut once = match Once::begin(&state.store, request, &[]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let made = sqlx::query(
        "INSERT INTO pipelines.orb_namespaces (id, name, org_id) VALUES ($1, $2, $3)
         ON CONFLICT (name) DO NOTHING RETURNING id, name, org_id, created_at",
    )
    .bind(OrbNamespaceId::new().uuid())
    .bind(&ask.name)
    .bind(ask.org_id.uuid())
    .fetch_optional(once.tx.conn())
    .await?;
    let Some(made) = made else { return Err(taken(&ask.name).into()) };
    let namespace = namespace(&made)?;
    let body = OrbNamespaceCreated { namespace: namespace.clone() };
    once.tx.append(&[event(request, &namespace, &body)]).await?;
    once.commit(namespace).await
}

pub(crate) async fn get_namespace(
    state: &State,
    _: &Request,
    ask: GetOrbNamespace,
) -> Result<OrbNamespace, Failure> {
    let mut conn = state.store.pool().acquire().await?;
    Ok(find(&mut conn, &ask.namespace).await?.ok_or_else(|| Refusal::not_found("Namespace"))?)
}

pub(crate) async fn rename_namespace(
    state: &State,
    request: &Request,
    ask: RenameOrbNamespace,
) -> Result<OrbNamespace, Failure> {
    check_name("a namespace", &ask.name)?;
    let mut once = match Once::begin(&state.store, request, &[Key::new(KIND, ask.id.uuid())]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let held = find(once.tx.conn(), &NamespaceKey::Name(ask.name.clone())).await?;
    if held.is_some_and(|other| other.id != ask.id) {
        return Err(taken(&ask.name).into());
    }
    let row = sqlx::query(
        "UPDATE pipelines.orb_namespaces SET name = $2 WHERE id = $1 RETURNING id, name, org_id, created_at",
    )
    .bind(ask.id.uuid())
    .bind(&ask.name)
    .fetch_optional(once.tx.conn())
    .await?
    .ok_or_else(|| Refusal::not_found("Namespace"))?;
    let namespace = namespace(&row)?;
    once.tx.append(&[event(request, &namespace, &OrbNamespaceRenamed { name: ask.name })]).await?;
    once.commit(namespace).await
}

pub(crate) async fn delete_namespace(
    state: &State,
    request: &Request,
    ask: DeleteOrbNamespace,
) -> Result<(), Failure> {
    let mut once = match Once::begin(&state.store, request, &[Key::new(KIND, ask.id.uuid())]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let row = sqlx::query(
        "DELETE FROM pipelines.orb_namespaces WHERE id = $1 RETURNING id, name, org_id, created_at",
    )
    .bind(ask.id.uuid())
    .fetch_optional(once.tx.conn())
    .await?
    .ok_or_else(|| Refusal::not_found("Namespace"))?;
    let namespace = namespace(&row)?;
    let body = OrbNamespaceDeleted { name: namespace.name.clone() };
    once.tx.append(&[event(request, &namespace, &body)]).await?;
    once.commit(()).await
}

/// The namespace with this id or name.
pub(super) async fn find(conn: &mut PgConnection, key: &NamespaceKey) -> sqlx::Result<Option<OrbNamespace>> {
    let (id, name) = match key {
        NamespaceKey::Id(id) => (Some(id.uuid()), None),
        NamespaceKey::Name(name) => (None, Some(name)),
    };
    let row = sqlx::query(
        "SELECT id, name, org_id, created_at FROM pipelines.orb_namespaces WHERE id = $1 OR name = $2",
    )
    .bind(id)
    .bind(name)
    .fetch_optional(conn)
    .await?;
    row.as_ref().map(namespace).transpose()
}

fn namespace(row: &PgRow) -> sqlx::Result<OrbNamespace> {
    Ok(OrbNamespace {
        id: OrbNamespaceId(row.try_get::<Uuid, _>("id")?),
        name: row.try_get("name")?,
        org_id: OrgId(row.try_get::<Uuid, _>("org_id")?),
        created_at: row.try_get("created_at")?,
    })
}

fn taken(name: &str) -> Refusal {
    Refusal::new("exists", format!("the namespace {name} is taken"))
}

fn event<E: contracts::Event>(request: &Request, namespace: &OrbNamespace, body: &E) -> NewEvent {
    let mut event =
        NewEvent::new(KIND, namespace.id.uuid(), request.actor.clone(), body).caused_by(request.id);
    event.org_id = Some(namespace.org_id);
    event
}
