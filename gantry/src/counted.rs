//! Counts answers over HTTP by route, as `gantry.http.requests`, and measures them, as `gantry.http.request_seconds` (services §8).

use axum::{
    Router,
    extract::{MatchedPath, Request},
    middleware::{Next, from_fn},
    response::Response,
};
use std::time::Instant;

/// A router whose answers are counted; `listener` says for whom they are.
pub fn counted(router: Router, listener: &'static str) -> Router {
    router.layer(from_fn(move |request: Request, next: Next| count(listener, request, next)))
}

async fn count(listener: &'static str, request: Request, next: Next) -> Response {
    // The pattern of the route, never what somebody asked for: names of theirs are without number.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = kit::telemetry::method(request.method().as_str());
    let begun = Instant::now();
    let response = next.run(request).await;
    let taken = begun.elapsed();
    let class = match response.status().as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    let version = version(&route);
    metrics::histogram!(
        "gantry.http.request_seconds", "listener" => listener, "method" => method, "route" => route.clone(),
        "status_class" => class, "api_version" => version
    )
    .record(taken.as_secs_f64());
    metrics::counter!(
        "gantry.http.requests", "listener" => listener, "method" => method, "route" => route, "status_class" => class
    )
    .increment(1);
    response
}

/// The version of the interface that a route is of, as its path says; `none`: it has no versions.
fn version(route: &str) -> String {
    let is_version = |word: &&str| {
        word.strip_prefix('v').is_some_and(|number| number.starts_with(|first: char| first.is_ascii_digit()))
    };
    route.split('/').take(3).find(is_version).unwrap_or("none").to_owned()
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn the_version_of_an_interface_is_in_its_path() {
        let versions = [
            "/api/v1.1/project/{slug}",
            "/api/v2/me",
            "/v1/tasks/{task}/renew",
            "/graphql",
            "/view/{id}",
            "none",
        ];
        assert_eq!(versions.map(version), ["v1.1", "v2", "v1", "none", "none", "none"]);
    }
}
