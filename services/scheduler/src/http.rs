//! What agents call before they have a task.

use crate::{placements, state::State};
use agent_api::{Identified, Identify, Problem};
use axum::{
    Json, Router,
    extract::State as Shared,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use compute::{Error, Placement};
use kit::keys::PlacementClaims;
use std::sync::Arc;

/// Why an agent gets no token.
enum Refused {
    /// Its proof is not accepted.
    Unauthorized(String),
    /// Its placement is over, or another start of it came first: there is nothing for it to do.
    Stale,
    /// Try again.
    Unavailable(String),
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, code, message) = match self {
            // Not 401: the same proof is not better later.
            Self::Unauthorized(why) => (StatusCode::FORBIDDEN, "unauthorized", why),
            Self::Stale => {
                let text = "this placement is over, or another agent was started for it";
                (StatusCode::CONFLICT, "stale_placement", text.to_owned())
            }
            Self::Unavailable(error) => {
                tracing::error!(error, "an agent's identity could not be looked at");
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "try again".to_owned())
            }
        };
        (status, Json(Problem { code: code.to_owned(), message, next_offset: None })).into_response()
    }
}

pub fn router(state: Arc<State>) -> Router {
    Router::new().route("/v1/placement", post(identify)).with_state(state)
}

/// Gives the placement's one-time token to the agent that compute started for it. The first start that asks has it for
/// good; it may ask again.
async fn identify(
    Shared(state): Shared<Arc<State>>,
    Json(asked): Json<Identify>,
) -> Result<Json<Identified>, Refused> {
    let identity =
        state.compute.identify(&asked.proof, state.store.now()).await.map_err(|error| match error {
            Error::Identity(why) => Refused::Unauthorized(why),
            other => Refused::Unavailable(other.to_string()),
        })?;
    let (task_id, epoch) = Placement::of_name(&identity.placement)
        .ok_or_else(|| Refused::Unauthorized("the identity is of no agent".to_owned()))?;
    if !placements::hold(&state, task_id, epoch, &identity.instance).await? {
        return Err(Refused::Stale);
    }
    let token = state.keys.seal_claims("placement", &PlacementClaims { task_id, epoch });
    Ok(Json(Identified { token }))
}
