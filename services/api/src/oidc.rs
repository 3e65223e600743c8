//! What verifies the OIDC tokens of jobs: discovery and keys, for anybody (execution §21, api-v2 §13).

use crate::{
    error::{Answer, Fail},
    state::App,
};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::header::CACHE_CONTROL,
    response::IntoResponse,
    routing::get,
};
use contracts::{Actor, contexts::GetJwks};
use ids::OrgId;
use serde_json::{Value, json};

/// Where the keys are, below an issuer.
const KEYS: &str = "/.well-known/jwks-pub.json";
/// How long both answers may be kept: less than a new key is published before it signs.
const FRESH: &str = "public, max-age=3600";

/// Routes of this module: of the installation and of each organisation as issuers.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/.well-known/openid-configuration", get(of_installation))
        .route("/.well-known/jwks-pub.json", get(keys))
        .route("/org/{org}/.well-known/openid-configuration", get(of_org))
        .route("/org/{org}/.well-known/jwks-pub.json", get(keys))
}

fn configuration(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}{KEYS}"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "scopes_supported": ["openid"],
        "claims_supported": [
            "iss", "aud", "sub", "iat", "nbf", "exp", "jti",
            "oidc.circleci.com/org-id", "oidc.circleci.com/project-id", "oidc.circleci.com/context-ids",
            "oidc.circleci.com/job-id", "oidc.circleci.com/pipeline-id", "oidc.circleci.com/workflow-id",
            "oidc.circleci.com/pipeline-definition-id", "oidc.circleci.com/ssh-rerun",
            "oidc.circleci.com/vcs-origin", "oidc.circleci.com/vcs-ref", "oidc.circleci.com/runner-class",
        ],
    })
}

async fn of_installation(State(app): State<App>) -> Answer {
    let issuer = app.url("");
    Ok(([(CACHE_CONTROL, FRESH)], Json(configuration(issuer.trim_end_matches('/')))).into_response())
}

async fn of_org(State(app): State<App>, Path(org): Path<String>) -> Answer {
    // Any id is answered alike: what exists is nobody's business.
    let org: OrgId = org.parse().map_err(|_| Fail::not_found("Organization"))?;
    Ok(([(CACHE_CONTROL, FRESH)], Json(configuration(&app.url(&format!("/org/{org}"))))).into_response())
}

async fn keys(State(app): State<App>) -> Answer {
    let keys = app.bus.ask(&Actor::service("api"), &GetJwks {}).await?;
    Ok(([(CACHE_CONTROL, FRESH)], Json(keys)).into_response())
}
