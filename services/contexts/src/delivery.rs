//! Role `delivery`: hands a job its variables, sealed to the task's own key.
//!
//! Works from this service's own tables alone, so that agents get what they need while the bus is away.

use crate::{
    NAME, State,
    oidc::{self, Form, Subject},
    restrictions::{self, Wants},
    seal, ssh_keys,
    variables::{self, Place},
};
use agent_api::{MintToken, MintedToken, Problem, SealedSecrets, Secrets};
use axum::{
    Json, Router,
    extract::{Path, State as Extract},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use backon::{ExponentialBuilder, Retryable};
use contracts::{Actor, contexts::Scope, pipelines::ContinuationClaims};
use eventstore::{Act, Key};
use ids::{ContextId, OrgId, PipelineId, ProjectId, TaskId, UserId};
use kit::keys::FenceClaims;
use model::permission::{Permission, Role, allow_any};
use secrets::Zeroizing;
use serde_json::{Map, Value, json};
use spans::{Kind, Open, Span};
use sqlx::PgConnection;
use std::time::Duration;
use uuid::Uuid;

/// What a job of a setup configuration finds its pipeline's key in (config-language §19).
const CONTINUATION_KEY: &str = "CIRCLE_CONTINUATION_KEY";
/// What it finds the tokens in that it shows to others, in both forms.
const TOKENS: [&str; 2] = ["CIRCLE_OIDC_TOKEN", "CIRCLE_OIDC_TOKEN_V2"];
/// How long a repeat, whose first answer may have been lost, still gets an answer.
const REPEAT: Duration = Duration::from_secs(60);
/// Whom one token is for, at most.
const MAX_AUDIENCE: usize = 10;

/// The route that agents call.
pub(crate) fn router(state: State) -> Router {
    Router::new()
        .route("/v1/tasks/{task}/secrets", get(deliver))
        .route("/v1/tasks/{task}/oidc", post(mint))
        .with_state(state)
}

/// What an agent is told instead.
struct Denied(StatusCode, &'static str, String);

impl Denied {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self(status, code, message.into())
    }
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let Self(status, code, message) = self;
        (status, Json(Problem { code: code.to_owned(), message, next_offset: None })).into_response()
    }
}

impl<E: Into<anyhow::Error>> From<E> for Denied {
    /// A failure is worth another try: the job waits rather than runs without its variables.
    fn from(error: E) -> Self {
        let error: anyhow::Error = error.into();
        tracing::error!(error = format!("{error:#}"), "secrets could not be delivered");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "secrets cannot be delivered now; try again",
        )
    }
}

async fn deliver(
    Extract(state): Extract<State>,
    Path(task): Path<Uuid>,
    headers: HeaderMap,
) -> Result<Json<SealedSecrets>, Denied> {
    let claims = fence(&state, TaskId(task), &headers)?;
    let trace = claims.trace.as_deref().and_then(|trace| trace.parse().ok());
    let span = trace.and_then(|trace| Span::begin(Some(trace), NAME, Kind::Server, "secrets"));
    let span = Open::new(span.map(|span| span.with("gantry.task.id", task)));
    let answer = eventstore::trace::within(span.context().or(trace), sealed(&state, &claims)).await;
    span.end(answer.is_err());
    answer
}

async fn sealed(state: &State, claims: &FenceClaims) -> Result<Json<SealedSecrets>, Denied> {
    let Some(public_key) = &claims.public_key else {
        return Err(Denied::new(
            StatusCode::FORBIDDEN,
            "no_task_key",
            "the lease names no key to seal secrets to",
        ));
    };
    let job = job(state, claims).await?;
    counted(state, &job).await?;
    oidc::ready(state).await?;
    match answer(state, claims, public_key, &job).await {
        Err(denied) if denied.0 == StatusCode::FORBIDDEN => {
            let act = Act::new(
                "context.secrets.denied",
                Actor::service(NAME),
                json!({"task_id": claims.task_id, "epoch": claims.epoch, "code": denied.1, "message": denied.2,
                       "acting_user": job.acting_user}),
            );
            let mut tx = state.store.begin(&[]).await?;
            tx.act(of(act, claims, &job)).await?;
            tx.commit().await?;
            Err(denied)
        }
        other => other,
    }
}

/// The claims of a fence that is ours, for this task and not expired.
fn fence(state: &State, task: TaskId, headers: &HeaderMap) -> Result<FenceClaims, Denied> {
    let claims = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .and_then(|token| state.keys.open_claims::<FenceClaims>("fence", token.trim()))
        .ok_or_else(|| {
            Denied::new(StatusCode::UNAUTHORIZED, "unauthenticated", "show the lease's fence token")
        })?;
    if claims.task_id != task {
        return Err(Denied::new(StatusCode::CONFLICT, "stale_lease", "the lease is another task's"));
    }
    if claims.expires_at <= state.store.now().timestamp_millis() {
        // Not `stale_lease`: the lease may live, and the agent gets a new token with its renewal.
        let message = "the fence token has run out: renew the lease";
        return Err(Denied::new(StatusCode::UNAUTHORIZED, "fence_expired", message));
    }
    Ok(claims)
}

/// Mints one more token of the job; a live lease is all that it takes (security §4.4).
async fn mint(
    Extract(state): Extract<State>,
    Path(task): Path<Uuid>,
    headers: HeaderMap,
    Json(ask): Json<MintToken>,
) -> Result<Json<MintedToken>, Denied> {
    let claims = fence(&state, TaskId(task), &headers)?;
    if ask.audience.len() > MAX_AUDIENCE || ask.audience.iter().any(|one| one.is_empty() || one.len() > 1024)
    {
        let message = format!("a token is for 1 to {MAX_AUDIENCE} audiences of 1 to 1024 bytes each");
        return Err(Denied::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_audience", message));
    }
    let job = job(&state, &claims).await?;
    counted(&state, &job).await?;
    oidc::ready(&state).await?;
    let signer = oidc::signer(&state).await?;
    let mut tx = state.store.begin(&[]).await?;
    let contexts = contexts_of(tx.conn(), &job).await?;
    let subject = Subject { job_id: claims.job_id, job: &job, contexts: &contexts };
    let now = state.store.now();
    let content = oidc::claims(&state.base, &subject, Form::V2, &ask.audience, ask.root_issuer, now);
    let mut signed = signer.sign(&[content])?;
    let detail = json!({"task_id": claims.task_id, "epoch": claims.epoch, "audience": ask.audience});
    tx.act(of(Act::new("oidc.token_minted", Actor::service(NAME), detail), &claims, &job)).await?;
    tx.commit().await?;
    let token = signed.pop().ok_or_else(|| anyhow::anyhow!("no token was signed"))?;
    Ok(Json(MintedToken { token }))
}

/// Counts one opening of secrets: whoever can have them opened at all shall not get all of them quickly (security §4.1).
/// An agent that is refused asks again.
async fn counted(state: &State, job: &Job) -> Result<(), Denied> {
    let Some(quota) = state.deliveries else { return Ok(()) };
    let taken = state.limiter.take(&format!("contexts:deliveries:{}", job.org), quota).await;
    let outcome = if taken.allowed { "allowed" } else { "limited" };
    metrics::counter!("gantry.contexts.deliveries", "outcome" => outcome).increment(1);
    if taken.allowed {
        return Ok(());
    }
    tracing::warn!(org = %job.org, "secrets are asked for faster than [contexts] deliveries_per_second allows");
    let message = "secrets of this organisation are asked for too fast; try again";
    Err(Denied::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message))
}

/// The contexts of a job, as far as they exist.
async fn contexts_of(conn: &mut PgConnection, job: &Job) -> Result<Vec<ContextId>, Denied> {
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM contexts.contexts WHERE org_id = $1 AND name = ANY($2) ORDER BY id",
    )
    .bind(job.org.uuid())
    .bind(&job.contexts)
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(ContextId).collect())
}

/// What the conductor said about the job.
pub(crate) struct Job {
    pub(crate) org: OrgId,
    pub(crate) project: ProjectId,
    contexts: Vec<String>,
    pub(crate) acting_user: Option<UserId>,
    /// Fingerprints of the keys that it asks for; empty: all.
    ssh_keys: Option<Vec<String>>,
    /// Whether it checks out.
    checkout_key: bool,
    /// What OIDC tokens say of it.
    pub(crate) claims: Map<String, Value>,
    /// The pipeline that it may continue.
    continues: Option<PipelineId>,
    /// Pipeline values, for restrictions.
    facts: Value,
}

#[derive(sqlx::FromRow)]
struct Row {
    org_id: Uuid,
    project_id: Uuid,
    contexts: Vec<String>,
    acting_user: Option<Uuid>,
    continues: Option<Uuid>,
    facts: Value,
    ssh_keys: Option<Vec<String>>,
    checkout_key: bool,
    claims: sqlx::types::Json<Map<String, Value>>,
}

async fn job(state: &State, claims: &FenceClaims) -> Result<Job, Denied> {
    let look = || async {
        let row: Option<Row> = sqlx::query_as(
            "SELECT org_id, project_id, contexts, acting_user, continues, facts, ssh_keys, checkout_key, claims
             FROM contexts.jobs WHERE job_id = $1",
        )
        .bind(claims.job_id.uuid())
        .fetch_optional(state.store.pool())
        .await?;
        row.ok_or_else(|| {
            let message = "nothing is known of the job yet; try again";
            Denied::new(StatusCode::SERVICE_UNAVAILABLE, "job_unknown", message)
        })
    };
    let row = look.retry(news()).when(|denied| denied.1 == "job_unknown").await?;
    Ok(Job {
        org: OrgId(row.org_id),
        project: ProjectId(row.project_id),
        contexts: row.contexts,
        acting_user: row.acting_user.map(UserId),
        ssh_keys: row.ssh_keys,
        checkout_key: row.checkout_key,
        claims: row.claims.0,
        continues: row.continues.map(PipelineId),
        facts: row.facts,
    })
}

/// Looks for news of a job: this service follows the conductor by some milliseconds, and for some seconds at most.
fn news() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(2))
        .with_max_delay(Duration::from_millis(100))
        .with_total_delay(Some(Duration::from_secs(5)))
        .without_max_times()
}

async fn answer(
    state: &State,
    claims: &FenceClaims,
    public_key: &str,
    job: &Job,
) -> Result<Json<SealedSecrets>, Denied> {
    let signer = oidc::signer(state).await?;
    // One transaction sees one state of all variables: a job never gets half of a change.
    let mut tx = state.store.begin(&[Key::new("delivery", claims.task_id.uuid())]).await?;
    let late: Option<bool> = sqlx::query_scalar(
        "SELECT first_at < now() - make_interval(secs => $3) FROM contexts.deliveries
         WHERE task_id = $1 AND epoch = $2",
    )
    .bind(claims.task_id.uuid())
    .bind(claims.epoch)
    .bind(REPEAT.as_secs_f64())
    .fetch_optional(tx.conn())
    .await?;
    if late == Some(true) {
        let message = "the secrets of this lease were delivered before";
        return Err(Denied::new(StatusCode::CONFLICT, "secrets_already_delivered", message));
    }

    let mut places = vec![Place::of(&Scope::Project(job.project))];
    let mut used = Vec::new();
    if !job.contexts.is_empty() {
        let roles = may_use(tx.conn(), job).await?;
        let wants = Wants {
            project: job.project,
            facts: &job.facts,
            member: !roles.is_empty(),
            admin: allow_any(roles.iter().copied(), Permission::Admin),
        };
        let known: Vec<(String, Uuid)> =
            sqlx::query_as("SELECT name, id FROM contexts.contexts WHERE org_id = $1 AND name = ANY($2)")
                .bind(job.org.uuid())
                .bind(&job.contexts)
                .fetch_all(tx.conn())
                .await?;
        for name in &job.contexts {
            let found = known.iter().find(|(known, _)| known == name);
            let id = ContextId(found.map(|(_, id)| *id).ok_or_else(|| {
                Denied::new(StatusCode::FORBIDDEN, "context_not_found", format!("Context {name} not found"))
            })?);
            if let Some(kind) = restrictions::unmet(tx.conn(), id, &wants).await? {
                // Which kind, and nothing of what it says.
                let message = format!(
                    "Context {name} may not be used by this job: its {} restriction does not hold",
                    kind.as_str()
                );
                return Err(Denied::new(StatusCode::FORBIDDEN, "context_unauthorized", message));
            }
            used.push(id);
            places.push(Place::of(&Scope::Context(id)));
        }
    }
    let subject = Subject { job_id: claims.job_id, job, contexts: &used };
    let now = state.store.now();
    let forms = [Form::V1, Form::V2].map(|form| oidc::claims(&state.base, &subject, form, &[], false, now));
    // Some milliseconds of processor, while the database is asked for the rest.
    let signing = tokio::task::spawn_blocking(move || signer.sign(&forms));

    let sealed = variables::sealed(tx.conn(), &places).await?;
    let mut keys = match &job.ssh_keys {
        Some(wanted) => ssh_keys::additional(tx.conn(), job.project, wanted).await?,
        None => Vec::new(),
    };
    let additional = keys.len();
    if job.checkout_key {
        keys.extend(ssh_keys::checkout(tx.conn(), job.project).await?);
    }
    let unnoted = sealed.iter().any(|variable| variable.unnoted);
    // All of it is opened by one request to whoever keeps the keys; no row is held meanwhile.
    let labels: Vec<String> = keys.iter().map(ssh_keys::Sealed::label).collect();
    let mut all: Vec<(&str, &[u8])> =
        sealed.iter().map(|variable| (variable.label.as_str(), variable.value.as_slice())).collect();
    all.extend(labels.iter().zip(&keys).map(|(label, key)| (label.as_str(), key.sealed.as_slice())));
    let mut opened = state.secrets.decrypt_all(&all).await?.into_iter();
    let mut variables: Vec<(String, Zeroizing<Vec<u8>>)> =
        sealed.into_iter().map(|variable| variable.name).zip(opened.by_ref()).collect();
    let ssh_keys = keys.into_iter().zip(opened).map(|(key, private)| key.opened(&private));
    let mut ssh_keys = ssh_keys.collect::<anyhow::Result<Vec<_>>>()?;
    let checkout_key = ssh_keys.drain(additional..).next();

    if let Some(pipeline_id) = job.continues {
        let key = state.keys.seal_claims(ContinuationClaims::PURPOSE, &ContinuationClaims { pipeline_id });
        variables.push((CONTINUATION_KEY.to_owned(), Zeroizing::new(key.into_bytes())));
    }
    let key_names: Vec<&str> = ssh_keys.iter().chain(&checkout_key).map(|key| key.sha256.as_str()).collect();
    let names: Vec<&str> = variables.iter().map(|(name, _)| name.as_str()).chain(TOKENS).collect();
    let detail = json!({
        "task_id": claims.task_id, "epoch": claims.epoch, "acting_user": job.acting_user,
        "project_id": job.project, "contexts": used, "names": names, "ssh_keys": key_names,
    });
    if unnoted {
        variables::note_use(tx.conn(), &places).await?;
    }
    sqlx::query(
        "INSERT INTO contexts.deliveries (task_id, epoch, job_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
    )
    .bind(claims.task_id.uuid())
    .bind(claims.epoch)
    .bind(claims.job_id.uuid())
    .execute(tx.conn())
    .await?;
    tx.act(of(Act::new("context.secrets.accessed", Actor::service(NAME), detail), claims, job)).await?;

    for (name, token) in TOKENS.into_iter().zip(signing.await??) {
        variables.push((name.to_owned(), Zeroizing::new(token.into_bytes())));
    }
    let sealed = {
        let mut plain = Secrets { variables: Vec::with_capacity(variables.len()), ssh_keys, checkout_key };
        for (name, value) in &variables {
            plain.variables.push((name.clone(), std::str::from_utf8(value)?.to_owned()));
        }
        let sealed = seal::seal(claims.task_id, public_key, &plain);
        // The copies for the encoder are wiped too.
        plain.variables.drain(..).for_each(|(_, value)| drop(Zeroizing::new(value)));
        let keys = plain.ssh_keys.drain(..).chain(plain.checkout_key.take());
        keys.for_each(|key| drop(Zeroizing::new(key.private_key)));
        sealed.map_err(|error| {
            tracing::warn!(error = format!("{error:#}"), "the task's key cannot be used");
            Denied::new(
                StatusCode::FORBIDDEN,
                "bad_task_key",
                "the task's key is not an X25519 key in base64",
            )
        })?
    };

    tx.commit().await?;
    Ok(Json(sealed))
}

/// Contexts are used on behalf of a person, who must be one who may run jobs there: their roles. What no person
/// started has none, and meets no restriction to a group.
async fn may_use(conn: &mut PgConnection, job: &Job) -> Result<Vec<Role>, Denied> {
    let Some(user) = job.acting_user else { return Ok(Vec::new()) };
    let roles: Vec<String> =
        sqlx::query_scalar("SELECT role FROM contexts.grants WHERE user_id = $1 AND org_id IN ($2, $3)")
            .bind(user.uuid())
            .bind(job.org.uuid())
            .bind(Uuid::nil())
            .fetch_all(conn)
            .await?;
    let roles: Vec<Role> = roles.iter().filter_map(|role| Role::parse(role)).collect();
    if allow_any(roles.iter().copied(), Permission::Trigger) {
        return Ok(roles);
    }
    let message = "whoever started the job may not use contexts of this organisation";
    Err(Denied::new(StatusCode::FORBIDDEN, "context_unauthorized", message))
}

fn of(mut act: Act, claims: &FenceClaims, job: &Job) -> Act {
    act.org_id = Some(job.org);
    act.on("run", claims.job_id.uuid())
}
