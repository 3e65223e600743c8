use crate::world::{READER, TOKEN, World};
use contracts::delivery::DeliveryReceived;
use kit::keys::SourceClaims;
use std::{path::Path, process::Output};
use tokio::process::Command;

async fn git(dir: &Path, arguments: &[&str]) -> Output {
    Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=Ada", "-c", "user.email=ada@example.test", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .await
        .unwrap()
}

async fn ok(dir: &Path, arguments: &[&str]) -> String {
    let output = git(dir, arguments).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "git {arguments:?}: {said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_makes_deliveries_and_says_which_pipelines_came_of_it() {
    let world = World::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, world.router.clone()).into_future());
    let work = tempfile::tempdir().unwrap();
    let dir = work.path();
    ok(dir, &["init", "-q"]).await;
    // Larger than git's buffer, so that the push comes in chunks.
    let noise: Vec<u8> =
        (0..3_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    std::fs::write(dir.join("noise"), noise).unwrap();
    std::fs::write(dir.join("file"), "one\n").unwrap();
    ok(dir, &["add", "."]).await;
    ok(dir, &["commit", "-q", "-m", "One"]).await;
    ok(dir, &["tag", "-a", "v1", "-m", "first"]).await;
    let remote = format!("http://any:{TOKEN}@{address}/git/local/fresh.git");
    let said = ok(dir, &["push", &remote, "main", "v1"]).await;
    assert!(
        said.contains("remote: pipeline 1: http://gantry.test/projects/git/local/fresh/pipelines/1"),
        "{said}"
    );
    assert!(said.contains("remote: pipeline 2: "), "{said}");

    std::fs::write(dir.join("file"), "two\n").unwrap();
    ok(dir, &["commit", "-q", "-am", "Two\n\n[skip ci]"]).await;
    ok(dir, &["push", &remote, "main", "main:refs/heads/side/branch"]).await;
    ok(dir, &["commit", "-q", "--allow-empty", "-m", "Three"]).await;
    ok(dir, &["push", "-o", "other=1", "-o", "ci.skip", &remote, "main"]).await;
    // Nothing new: nothing happens. A deletion is no delivery.
    ok(dir, &["push", &remote, "main"]).await;
    ok(dir, &["push", &remote, ":side/branch"]).await;

    let events: Vec<(serde_json::Value, Option<serde_json::Value>)> =
        sqlx::query_as("SELECT body, personal FROM api.events WHERE kind = 'delivery.received' ORDER BY occurred_at, version")
            .fetch_all(&world.db.pool)
            .await
            .unwrap();
    let found: Vec<DeliveryReceived> =
        events.iter().map(|(body, _)| serde_json::from_value(body.clone()).unwrap()).collect();
    assert_eq!(found.len(), 5);
    assert_eq!(found.iter().filter(|delivery| delivery.no_pipeline).count(), 1);
    assert_eq!(found.iter().filter(|delivery| delivery.skip).count(), 2);
    assert_eq!(found.iter().filter(|delivery| delivery.before.is_some()).count(), 2);
    assert_eq!(found[0].revision, found[1].revision, "an annotated tag is delivered as its commit");
    assert_eq!(events[0].1.as_ref().unwrap()["subject"], "One");

    // Readers fetch, with a token or with a task's claims; they do not push.
    let clone = work.path().join("clone");
    let reader = format!("http://any:{READER}@{address}/git/local/fresh.git");
    ok(dir, &["clone", "-q", &reader, clone.to_str().unwrap()]).await;
    assert!(!git(dir, &["push", &reader, "HEAD:refs/heads/x"]).await.status.success());
    let claims = SourceClaims {
        project_slug: "git/local/fresh".to_owned(),
        expires_at: chrono::Utc::now().timestamp_millis() + 60_000,
    };
    let source = world.keys.seal_claims("source", &claims);
    let task = format!("http://x:{source}@{address}/git/local/fresh.git");
    ok(dir, &["fetch", "-q", &task, &found[0].revision]).await;
    assert!(!git(dir, &["push", &task, "HEAD:refs/heads/y"]).await.status.success());
    let other = format!("http://x:{source}@{address}/git/local/demo.git");
    assert!(!git(dir, &["fetch", "-q", &other]).await.status.success());
    let nobody = format!("http://{address}/git/local/fresh.git");
    assert!(!git(dir, &["fetch", "-q", &nobody]).await.status.success());
    world.stop.cancel();
}
