use crate::world::World;
use axum::http::{Method, StatusCode};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_code_gives_one_token_once() {
    let world = World::new().await;
    let code = world.service.sign_in_code(world.owners.admin.id);
    let redeem =
        async |code: &str| world.call(Method::POST, "/setup", None, Some(json!({ "code": code }))).await;
    let (status, problem) = redeem("AAAA-AAAA").await;
    assert_eq!((status, &problem["code"]), (StatusCode::UNAUTHORIZED, &json!("unauthenticated")));
    // People type it in their own way.
    let (status, answer) = redeem(&code.to_lowercase().replace('-', " ")).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let token = answer["token"].as_str().unwrap();
    let asked = world.owners.asked.lock().unwrap().iter().find(|ask| ask.name == "token.create").cloned();
    let asked = asked.unwrap();
    assert_eq!(asked.actor.user(), Some(world.owners.admin.id));
    assert!(!asked.body.to_string().contains(token), "only the digest leaves the edge");
    assert_eq!(redeem(&code).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_ends_the_code() {
    let world = World::new().await;
    let code = world.service.sign_in_code(world.owners.admin.id);
    for _ in 0..10 {
        let (status, _) =
            world.call(Method::POST, "/setup", None, Some(json!({ "code": "AAAA-AAAA" }))).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
    let (status, _) = world.call(Method::POST, "/setup", None, Some(json!({ "code": code }))).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
