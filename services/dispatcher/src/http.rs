//! What agents call.

use crate::{lease, permit, runner_claim, runner_unclaim, ssh, state::State};
use agent_api::{
    Claim, Commands, FinalReport, Lease, Problem, Renewed, RunnerClaim, RunnerUnclaim, Source, SshSession,
};
use axum::{
    Json, Router,
    extract::{FromRequest, FromRequestParts, Path, Query, State as Shared},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use ids::TaskId;
use kit::keys::FenceClaims;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};

type App = Shared<Arc<State>>;

/// Why an agent does not get what it asks for.
#[derive(Debug)]
pub enum Refused {
    /// The token is not ours or not of this task.
    Unauthorized,
    /// No such task.
    NotFound,
    /// The lease is over: stop at once.
    Stale(&'static str),
    /// The task was canceled before its code ran.
    Canceled,
    /// The request cannot be read.
    Invalid(String),
    /// The task was given back too often.
    Exhausted,
    /// The runner's version and ours are too far apart.
    Version(String),
    /// Try again.
    Unavailable(anyhow::Error),
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(error.into())
    }
}

impl From<eventstore::Error> for Refused {
    fn from(error: eventstore::Error) -> Self {
        Self::Unavailable(error.into())
    }
}

impl From<anyhow::Error> for Refused {
    fn from(error: anyhow::Error) -> Self {
        Self::Unavailable(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, code, message) = match self {
            Self::Unauthorized => {
                (StatusCode::UNAUTHORIZED, "unauthorized", "the token is not valid here".to_owned())
            }
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", "no such task".to_owned()),
            Self::Stale(why) => (StatusCode::CONFLICT, "stale_lease", why.to_owned()),
            Self::Canceled => (StatusCode::CONFLICT, "canceled", "the task was canceled".to_owned()),
            Self::Invalid(why) => (StatusCode::BAD_REQUEST, "invalid", why),
            Self::Exhausted => {
                (StatusCode::CONFLICT, "exhausted", "the task was given back too often, and ends".to_owned())
            }
            Self::Version(why) => (StatusCode::UPGRADE_REQUIRED, "version_skew", why),
            Self::Unavailable(error) => {
                tracing::error!(error = format!("{error:#}"), "an agent's request failed");
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "try again".to_owned())
            }
        };
        (status, Json(Problem { code: code.to_owned(), message, next_offset: None })).into_response()
    }
}

/// The fence token of a call: its signature is right and it is of the task in the path. Whether the lease lives is
/// for the row to say; a report may come long after the token's end.
struct Fenced(FenceClaims);

impl FromRequestParts<Arc<State>> for Fenced {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Result<Self, Refused> {
        let Path(task) =
            Path::<TaskId>::from_request_parts(parts, state).await.map_err(|_| Refused::NotFound)?;
        let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer ")).ok_or(Refused::Unauthorized)?;
        let claims: FenceClaims = state.keys.open_claims("fence", token).ok_or(Refused::Unauthorized)?;
        (claims.task_id == task).then_some(Self(claims)).ok_or(Refused::Unauthorized)
    }
}

/// A JSON body whose errors are [`Problem`]s.
struct Body<T>(T);

impl<T: serde::de::DeserializeOwned> FromRequest<Arc<State>> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: axum::extract::Request, state: &Arc<State>) -> Result<Self, Refused> {
        let Json(body) = Json::<T>::from_request(request, state)
            .await
            .map_err(|rejection| Refused::Invalid(rejection.body_text()))?;
        Ok(Self(body))
    }
}

/// Routes of the agent API that the dispatcher answers.
pub fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/v1/claim", post(claim))
        .route("/api/v3/runner/claim", post(runner_claim))
        .route("/api/v3/runner/unclaim", post(runner_unclaim))
        .route("/v1/tasks/{task}/start", post(start))
        .route("/v1/tasks/{task}/renew", post(renew))
        .route("/v1/tasks/{task}/commands", get(commands))
        .route("/v1/tasks/{task}/finish", post(finish))
        .route("/v1/tasks/{task}/source", get(source))
        .route("/v1/tasks/{task}/ssh", post(session))
        .with_state(state)
}

async fn claim(Shared(state): App, Body(claim): Body<Claim>) -> Result<Json<Lease>, Refused> {
    lease::claim(&state, &claim).await.map(Json)
}

/// The token of a resource class.
struct RunnerToken(String);

impl FromRequestParts<Arc<State>> for RunnerToken {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<State>) -> Result<Self, Refused> {
        let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer ")).ok_or(Refused::Unauthorized)?;
        Ok(Self(token.trim().to_owned()))
    }
}

async fn runner_claim(
    Shared(state): App,
    RunnerToken(token): RunnerToken,
    Body(claim): Body<RunnerClaim>,
) -> Result<Response, Refused> {
    Ok(match runner_claim::claim(&state, &token, &claim).await? {
        Some(task) => Json(task).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// The token in the body is the task's: it says all that a header would.
async fn runner_unclaim(
    Shared(state): App,
    Body(ask): Body<RunnerUnclaim>,
) -> Result<Json<serde_json::Value>, Refused> {
    runner_unclaim::unclaim(&state, &ask).await?;
    Ok(Json(serde_json::json!({})))
}

async fn start(Shared(state): App, Fenced(fence): Fenced) -> Result<Json<serde_json::Value>, Refused> {
    lease::fenced(&fence, "start", permit::give(&state, &fence)).await?;
    Ok(Json(serde_json::json!({})))
}

async fn renew(Shared(state): App, Fenced(fence): Fenced) -> Result<Json<Renewed>, Refused> {
    lease::renew(&state, &fence).await.map(Json)
}

#[derive(Deserialize)]
struct Wait {
    #[serde(default)]
    wait_ms: u64,
}

async fn commands(
    Shared(state): App,
    Fenced(fence): Fenced,
    Query(wait): Query<Wait>,
) -> Result<Json<Commands>, Refused> {
    lease::commands(&state, &fence, Duration::from_millis(wait.wait_ms)).await.map(Json)
}

async fn source(Shared(state): App, Fenced(fence): Fenced) -> Result<Json<Source>, Refused> {
    lease::source(&state, &fence).await.map(Json)
}

async fn session(
    Shared(state): App,
    Fenced(fence): Fenced,
    Body(session): Body<SshSession>,
) -> Result<Json<serde_json::Value>, Refused> {
    ssh::record(&state, &fence, session).await?;
    Ok(Json(serde_json::json!({})))
}

async fn finish(
    Shared(state): App,
    Fenced(fence): Fenced,
    Body(report): Body<FinalReport>,
) -> Result<Json<serde_json::Value>, Refused> {
    match lease::fenced(&fence, "finish", lease::finish(&state, &fence, report.clone())).await {
        Ok(()) => Ok(Json(serde_json::json!({}))),
        Err(refused) => {
            if matches!(refused, Refused::Stale(_)) {
                lease::keep_late_report(&state, &fence, &report).await?;
            }
            Err(refused)
        }
    }
}
