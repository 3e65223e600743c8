//! The web page: three embedded files, no build step.

use crate::state::App;
use axum::{
    Router,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; font-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; \
    require-trusted-types-for 'script'";

/// `/`, its pages and its files.
pub fn routes() -> Router<App> {
    let index = || async { file("text/html; charset=utf-8", include_str!("../assets/index.html")) };
    Router::new()
        .route("/", get(index))
        .route("/setup", get(index))
        .route("/projects/{*rest}", get(index))
        .route("/pipelines/{id}", get(index))
        .route("/workflows/{id}", get(index))
        .route("/jobs/{id}", get(index))
        .route(
            "/assets/app.js",
            get(|| async { file("text/javascript; charset=utf-8", include_str!("../assets/app.js")) }),
        )
        .route(
            "/assets/app.css",
            get(|| async { file("text/css; charset=utf-8", include_str!("../assets/app.css")) }),
        )
        .route("/favicon.svg", get(|| async { file("image/svg+xml", include_str!("../assets/favicon.svg")) }))
        .route("/favicon.ico", get(|| async { StatusCode::NOT_FOUND }))
}

fn file(content_type: &'static str, body: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, CSP),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        // The files change with the server only; asking again is cheap.
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    (headers, body).into_response()
}
