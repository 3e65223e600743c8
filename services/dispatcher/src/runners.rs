//! The registry of self-hosted runners: classes, tokens, who was heard of (execution §25, api-v2 §14).

use crate::state::State;
use bus::once::{Begun, Failure, Once};
use contracts::{
    Event, NewEvent, Refusal, Request, RequestError,
    dispatcher::{
        CountRunnerTasks, CreateRunnerClass, CreateRunnerToken, DeleteRunnerClass, DeleteRunnerToken,
        GetRunnerClass, GetRunnerToken, ListRunnerClasses, ListRunnerTokens, ListRunners, RUNNER_SILENT,
        Runner, RunnerClass, RunnerClassCreated, RunnerClassDeleted, RunnerTasks, RunnerToken,
        RunnerTokenCreated, RunnerTokenRevoked,
    },
};
use eventstore::Key;
use ids::{OrgId, RunnerClassId, RunnerTokenId, Timestamp};
use uuid::Uuid;

/// Tokens of one class.
const MAX_TOKENS: i64 = 100;

/// Answers what is asked about them.
pub async fn respond(state: &State, request: Request) -> Result<serde_json::Value, RequestError> {
    bus::answer!(state, request, {
        CreateRunnerClass => create,
        ListRunnerClasses => list,
        GetRunnerClass => get,
        DeleteRunnerClass => delete,
        CreateRunnerToken => create_token,
        ListRunnerTokens => tokens,
        GetRunnerToken => token,
        DeleteRunnerToken => delete_token,
        ListRunners => runners,
        CountRunnerTasks => tasks,
    })
}

/// Whether a class is one that self-hosted runners serve.
pub fn is_self_hosted(resource_class: &str) -> bool {
    resource_class.contains('/')
}

/// `namespace/name`, each of letters, digits, `-`, `_` and `.`.
fn check_name(name: &str) -> Result<&str, Refusal> {
    let plain = |part: &str| {
        (1..=128).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    match name.split_once('/') {
        Some((namespace, rest)) if plain(namespace) && plain(rest) => Ok(namespace),
        _ => Err(Refusal::new(
            "invalid",
            "a resource class is namespace/name, each of 1 to 128 letters, digits, `-`, `_` and `.`",
        )),
    }
}

fn event<E: Event>(request: &Request, class: &RunnerClass, body: &E) -> NewEvent {
    let mut event = NewEvent::new("runner_class", class.id.uuid(), request.actor.clone(), body);
    event.org_id = Some(class.org_id);
    event
}

async fn create(state: &State, request: &Request, ask: CreateRunnerClass) -> Result<RunnerClass, Failure> {
    let namespace = check_name(&ask.resource_class)?.to_owned();
    let id = RunnerClassId::new();
    // One lock for all: classes are few, and a namespace is one organisation's.
    let locks = [Key::new("runner_classes", Uuid::nil()), Key::new("runner_class", id.uuid())];
    let mut once = match Once::begin(&state.store, request, &locks).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let foreign: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM dispatcher.runner_classes WHERE split_part(name, '/', 1) = $1 AND org_id <> $2)",
    )
    .bind(&namespace)
    .bind(ask.org_id.uuid())
    .fetch_one(once.tx.conn())
    .await?;
    if foreign {
        let text = format!("the namespace {namespace} is another organisation's; choose one of your own");
        return Err(Refusal::new("invalid", text).into());
    }
    let made = sqlx::query(
        "INSERT INTO dispatcher.runner_classes (id, org_id, name, description) VALUES ($1, $2, $3, $4) \
         ON CONFLICT DO NOTHING",
    )
    .bind(id.uuid())
    .bind(ask.org_id.uuid())
    .bind(&ask.resource_class)
    .bind(&ask.description)
    .execute(once.tx.conn())
    .await?;
    if made.rows_affected() == 0 {
        let text = format!("the resource class {} exists already", ask.resource_class);
        return Err(Refusal::new("exists", text).into());
    }
    let CreateRunnerClass { org_id, resource_class, description } = ask;
    let class = RunnerClass { id, org_id, resource_class, description };
    let created = RunnerClassCreated { resource_class: class.resource_class.clone() };
    once.tx.append(&[event(request, &class, &created)]).await?;
    once.commit(class).await
}

type ClassRow = (Uuid, Uuid, String, String);

fn class((id, org, resource_class, description): ClassRow) -> RunnerClass {
    RunnerClass { id: RunnerClassId(id), org_id: OrgId(org), resource_class, description }
}

async fn list(state: &State, _: &Request, ask: ListRunnerClasses) -> Result<Vec<RunnerClass>, Failure> {
    let orgs: Vec<Uuid> = ask.org_ids.iter().map(|org| org.uuid()).collect();
    let rows: Vec<ClassRow> = sqlx::query_as(
        "SELECT id, org_id, name, description FROM dispatcher.runner_classes WHERE org_id = ANY($1) ORDER BY name",
    )
    .bind(orgs)
    .fetch_all(state.store.pool())
    .await?;
    Ok(rows.into_iter().map(class).collect())
}

async fn get(state: &State, _: &Request, ask: GetRunnerClass) -> Result<RunnerClass, Failure> {
    let row: Option<ClassRow> = sqlx::query_as(
        "SELECT id, org_id, name, description FROM dispatcher.runner_classes WHERE name = $1 OR id::text = $1",
    )
    .bind(&ask.reference)
    .fetch_optional(state.store.pool())
    .await?;
    Ok(row.map(class).ok_or_else(|| Refusal::not_found("Resource class"))?)
}

async fn class_in(tx: &mut eventstore::Tx, id: RunnerClassId) -> Result<RunnerClass, Failure> {
    let row: Option<ClassRow> =
        sqlx::query_as("SELECT id, org_id, name, description FROM dispatcher.runner_classes WHERE id = $1")
            .bind(id.uuid())
            .fetch_optional(tx.conn())
            .await?;
    Ok(row.map(class).ok_or_else(|| Refusal::not_found("Resource class"))?)
}

async fn delete(state: &State, request: &Request, ask: DeleteRunnerClass) -> Result<(), Failure> {
    let mut once = match Once::begin(&state.store, request, &[key(ask.id)]).await? {
        Begun::New(once) => once,
        Begun::Answered(()) => return Ok(()),
    };
    let class = class_in(&mut once.tx, ask.id).await?;
    let tokens: i64 = count_tokens(&mut once.tx, ask.id).await?;
    if tokens > 0 && !ask.force {
        let text = format!("the resource class has {tokens} tokens; delete them first, or force it");
        return Err(Refusal::new("has_tokens", text).into());
    }
    sqlx::query("DELETE FROM dispatcher.runner_classes WHERE id = $1")
        .bind(ask.id.uuid())
        .execute(once.tx.conn())
        .await?;
    let deleted = RunnerClassDeleted { resource_class: class.resource_class.clone() };
    once.tx.append(&[event(request, &class, &deleted)]).await?;
    once.commit(()).await
}

async fn count_tokens(tx: &mut eventstore::Tx, class: RunnerClassId) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM dispatcher.runner_tokens WHERE class_id = $1")
        .bind(class.uuid())
        .fetch_one(tx.conn())
        .await
}

async fn create_token(
    state: &State,
    request: &Request,
    ask: CreateRunnerToken,
) -> Result<RunnerToken, Failure> {
    let nickname = ask.nickname.trim().to_owned();
    if nickname.is_empty() || nickname.chars().count() > 128 || nickname.chars().any(char::is_control) {
        return Err(Refusal::new("invalid", "a token's nickname has 1 to 128 printable characters").into());
    }
    let mut once = match Once::begin(&state.store, request, &[key(ask.class_id)]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let class = class_in(&mut once.tx, ask.class_id).await?;
    if count_tokens(&mut once.tx, class.id).await? >= MAX_TOKENS {
        let text = format!("a resource class has at most {MAX_TOKENS} tokens; delete one first");
        return Err(Refusal::new("limit_reached", text).into());
    }
    let id = RunnerTokenId::new();
    let created_at: Timestamp = sqlx::query_scalar(
        "INSERT INTO dispatcher.runner_tokens (id, class_id, nickname, sha256) VALUES ($1, $2, $3, $4) \
         RETURNING created_at",
    )
    .bind(id.uuid())
    .bind(class.id.uuid())
    .bind(&nickname)
    .bind(&ask.sha256)
    .fetch_one(once.tx.conn())
    .await?;
    let created = RunnerTokenCreated { id, nickname: nickname.clone() };
    once.tx.append(&[event(request, &class, &created)]).await?;
    let RunnerClass { org_id, resource_class, .. } = class;
    once.commit(RunnerToken { id, org_id, resource_class, nickname, created_at }).await
}

type TokenRow = (Uuid, Uuid, String, String, Timestamp);

fn as_token((id, org, resource_class, nickname, created_at): TokenRow) -> RunnerToken {
    RunnerToken { id: RunnerTokenId(id), org_id: OrgId(org), resource_class, nickname, created_at }
}

async fn tokens(state: &State, _: &Request, ask: ListRunnerTokens) -> Result<Vec<RunnerToken>, Failure> {
    let rows: Vec<TokenRow> = sqlx::query_as(
        "SELECT t.id, c.org_id, c.name, t.nickname, t.created_at FROM dispatcher.runner_tokens t \
         JOIN dispatcher.runner_classes c ON c.id = t.class_id WHERE c.id = $1 ORDER BY t.id",
    )
    .bind(ask.class_id.uuid())
    .fetch_all(state.store.pool())
    .await?;
    Ok(rows.into_iter().map(as_token).collect())
}

async fn token(state: &State, _: &Request, ask: GetRunnerToken) -> Result<RunnerToken, Failure> {
    let row: Option<TokenRow> = sqlx::query_as(
        "SELECT t.id, c.org_id, c.name, t.nickname, t.created_at FROM dispatcher.runner_tokens t \
         JOIN dispatcher.runner_classes c ON c.id = t.class_id WHERE t.id = $1",
    )
    .bind(ask.id.uuid())
    .fetch_optional(state.store.pool())
    .await?;
    Ok(row.map(as_token).ok_or_else(|| Refusal::not_found("Token"))?)
}

async fn delete_token(state: &State, request: &Request, ask: DeleteRunnerToken) -> Result<(), Failure> {
    let row: Option<ClassRow> = sqlx::query_as(
        "SELECT c.id, c.org_id, c.name, c.description FROM dispatcher.runner_tokens t \
         JOIN dispatcher.runner_classes c ON c.id = t.class_id WHERE t.id = $1",
    )
    .bind(ask.id.uuid())
    .fetch_optional(state.store.pool())
    .await?;
    let class = row.map(class);
    let locks: Vec<Key> = class.iter().map(|class| key(class.id)).collect();
    let mut once = match Once::begin(&state.store, request, &locks).await? {
        Begun::New(once) => once,
        Begun::Answered(()) => return Ok(()),
    };
    let class = class.ok_or_else(|| Refusal::not_found("Token"))?;
    let gone = sqlx::query("DELETE FROM dispatcher.runner_tokens WHERE id = $1")
        .bind(ask.id.uuid())
        .execute(once.tx.conn())
        .await?;
    if gone.rows_affected() == 0 {
        return Err(Refusal::not_found("Token").into());
    }
    once.tx.append(&[event(request, &class, &RunnerTokenRevoked { id: ask.id })]).await?;
    once.commit(()).await
}

async fn runners(state: &State, _: &Request, ask: ListRunners) -> Result<Vec<Runner>, Failure> {
    type Row = (String, String, String, String, Timestamp, Timestamp, Option<Timestamp>);
    let classes: Vec<Uuid> = ask.class_ids.iter().map(|class| class.uuid()).collect();
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT c.name, r.name, r.hostname, r.version, r.first_connected, r.last_connected, r.last_used \
         FROM dispatcher.runners r JOIN dispatcher.runner_classes c ON c.id = r.class_id \
         WHERE c.id = ANY($1) ORDER BY c.name, r.name",
    )
    .bind(classes)
    .fetch_all(state.store.pool())
    .await?;
    let runner =
        |(resource_class, name, hostname, version, first_connected, last_connected, last_used): Row| Runner {
            resource_class,
            name,
            hostname,
            version,
            first_connected,
            last_connected,
            last_used,
        };
    Ok(rows.into_iter().map(runner).collect())
}

async fn tasks(state: &State, _: &Request, ask: CountRunnerTasks) -> Result<RunnerTasks, Failure> {
    let (unclaimed, running): (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE t.state = 'waiting'), \
             count(*) FILTER (WHERE t.state IN ('queued', 'leased')) \
         FROM dispatcher.tasks t JOIN dispatcher.runner_classes c ON c.org_id = t.org_id AND c.name = t.resource_class \
         WHERE c.id = $1 AND t.state <> 'finished'",
    )
    .bind(ask.class_id.uuid())
    .fetch_one(state.store.pool())
    .await?;
    Ok(RunnerTasks { unclaimed, running })
}

fn key(class: RunnerClassId) -> Key {
    Key::new("runner_class", class.uuid())
}

/// What is known of who serves a class, for the explanation of a task that waits for it.
pub struct Served {
    /// Whether the organisation has the class.
    pub known: bool,
    /// Runners that were heard of a moment ago.
    pub connected: i64,
    /// The last one that was heard of, and when.
    pub last: Option<(String, Timestamp)>,
}

/// Looks who serves a class of an organisation.
pub async fn served(conn: &mut sqlx::PgConnection, org: Uuid, class: &str) -> sqlx::Result<Served> {
    let id: Option<Uuid> =
        sqlx::query_scalar("SELECT id FROM dispatcher.runner_classes WHERE org_id = $1 AND name = $2")
            .bind(org)
            .bind(class)
            .fetch_optional(&mut *conn)
            .await?;
    let Some(id) = id else { return Ok(Served { known: false, connected: 0, last: None }) };
    let connected: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM dispatcher.runners WHERE class_id = $1 AND last_connected > clock_timestamp() - $2::interval",
    )
    .bind(id)
    .bind(RUNNER_SILENT)
    .fetch_one(&mut *conn)
    .await?;
    let last: Option<(String, Timestamp)> = sqlx::query_as(
        "SELECT name, last_connected FROM dispatcher.runners WHERE class_id = $1 ORDER BY last_connected DESC LIMIT 1",
    )
    .bind(id)
    .fetch_optional(conn)
    .await?;
    Ok(Served { known: true, connected, last })
}
