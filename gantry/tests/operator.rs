//! What operators ask of a suite, against the real schemas.

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
};
use bus::{Bus, Fault, Group};
use contracts::{Actor, Envelope, Event, NewEvent, domain::Bootstrap, domain::OrgCreated};
use eventstore::{Key, Store, Tx};
use gantry_server::{
    adapters::Stored,
    config::Config,
    migrate,
    operator::{
        health, invariants,
        routes::{self, Operator},
        verify,
    },
};
use http_body_util::BodyExt;
use ids::OrgId;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

const TOKEN: &str = "gtp_a-token-of-the-administrator-that-is-long-enough";
const LIMIT: Duration = Duration::from_secs(30);

/// Schemas, the directory for tokens, and the operators' routes.
struct World {
    pool: PgPool,
    bus: Bus,
    router: Router,
    blobs: tempfile::TempDir,
    stop: CancellationToken,
    _end: DropGuard,
}

impl World {
    async fn new() -> Self {
        let pool = testkit::postgres().await.pool;
        migrate::all(&pool.clone().into()).await.unwrap();
        let bus = Bus::local(pool.clone());
        let stop = CancellationToken::new();
        let deps = domain::Deps { pool: pool.clone(), bus: bus.clone() };
        domain::start(deps, stop.clone()).await.unwrap();
        let ask = Bootstrap { token_sha256: hex::encode(Sha256::digest(TOKEN)) };
        bus.ask(&Actor::service("test"), &ask).await.unwrap();
        let blobs = tempfile::tempdir().unwrap();
        blobs::FsBlobs::open(blobs.path(), &["a key of this test"]).await.unwrap();
        let operator = Operator {
            bus: bus.clone(),
            databases: pool.clone().into(),
            roles: vec!["domain"],
            blobs: Stored::Fs(blobs::FsBlobs::open_for_audit(blobs.path())),
            config: Arc::new(Config::default()),
        };
        let health = health::Health {
            bus: bus.clone(),
            databases: pool.clone().into(),
            roles: vec!["domain"],
            draining: stop.clone(),
        };
        let router = routes::router(operator).merge(health::router(health));
        Self { pool, bus, router, blobs, _end: stop.clone().drop_guard(), stop }
    }

    fn stored(&self) -> Stored {
        Stored::Fs(blobs::FsBlobs::open_for_audit(self.blobs.path()))
    }

    async fn call(&self, method: Method, path: &str, token: &str, body: Value) -> (StatusCode, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("circle-token", token)
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let (status, text) = self.call(Method::GET, path, TOKEN, Value::Null).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

#[tokio::test]
async fn a_migrated_suite_is_clean_and_a_broken_promise_is_named() {
    let world = World::new().await;
    migrate::all(&world.pool.clone().into()).await.unwrap();
    let (_, all) = world.get("/internal/invariants").await;
    assert_eq!(all["clean"], true, "{all}");
    assert!(verify::verify(&world.pool.clone().into(), &world.stored()).await.unwrap().clean);

    let workflow = uuid::Uuid::from_u128(7);
    sqlx::query(
        "INSERT INTO conductor.workflows (id, version, pipeline_id, pipeline_number, project_id, project, name, status, counts,
             workspace_id, vcs, trigger, created_at, next_action_at)
         VALUES ($1, 1, $1, 1, $1, '{}', 'main', 'running', '{\"running\": 2}', $1, '{}', '{}', now(), now() - interval '1 hour')",
    )
    .bind(workflow)
    .execute(&world.pool)
    .await
    .unwrap();
    let checked = invariants::check(&world.pool.clone().into()).await.unwrap();
    let broken: Vec<_> = checked.iter().filter(|one| one.violations > 0).map(|one| one.id.as_str()).collect();
    assert_eq!(broken, ["R-8.workflows", "R-11"]);
    assert_eq!(checked.iter().find(|one| one.id == "R-11").unwrap().sample_ids, [workflow.to_string()]);
    let report = verify::verify(&world.pool.clone().into(), &world.stored()).await.unwrap();
    assert!(!report.clean && report.findings.iter().any(|found| found.what.contains(&workflow.to_string())));
}

#[tokio::test]
async fn operators_routes_are_for_administrators() {
    let world = World::new().await;
    for path in [
        "/internal/invariants",
        "/internal/verify",
        "/internal/topology",
        "/internal/dead-letters",
        "/metrics",
    ] {
        let (status, _) = world.call(Method::GET, path, "gtp_of-nobody", Value::Null).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(world.get(path).await.0, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn the_administrators_token_is_replaced() {
    let world = World::new().await;
    let next = "gtp_another-token-of-the-administrator-long-enough";
    let (status, _) =
        world.call(Method::POST, "/internal/admin-token", TOKEN, json!({ "token": "short" })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let (status, said) =
        world.call(Method::POST, "/internal/admin-token", TOKEN, json!({ "token": next })).await;
    assert_eq!(status, StatusCode::OK, "{said}");
    let old = world.call(Method::GET, "/internal/leases", TOKEN, Value::Null).await;
    assert_eq!(old.0, StatusCode::UNAUTHORIZED);
    assert_eq!(world.call(Method::GET, "/internal/leases", next, Value::Null).await.0, StatusCode::OK);
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let world = World::new().await;
    let (status, ready) = world.get("/readyz").await;
    assert_eq!((status, &ready["waiting_for"]), (StatusCode::OK, &json!([])));
    world.bus.admission().close("disk_full", "3 MiB are left");
    let (status, ready) = world.get("/readyz").await;
    assert_eq!(status, StatusCode::OK, "everything but new work goes on");
    assert_eq!(ready["checks"]["new_work"]["reason"], "3 MiB are left");
    world.pool.close().await;
    let (status, ready) = world.get("/readyz").await;
    assert_eq!((status, &ready["waiting_for"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(["database"])));
    assert_eq!(world.get("/healthz").await.0, StatusCode::OK);
    world.stop.cancel();
    let (_, ready) = world.get("/readyz").await;
    assert_eq!(ready["waiting_for"][1], "the end of this process");
}

#[tokio::test]
async fn topology_says_who_is_behind_and_who_asks_whom() {
    let world = World::new().await;
    sqlx::query(
        "INSERT INTO permissions.cursors (group_name, source, lane, lanes)
         SELECT 'permissions.users', 'domain', n, 4 FROM generate_series(0, 3) n",
    )
    .execute(&world.pool)
    .await
    .unwrap();
    let group = async || {
        let (_, answer) = world.get("/internal/topology").await;
        let services = answer["services"].as_array().unwrap().clone();
        let permissions = services.iter().find(|service| service["service"] == "permissions").unwrap();
        (permissions["groups"][0].clone(), answer)
    };
    let (waits, answer) = group().await;
    assert_eq!((&waits["group"], &waits["source"]), (&json!("permissions.users"), &json!("domain")));
    assert_eq!(waits["behind"]["events"], 1, "the administrator was made: {waits}");
    assert!(
        waits["behind"]["oldest_seconds"].as_f64().is_some_and(|age| (0.0..60.0).contains(&age)),
        "{waits}"
    );
    assert_eq!(waits["lanes"].as_array().map(Vec::len), Some(4));
    assert_eq!((&answer["bus"]["kind"], &waits["queue"]), (&json!("local"), &Value::Null));
    let asks = answer["asks"].as_array().unwrap();
    let one = asks.iter().find(|asks| asks["from"] == "api" && asks["to"] == "conductor").unwrap();
    assert!(one["requests"].as_array().unwrap().contains(&json!("workflow.cancel")), "{one}");

    sqlx::query("UPDATE permissions.cursors SET (xid, seq) = (SELECT xid, seq FROM domain.events ORDER BY xid DESC, seq DESC LIMIT 1)")
        .execute(&world.pool)
        .await
        .unwrap();
    let (done, _) = group().await;
    assert_eq!(done["behind"], json!({ "events": 0, "at_least": false, "oldest_seconds": null }));
}

/// Refuses everything.
struct Stubborn;

#[async_trait::async_trait]
impl Group for Stubborn {
    fn name(&self) -> &'static str {
        "permissions.stubborn"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[OrgCreated::TYPE]
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, _: &mut Tx, _: &[Envelope]) -> Result<(), Fault> {
        Err(Fault::Dead(anyhow::anyhow!("this is not for us")))
    }
}

#[tokio::test]
async fn dead_letters_are_listed_and_given_up_with_a_reason() {
    let world = World::new().await;
    let store = Store::attach(world.pool.clone(), "permissions");
    let conductor = Store::attach(world.pool.clone(), "conductor");
    let mut tx = conductor.begin(&[]).await.unwrap();
    let org_id = OrgId::new();
    let body = OrgCreated { org_id, name: "x".into() };
    let event = NewEvent::new("org", org_id.uuid(), Actor::service("test"), &body)
        .with_personal(json!({ "name": "Ana" }));
    tx.append(&[event]).await.unwrap();
    tx.commit().await.unwrap();
    world.bus.consume(&store, &["conductor"], Arc::new(Stubborn), world.stop.clone());

    let list = async || world.get("/internal/dead-letters?service=permissions").await.1["items"].clone();
    testkit::until("the message is given up", LIMIT, async || {
        list().await.as_array().is_some_and(|items| items.len() == 1)
    })
    .await;
    let items = list().await;
    let letter = &items[0];
    assert_eq!(letter["group"], "permissions.stubborn");
    assert!(letter["error"].as_str().unwrap().contains("this is not for us"), "{letter}");
    assert!(!letter.to_string().contains("Ana"), "people's names stay out: {letter}");

    let act = async |verb: &str, body: Value| {
        world.call(Method::POST, &format!("/internal/dead-letters/{verb}"), TOKEN, body).await
    };
    assert_eq!(act("replay", json!({})).await.0, StatusCode::BAD_REQUEST, "all must be said");
    let which = json!({ "id": letter["message"]["id"] });
    let (status, said) = act("discard", json!({ "which": which })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "a reason is needed: {said}");
    let (status, said) = act("replay", json!({ "which": which })).await;
    assert_eq!((status, said.as_str()), (StatusCode::OK, "{\"replayed\":1}"));
    testkit::until("it is refused again", LIMIT, async || {
        list().await.as_array().is_some_and(|items| items.len() == 1)
    })
    .await;
    let (status, said) = act("discard", json!({ "which": which, "why": "a test" })).await;
    assert_eq!((status, said.as_str()), (StatusCode::OK, "{\"discarded\":1}"));
    assert_eq!(list().await, json!([]));
    let kept: i64 =
        sqlx::query_scalar("SELECT count(*) FROM permissions.acts WHERE kind = 'dead_letter.discarded'")
            .fetch_one(&world.pool)
            .await
            .unwrap();
    assert_eq!(kept, 1);
}
