//! Who may use a context (security §4.2): projects, expressions over pipeline values, groups. All kinds that are
//! restricted must hold.

use crate::State;
use bus::once::{Begun, Failure, Once};
use compiler::{Fact, restriction_holds};
use contracts::{
    NewEvent, Refusal, Request,
    contexts::{
        AddRestriction, ContextRestricted, ContextUnrestricted, ListRestrictions, RemoveRestriction,
        Restriction, RestrictionKind, RestrictionRemoved, Unrestrict,
    },
};
use eventstore::{Key, Tx};
use ids::{ContextId, OrgId, ProjectId, RestrictionId};
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

/// Restrictions of one context.
const MAX: i64 = 200;

pub(crate) async fn add(
    state: &State,
    request: &Request,
    ask: AddRestriction,
) -> Result<Restriction, Failure> {
    let value = ask.value.trim().to_owned();
    match ask.kind {
        RestrictionKind::Project if Uuid::parse_str(&value).is_err() => {
            return Err(invalid("a project restriction's value is the project's id").into());
        }
        RestrictionKind::Expression => {
            if value.is_empty() {
                return Err(invalid("an expression is needed").into());
            }
            restriction_holds(&value, &|_| None)
                .map_err(|problem| invalid(format!("the expression cannot be read: {problem}")))?;
        }
        _ => {}
    }
    let mut once = match Once::begin(&state.store, request, &[key(ask.context_id)]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let org = org(&mut once.tx, ask.context_id).await?;
    if ask.kind == RestrictionKind::Group && value != org.to_string() {
        let text = format!("there is no group {value}; the organisation's own id stands for all its members");
        return Err(Refusal::new("not_found", text).into());
    }
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM contexts.restrictions WHERE context_id = $1")
        .bind(ask.context_id.uuid())
        .fetch_one(once.tx.conn())
        .await?;
    if count >= MAX {
        return Err(Refusal::new("limit_reached", format!("a context has at most {MAX} restrictions")).into());
    }
    let restriction =
        Restriction { id: RestrictionId::new(), context_id: ask.context_id, kind: ask.kind, value };
    let made = sqlx::query(
        "INSERT INTO contexts.restrictions (id, context_id, kind, value) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(restriction.id.uuid())
    .bind(ask.context_id.uuid())
    .bind(ask.kind.as_str())
    .bind(&restriction.value)
    .execute(once.tx.conn())
    .await?;
    if made.rows_affected() == 0 {
        return Err(Refusal::new("exists", "the context has this restriction already").into());
    }
    sqlx::query(
        "UPDATE contexts.contexts SET restricted = array_append(restricted, $2)
         WHERE id = $1 AND NOT $2 = ANY(restricted)",
    )
    .bind(ask.context_id.uuid())
    .bind(ask.kind.as_str())
    .execute(once.tx.conn())
    .await?;
    let body = ContextRestricted { restriction: restriction.clone() };
    event(&mut once.tx, request, ask.context_id, org, &body).await?;
    once.commit(restriction).await
}

pub(crate) async fn remove(state: &State, request: &Request, ask: RemoveRestriction) -> Result<(), Failure> {
    let mut once = match Once::begin(&state.store, request, &[key(ask.context_id)]).await? {
        Begun::New(once) => once,
        Begun::Answered(()) => return Ok(()),
    };
    let org = org(&mut once.tx, ask.context_id).await?;
    let gone = sqlx::query("DELETE FROM contexts.restrictions WHERE id = $1 AND context_id = $2")
        .bind(ask.id.uuid())
        .bind(ask.context_id.uuid())
        .execute(once.tx.conn())
        .await?;
    if gone.rows_affected() == 0 {
        return Err(Refusal::not_found("Restriction").into());
    }
    let body = RestrictionRemoved { context_id: ask.context_id, restriction_id: ask.id };
    event(&mut once.tx, request, ask.context_id, org, &body).await?;
    once.commit(()).await
}

pub(crate) async fn unrestrict(state: &State, request: &Request, ask: Unrestrict) -> Result<(), Failure> {
    let mut once = match Once::begin(&state.store, request, &[key(ask.context_id)]).await? {
        Begun::New(once) => once,
        Begun::Answered(()) => return Ok(()),
    };
    let org = org(&mut once.tx, ask.context_id).await?;
    for sql in [
        "DELETE FROM contexts.restrictions WHERE context_id = $1",
        "UPDATE contexts.contexts SET restricted = '{}' WHERE id = $1",
    ] {
        sqlx::query(sql).bind(ask.context_id.uuid()).execute(once.tx.conn()).await?;
    }
    let body = ContextUnrestricted { context_id: ask.context_id };
    event(&mut once.tx, request, ask.context_id, org, &body).await?;
    once.commit(()).await
}

pub(crate) async fn list(
    state: &State,
    _: &Request,
    ask: ListRestrictions,
) -> Result<Vec<Restriction>, Failure> {
    let mut conn = state.store.pool().acquire().await?;
    Ok(of(&mut conn, ask.context_id).await?)
}

async fn of(conn: &mut PgConnection, context: ContextId) -> sqlx::Result<Vec<Restriction>> {
    let rows: Vec<(Uuid, String, String)> = sqlx::query_as(
        "SELECT id, kind, value FROM contexts.restrictions WHERE context_id = $1 ORDER BY created_at, id",
    )
    .bind(context.uuid())
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .filter_map(|(id, kind, value)| {
            let kind = RestrictionKind::parse(&kind)?;
            Some(Restriction { id: RestrictionId(id), context_id: context, kind, value })
        })
        .collect())
}

/// What is known of the job that wants to use a context.
pub(crate) struct Wants<'j> {
    pub(crate) project: ProjectId,
    /// Pipeline values by name, as the conductor told them.
    pub(crate) facts: &'j Value,
    /// The acting person belongs to the organisation, and is one of its administrators.
    pub(crate) member: bool,
    pub(crate) admin: bool,
}

/// The first kind of restriction that does not hold; `None`: the job may use the context.
pub(crate) async fn unmet(
    conn: &mut PgConnection,
    context: ContextId,
    wants: &Wants<'_>,
) -> sqlx::Result<Option<RestrictionKind>> {
    let restricted: Vec<String> =
        sqlx::query_scalar("SELECT unnest(restricted) FROM contexts.contexts WHERE id = $1")
            .bind(context.uuid())
            .fetch_all(&mut *conn)
            .await?;
    if restricted.is_empty() {
        return Ok(None);
    }
    let all = of(conn, context).await?;
    for kind in restricted.iter().filter_map(|kind| RestrictionKind::parse(kind)) {
        let values: Vec<&str> =
            all.iter().filter(|found| found.kind == kind).map(|found| found.value.as_str()).collect();
        let holds = match kind {
            RestrictionKind::Project => values.contains(&wants.project.to_string().as_str()),
            // All of them; with none left, none holds.
            RestrictionKind::Expression => {
                !values.is_empty()
                    && values
                        .iter()
                        .all(|value| restriction_holds(value, &|name| fact(wants.facts, name)) == Ok(true))
            }
            RestrictionKind::Group => wants.admin || (wants.member && !values.is_empty()),
        };
        if !holds {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

fn fact(facts: &Value, name: &str) -> Option<Fact> {
    match facts.get(name)? {
        Value::Bool(value) => Some(Fact::Bool(*value)),
        Value::Number(value) => value.as_i64().map(Fact::Int),
        Value::String(value) => Some(Fact::Text(value.clone())),
        _ => None,
    }
}

async fn org(tx: &mut Tx, context: ContextId) -> Result<OrgId, Failure> {
    let org: Option<Uuid> = sqlx::query_scalar("SELECT org_id FROM contexts.contexts WHERE id = $1")
        .bind(context.uuid())
        .fetch_optional(tx.conn())
        .await?;
    Ok(OrgId(org.ok_or_else(|| Refusal::not_found("Context"))?))
}

async fn event<E: contracts::Event>(
    tx: &mut Tx,
    request: &Request,
    context: ContextId,
    org: OrgId,
    body: &E,
) -> Result<(), Failure> {
    let mut event = NewEvent::new("context", context.uuid(), request.actor.clone(), body);
    event.org_id = Some(org);
    tx.append(&[event]).await?;
    Ok(())
}

fn key(context: ContextId) -> Key {
    Key::new("context", context.uuid())
}

fn invalid(text: impl Into<String>) -> Refusal {
    Refusal::new("invalid", text)
}
