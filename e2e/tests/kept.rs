//! Data folders of earlier builds: the present one opens them, finds everything, verifies them and goes on.
//!
//! `e2e/kept/VERSION/` holds the database as SQL (any later PostgreSQL reads it), the other files, and what must be
//! found. `GANTRY_KEEP=1` keeps the present version; do it when a build is tagged, and never change what is kept.

use anyhow::{Context, bail, ensure};
use gantry_e2e::{Suite, binary, postgres, until};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(120);
/// Folders of a data folder that belong to what is kept; the rest is the machine's or a process's.
const FILES: [&str; 4] = ["blobs", "git", "keys", "journal"];
const SLUG: &str = "git/local/kept";
const CONFIG: &str = r#"version: 2.1
jobs:
  build:
    machine: true
    steps:
      - checkout
      - run: { name: secret, command: 'echo "${#KEPT_SECRET} ${#KEPT_SHARED}"; test "${#KEPT_SECRET}" = 11' }
      - run: { name: talk, command: "for i in $(seq 200); do echo line $i; done" }
  breaks: { machine: true, parallelism: 2, steps: [{ run: exit $CIRCLE_NODE_INDEX }] }
  after: { machine: true, steps: [{ run: echo after }] }
workflows:
  main:
    jobs:
      - hold: { type: approval }
      - build: { context: [kept], requires: [hold] }
      - after: { requires: [build] }
  second:
    jobs: [breaks]
"#;

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kept")
}

async fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().await.with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A program that speaks to the data folder's own database.
fn client(program: &str, data: &Path) -> Command {
    let mut command = Command::new(postgres(program));
    let folder = fs::canonicalize(data.join("run")).unwrap_or_else(|_| data.join("run"));
    command.arg("-h").arg(folder).args(["-U", "gantry", "-d", "postgres"]);
    command
}

/// Waits for the end of the newest instance of a workflow.
async fn ended(suite: &Suite, pipeline: &str, name: &str, count: usize) -> anyhow::Result<Value> {
    until("the workflow's end", LIMIT, || async {
        let mut found = suite.items(&format!("/api/v2/pipeline/{pipeline}/workflow")).await?;
        found.retain(|workflow| workflow["name"] == name);
        found.sort_by_key(|workflow| workflow["created_at"].as_str().unwrap_or_default().to_owned());
        let last = found.last().cloned();
        Ok(last.filter(|last| found.len() == count && !last["stopped_at"].is_null()))
    })
    .await
}

async fn approve(suite: &Suite, pipeline: &str) -> anyhow::Result<()> {
    until("the approval", LIMIT, || async {
        for workflow in suite.items(&format!("/api/v2/pipeline/{pipeline}/workflow")).await? {
            let id = workflow["id"].as_str().unwrap_or_default();
            for job in suite.items(&format!("/api/v2/workflow/{id}/job")).await? {
                if job["status"] == "on_hold" {
                    let job = job["id"].as_str().unwrap_or_default();
                    let (status, answer) =
                        suite.post(&format!("/api/v2/workflow/{id}/approve/{job}"), &json!({})).await?;
                    ensure!(status == 202, "{status} {answer}");
                    return Ok(Some(()));
                }
            }
        }
        Ok(None)
    })
    .await
}

/// What a build knows of the kept project: everything here must be found again.
async fn found(suite: &Suite, pipeline: &str) -> anyhow::Result<Value> {
    let mut workflows = Vec::new();
    for workflow in suite.items(&format!("/api/v2/pipeline/{pipeline}/workflow")).await? {
        let id = workflow["id"].as_str().context("no id")?;
        let jobs = suite.items(&format!("/api/v2/workflow/{id}/job")).await?;
        let jobs: Vec<_> = jobs
            .iter()
            .map(|job| json!({ "id": job["id"], "name": job["name"], "status": job["status"], "number": job["job_number"] }))
            .collect();
        workflows
            .push(json!({ "id": id, "name": workflow["name"], "status": workflow["status"], "jobs": jobs }));
    }
    let number = workflows
        .iter()
        .flat_map(|workflow| workflow["jobs"].as_array().into_iter().flatten())
        .find(|job| job["name"] == "build")
        .and_then(|job| job["number"].as_i64())
        .context("no number")?;
    let build = suite.get(&format!("/api/v1.1/project/{SLUG}/{number}")).await?;
    let talk = build["steps"].as_array().into_iter().flatten().find(|step| step["name"] == "talk");
    let step = talk.and_then(|step| step["actions"][0]["step_id"].as_str()).context("no step")?;
    let log = suite.bytes(&format!("/logs/{step}/raw")).await?;
    let variables = suite.items(&format!("/api/v2/project/{SLUG}/envvar")).await?;
    Ok(json!({
        "pipeline": pipeline, "step": step, "log": String::from_utf8(log)?, "workflows": workflows,
        "variables": variables.iter().map(|variable| variable["name"].clone()).collect::<Vec<_>>(),
    }))
}

/// Makes a small instance of this build and keeps it.
async fn keep(folder: &Path) -> anyhow::Result<()> {
    let work = tempfile::tempdir()?;
    let data = work.path().join("data");
    let suite = Suite::up(&data, &[]).await?;
    let files = work.path().join("files");
    fs::create_dir_all(files.join(".circleci"))?;
    fs::write(files.join("only.txt"), "nothing is built\n")?;
    suite.push_as(work.path(), "kept", &files, "refs/heads/side", "Begin [skip ci]").await?;
    let body = json!({ "name": "KEPT_SECRET", "value": "kept-secret" });
    let (status, answer) = suite.post(&format!("/api/v2/project/{SLUG}/envvar"), &body).await?;
    ensure!(status == 201, "{status} {answer}");
    let body = json!({ "name": "kept", "owner": { "slug": "git/local", "type": "organization" } });
    let (_, context) = suite.post("/api/v2/context", &body).await?;
    let path = format!(
        "/api/v2/context/{}/environment-variable/KEPT_SHARED",
        context["id"].as_str().unwrap_or_default()
    );
    suite.request("PUT", &path).json(&json!({ "value": "kept-shared" })).send().await?.error_for_status()?;
    fs::write(files.join(".circleci/config.yml"), CONFIG)?;
    suite.push(work.path(), "kept", &files, "refs/heads/main").await?;
    let pipelines = suite.items(&format!("/api/v2/project/{SLUG}/pipeline")).await?;
    let pipeline = pipelines.first().and_then(|pipeline| pipeline["id"].as_str()).context("no pipeline")?;
    approve(&suite, pipeline).await?;
    ended(&suite, pipeline, "main", 1).await?;
    ended(&suite, pipeline, "second", 1).await?;

    fs::create_dir_all(folder)?;
    let mut expected = found(&suite, pipeline).await?;
    let sql = run(client("pg_dump", &data).args(["--no-owner", "--no-privileges", "--inserts"])).await?;
    let xid = run(client("psql", &data).args(["-At", "-c", "SELECT pg_current_xact_id()"])).await?;
    expected["xid"] = xid.parse::<u64>()?.into();
    fs::write(folder.join("dump.sql"), sql)?;
    run(Command::new("gzip").args(["-9nf"]).arg(folder.join("dump.sql"))).await?;
    let present = FILES.iter().filter(|name| data.join(name).exists());
    run(Command::new("tar").arg("-C").arg(&data).arg("-czf").arg(folder.join("files.tar.gz")).args(present))
        .await?;
    fs::write(folder.join("expected.json"), format!("{expected:#}\n"))?;
    suite.down().await
}

/// Puts a kept instance in the place of a fresh one.
async fn restore(folder: &Path, work: &Path, expected: &Value) -> anyhow::Result<PathBuf> {
    let data = work.join("data");
    // Its database goes on without the server.
    Suite::up(&data, &[]).await?.kill().await?;
    let drop = "DO $$ DECLARE s text; BEGIN FOR s IN SELECT nspname FROM pg_namespace
        WHERE nspname NOT LIKE 'pg\\_%' AND nspname NOT IN ('information_schema', 'public')
        LOOP EXECUTE format('DROP SCHEMA %I CASCADE', s); END LOOP; END $$;
        DROP SCHEMA public CASCADE; CREATE SCHEMA public;";
    // Connections of the dead server hold locks until they notice.
    run(client("psql", &data).args(["-q", "-v", "ON_ERROR_STOP=1", "-c", drop])).await?;
    let sql = run(Command::new("gzip").arg("-dc").arg(folder.join("dump.sql.gz"))).await?;
    let plain = work.join("dump.sql");
    fs::write(&plain, sql.replace("CREATE SCHEMA public;", ""))?;
    run(client("psql", &data).args(["-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&plain)).await?;
    // Positions in the event tables hold transaction ids: this cluster must be past those of the old one.
    let until = expected["xid"].as_u64().context("no xid")? + 1;
    let burn = "SET synchronous_commit = off;\n".to_owned() + &"SELECT pg_current_xact_id();\n".repeat(1000);
    fs::write(&plain, burn)?;
    loop {
        run(client("psql", &data).args(["-q", "-At", "-f"]).arg(&plain)).await?;
        let now = run(client("psql", &data).args(["-At", "-c", "SELECT pg_current_xact_id()"])).await?;
        if now.parse::<u64>()? > until {
            break;
        }
    }
    for name in FILES {
        let _ = fs::remove_dir_all(data.join(name));
    }
    run(Command::new("tar").arg("-C").arg(&data).arg("-xzf").arg(folder.join("files.tar.gz"))).await?;
    Ok(data)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kept_data_folder_opens_verifies_and_goes_on() -> anyhow::Result<()> {
    if std::env::var_os("GANTRY_KEEP").is_some() {
        let folder = kept().join(env!("CARGO_PKG_VERSION"));
        if folder.exists() {
            bail!("{} is kept already; what is kept never changes", folder.display());
        }
        keep(&folder).await?;
    }
    let mut count = 0;
    for entry in fs::read_dir(kept()).context("nothing is kept")? {
        let folder = entry?.path();
        let name = folder.display().to_string();
        opens(&folder).await.with_context(|| name.clone())?;
        println!("ok   {name}");
        count += 1;
    }
    ensure!(count > 0, "nothing is kept");
    Ok(())
}

async fn opens(folder: &Path) -> anyhow::Result<()> {
    let expected: Value = serde_json::from_str(&fs::read_to_string(folder.join("expected.json"))?)?;
    let pipeline = expected["pipeline"].as_str().context("no pipeline")?;
    let work = tempfile::tempdir()?;
    let data = restore(folder, work.path(), &expected).await?;
    let suite = Suite::up(&data, &[]).await?;
    let mut now = found(&suite, pipeline).await?;
    now["xid"] = expected["xid"].clone();
    ensure!(now == expected, "found {now:#}, expected {expected:#}");
    run(Command::new(binary()).args(["admin", "verify", "--data"]).arg(&data)).await?;
    // It goes on: the plan, the repository, the secrets and the numbers are there.
    let main = ended(&suite, pipeline, "main", 1).await?;
    let path = format!("/api/v2/workflow/{}/rerun", main["id"].as_str().unwrap_or_default());
    let (status, answer) = suite.post(&path, &json!({})).await?;
    ensure!(status == 202, "the rerun was answered {status} {answer}");
    approve(&suite, pipeline).await?;
    let again = ended(&suite, pipeline, "main", 2).await?;
    ensure!(again["status"] == "success", "the rerun is {}", again["status"]);
    run(Command::new(binary()).args(["admin", "verify", "--data"]).arg(&data)).await?;
    suite.down().await
}
