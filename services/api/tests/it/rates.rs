//! Who asks too much is told so, and nobody else is.

use crate::world::{NoLive, READER, TOKEN, World, history};
use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use live::{Live, LocalLive};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tower::ServiceExt;

/// Status and headers of a request.
async fn get(world: &World, path: &str, token: &str) -> (StatusCode, HeaderMap) {
    let request = Request::get(path).header("circle-token", token).body(Body::empty()).unwrap();
    let response = world.router.clone().oneshot(request).await.unwrap();
    (response.status(), response.headers().clone())
}

async fn three_and_no_more(live: Arc<dyn Live>) {
    let world = World::with(live, |config| config.requests = (1, 3)).await;
    for left in ["2", "1", "0"] {
        let (status, headers) = get(&world, "/api/v2/me", READER).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers["ratelimit-limit"], "3");
        assert_eq!(headers["ratelimit-remaining"], left);
        assert_eq!(headers["x-ratelimit-limit-second"], "1");
    }
    let (status, headers) = get(&world, "/api/v2/me", READER).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(headers["retry-after"], "1");
    assert_eq!(headers["ratelimit-remaining"], "0");
    let reset: u64 = headers["ratelimit-reset"].to_str().unwrap().parse().unwrap();
    assert!((2..=3).contains(&reset), "full again in {reset} s");
    // On our own routes with a code; of another person nothing was counted.
    let (status, body) = world.call(axum::http::Method::GET, "/api/v2/me", Some(READER), None).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(body["message"].as_str().unwrap().contains("[api] requests_per_second"), "{body}");
    assert_eq!(get(&world, "/api/v2/me", TOKEN).await.0, StatusCode::OK);
    // Who is nobody has no bucket, and probes are no person's.
    let (status, headers) = get(&world, "/api/v2/me", "gantry-unknown").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(!headers.contains_key("ratelimit-limit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_person_are_counted() {
    three_and_no_more(Arc::new(LocalLive::default())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_live_state_a_process_counts_for_itself() {
    three_and_no_more(Arc::new(NoLive)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_have_a_count_of_their_own() {
    let world = World::with(Arc::new(LocalLive::default()), |config| config.changes = (1, 1)).await;
    history(&world).await;
    let set = async || {
        let body = json!({ "name": "A", "value": "b" });
        world
            .call(axum::http::Method::POST, "/api/v2/project/git/local/demo/envvar", Some(TOKEN), Some(body))
            .await
    };
    assert_eq!(set().await.0, StatusCode::CREATED);
    let (status, body) = set().await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
    // By GraphQL it is the same count, and reading goes on.
    let query = r#"mutation { createToken(label: "a") { token errors { code } } }"#;
    let (status, answer) =
        world.call(axum::http::Method::POST, "/graphql", Some(TOKEN), Some(json!({ "query": query }))).await;
    assert_eq!(status, StatusCode::OK);
    assert!(answer.to_string().contains("rate_limited"), "{answer}");
    assert_eq!(world.get("/api/v2/me").await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_of_nothing_is_no_limit() {
    let world = World::with(Arc::new(LocalLive::default()), |config| config.requests = (0, 0)).await;
    for _ in 0..400 {
        assert_eq!(get(&world, "/api/v2/me", TOKEN).await.0, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_about_one_organisation_are_counted_whoever_asks() {
    let world = World::with(Arc::new(LocalLive::default()), |config| config.org_requests = (1, 2)).await;
    history(&world).await;
    let path = "/api/v2/project/git/local/demo";
    assert_eq!(get(&world, path, TOKEN).await.0, StatusCode::OK);
    assert_eq!(get(&world, path, READER).await.0, StatusCode::OK);
    for token in [TOKEN, READER] {
        let (status, headers) = get(&world, path, token).await;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(headers["retry-after"], "1");
    }
    let (_, body) = world.get(path).await;
    assert!(body["message"].as_str().unwrap().contains("[api] org_requests_per_second"), "{body}");
    // What is about no organisation goes on.
    assert_eq!(get(&world, "/api/v2/me", READER).await.0, StatusCode::OK);
}

async fn two_streams_and_no_more(live: Arc<dyn Live>) {
    let world = World::with(live, |config| config.max_streams_of_session = 2).await;
    let path = format!("/logs/{}/tail", history(&world).await.step);
    // One whose body nobody reads stays open.
    let open = async |token: &str| {
        let request = Request::get(&path).header("circle-token", token).body(Body::empty()).unwrap();
        world.router.clone().oneshot(request).await.unwrap()
    };
    let (first, second) = (open(TOKEN).await, open(TOKEN).await);
    assert_eq!((first.status(), second.status()), (StatusCode::OK, StatusCode::OK));
    let (status, body) = world.get(&path).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
    assert_eq!(body["code"], "limit_reached");
    assert!(body["detail"].as_str().unwrap().contains("[api] max_streams_of_session"), "{body}");
    assert_eq!(open(READER).await.status(), StatusCode::OK, "another session has its own");
    drop(first);
    testkit::until(
        "the stream that was closed is not counted any more",
        Duration::from_secs(20),
        async || open(TOKEN).await.status() == StatusCode::OK,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_has_so_many_streams() {
    two_streams_and_no_more(Arc::new(LocalLive::default())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_live_state_a_process_counts_its_own_streams() {
    two_streams_and_no_more(Arc::new(NoLive)).await;
}
