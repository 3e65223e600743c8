//! Errors as the edge shows them: `{"message"}` on CircleCI's routes, `application/problem+json` on ours.

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use contracts::RequestError;
use serde_json::json;
use std::time::Duration;

/// When to try again what may go at once.
const SOON: Duration = Duration::from_secs(1);

/// Why a request has no answer. Shown as `{"message"}`.
#[derive(Debug)]
pub struct Fail {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable code.
    pub code: String,
    /// Text for people.
    pub message: String,
    /// When to try again.
    pub wait: Option<Duration>,
}

/// Result of a handler on a CircleCI route.
pub type Answer<T = Response> = Result<T, Fail>;

impl Fail {
    /// With a status, a code and a text.
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let again = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
        Self { status, code: code.to_owned(), message: message.into(), wait: again.then_some(SOON) }
    }

    /// 404.
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("{what} not found"))
    }

    /// 400.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    /// 401.
    pub fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "You must log in first.")
    }

    /// 429.
    pub fn rate_limited(message: impl Into<String>, wait: Duration) -> Self {
        Self { wait: Some(wait), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message) }
    }

    /// 403.
    pub fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Permission denied")
    }

    /// What is not there and what is another's, said in these words. A limit and a store that is away stay what
    /// they are: to call them "not found" would tell a client to give up.
    #[must_use]
    pub fn hidden_as(self, shown: Self) -> Self {
        if matches!(self.status, StatusCode::NOT_FOUND | StatusCode::FORBIDDEN) { shown } else { self }
    }
}

impl From<RequestError> for Fail {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Refused(refusal) => {
                let status = match refusal.code.as_str() {
                    "not_found" => StatusCode::NOT_FOUND,
                    "forbidden" => StatusCode::FORBIDDEN,
                    "unauthenticated" => StatusCode::UNAUTHORIZED,
                    "invalid" => StatusCode::BAD_REQUEST,
                    "rate_limited" => StatusCode::TOO_MANY_REQUESTS,
                    "disk_full" => StatusCode::SERVICE_UNAVAILABLE,
                    "limit_reached" | "idempotency_key_reused" | "value_too_short_to_mask" => {
                        StatusCode::UNPROCESSABLE_ENTITY
                    }
                    _ => StatusCode::CONFLICT,
                };
                Self::new(status, &refusal.code, refusal.message)
            }
            unavailable @ (RequestError::NoResponder { .. }
            | RequestError::Unsent { .. }
            | RequestError::Deadline { .. }
            | RequestError::Unavailable { .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "dependency_unavailable", unavailable.to_string())
            }
            RequestError::Oversize { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", error.to_string())
            }
            RequestError::Failed { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
            }
        }
    }
}

impl From<sqlx::Error> for Fail {
    fn from(error: sqlx::Error) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "a view could not be read");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "dependency_unavailable",
            "the database does not answer; try again",
        )
    }
}

impl From<eventstore::Error> for Fail {
    fn from(error: eventstore::Error) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "a delivery could not be written");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "dependency_unavailable",
            "the database does not answer; try again",
        )
    }
}

impl IntoResponse for Fail {
    fn into_response(self) -> Response {
        let (status, wait) = (self.status, self.wait);
        told_when(wait, (status, Json(json!({ "message": self.message }))).into_response())
    }
}

/// Adds `Retry-After`, in whole seconds.
fn told_when(wait: Option<Duration>, mut response: Response) -> Response {
    if let Some(wait) = wait {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        response.headers_mut().insert(header::RETRY_AFTER, seconds.max(1).into());
    }
    response
}

/// The same, shown as RFC 9457.
#[derive(Debug)]
pub struct Problem(pub Fail);

impl<E: Into<Fail>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Fail { status, code, message, wait } = self.0;
        let body = json!({
            "type": "about:blank",
            "title": status.canonical_reason().unwrap_or("Error"),
            "status": status.as_u16(),
            "code": code,
            "detail": message,
        });
        let content = [(header::CONTENT_TYPE, "application/problem+json")];
        told_when(wait, (status, content, body.to_string()).into_response())
    }
}
