//! Contexts themselves.

use crate::State;
use bus::once::{Begun, Failure, Once};
use contracts::{
    NewEvent, Refusal, Request,
    contexts::{
        ContextCreated, ContextDeleted, ContextInfo, CreateContext, DeleteContext, GetContext, ListContexts,
    },
};
use eventstore::Key;
use ids::{ContextId, OrgId, Timestamp};
use uuid::Uuid;

/// Longest name of a context, in characters.
const MAX_NAME: usize = 256;

pub(crate) async fn create(
    state: &State,
    request: &Request,
    ask: CreateContext,
) -> Result<ContextInfo, Failure> {
    let name = ask.name.trim().to_owned();
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Refusal::new(
            "invalid",
            format!("a context's name has 1 to {MAX_NAME} printable characters"),
        )
        .into());
    }
    let id = ContextId::new();
    // The organisation's lock makes two who want the same name queue.
    let locks = [Key::new("context", id.uuid()), Key::new("org_contexts", ask.org_id.uuid())];
    let mut once = match Once::begin(&state.store, request, &locks).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let created_at: Option<Timestamp> = sqlx::query_scalar(
        "INSERT INTO contexts.contexts (id, org_id, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
         RETURNING created_at",
    )
    .bind(id.uuid())
    .bind(ask.org_id.uuid())
    .bind(&name)
    .fetch_optional(once.tx.conn())
    .await?;
    let created_at = created_at
        .ok_or_else(|| Refusal::new("exists", format!("the organisation has a context {name:?} already")))?;
    let body = ContextCreated { context_id: id, org_id: ask.org_id, name: name.clone() };
    let mut event = NewEvent::new("context", id.uuid(), request.actor.clone(), &body);
    event.org_id = Some(ask.org_id);
    once.tx.append(&[event]).await?;
    once.commit(ContextInfo { id, org_id: Some(ask.org_id), name, created_at }).await
}

pub(crate) async fn delete(state: &State, request: &Request, ask: DeleteContext) -> Result<(), Failure> {
    let mut once = match Once::begin(&state.store, request, &[Key::new("context", ask.id.uuid())]).await? {
        Begun::New(once) => once,
        Begun::Answered(()) => return Ok(()),
    };
    let org: Option<Uuid> =
        sqlx::query_scalar("DELETE FROM contexts.contexts WHERE id = $1 RETURNING org_id")
            .bind(ask.id.uuid())
            .fetch_optional(once.tx.conn())
            .await?;
    let org = org.ok_or_else(|| Refusal::not_found("Context"))?;
    sqlx::query("DELETE FROM contexts.variables WHERE scope = 'context' AND scope_id = $1")
        .bind(ask.id.uuid())
        .execute(once.tx.conn())
        .await?;
    let mut event = NewEvent::new(
        "context",
        ask.id.uuid(),
        request.actor.clone(),
        &ContextDeleted { context_id: ask.id },
    );
    event.org_id = Some(OrgId(org));
    once.tx.append(&[event]).await?;
    once.commit(()).await
}

pub(crate) async fn get(state: &State, _: &Request, ask: GetContext) -> Result<ContextInfo, Failure> {
    let row: Option<Row> =
        sqlx::query_as("SELECT id, org_id, name, created_at FROM contexts.contexts WHERE id = $1")
            .bind(ask.id.uuid())
            .fetch_optional(state.store.pool())
            .await?;
    Ok(row.map(info).ok_or_else(|| Refusal::not_found("Context"))?)
}

pub(crate) async fn list(state: &State, _: &Request, ask: ListContexts) -> Result<Vec<ContextInfo>, Failure> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, org_id, name, created_at FROM contexts.contexts WHERE org_id = $1 ORDER BY name",
    )
    .bind(ask.org_id.uuid())
    .fetch_all(state.store.pool())
    .await?;
    Ok(rows.into_iter().map(info).collect())
}

type Row = (Uuid, Uuid, String, Timestamp);

fn info((id, org, name, created_at): Row) -> ContextInfo {
    ContextInfo { id: ContextId(id), org_id: Some(OrgId(org)), name, created_at }
}
