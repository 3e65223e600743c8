//! `/graphql-unstable`: the operations that CircleCI's command line asks for (api-v2 §19), over the orb registry and the
//! compiler. What people write new things against is `/graphql`.

mod mutations;
mod queries;
mod types;

use crate::{auth::Caller, configs, error::Fail, state::App};
use async_graphql::{Context, EmptySubscription, Schema, ValidationMode};
use axum::{
    Json, Router,
    body::Bytes,
    extract::DefaultBodyLimit,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use mutations::Mutation;
use queries::Query;
use serde_json::json;
use std::time::Duration;

const DEPTH: usize = 12;
const COMPLEXITY: usize = 2000;
/// Longest execution: one compile, and what leads to it.
const EXECUTION: Duration = Duration::from_secs(12);

type Suite = Schema<Query, Mutation, EmptySubscription>;
type Outcome<T> = async_graphql::Result<T>;

fn app<'a>(ctx: &'a Context<'_>) -> &'a App {
    ctx.data_unchecked::<App>()
}

fn caller<'a>(ctx: &'a Context<'_>) -> Outcome<&'a Caller> {
    ctx.data::<Caller>().map_err(|_| Fail::unauthenticated().into())
}

/// The route.
pub fn routes(app: &App) -> Router<App> {
    let schema = Schema::build(Query, Mutation, EmptySubscription)
        .limit_depth(DEPTH)
        .limit_complexity(COMPLEXITY)
        // The command line's documents use variables that they do not declare, and declare others than they use.
        .validation_mode(ValidationMode::Fast)
        .data(app.clone())
        .finish();
    Router::new()
        .route(
            "/graphql-unstable",
            post(move |caller: Caller, body: Bytes| answer(schema.clone(), caller, body)),
        )
        .layer(DefaultBodyLimit::max(configs::BODY))
}

async fn answer(schema: Suite, caller: Caller, body: Bytes) -> Response {
    let bad = |status: StatusCode, message: String| {
        (status, Json(json!({ "errors": [{ "message": message }] }))).into_response()
    };
    let request: async_graphql::Request = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return bad(StatusCode::BAD_REQUEST, format!("the request cannot be read: {error}")),
    };
    match tokio::time::timeout(EXECUTION, schema.execute(request.data(caller))).await {
        Ok(response) => Json(response).into_response(),
        Err(_) => {
            bad(StatusCode::REQUEST_TIMEOUT, format!("the query took longer than {} s", EXECUTION.as_secs()))
        }
    }
}
