//! Counts answers over HTTP by route, as `gantry.http.requests` (services §8).

use axum::{
    Router,
    extract::{MatchedPath, Request},
    middleware::{Next, from_fn},
    response::Response,
};

/// A router whose answers are counted; `listener` says for whom they are.
pub fn counted(router: Router, listener: &'static str) -> Router {
    router.layer(from_fn(move |request: Request, next: Next| count(listener, request, next)))
}

async fn count(listener: &'static str, request: Request, next: Next) -> Response {
    // The pattern of the route, never what somebody asked for: names of theirs are without number.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = kit::telemetry::method(request.method().as_str());
    let response = next.run(request).await;
    let class = match response.status().as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    metrics::counter!(
        "gantry.http.requests", "listener" => listener, "method" => method, "route" => route, "status_class" => class
    )
    .increment(1);
    response
}
