//! Changes. Each is one transaction with its events and its answer.

use crate::{
    State,
    queries::{by_slug, sha256},
};
use bus::once::{Begun, Failure, Once};
use contracts::{
    Actor, NewEvent, Refusal, Request,
    domain::{
        Bootstrap, CreateToken, EnsureProject, OrgCreated, Project, ProjectCreated, RevokeToken,
        TokenCreated, TokenInfo, TokenRevoked, User, UserCreated,
    },
};
use eventstore::{Key, Tx};
use ids::{OrgId, ProjectId, Timestamp, TokenId, UserId};
use serde_json::json;
use uuid::Uuid;

/// Branch of a project until somebody chooses another.
const DEFAULT_BRANCH: &str = "main";
/// Longest label of a token, in characters.
const MAX_LABEL: usize = 100;

/// The administrator, the organisation `local` and the token of the start-up file, each unless it exists.
/// The state decides, not the request's id: every start asks anew.
pub(crate) async fn bootstrap(state: &State, request: &Request, ask: Bootstrap) -> Result<User, Failure> {
    let hash = sha256(&ask.token_sha256)?;
    let store = &state.store;
    let (user_id, org_id, token_id) = (UserId::new(), OrgId::new(), TokenId::new());
    let actor = request.actor.clone();

    const CURRENT: &str = "SELECT id, sha256 FROM domain.tokens WHERE bootstrap AND revoked_at IS NULL";
    let mut old: Option<(Uuid, Vec<u8>)> = sqlx::query_as(CURRENT).fetch_optional(store.pool()).await?;
    let mut tx = loop {
        let mut locks = vec![
            Key::new("bootstrap", Uuid::nil()),
            Key::new("user", user_id.uuid()),
            Key::new("org", org_id.uuid()),
            Key::new("token", token_id.uuid()),
        ];
        locks.extend(old.iter().map(|(id, _)| Key::new("token", *id)));
        let mut tx = store.begin(&locks).await?;
        // Processes that start together all ask: what the one before made is locked too, and is the same mostly.
        let now = sqlx::query_as(CURRENT).fetch_optional(tx.conn()).await?;
        if now == old {
            break tx;
        }
        old = now;
    };
    let mut events = Vec::new();

    let admin: Option<Uuid> = sqlx::query_scalar("SELECT id FROM domain.users WHERE login = 'admin'")
        .fetch_optional(tx.conn())
        .await?;
    let user_id = match admin {
        Some(id) => UserId(id),
        None => {
            sqlx::query("INSERT INTO domain.users (id, login, admin) VALUES ($1, 'admin', true)")
                .bind(user_id.uuid())
                .execute(tx.conn())
                .await?;
            let created = UserCreated { user_id, admin: true };
            events.push(
                NewEvent::new("user", user_id.uuid(), actor.clone(), &created)
                    .with_personal(json!({"login": "admin"})),
            );
            user_id
        }
    };

    let created =
        sqlx::query("INSERT INTO domain.orgs (id, name) VALUES ($1, 'local') ON CONFLICT DO NOTHING")
            .bind(org_id.uuid())
            .execute(tx.conn())
            .await?;
    if created.rows_affected() == 1 {
        let mut event =
            NewEvent::new("org", org_id.uuid(), actor.clone(), &OrgCreated { org_id, name: "local".into() });
        event.org_id = Some(org_id);
        events.push(event);
    }

    if old.as_ref().is_none_or(|(_, old)| *old != hash) {
        if let Some((id, _)) = old {
            events.extend(revoke(&mut tx, TokenId(id), &actor).await?);
        }
        insert_token(&mut tx, token_id, user_id, "admin-token", &hash, true).await?;
        let label = "admin-token".to_owned();
        events.push(NewEvent::new(
            "token",
            token_id.uuid(),
            actor,
            &TokenCreated { token_id, user_id, label },
        ));
    }
    if !events.is_empty() {
        tx.append(&events).await?;
    }
    tx.commit().await?;
    Ok(User { id: user_id, login: "admin".into(), admin: true })
}

pub(crate) async fn create_token(
    state: &State,
    request: &Request,
    ask: CreateToken,
) -> Result<TokenInfo, Failure> {
    let user_id = person(request)?;
    let hash = sha256(&ask.sha256)?;
    let label = ask.label.trim().to_owned();
    if label.is_empty() || label.chars().count() > MAX_LABEL {
        return Err(invalid(format!("a token's label has 1 to {MAX_LABEL} characters")).into());
    }
    let token_id = TokenId::new();
    let mut once = match Once::begin(&state.store, request, &[Key::new("token", token_id.uuid())]).await? {
        Begun::New(once) => once,
        Begun::Answered(answer) => return Ok(answer),
    };
    let known: Option<bool> = sqlx::query_scalar("SELECT true FROM domain.users WHERE id = $1")
        .bind(user_id.uuid())
        .fetch_optional(once.tx.conn())
        .await?;
    if known.is_none() {
        return Err(Refusal::not_found("User").into());
    }
    let created_at = insert_token(&mut once.tx, token_id, user_id, &label, &hash, false).await?;
    let event = TokenCreated { token_id, user_id, label: label.clone() };
    once.tx.append(&[NewEvent::new("token", token_id.uuid(), request.actor.clone(), &event)]).await?;
    once.commit(TokenInfo { id: token_id, label, created_at }).await
}

pub(crate) async fn revoke_token(state: &State, request: &Request, ask: RevokeToken) -> Result<(), Failure> {
    let user_id = person(request)?;
    let mut once = match Once::begin(&state.store, request, &[Key::new("token", ask.id.uuid())]).await? {
        Begun::New(once) => once,
        Begun::Answered(()) => return Ok(()),
    };
    let known: Option<Option<Timestamp>> =
        sqlx::query_scalar("SELECT revoked_at FROM domain.tokens WHERE id = $1 AND user_id = $2")
            .bind(ask.id.uuid())
            .bind(user_id.uuid())
            .fetch_optional(once.tx.conn())
            .await?;
    // Another's token is told from none in no way.
    known.ok_or_else(|| Refusal::not_found("Token"))?;
    let events = revoke(&mut once.tx, ask.id, &request.actor).await?;
    if let Some(event) = events {
        once.tx.append(&[event]).await?;
    }
    once.commit(()).await
}

pub(crate) async fn ensure_project(
    state: &State,
    request: &Request,
    ask: EnsureProject,
) -> Result<Project, Failure> {
    for (what, name) in [("organisation", &ask.org), ("repository", &ask.repo)] {
        if !is_name(name) {
            return Err(invalid(format!(
                "{name:?} is not a name of {what}: 1 to 100 letters, digits, `.`, `_`, `-`, not first a dot or dash, \
                 not ending in `.git`"
            ))
            .into());
        }
    }
    let mut conn = state.store.pool().acquire().await?;
    // Nearly every push finds its project: no transaction for that.
    if let Some(project) = by_slug(&mut conn, &ask.org, &ask.repo).await? {
        return Ok(project);
    }
    let org: Option<Uuid> = sqlx::query_scalar("SELECT id FROM domain.orgs WHERE name = $1")
        .bind(&ask.org)
        .fetch_optional(&mut *conn)
        .await?;
    drop(conn);
    let org_id = OrgId(org.ok_or_else(|| Refusal::not_found(&format!("Organisation {}", ask.org)))?);

    let id = ProjectId::new();
    let mut tx = state.store.begin(&[Key::new("org", org_id.uuid()), Key::new("project", id.uuid())]).await?;
    if let Some(project) = by_slug(tx.conn(), &ask.org, &ask.repo).await? {
        tx.commit().await?;
        return Ok(project);
    }
    sqlx::query("INSERT INTO domain.projects (id, org_id, name, default_branch) VALUES ($1, $2, $3, $4)")
        .bind(id.uuid())
        .bind(org_id.uuid())
        .bind(&ask.repo)
        .bind(DEFAULT_BRANCH)
        .execute(tx.conn())
        .await?;
    let slug = format!("git/{}/{}", ask.org, ask.repo);
    let project =
        Project { id, org_id, org: ask.org, name: ask.repo, slug, default_branch: DEFAULT_BRANCH.to_owned() };
    let event = NewEvent::new(
        "project",
        id.uuid(),
        request.actor.clone(),
        &ProjectCreated { project: project.clone() },
    )
    .in_project(org_id, id);
    tx.append(&[event]).await?;
    tx.commit().await?;
    Ok(project)
}

async fn insert_token(
    tx: &mut Tx,
    id: TokenId,
    user: UserId,
    label: &str,
    hash: &[u8],
    bootstrap: bool,
) -> Result<Timestamp, Failure> {
    let made: sqlx::Result<Timestamp> = sqlx::query_scalar(
        "INSERT INTO domain.tokens (id, user_id, label, sha256, bootstrap) VALUES ($1, $2, $3, $4, $5)
         RETURNING created_at",
    )
    .bind(id.uuid())
    .bind(user.uuid())
    .bind(label)
    .bind(hash)
    .bind(bootstrap)
    .fetch_one(tx.conn())
    .await;
    made.map_err(|error| match error.as_database_error() {
        Some(db) if db.is_unique_violation() => Refusal::new("exists", "this token exists already").into(),
        _ => error.into(),
    })
}

/// Revokes a token that is not yet.
async fn revoke(tx: &mut Tx, id: TokenId, actor: &Actor) -> Result<Option<NewEvent>, Failure> {
    let done =
        sqlx::query("UPDATE domain.tokens SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL")
            .bind(id.uuid())
            .execute(tx.conn())
            .await?;
    Ok((done.rows_affected() == 1)
        .then(|| NewEvent::new("token", id.uuid(), actor.clone(), &TokenRevoked { token_id: id })))
}

fn person(request: &Request) -> Result<UserId, Refusal> {
    request.actor.user().ok_or_else(|| Refusal::new("forbidden", "only a person has tokens"))
}

fn invalid(message: String) -> Refusal {
    Refusal::new("invalid", message)
}

/// Names that can be part of a slug, a path and a URL alike.
fn is_name(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && !name.ends_with(".git")
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
