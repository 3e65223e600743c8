use crate::world::{As, READER, TOKEN, World, history};
use axum::{
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bus::Responder;
use contracts::{Request as Asked, RequestError};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tower::ServiceExt;

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_is_told_by_v2_v1_and_logs() {
    let world = World::new().await;
    let run = history(&world).await;
    *world.owners.log.lock().unwrap() = "first line\nsécond line\nthird".as_bytes().to_vec();

    let (status, _) = world.call(Method::GET, "/api/v2/me", None, None).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.get("/api/v2/me").await.1["login"], "admin");
    assert_eq!(world.get("/api/v2/me/collaborations").await.1[0]["name"], "local");

    for reference in ["git/local/demo", "git%2Flocal%2Fdemo", &world.owners.project.id.to_string()] {
        let (status, project) = world.get(&format!("/api/v2/project/{reference}")).await;
        assert_eq!(status, StatusCode::OK, "{project}");
        assert_eq!(project["slug"], "git/local/demo");
        let (_, list) = world.get(&format!("/api/v2/project/{reference}/pipeline?branch=main")).await;
        assert_eq!(list["items"][0]["id"], json!(run.pipeline));
    }
    let (_, none) = world.get("/api/v2/project/git/local/demo/pipeline?branch=other").await;
    assert_eq!(none, json!({ "items": [], "next_page_token": null }));
    let (_, pipeline) = world.get("/api/v2/project/git/local/demo/pipeline/1").await;
    assert_eq!(pipeline["vcs"]["commit"]["subject"], "Greet");
    assert_eq!(pipeline["vcs"]["branch"], "main");
    assert_eq!(pipeline, world.get(&format!("/api/v2/pipeline/{}", run.pipeline)).await.1);

    let (_, workflows) = world.get(&format!("/api/v2/pipeline/{}/workflow", run.pipeline)).await;
    assert_eq!(workflows["items"][0]["status"], "on_hold");
    let (_, jobs) = world.get(&format!("/api/v2/workflow/{}/job", run.workflow)).await;
    assert_eq!(jobs["items"][0]["job_number"], 1);
    assert_eq!(jobs["items"][0]["status"], "success");
    assert_eq!(jobs["items"][1]["approval_request_id"], json!(run.hold));
    assert_eq!(jobs["items"][1]["dependencies"], json!([run.build]));
    let (_, job) = world.get("/api/v2/project/git/local/demo/job/1").await;
    assert_eq!(job["executor"]["resource_class"], "medium");
    assert_eq!(job["contexts"], json!([{ "name": "deploy" }]));

    let (_, build) = world.get("/api/v1.1/project/git/local/demo/1").await;
    let action = &build["steps"][0]["actions"][0];
    assert_eq!(action["step_id"], json!(run.step));
    let output = action["output_url"].as_str().unwrap().strip_prefix("http://gantry.test").unwrap();
    let (_, output) = world.call(Method::GET, &format!("{output}?circle-token={TOKEN}"), None, None).await;
    assert_eq!(output[0]["message"], "first line\nsécond line\nthird");
    assert_eq!(world.get("/api/v1.1/project/git/local/demo").await.1[0]["build_num"], 1);
    assert_eq!(world.get("/api/v1.1/recent-builds").await.1[0]["subject"], "Greet");

    let logs = format!("/logs/{}", run.step);
    assert_eq!(world.get(&format!("{logs}/meta")).await.1["complete"], true);
    let (_, lines) = world.get(&format!("{logs}/lines?from=1&count=1")).await;
    assert_eq!(lines["lines"], json!(["sécond line"]));
    let (_, found) = world.get(&format!("{logs}/search?q=LINE")).await;
    let found: Vec<_> = found.as_str().unwrap().lines().map(str::to_owned).collect();
    assert_eq!(found[..2], [r#"{"line":0,"col":6,"len":4}"#, r#"{"line":1,"col":7,"len":4}"#]);
    let (_, tail) = world.get(&format!("{logs}/tail?offset=6")).await;
    let text: String = tail
        .as_str()
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter_map(|data| {
            Some(serde_json::from_str::<serde_json::Value>(data).unwrap()["text"].as_str()?.to_owned())
        })
        .collect();
    assert_eq!(text, "line\nsécond line\nthird");
    assert!(tail.as_str().unwrap().contains("event: end"));

    let request = Request::get(format!("{logs}/raw"))
        .header(header::AUTHORIZATION, format!("Basic {}", STANDARD.encode(format!("{TOKEN}:"))))
        .header(header::RANGE, "bytes=6-9");
    let response = world.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(response.headers()[header::CONTENT_RANGE], "bytes 6-9/29");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "line");
    world.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_go_to_their_owners_and_refusals_come_back() {
    let world = World::new().await;
    let run = history(&world).await;
    let approve = format!("/api/v2/workflow/{}/approve/{}", run.workflow, run.hold);
    let (status, body) = world.call(Method::POST, &approve, Some(TOKEN), None).await;
    assert_eq!((status, body), (StatusCode::CONFLICT, json!({ "message": "somebody was faster" })));

    let cancel = format!("/api/v2/workflow/{}/cancel", run.workflow);
    let request = Request::post(&cancel)
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("idempotency-key", "k1");
    let response = world.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let asked =
        world.owners.asked.lock().unwrap().iter().find(|req| req.name == "workflow.cancel").cloned().unwrap();
    assert_eq!(asked.idempotency_key.as_deref(), Some("k1"));
    assert_eq!(asked.actor.user(), Some(world.owners.admin.id));

    // A reader sees, and changes nothing.
    assert_eq!(
        world.call(Method::GET, &format!("/api/v2/workflow/{}", run.workflow), Some(READER), None).await.0,
        StatusCode::OK
    );
    assert_eq!(world.call(Method::POST, &cancel, Some(READER), None).await.0, StatusCode::FORBIDDEN);
    let trigger = "/api/v2/project/git/local/demo/pipeline";
    assert_eq!(world.call(Method::POST, trigger, Some(READER), None).await.0, StatusCode::FORBIDDEN);
    let both = json!({ "branch": "a", "tag": "b" });
    assert_eq!(world.call(Method::POST, trigger, Some(TOKEN), Some(both)).await.0, StatusCode::BAD_REQUEST);

    let (status, body) = world.get("/api/v2/nonsense").await;
    assert_eq!((status, body), (StatusCode::NOT_FOUND, json!({ "message": "Route not found" })));
    let (status, problem) = world.get(&format!("/logs/{}/meta", ids::StepId::new())).await;
    assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    world.stop.cancel();
}

/// An owner of output that answers every other question about it.
struct Stumbles {
    owners: As,
    asked: AtomicUsize,
}

#[async_trait::async_trait]
impl Responder for Stumbles {
    async fn respond(&self, asked: Asked) -> Result<Value, RequestError> {
        if asked.name == "log.read" && self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            return Err(RequestError::Deadline { service: asked.service });
        }
        self.owners.respond(asked).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_away_for_a_moment_ends_no_stream() {
    let world = World::new().await;
    let run = history(&world).await;
    *world.owners.log.lock().unwrap() = b"one\ntwo\nthree\nfour\nfive\n".to_vec();
    let stumbles = Arc::new(Stumbles { owners: As(world.owners.clone()), asked: AtomicUsize::new(0) });
    world.bus.respond("output-processor", stumbles.clone());

    let (_, tail) = world.get(&format!("/logs/{}/tail", run.step)).await;
    let tail = tail.as_str().unwrap();
    let read: String = tail
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|data| Some(data["text"].as_str()?.to_owned()))
        .collect();
    assert_eq!(read, "one\ntwo\nthree\nfour\nfive\n", "{tail}");
    assert!(tail.contains("event: end") && !tail.contains("event: fail"), "{tail}");

    let request =
        Request::post("/graphql/stream").header("authorization", format!("Bearer {TOKEN}")).body(Body::from(
            json!({
                "query": "subscription($id: ID!) { log(stepId: $id) { text end } }",
                "variables": { "id": run.step },
            })
            .to_string(),
        ));
    let response = world.router.clone().oneshot(request.unwrap()).await.unwrap();
    let events = response.into_body().collect().await.unwrap().to_bytes();
    let events = String::from_utf8_lossy(&events);
    assert!(events.contains("\"end\":true") && !events.contains("errors"), "{events}");

    let asked = stumbles.asked.load(Ordering::Relaxed);
    assert!(asked > 8, "each window was asked for twice: {asked}");
    world.stop.cancel();
}
