use crate::world::{READER, TOKEN, World};
use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use serde_json::json;
use tower::ServiceExt;

#[tokio::test(flavor = "multi_thread")]
async fn the_older_routes_have_bare_lists_and_masked_values() {
    let world = World::new().await;
    let path = "/api/v1.1/project/git/local/demo/envvar";
    let (status, list) = world.get(path).await;
    assert_eq!((status, list), (StatusCode::OK, json!([{ "name": "TOKEN", "value": "xxxx12ab" }])));
    let body = json!({ "name": "TOKEN", "value": "the-value" });
    let (status, made) = world.call(Method::POST, path, Some(TOKEN), Some(body.clone())).await;
    assert_eq!((status, made), (StatusCode::CREATED, json!({ "name": "TOKEN", "value": "xxxx12ab" })));
    assert_eq!(world.get(&format!("{path}/TOKEN")).await.0, StatusCode::OK);
    assert_eq!(world.get(&format!("{path}/OTHER")).await.0, StatusCode::NOT_FOUND);
    let (status, _) = world.call(Method::DELETE, &format!("{path}/TOKEN"), Some(TOKEN), None).await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = world.call(Method::POST, path, Some(READER), Some(body)).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "a reader sets nothing");
    let asked = world.owners.asked.lock().unwrap();
    assert!(asked.iter().all(|ask| !ask.body.to_string().contains("the-value")), "values travel sealed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_is_set_under_the_clients_key() {
    let world = World::new().await;
    let request = Request::post("/api/v2/project/git/local/demo/envvar")
        .header("circle-token", TOKEN)
        .header("idempotency-key", "once-1")
        .body(Body::from(json!({ "name": "TOKEN", "value": "v" }).to_string()))
        .unwrap();
    assert_eq!(world.router.clone().oneshot(request).await.unwrap().status(), StatusCode::CREATED);
    let asked = world.owners.asked.lock().unwrap();
    let set = asked.iter().find(|ask| ask.name == "variable.set").unwrap();
    assert_eq!(set.idempotency_key.as_deref(), Some("once-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sets_a_value_that_is_not_masked_is_told() {
    let world = World::new().await;
    let project = "/api/v2/project/git/local/demo/envvar".to_owned();
    let context = format!("/api/v2/context/{}/environment-variable/NAME", ids::ContextId::new());
    for (method, path) in [(Method::POST, project), (Method::PUT, context)] {
        for (value, masked) in [("abc", false), ("true", false), ("abcd", true)] {
            let body = json!({ "name": "NAME", "value": value });
            let (status, made) = world.call(method.clone(), &path, Some(TOKEN), Some(body)).await;
            assert!(status.is_success(), "{made}");
            let code = &made["warnings"][0]["code"];
            assert_eq!(code == "value_too_short_to_mask", !masked, "{path} {value}: {made}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_administrator_restricts_a_context() {
    let world = World::new().await;
    let path = format!("/api/v2/context/{}/restrictions", ids::ContextId::new());
    let project = world.owners.project.id;
    for body in [
        json!({ "restriction_type": "project", "restriction_value": project }),
        json!({ "project_id": project }),
    ] {
        let (status, made) = world.call(Method::POST, &path, Some(TOKEN), Some(body)).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        assert_eq!((&made["restriction_type"], &made["name"]), (&json!("project"), &json!("demo")));
    }
    let body = json!({ "restriction_type": "weather", "restriction_value": "sun" });
    assert_eq!(world.call(Method::POST, &path, Some(TOKEN), Some(body)).await.0, StatusCode::BAD_REQUEST);
    let body = json!({ "project_id": project });
    assert_eq!(world.call(Method::POST, &path, Some(READER), Some(body)).await.0, StatusCode::FORBIDDEN);
}
