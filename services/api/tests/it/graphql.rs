use crate::world::{READER, TOKEN, World, history};
use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use contracts::{Actor, NewEvent, conductor::WorkflowFinished};
use futures::StreamExt;
use model::status::WorkflowStatus;
use serde_json::{Value, json};
use std::time::Duration;
use tower::ServiceExt;

async fn ask(world: &World, token: &str, query: &str, variables: Value) -> Value {
    let body = json!({ "query": query, "variables": variables });
    let (status, answer) = world.call(Method::POST, "/graphql", Some(token), Some(body)).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_graph_is_read_and_changed() {
    let world = World::new().await;
    let run = history(&world).await;
    let query = "{ viewer { login } projects { nodes { slug } }
        pipelines(projectSlug: \"git/local/demo\", first: 5) { pageInfo { hasNextPage } edges { cursor node { number status
            project { slug } workflows { name status jobs { name type number requires { jobId accepts }
                steps { name log { bytes state } } } } } } } }";
    let answer = ask(&world, TOKEN, query, json!({})).await;
    assert_eq!(answer.get("errors"), None, "{answer}");
    let data = &answer["data"];
    assert_eq!(data["projects"]["nodes"][0]["slug"], "git/local/demo");
    let pipeline = &data["pipelines"]["edges"][0]["node"];
    assert_eq!(pipeline["status"], "on_hold");
    let jobs = &pipeline["workflows"][0]["jobs"];
    assert_eq!(jobs[0]["steps"][0]["log"], json!({ "bytes": 6, "state": "complete" }));
    assert_eq!(jobs[1]["requires"], json!([{ "jobId": run.build, "accepts": ["success"] }]));
    let after = &data["pipelines"]["edges"][0]["cursor"];
    let next = "query($after: String) { pipelines(projectSlug: \"git/local/demo\", after: $after) { nodes { id } } }";
    let answer = ask(&world, TOKEN, next, json!({ "after": after })).await;
    assert_eq!(answer["data"]["pipelines"]["nodes"], json!([]));
    // A cursor is its caller's.
    let answer = ask(&world, READER, next, json!({ "after": after })).await;
    assert_eq!(answer["errors"][0]["extensions"]["code"], "bad_cursor");

    let approve = "mutation($id: ID!) { approveJob(id: $id) { job { id } errors { code } } }";
    let answer = ask(&world, TOKEN, approve, json!({ "id": run.hold })).await;
    assert_eq!(
        answer["data"]["approveJob"],
        json!({ "job": null, "errors": [{ "code": "already_decided" }] })
    );
    let cancel = "mutation($id: ID!) { cancelWorkflow(id: $id) { workflow { id } errors { code } } }";
    let answer = ask(&world, READER, cancel, json!({ "id": run.workflow })).await;
    assert_eq!(answer["data"]["cancelWorkflow"]["errors"][0]["code"], "forbidden");
    let answer = ask(&world, TOKEN, cancel, json!({ "id": run.workflow })).await;
    assert_eq!(answer["data"]["cancelWorkflow"]["workflow"]["id"], json!(run.workflow));

    let many: String = (0..31).map(|n| format!("a{n}: viewer {{ id }} ")).collect();
    let answer = ask(&world, TOKEN, &format!("{{ {many} }}"), json!({})).await;
    assert!(answer["errors"][0]["message"].as_str().unwrap().contains("31 aliases"), "{answer}");
    let change = "/graphql?query=mutation%7BrevokeToken(id:%22x%22)%7Berrors%7Bcode%7D%7D%7D";
    assert_eq!(world.get(change).await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(
        world.get("/graphql?query=%7Bviewer%7Blogin%7D%7D").await.1["data"]["viewer"]["login"],
        "admin"
    );
    world.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_tells_each_change() {
    let world = World::new().await;
    let run = history(&world).await;
    let query = "subscription($id: ID!) { pipeline(id: $id) { status } }";
    let body = json!({ "query": query, "variables": { "id": run.pipeline } }).to_string();
    let request = Request::post("/graphql/stream")
        .header("authorization", format!("Bearer {TOKEN}"))
        .body(Body::from(body));
    let response = world.router.clone().oneshot(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut stream = response.into_body().into_data_stream();
    let mut seen = String::new();
    let mut wait_for = async |word: &str| {
        tokio::time::timeout(Duration::from_secs(20), async {
            while !seen.contains(word) {
                seen.push_str(&String::from_utf8_lossy(&stream.next().await.unwrap().unwrap()));
            }
        })
        .await
        .unwrap();
    };
    wait_for("\"on_hold\"").await;
    let conductor = world.owner("conductor").await;
    let id = run.workflow.uuid();
    let finished = WorkflowFinished { status: WorkflowStatus::Canceled, at: chrono::Utc::now() };
    world
        .append(
            &conductor,
            "workflow",
            id,
            &[NewEvent::new("workflow", id, Actor::service("test"), &finished)],
        )
        .await;
    wait_for("\"canceled\"").await;
    world.stop.cancel();
}
