//! What the edge decides about continuations, compiles, orbs and policies before it asks their owner.

use crate::world::{READER, TOKEN, World};
use axum::http::{Method, StatusCode};
use contracts::pipelines::ContinuationClaims;
use ids::PipelineId;
use serde_json::{Value, json};

async fn post(world: &World, path: &str, token: Option<&str>, body: Value) -> (StatusCode, Value) {
    world.call(Method::POST, path, token, Some(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_continuation_is_opened_by_its_key_and_bounded() {
    let world = World::new().await;
    let path = "/api/v2/pipeline/continue";
    let body = |key: &str, configuration: String, parameters: Value| json!({ "continuation-key": key, "configuration": configuration, "parameters": parameters });
    let (status, answer) = post(&world, path, None, body("nonsense", "version: 2.1".into(), json!({}))).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{answer}");
    // A token of another purpose is no key.
    let claims = ContinuationClaims { pipeline_id: PipelineId::new() };
    let other = world.keys.seal_claims("page", &claims);
    let (status, _) = post(&world, path, None, body(&other, "version: 2.1".into(), json!({}))).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    let key = world.keys.seal_claims(ContinuationClaims::PURPOSE, &claims);
    let (status, answer) = post(&world, path, None, body(&key, "x".repeat((1 << 20) + 1), json!({}))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("1048576"), "{answer}");
    for wrong in [json!({"a": "x".repeat(513)}), json!({"a": [1]}), json!({"x".repeat(129): 1})] {
        let (status, _) = post(&world, path, None, body(&key, "version: 2.1".into(), wrong)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
    let many: serde_json::Map<_, _> = (0..101).map(|n| (format!("p{n}"), json!(n))).collect();
    let (status, _) = post(&world, path, None, body(&key, "version: 2.1".into(), many.into())).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, _) = post(&world, path, None, json!({"configuration": "x"})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn compiling_answers_the_probe_and_is_bounded() {
    let world = World::new().await;
    let path = "/api/v2/compile-config-with-defaults";
    let (status, answer) = world.call(Method::POST, path, Some(TOKEN), None).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["message"].is_string(), "{answer}");
    let (status, _) = post(&world, path, None, json!({"config_yaml": "version: 2.1"})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let large = json!({"config_yaml": "x".repeat((1 << 20) + 1)});
    let (status, answer) = post(&world, path, Some(TOKEN), large).await;
    assert_eq!((status, &answer["valid"]), (StatusCode::OK, &json!(false)));
    assert!(answer["errors"][0]["message"].as_str().unwrap().contains("1048576"), "{}", answer["errors"]);
    let foreign = json!({"config_yaml": "a", "options": {"owner_id": PipelineId::new()}});
    let (status, _) = post(&world, path, Some(TOKEN), foreign).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_read_changes_neither_policies_nor_orbs() {
    let world = World::new().await;
    let org = world.owners.project.org_id;
    let base = format!("/api/v2/owner/{org}/context/config");
    let bundle = json!({"policies": {"a.rego": "package org"}});
    let (status, answer) = post(&world, &format!("{base}/policy-bundle"), Some(READER), bundle).await;
    assert_eq!((status, answer), (StatusCode::FORBIDDEN, json!({"error": "Permission denied"})));
    let settings = format!("{base}/decision/settings");
    let (status, _) =
        world.call(Method::PATCH, &settings, Some(READER), Some(json!({"enabled": true}))).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, answer) = world.get(&format!("/api/v2/owner/{org}/context/other/policy-bundle")).await;
    assert_eq!((status, answer), (StatusCode::NOT_FOUND, json!({"error": "Policy context not found"})));

    let query = "mutation($name: String!, $organizationId: UUID!) { \
        createNamespace(name: $name, organizationId: $organizationId) { namespace { id } errors { message type } } }";
    let body = json!({"query": query, "variables": {"name": "acme", "organizationId": org}});
    let (status, answer) = post(&world, "/graphql-unstable", Some(READER), body).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        answer["data"]["createNamespace"],
        json!({"namespace": null, "errors": [{"message": "Permission denied", "type": "FORBIDDEN"}]})
    );
    let (status, _) =
        post(&world, "/graphql-unstable", None, json!({"query": "{ orbs { totalCount } }"})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
