//! Every request is part of a trace.

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use contracts::trace::Trace;
use ids::MessageId;
use spans::{Kind, Name, Open, Span};

/// What a request causes is one trace: that of its `traceparent`, or a new one. It is told of by its route: what it asks
/// for may hold tokens.
pub(crate) async fn traced(request: Request, next: Next) -> Response {
    let given = request.headers().get("traceparent").and_then(|value| value.to_str().ok()?.parse().ok());
    let method = kit::telemetry::method(request.method().as_str());
    let path = request.extensions().get::<MatchedPath>().cloned();
    let route = path.as_ref().map_or("", MatchedPath::as_str);
    let name = if route.is_empty() { Name::from(method) } else { Name::of(method, route) };
    let span = Span::begin(given, crate::NAME, Kind::Server, name);
    let mut span = Open::new(
        span.map(|span| span.with("http.request.method", method).with("http.route", Name::chosen(route))),
    );
    let trace = span.context().or(given).unwrap_or_else(|| Trace::root(MessageId::new()));
    let response = eventstore::trace::within(Some(trace), next.run(request)).await;
    let status = response.status();
    span.set("http.response.status_code", i64::from(status.as_u16()));
    span.end(status.is_server_error());
    response
}
