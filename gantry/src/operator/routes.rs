//! `/metrics`, and `/internal/…` for operators (reliability §15, §17).

use super::{dead_letters, dead_letters::Which, gauges, invariants, topology, verify};
use crate::{
    adapters::Stored,
    config::{Config, MetricsFor},
    listen::Peer,
};
use axum::{
    Json, Router,
    extract::{Extension, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bus::{AskOptions, Bus};
use contracts::{
    Actor, RequestError,
    domain::{Bootstrap, VerifyToken},
    output::{RebuildRecords, RebuiltRecords},
    retention::{RetentionReport, RunRetention},
};
use eventstore::Databases;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};

/// What the routes need.
#[derive(Clone)]
pub struct Operator {
    /// The bus.
    pub bus: Bus,
    /// The databases.
    pub databases: Databases,
    /// Services of this process.
    pub roles: Vec<&'static str>,
    /// The blobs, to be read only.
    pub blobs: Stored,
    /// The configuration in force.
    pub config: Arc<Config>,
}

/// All routes of this module.
pub fn router(operator: Operator) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/internal/invariants", get(check))
        .route("/internal/verify", get(verified))
        .route("/internal/retention", get(expiring).post(expire))
        .route("/internal/records/rebuild", post(rebuilt))
        .route("/internal/topology", get(shape))
        .route("/internal/leases", get(leases))
        .route("/internal/deadlines", get(deadlines))
        .route("/internal/admin-token", post(rotated))
        .route("/internal/dead-letters", get(listed))
        .route("/internal/dead-letters/replay", post(replayed))
        .route("/internal/dead-letters/discard", post(discarded))
        .with_state(operator)
}

/// RFC 9457 with our code.
struct Problem(StatusCode, &'static str, String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self(status, code, detail) = self;
        let title = status.canonical_reason().unwrap_or("Error");
        let body = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "code": code, "detail": detail });
        (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        tracing::error!("an operator's question has no answer: {error:#}");
        Self(StatusCode::SERVICE_UNAVAILABLE, "dependency_unavailable", "the database does not answer".into())
    }
}

type Answer<T = Json<Value>> = Result<T, Problem>;

/// The administrator who asks.
async fn operator(operator: &Operator, headers: &HeaderMap) -> Result<Actor, Problem> {
    let refused =
        || Problem(StatusCode::UNAUTHORIZED, "unauthenticated", "show an administrator's token".into());
    let token = api::token(headers).ok_or_else(refused)?;
    let ask = VerifyToken { sha256: hex::encode(Sha256::digest(token)) };
    match operator.bus.ask(&Actor::service("operator"), &ask).await {
        Ok(user) if user.admin => Ok(Actor::User { id: user.id }),
        Ok(_) => Err(Problem(StatusCode::FORBIDDEN, "forbidden", "this needs an administrator".into())),
        Err(RequestError::Refused(_)) => Err(refused()),
        Err(error) => {
            Err(Problem(StatusCode::SERVICE_UNAVAILABLE, "dependency_unavailable", error.to_string()))
        }
    }
}

async fn scrape(
    State(state): State<Operator>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Answer<Response> {
    let near = peer.is_some_and(|Extension(Peer(peer))| peer.ip().is_loopback())
        // Whoever comes through a proxy on this machine is not on this machine.
        && !headers.contains_key("x-forwarded-for")
        && !headers.contains_key("forwarded");
    let open = match state.config.telemetry.metrics {
        MetricsFor::Everybody => true,
        MetricsFor::Local => near,
        MetricsFor::Token => false,
    };
    if !open {
        operator(&state, &headers).await?;
    }
    if let Err(error) = gauges::count(&state.databases, &state.roles).await {
        tracing::debug!("gauges were not counted: {error:#}");
    }
    let format = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((format, kit::telemetry::scrape()).into_response())
}

async fn check(State(state): State<Operator>, headers: HeaderMap) -> Answer {
    operator(&state, &headers).await?;
    let checked = invariants::check(&state.databases).await?;
    let clean = checked.iter().all(|one| one.violations == 0);
    Ok(Json(json!({ "clean": clean, "invariants": checked })))
}

async fn verified(State(state): State<Operator>, headers: HeaderMap) -> Answer<Json<verify::Report>> {
    operator(&state, &headers).await?;
    Ok(Json(verify::verify(&state.databases, &state.blobs).await?))
}

async fn expiring(State(state): State<Operator>, headers: HeaderMap) -> Answer<Json<RetentionReport>> {
    let by = operator(&state, &headers).await?;
    retention(&state, &by, true).await
}

async fn expire(State(state): State<Operator>, headers: HeaderMap) -> Answer<Json<RetentionReport>> {
    let by = operator(&state, &headers).await?;
    retention(&state, &by, false).await
}

/// Longer than the owner takes at most.
const RETENTION_WITHIN: Duration = Duration::from_secs(30);

async fn retention(state: &Operator, by: &Actor, dry_run: bool) -> Answer<Json<RetentionReport>> {
    let options = AskOptions { deadline: RETENTION_WITHIN, ..AskOptions::default() };
    match state.bus.ask_with(options, by, &RunRetention { dry_run }).await {
        Ok(report) => Ok(Json(report)),
        Err(RequestError::Refused(refusal)) => {
            let code = if refusal.code == "retention_off" { "retention_off" } else { "retention_running" };
            Err(Problem(StatusCode::CONFLICT, code, refusal.message))
        }
        Err(error) => {
            Err(Problem(StatusCode::SERVICE_UNAVAILABLE, "dependency_unavailable", error.to_string()))
        }
    }
}

/// Longer than the owner takes for some of the tasks.
const REBUILD_WITHIN: Duration = Duration::from_secs(30);

/// Makes documents again of some tasks; whoever asks goes on with `next`.
async fn rebuilt(
    State(state): State<Operator>,
    headers: HeaderMap,
    Json(ask): Json<RebuildRecords>,
) -> Answer<Json<RebuiltRecords>> {
    let by = operator(&state, &headers).await?;
    let options = AskOptions { deadline: REBUILD_WITHIN, ..AskOptions::default() };
    state.bus.ask_with(options, &by, &ask).await.map(Json).map_err(|error| {
        let text = format!("{error}; it needs the store of records, the blobs and the database");
        Problem(StatusCode::SERVICE_UNAVAILABLE, "dependency_unavailable", text)
    })
}

async fn shape(State(state): State<Operator>, headers: HeaderMap) -> Answer<Json<topology::Topology>> {
    operator(&state, &headers).await?;
    Ok(Json(topology::topology(&state.databases, &state.bus).await?))
}

async fn leases(State(state): State<Operator>, headers: HeaderMap) -> Answer {
    operator(&state, &headers).await?;
    Ok(Json(topology::leases(&state.databases).await?))
}

async fn deadlines(State(state): State<Operator>, headers: HeaderMap) -> Answer {
    operator(&state, &headers).await?;
    Ok(Json(json!({ "dispatcher": state.config.dispatcher, "logs": state.config.logs })))
}

async fn listed(State(state): State<Operator>, headers: HeaderMap, Query(which): Query<Which>) -> Answer {
    operator(&state, &headers).await?;
    Ok(Json(json!({ "items": dead_letters::list(&state.bus, &state.databases, &which).await? })))
}

#[derive(Deserialize)]
struct Rotate {
    token: String,
}

/// Gives the first administrator another token; the one before opens nothing any more.
async fn rotated(State(state): State<Operator>, headers: HeaderMap, Json(body): Json<Rotate>) -> Answer {
    operator(&state, &headers).await?;
    if body.token.len() < 32 {
        let text = "an administrator's token has at least 32 characters";
        return Err(Problem(StatusCode::BAD_REQUEST, "invalid", text.into()));
    }
    let ask = Bootstrap { token_sha256: hex::encode(Sha256::digest(body.token)) };
    state.bus.ask(&Actor::service("gantry"), &ask).await.map_err(anyhow::Error::from)?;
    Ok(Json(json!({ "rotated": true })))
}

#[derive(Deserialize)]
struct Act {
    #[serde(default)]
    which: Which,
    #[serde(default)]
    all: bool,
    why: Option<String>,
}

impl Act {
    /// Everything at once is meant only when it is said.
    fn meant(&self) -> Result<&Which, Problem> {
        if self.which.is_everything() && !self.all {
            let text = "say which dead letters, or say all";
            return Err(Problem(StatusCode::BAD_REQUEST, "invalid", text.into()));
        }
        Ok(&self.which)
    }
}

async fn replayed(State(state): State<Operator>, headers: HeaderMap, Json(act): Json<Act>) -> Answer {
    let by = operator(&state, &headers).await?;
    let count = dead_letters::replay(&state.bus, &state.databases, act.meant()?, &by).await?;
    Ok(Json(json!({ "replayed": count })))
}

async fn discarded(State(state): State<Operator>, headers: HeaderMap, Json(act): Json<Act>) -> Answer {
    let by = operator(&state, &headers).await?;
    let why = act.why.as_deref().map(str::trim).filter(|why| !why.is_empty()).ok_or_else(|| {
        Problem(StatusCode::BAD_REQUEST, "invalid", "say why they are given up: it is kept".into())
    })?;
    let count = dead_letters::discard(&state.bus, &state.databases, act.meant()?, &by, why).await?;
    Ok(Json(json!({ "discarded": count })))
}
