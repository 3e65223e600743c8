//! Reads of the current state.

use crate::State;
use bus::once::Failure;
use contracts::{
    Refusal, Request,
    domain::{GetProject, ListOrgs, ListProjects, ListTokens, Org, Project, TokenInfo, User, VerifyToken},
};
use ids::{OrgId, ProjectId, Timestamp, TokenId, UserId};
use sqlx::PgConnection;
use uuid::Uuid;

pub(crate) async fn verify_token(state: &State, _: &Request, ask: VerifyToken) -> Result<User, Failure> {
    let hash = sha256(&ask.sha256)?;
    let found: Option<(Uuid, String, bool)> = sqlx::query_as(
        "SELECT u.id, u.login, u.admin FROM domain.tokens t JOIN domain.users u ON u.id = t.user_id
         WHERE t.sha256 = $1 AND t.revoked_at IS NULL",
    )
    .bind(hash)
    .fetch_optional(state.store.pool())
    .await?;
    let (id, login, admin) =
        found.ok_or_else(|| Refusal::new("unauthenticated", "the token is unknown or was revoked"))?;
    Ok(User { id: UserId(id), login, admin })
}

pub(crate) async fn list_tokens(
    state: &State,
    request: &Request,
    _: ListTokens,
) -> Result<Vec<TokenInfo>, Failure> {
    let Some(user) = request.actor.user() else { return Ok(Vec::new()) };
    let rows: Vec<(Uuid, String, Timestamp)> = sqlx::query_as(
        "SELECT id, label, created_at FROM domain.tokens WHERE user_id = $1 AND revoked_at IS NULL ORDER BY id",
    )
    .bind(user.uuid())
    .fetch_all(state.store.pool())
    .await?;
    Ok(rows
        .into_iter()
        .map(|(id, label, created_at)| TokenInfo { id: TokenId(id), label, created_at })
        .collect())
}

pub(crate) async fn get_project(state: &State, _: &Request, ask: GetProject) -> Result<Project, Failure> {
    let mut conn = state.store.pool().acquire().await?;
    let project = match Reference::parse(&ask.reference) {
        Some(Reference::Slug { org, repo }) => by_slug(&mut conn, org, repo).await?,
        Some(Reference::Id(id)) => by_id(&mut conn, id).await?,
        Some(Reference::Ids { org, project }) => {
            by_id(&mut conn, project).await?.filter(|found| found.org_id.uuid() == org)
        }
        None => None,
    };
    Ok(project.ok_or_else(|| Refusal::not_found("Project"))?)
}

pub(crate) async fn list_projects(
    state: &State,
    _: &Request,
    _: ListProjects,
) -> Result<Vec<Project>, Failure> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT p.id, p.org_id, o.name, p.name, p.default_branch
         FROM domain.projects p JOIN domain.orgs o ON o.id = p.org_id ORDER BY o.name, p.name",
    )
    .fetch_all(state.store.pool())
    .await?;
    Ok(rows.into_iter().map(project).collect())
}

pub(crate) async fn list_orgs(state: &State, _: &Request, _: ListOrgs) -> Result<Vec<Org>, Failure> {
    let rows: Vec<(Uuid, String)> = sqlx::query_as("SELECT id, name FROM domain.orgs ORDER BY name")
        .fetch_all(state.store.pool())
        .await?;
    Ok(rows.into_iter().map(|(id, name)| Org { id: OrgId(id), name }).collect())
}

/// The ways in which clients name a project (outside §2).
#[derive(Debug, PartialEq)]
enum Reference<'a> {
    Slug { org: &'a str, repo: &'a str },
    Id(Uuid),
    Ids { org: Uuid, project: Uuid },
}

impl<'a> Reference<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('/');
        match (parts.next()?, parts.next(), parts.next(), parts.next()) {
            (id, None, None, None) => Uuid::parse_str(id).ok().map(Self::Id),
            ("git", Some(org), Some(repo), None) => Some(Self::Slug { org, repo }),
            ("circleci", Some(org), Some(project), None) => {
                Some(Self::Ids { org: base58(org)?, project: base58(project)? })
            }
            _ => None,
        }
    }
}

fn base58(text: &str) -> Option<Uuid> {
    let mut bytes = [0; 16];
    let length = bs58::decode(text).onto(&mut bytes).ok()?;
    (length == 16).then(|| Uuid::from_bytes(bytes))
}

/// The 32 bytes of a hash in hex.
pub(crate) fn sha256(text: &str) -> Result<Vec<u8>, Refusal> {
    hex::decode(text)
        .ok()
        .filter(|bytes| bytes.len() == 32)
        .ok_or_else(|| Refusal::new("invalid", "a token is sent as its SHA-256 in 64 hex digits"))
}

type Row = (Uuid, Uuid, String, String, String);

fn project((id, org_id, org, name, default_branch): Row) -> Project {
    let slug = format!("git/{org}/{name}");
    Project { id: ProjectId(id), org_id: OrgId(org_id), org, name, slug, default_branch }
}

pub(crate) async fn by_slug(conn: &mut PgConnection, org: &str, repo: &str) -> sqlx::Result<Option<Project>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT p.id, p.org_id, o.name, p.name, p.default_branch
         FROM domain.projects p JOIN domain.orgs o ON o.id = p.org_id WHERE o.name = $1 AND p.name = $2",
    )
    .bind(org)
    .bind(repo)
    .fetch_optional(conn)
    .await?;
    Ok(row.map(project))
}

async fn by_id(conn: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<Project>> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT p.id, p.org_id, o.name, p.name, p.default_branch
         FROM domain.projects p JOIN domain.orgs o ON o.id = p.org_id WHERE p.id = $1",
    )
    .bind(id)
    .fetch_optional(conn)
    .await?;
    Ok(row.map(project))
}
