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

    let change = "/graphql?query=mutation%7BrevokeToken(id:%22x%22)%7Berrors%7Bcode%7D%7D%7D";
    assert_eq!(world.get(change).await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(
        world.get("/graphql?query=%7Bviewer%7Blogin%7D%7D").await.1["data"]["viewer"]["login"],
        "admin"
    );
    world.stop.cancel();
}

struct Away;
#[async_trait::async_trait]
impl bus::Responder for Away {
    async fn respond(&self, _: contracts::Request) -> Result<Value, contracts::RequestError> {
        Err(contracts::RequestError::Unavailable { service: "domain".to_owned() })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_owner_of_tokens_queries_go_on_and_mutations_do_not() {
    let world = World::new().await;
    let run = history(&world).await;
    let viewer = "{ viewer { login } }";
    assert_eq!(ask(&world, TOKEN, viewer, json!({})).await["data"]["viewer"]["login"], "admin");
    world.bus.respond("domain", std::sync::Arc::new(Away));
    // Its word is believed for some seconds; conductor is here, and would cancel all along.
    let cancel = "mutation($id: ID!) { cancelWorkflow(id: $id) { workflow { id } errors { code } } }";
    testkit::until("a mutation is refused", std::time::Duration::from_secs(30), async || {
        let answer = ask(&world, TOKEN, cancel, json!({ "id": run.workflow })).await;
        answer.to_string().contains("dependency_unavailable")
    })
    .await;
    assert_eq!(ask(&world, TOKEN, viewer, json!({})).await["data"]["viewer"]["login"], "admin");
    assert_eq!(world.get("/api/v2/me").await.0, StatusCode::OK);
    let body = json!({ "query": viewer });
    let (status, answer) =
        world.call(Method::POST, "/graphql", Some("a-token-that-nobody-knows"), Some(body)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
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

/// A query of so many of something, and the code of its refusal, if it was refused.
async fn refused(world: &World, body: Value) -> Option<String> {
    let (status, answer) = world.call(Method::POST, "/graphql", Some(TOKEN), Some(body)).await;
    match status {
        StatusCode::OK => {
            assert!(answer.get("errors").is_none(), "{answer}");
            None
        }
        StatusCode::BAD_REQUEST => {
            Some(answer["errors"][0]["extensions"]["code"].as_str().unwrap().to_owned())
        }
        other => panic!("{other}: {answer}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_limit_of_a_document_holds_at_n_and_not_at_n_plus_1() {
    let world = World::new().await;
    let run = history(&world).await;
    let query = |text: String| json!({ "query": text });
    let aliases = |n: usize| (0..n).map(|n| format!("a{n}: __typename ")).collect::<String>();
    assert_eq!(refused(&world, query(format!("{{ {} }}", aliases(30)))).await, None);
    assert_eq!(
        refused(&world, query(format!("{{ {} }}", aliases(31)))).await.as_deref(),
        Some("query_too_many_aliases")
    );
    // Through fragments, which count wherever they are spread.
    let spread = format!("{{ ...f ...f }} fragment f on Query {{ {} }}", aliases(16));
    assert_eq!(refused(&world, query(spread)).await.as_deref(), Some("query_too_many_aliases"));
    let bomb: String =
        (0..25).map(|n| format!("fragment f{n} on Query {{ ...f{m} ...f{m} }} ", m = n + 1)).collect();
    let bomb = format!("{{ ...f0 }} {bomb} fragment f25 on Query {{ __typename }}");
    assert_eq!(refused(&world, query(bomb)).await.as_deref(), Some("query_too_many_fields"));

    let fields = |n: usize| format!("{{ {} }}", "__typename ".repeat(n));
    assert_eq!(refused(&world, query(fields(500))).await, None);
    assert_eq!(refused(&world, query(fields(501))).await.as_deref(), Some("query_too_many_fields"));

    let directives = |n: usize| format!("{{ {} }}", "__typename @include(if: true) ".repeat(n));
    assert_eq!(refused(&world, query(directives(50))).await, None);
    assert_eq!(refused(&world, query(directives(51))).await.as_deref(), Some("query_too_many_directives"));

    // workflow > pipeline > workflows > pipeline …
    let deep = |n: usize| {
        let mut text = "id".to_owned();
        for level in (1..n - 1).rev() {
            text = format!("{} {{ {text} }}", if level % 2 == 1 { "pipeline" } else { "workflows" });
        }
        format!("{{ workflow(id: \"{}\") {{ {text} }} }}", run.workflow)
    };
    assert_eq!(refused(&world, query(deep(12))).await, None);
    assert_eq!(refused(&world, query(deep(13))).await.as_deref(), Some("query_too_deep"));

    // Three tokens for the braces and the field, the rest in a list that is ignored.
    let many = |n: usize| format!("{{ __typename @include(if: true) }} # {}", "x ".repeat(n));
    assert_eq!(refused(&world, query(many(6000))).await, None, "comments are no tokens");
    let list = |n: usize| {
        format!(
            "query($x: [Int!]) {{ pipelines(first: 1) {{ nodes {{ id }} }} __typename @include(if: true) }} {}",
            "{ ".repeat(n)
        )
    };
    assert_eq!(refused(&world, query(list(5000))).await.as_deref(), Some("query_too_many_tokens"));

    let costly = "{ pipelines(first: 100) { nodes { workflows { jobs { steps { id name status log { bytes } } } } } } }";
    assert_eq!(refused(&world, query(costly.into())).await.as_deref(), Some("query_too_complex"));

    let one = json!({ "query": "{ __typename }" });
    let batch = |n: usize| Value::Array(vec![one.clone(); n]);
    let (status, answer) = world.call(Method::POST, "/graphql", Some(TOKEN), Some(batch(5))).await;
    assert_eq!((status, answer.as_array().map(Vec::len)), (StatusCode::OK, Some(5)));
    for wrong in [0, 6] {
        let (status, answer) = world.call(Method::POST, "/graphql", Some(TOKEN), Some(batch(wrong))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(answer["errors"][0]["extensions"]["code"], "batch_too_large");
    }
    for (first, fine) in [(100, true), (101, false)] {
        let answer =
            ask(&world, TOKEN, &format!("{{ pipelines(first: {first}) {{ nodes {{ id }} }} }}"), json!({}))
                .await;
        assert_eq!(answer.get("errors").is_none(), fine, "{answer}");
    }
    let padded = |n: usize| {
        let text = json!({ "query": "{ __typename }", "x": "" }).to_string();
        json!({ "query": "{ __typename }", "x": "x".repeat(n - text.len()) })
    };
    let (status, _) = world.call(Method::POST, "/graphql", Some(TOKEN), Some(padded(64 << 10))).await;
    assert_eq!(status, StatusCode::OK);
    let (status, _) = world.call(Method::POST, "/graphql", Some(TOKEN), Some(padded((64 << 10) + 1))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    // Tools read the schema.
    let introspection = "{ __schema { types { fields { type { ofType { ofType { ofType { ofType { ofType { ofType { ofType { name } } } } } } } } } } } }";
    assert_eq!(refused(&world, query(introspection.into())).await, None);
    world.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_goes_on_where_it_was() {
    let world = World::new().await;
    let run = history(&world).await;
    let seen = ask(&world, TOKEN, "{ pipelines(first: 1) { nodes { changedAt } } }", json!({})).await;
    let seen = seen["data"]["pipelines"]["nodes"][0]["changedAt"].clone();
    let first = async |since: Value| {
        let query = "subscription($since: DateTime) { pipelines(since: $since) { id changedAt } }";
        let body = json!({ "query": query, "variables": { "since": since } }).to_string();
        let request = Request::post("/graphql/stream").header("authorization", format!("Bearer {TOKEN}"));
        let response = world.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let mut stream = response.into_body().into_data_stream();
        tokio::time::timeout(Duration::from_secs(20), stream.next()).await.unwrap().unwrap().unwrap()
    };
    let told = String::from_utf8_lossy(&first(seen).await).into_owned();
    assert!(told.contains(&run.pipeline.to_string()), "{told}");
    world.stop.cancel();
    let nothing = String::from_utf8_lossy(&first(json!("2100-01-01T00:00:00Z")).await).into_owned();
    assert!(!nothing.contains(&run.pipeline.to_string()), "{nothing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_live_state_changes_are_told_later() {
    let world = World::with_live(std::sync::Arc::new(crate::world::NoLive)).await;
    let run = history(&world).await;
    let follow = async |query: &str, variables: Value| {
        let body = json!({ "query": query, "variables": variables }).to_string();
        let request = Request::post("/graphql/stream").header("authorization", format!("Bearer {TOKEN}"));
        let response = world.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().into_data_stream()
    };
    let mut one =
        follow("subscription($id: ID!) { pipeline(id: $id) { status } }", json!({ "id": run.pipeline }))
            .await;
    let mut all = follow("subscription { pipelines { id status } }", json!({})).await;
    let conductor = world.owner("conductor").await;
    let id = run.workflow.uuid();
    let finished = WorkflowFinished { status: WorkflowStatus::Canceled, at: chrono::Utc::now() };
    let event = NewEvent::new("workflow", id, Actor::service("test"), &finished);
    world.append(&conductor, "workflow", id, &[event]).await;
    for stream in [&mut one, &mut all] {
        let mut seen = String::new();
        let told = async {
            while !seen.contains("\"canceled\"") {
                seen.push_str(&String::from_utf8_lossy(&stream.next().await.unwrap().unwrap()));
            }
        };
        tokio::time::timeout(Duration::from_secs(30), told).await.expect("the change is told");
    }
    world.stop.cancel();
}
