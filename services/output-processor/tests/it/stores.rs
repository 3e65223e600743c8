//! What agents upload: visible when it is whole, to whom it belongs, for as long as it is kept.

use crate::support::{Agent, Answer, World, code, sha256};
use async_trait::async_trait;
use axum::{body::Body, http};
use blobs::{Blobs, FsBlobs, Key};
use bus::Responder;
use chrono::{TimeDelta, Utc};
use contracts::{
    Actor, Request, RequestError,
    stores::{ListArtifacts, OpenArtifact},
};
use gantry_output_processor::Config;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tower::ServiceExt;
use uuid::Uuid;

/// An id of something that nobody has heard of.
fn fresh() -> Uuid {
    ids::MessageId::new().uuid()
}

/// A task of a project, as conductor and dispatcher would have told of it.
async fn task(world: &World, project: Uuid, workspace: Uuid, name: &str, index: i32) -> Agent {
    let agent = Agent::new();
    sqlx::query(
        "INSERT INTO output_processor.jobs (job_id, org_id, project_id, workspace_id, name, number, branch, revision) \
         VALUES ($1, $2, $3, $4, $5, 7, 'main', 'abc')",
    )
    .bind(agent.job.uuid())
    .bind(Uuid::nil())
    .bind(project)
    .bind(workspace)
    .bind(name)
    .execute(&world.database.pool)
    .await
    .unwrap();
    sqlx::query("INSERT INTO output_processor.tasks (task_id, job_id, index) VALUES ($1, $2, $3)")
        .bind(agent.task.uuid())
        .bind(agent.job.uuid())
        .bind(index)
        .execute(&world.database.pool)
        .await
        .unwrap();
    agent
}

async fn ask(world: &World, agent: &Agent, route: &str, body: Value) -> Answer {
    agent.send(world, "POST", &format!("stores/{route}"), None, serde_json::to_vec(&body).unwrap()).await
}

async fn ok(world: &World, agent: &Agent, route: &str, body: Value) -> Value {
    let answer = ask(world, agent, route, body).await;
    assert_eq!(answer.0, 200, "{route}: {answer:?}");
    answer.1
}

/// The store that URLs are of.
async fn store(world: &World) -> FsBlobs {
    FsBlobs::open(&world.folder.path().join("blobs"), &[[1u8; 32]]).await.unwrap()
}

async fn put(store: &FsBlobs, url: &str, bytes: &[u8]) -> u16 {
    let request = http::Request::put(url).body(Body::from(bytes.to_vec())).unwrap();
    store.router().oneshot(request).await.unwrap().status().as_u16()
}

/// Asks for a place for a chunk, whose stored form is the text itself.
async fn place_chunk(world: &World, agent: &Agent, content: &str) -> Value {
    let chunk = json!({
        "content_sha256": sha256(content.as_bytes()), "content_size": content.len(),
        "sha256": sha256(content.as_bytes()), "size": content.len(),
    });
    ok(world, agent, "chunks/uploads", json!({ "chunks": [chunk] })).await["uploads"][0].clone()
}

async fn upload_chunk(world: &World, store: &FsBlobs, agent: &Agent, content: &str) {
    let place = place_chunk(world, agent, content).await;
    assert_eq!(put(store, place["url"].as_str().unwrap(), content.as_bytes()).await, 201);
}

fn archive(contents: &[&str]) -> Value {
    let chunks: Vec<_> = contents.iter().map(|content| sha256(content.as_bytes())).collect();
    json!({ "chunks": chunks, "bytes": contents.iter().map(|content| content.len()).sum::<usize>() })
}

fn cache(key: &str, contents: &[&str]) -> Value {
    json!({ "key": key, "paths": ["~/deps"], "archive": archive(contents) })
}

#[tokio::test]
async fn a_cache_is_visible_when_it_is_whole_and_the_first_writer_wins() {
    let world = World::new(Config::default()).await;
    let (store, project) = (store(&world).await, fresh());
    let one = task(&world, project, fresh(), "build", 0).await;
    let other = task(&world, project, fresh(), "build", 0).await;

    assert_eq!(ok(&world, &one, "cache/find", json!({ "keys": ["v1-"] })).await["hit"], Value::Null);
    let wanted = json!({ "chunks": [sha256(b"one"), sha256(b"two")] });
    assert_eq!(ok(&world, &one, "chunks/missing", wanted.clone()).await["missing"], json!([0, 1]));
    upload_chunk(&world, &store, &one, "one").await;
    let place = place_chunk(&world, &one, "two").await;
    let url = place["url"].as_str().unwrap();
    let early = ok(&world, &one, "cache/commit", cache("v1-a", &["one", "two", "one"])).await;
    assert_eq!(early, json!({ "outcome": "missing", "chunks": [sha256(b"two")] }));
    assert_eq!(put(&store, url, b"TWO").await, 422, "other bytes than announced");
    assert_eq!(put(&store, url, b"two and more").await, 422);
    let early = ok(&world, &one, "cache/commit", cache("v1-a", &["one", "two"])).await;
    assert_eq!(early["outcome"], "missing", "wrong bytes count for nothing");
    assert_eq!(ok(&world, &other, "cache/find", json!({ "keys": ["v1-a"] })).await["hit"], Value::Null);
    assert_eq!(put(&store, url, b"two").await, 201);
    let made = ok(&world, &one, "cache/commit", cache("v1-a", &["one", "two", "one"])).await;
    assert_eq!(made["outcome"], "stored");

    // The other job of the project finds it, by prefix, and stores nothing twice.
    assert_eq!(ok(&world, &other, "chunks/missing", wanted).await["missing"], json!([]));
    let hit = ok(&world, &other, "cache/find", json!({ "keys": ["v2", "v1-"] })).await["hit"].clone();
    assert_eq!((&hit["candidate"], &hit["key"], &hit["job_number"]), (&json!(1), &json!("v1-a"), &json!(7)));
    assert_eq!((&hit["archive"]["chunks"], &hit["archive"]["bytes"]), (&json!(3), &json!(9)));
    let window = json!({ "archive": hit["archive"]["id"], "from": 1, "count": 2 });
    let chunks = ok(&world, &other, "chunks/downloads", window).await["chunks"].clone();
    assert_eq!(chunks[0]["content_sha256"], sha256(b"two"));
    assert_eq!(chunks[1]["content_sha256"], sha256(b"one"));
    let again = ok(&world, &other, "cache/commit", cache("v1-a", &["one"])).await;
    assert_eq!(again["outcome"], "already_exists");
    let second = ok(&world, &other, "cache/commit", cache("v1-b", &["one", "two"])).await;
    assert_eq!(second["outcome"], "stored", "another key of the same bytes needs no upload");
    let hit = ok(&world, &one, "cache/find", json!({ "keys": ["v1-"] })).await["hit"].clone();
    assert_eq!(hit["key"], "v1-b", "the newest wins");
    for key in ["", &"x".repeat(901)] {
        assert_eq!(
            code(&ask(&world, &one, "cache/check", json!({ "key": key })).await).1,
            "cache_key_invalid"
        );
    }
}

#[tokio::test]
async fn what_is_of_another_project_or_task_is_not_there() {
    let world = World::new(Config::default()).await;
    let store = store(&world).await;
    let owner = task(&world, fresh(), fresh(), "build", 0).await;
    upload_chunk(&world, &store, &owner, "secret").await;
    ok(&world, &owner, "cache/commit", cache("k", &["secret"])).await;
    let hit = ok(&world, &owner, "cache/find", json!({ "keys": ["k"] })).await["hit"].clone();

    let hostile = task(&world, fresh(), fresh(), "build", 0).await;
    let wanted = json!({ "chunks": [sha256(b"secret")] });
    assert_eq!(ok(&world, &hostile, "chunks/missing", wanted).await["missing"], json!([0]));
    assert_eq!(ok(&world, &hostile, "cache/find", json!({ "keys": ["k"] })).await["hit"], Value::Null);
    // To know a hash is not to have the bytes.
    let claimed = ok(&world, &hostile, "cache/commit", cache("k", &["secret"])).await;
    assert_eq!(claimed["outcome"], "missing");
    let window = json!({ "archive": hit["archive"]["id"], "from": 0, "count": 1 });
    let foreign = ask(&world, &hostile, "chunks/downloads", window).await;
    assert_eq!(code(&foreign), (404, "archive_unknown".into()));
    let place = place_chunk(&world, &owner, "more").await;
    let foreign = ask(&world, &hostile, "artifacts/commit", json!({ "objects": [place["object"]] })).await;
    assert_eq!(code(&foreign), (404, "object_unknown".into()));

    // A job that the conductor did not tell of is asked to wait.
    let unknown = Agent::new();
    let early = ask(&world, &unknown, "cache/check", json!({ "key": "k" })).await;
    assert_eq!(code(&early), (503, "job_unknown".into()));
}

#[tokio::test]
async fn nothing_of_a_closed_epoch_becomes_visible() {
    let world = World::new(Config::default()).await;
    let store = store(&world).await;
    let (project, workspace) = (fresh(), fresh());
    let late = task(&world, project, workspace, "build", 0).await;
    upload_chunk(&world, &store, &late, "late").await;
    world.close(late.task, 1).await;
    for (route, body) in [
        ("cache/commit", cache("k", &["late"])),
        ("workspace/commit", json!({ "step": 101, "archive": archive(&["late"]) })),
        ("artifacts/uploads", json!({ "files": [] })),
        ("tests/upload", json!({ "size": 1, "sha256": sha256(b"x") })),
    ] {
        assert_eq!(code(&ask(&world, &late, route, body).await), (409, "stale_lease".into()), "{route}");
    }
    let next = task(&world, project, workspace, "build", 0).await;
    assert_eq!(ok(&world, &next, "cache/find", json!({ "keys": ["k"] })).await["hit"], Value::Null);
}

#[tokio::test]
async fn artifacts_are_listed_opened_and_replaced() {
    let world = World::new(Config::default()).await;
    let store = store(&world).await;
    let agent = task(&world, fresh(), fresh(), "build", 2).await;
    let upload = async |path: &str, content: &str| {
        let file = json!({ "path": path, "size": content.len(), "sha256": sha256(content.as_bytes()) });
        let place =
            ok(&world, &agent, "artifacts/uploads", json!({ "files": [file] })).await["uploads"][0].clone();
        let commit = json!({ "objects": [place["object"]] });
        let early = ask(&world, &agent, "artifacts/commit", commit.clone()).await;
        assert_eq!(code(&early), (409, "upload_incomplete".into()));
        assert_eq!(put(&store, place["url"].as_str().unwrap(), content.as_bytes()).await, 201);
        ok(&world, &agent, "artifacts/commit", commit.clone()).await;
        ok(&world, &agent, "artifacts/commit", commit).await; // a repeat
    };
    upload("out/b.txt", "first").await;
    upload("out/a.txt", "a").await;
    upload("out/b.txt", "second").await;
    let list = async |after, limit| {
        let ask = ListArtifacts { job_id: agent.job, after, limit };
        world.bus().ask(&Actor::service("test"), &ask).await.unwrap()
    };
    let page = list(None, 1).await;
    assert_eq!((page.items[0].path.as_str(), page.items[0].index, page.more), ("out/a.txt", 2, true));
    let page = list(Some((2, "out/a.txt".into())), 10).await;
    assert_eq!((page.items.len(), page.more), (1, false));
    assert_eq!((page.items[0].size, page.items[0].sha256.as_str()), (6, sha256(b"second").as_str()));
    let open = OpenArtifact { job_id: agent.job, index: 2, path: "out/b.txt".into() };
    let place = world.bus().ask(&Actor::service("test"), &open).await.unwrap();
    let request = http::Request::get(&place.url).body(Body::empty()).unwrap();
    let response = store.router().oneshot(request).await.unwrap();
    assert_eq!(response.headers()[http::header::CONTENT_DISPOSITION], "attachment; filename*=UTF-8''b.txt");
    assert_eq!(axum::body::to_bytes(response.into_body(), 100).await.unwrap(), "second");
    let none = OpenArtifact { job_id: agent.job, index: 0, path: "out/b.txt".into() };
    let none = world.bus().ask(&Actor::service("test"), &none).await;
    assert!(matches!(none, Err(RequestError::Refused(refusal)) if refusal.code == "not_found"));
    for path in ["", "/x", "a//b", "a/../b", "a\nb", &"x".repeat(1025), &"x/".repeat(64), "a\0"] {
        let file = json!({ "path": path, "size": 1, "sha256": sha256(b"x") });
        let refused = ask(&world, &agent, "artifacts/uploads", json!({ "files": [file] })).await;
        assert_eq!(code(&refused).1, "artifact_path_invalid", "{path}");
    }
    let file = json!({ "path": "large", "size": (3u64 << 30) + 1, "sha256": sha256(b"x") });
    let refused = ask(&world, &agent, "artifacts/uploads", json!({ "files": [file] })).await;
    assert_eq!(code(&refused), (422, "artifact_too_large".into()));
}

#[tokio::test]
async fn what_is_past_its_retention_is_invisible_at_once_and_gone_a_day_later() {
    let world = World::new(Config::default()).await;
    let store = store(&world).await;
    let (project, now) = (fresh(), Utc::now());
    let agent = task(&world, project, fresh(), "build", 0).await;
    upload_chunk(&world, &store, &agent, "kept").await;
    ok(&world, &agent, "cache/commit", cache("k", &["kept"])).await;
    let given_up = place_chunk(&world, &agent, "never committed").await;
    assert_eq!(put(&store, given_up["url"].as_str().unwrap(), b"never committed").await, 201);
    let chunk: Uuid = sqlx::query_scalar("SELECT object_id FROM output_processor.chunks")
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
    let key = Key::new(format!("stores/{chunk}")).unwrap();
    let forsaken = Key::new(format!("stores/{}", given_up["object"].as_str().unwrap())).unwrap();

    assert_eq!(world.service().sweep_stores(now + TimeDelta::days(14)).await.unwrap(), 0);
    assert!(store.head(&forsaken).await.unwrap().is_some(), "marked, but there for a day");
    assert_eq!(
        world.service().sweep_stores(now + TimeDelta::days(15) + TimeDelta::hours(2)).await.unwrap(),
        1
    );
    assert!(store.head(&forsaken).await.unwrap().is_none());
    assert_eq!(ok(&world, &agent, "cache/find", json!({ "keys": ["k"] })).await["hit"], Value::Null);
    assert!(store.head(&key).await.unwrap().is_some(), "the bytes stay for a day");
    let wanted = json!({ "chunks": [sha256(b"kept")] });
    assert_eq!(ok(&world, &agent, "chunks/missing", wanted).await["missing"], json!([0]));
    // The same bytes once more: the new object is another, so that removing the old one takes nothing away.
    upload_chunk(&world, &store, &agent, "kept").await;
    assert_eq!(ok(&world, &agent, "cache/commit", cache("k", &["kept"])).await["outcome"], "stored");
    let later = now + TimeDelta::days(16) + TimeDelta::hours(3);
    assert_eq!(
        world.service().sweep_stores(later).await.unwrap(),
        1,
        "the old one; the new one is only marked"
    );
    assert!(store.head(&key).await.unwrap().is_none());
}

#[tokio::test]
async fn a_job_may_have_its_caches_kept_for_less_time_than_the_server_keeps_them() {
    let world = World::new(Config::default()).await;
    let store = store(&world).await;
    let project = fresh();
    for (name, days, kept) in [("short", Some(2), 2), ("long", Some(30), 15), ("usual", None, 15)] {
        let agent = task(&world, project, fresh(), name, 0).await;
        sqlx::query("UPDATE output_processor.jobs SET cache_days = $1 WHERE job_id = $2")
            .bind(days)
            .bind(agent.job.uuid())
            .execute(&world.database.pool)
            .await
            .unwrap();
        upload_chunk(&world, &store, &agent, name).await;
        ok(&world, &agent, "cache/commit", cache(name, &[name])).await;
        let found: i32 = sqlx::query_scalar(
            "SELECT round(extract(epoch FROM due - created_at) / 86400)::int FROM output_processor.caches WHERE key = $1",
        )
        .bind(name)
        .fetch_one(&world.database.pool)
        .await
        .unwrap();
        assert_eq!(found, kept, "{name}");
    }
}

/// Says which runs of a diamond's jobs count, by name; of the others it does not.
struct Conductor(Arc<Mutex<BTreeMap<&'static str, Value>>>);

#[async_trait]
impl Responder for Conductor {
    async fn respond(&self, _: Request) -> Result<Value, RequestError> {
        let counts = self.0.lock().unwrap();
        let job = |name: &str, requires: &[&str]| json!({ "name": name, "job_id": counts.get(name), "requires": requires });
        Ok(json!([
            job("last", &["left", "right"]),
            job("left", &["first"]),
            job("right", &["first"]),
            job("first", &[]),
        ]))
    }
}

#[tokio::test]
async fn layers_come_in_the_order_of_the_graph_and_only_of_the_run_that_counts() {
    let world = World::new(Config::default()).await;
    let counts = Arc::<Mutex<BTreeMap<_, _>>>::default();
    world.bus().respond("conductor", Arc::new(Conductor(counts.clone())));
    let store = store(&world).await;
    let (project, workspace) = (fresh(), fresh());
    let persist = async |name: &str, index: i32| {
        let agent = task(&world, project, workspace, name, index).await;
        upload_chunk(&world, &store, &agent, &format!("{name}{index}")).await;
        let layer = json!({ "step": 103, "archive": archive(&[&format!("{name}{index}")]) });
        ok(&world, &agent, "workspace/commit", layer.clone()).await;
        ok(&world, &agent, "workspace/commit", layer).await; // a repeat
        agent.job
    };
    persist("last", 0).await;
    persist("right", 0).await;
    let former = persist("left", 0).await;
    let left = persist("left", 1).await; // a rerun's job: another id
    persist("first", 0).await;
    persist("beside", 0).await;
    let agent = task(&world, project, workspace, "attaches", 0).await;
    // Without a word on it the last that left something counts.
    let layers = ok(&world, &agent, "workspace/layers", json!({})).await["layers"].clone();
    let seen: Vec<_> = layers
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| (layer["job_name"].as_str().unwrap(), layer["after"].to_string()))
        .collect();
    let expected = [("first", "[]"), ("left", "[0]"), ("right", "[0]"), ("last", "[0,1,2]")];
    assert_eq!(seen, expected.map(|(name, after)| (name, after.to_owned())));
    assert_eq!(layers[1]["job_id"], json!(left));
    counts.lock().unwrap().insert("left", json!(former));
    let layers = ok(&world, &agent, "workspace/layers", json!({})).await["layers"].clone();
    assert_eq!((&layers[1]["job_id"], layers.as_array().unwrap().len()), (&json!(former), 4));
    // One that left nothing has no layer, whatever other runs of it left.
    counts.lock().unwrap().insert("left", json!(fresh()));
    let layers = ok(&world, &agent, "workspace/layers", json!({})).await["layers"].clone();
    assert_eq!(layers.as_array().unwrap().len(), 3);
}
