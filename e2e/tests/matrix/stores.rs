//! Rows whose victims are the servers below the suite.

use crate::{
    proxy::Way,
    world::{Case, LIMITED, within},
};
use anyhow::{Context, ensure};
use gantry_e2e::{stack::run, until};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Takes a server away in the way that the seed gives.
async fn gone(case: &Case<'_>, name: &str, signals: &[&'static str]) -> anyhow::Result<()> {
    let signal = case.pick(signals);
    case.world.stack.stop(name, signal).await?;
    case.saw(format!("SIG{signal} to {name}, {} jobs begun", case.ran()?));
    Ok(())
}

async fn return_of(case: &Case<'_>, name: &str) -> anyhow::Result<()> {
    case.back();
    case.world.stack.start(name).await
}

/// F22: changes are refused and what was acknowledged stays.
pub async fn postgres_away(case: &Case<'_>) -> anyhow::Result<()> {
    gone(case, "postgres", &["INT", "KILL", "STOP"]).await?;
    let project = case.besides();
    case.world.ledger.prepare(&project, &crate::world::FAN).await?;
    let begun = Instant::now();
    let refused = match within(LIMITED, case.world.ledger.push_again(&case.world.suite, &project)).await {
        Err(_) => Ok(format!("refused in {:.1} s", begun.elapsed().as_secs_f64())),
        Ok(_) => Err(anyhow::anyhow!("taken without the database")),
    };
    case.claim("a push meanwhile", refused);
    case.last().await;
    return_of(case, "postgres").await?;
    // The same push, repeated by whoever got no answer.
    until("the push, repeated", LIMITED * 5, || async {
        within(LIMITED, case.world.ledger.push_again(&case.world.suite, &project)).await.map(Some)
    })
    .await?;
    case.judge_besides(project);
    Ok(())
}

/// F23: no partial effects.
pub async fn postgres_read_only(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    let set = async |to: &str| -> anyhow::Result<()> {
        run(&mut stack.psql(&format!("ALTER SYSTEM SET default_transaction_read_only = {to}"))?).await?;
        run(&mut stack.psql("SELECT pg_reload_conf()")?).await.map(|_| ())
    };
    set("on").await?;
    case.saw(format!("read-only at {} jobs begun", case.ran()?));
    case.edit_refused().await;
    case.last().await;
    run(stack
        .psql("ALTER SYSTEM RESET default_transaction_read_only")?
        .env("PGOPTIONS", "-c default_transaction_read_only=off"))
    .await?;
    case.back();
    run(&mut stack.psql("SELECT pg_reload_conf()")?).await.map(|_| ())
}

/// F24: everybody waits behind one lock, and nobody for ever.
pub async fn postgres_locked(case: &Case<'_>) -> anyhow::Result<()> {
    let table = case.pick(&["conductor.workflows", "dispatcher.tasks", "pipelines.pipelines"]);
    let (service, _) = table.split_once('.').context("a table of a service")?;
    let lock = format!(
        "BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep({}); COMMIT",
        case.outage.as_secs()
    );
    let mut holder = case.world.stack.psql_of(service, &lock)?;
    case.saw(format!("{table} locked at {} jobs begun", case.ran()?));
    run(&mut holder).await?;
    case.back();
    Ok(())
}

/// F25: work goes on, pages show what the views have, records follow from the journal. Data that are gone are made again
/// while everything goes on.
pub async fn mongo_away(case: &Case<'_>) -> anyhow::Result<()> {
    mongo_dropped(case).await.context("the database dropped")?;
    gone(case, "mongo", &["KILL", "TERM", "STOP"]).await?;
    case.push_meanwhile().await;
    case.read_log().await;
    let build = format!("/api/v1.1/project/git/local/{}/1", case.project);
    let page = case.world.ask("GET", &build, None).await.and_then(|(status, text)| {
        ensure!(status == 200, "answered {status} {text}");
        Ok("answered 200".to_owned())
    });
    case.claim("a page of a build", page);
    case.last().await;
    return_of(case, "mongo").await
}

/// Every document, by its name, without the time at which it was stored.
async fn documents(case: &Case<'_>) -> anyhow::Result<BTreeMap<String, Value>> {
    let found = case
        .world
        .stack
        .documents(&[
            "SET documentdb_core.bsonUseEJson = true",
            "SELECT document FROM documentdb_api.collection('gantry', 'records')",
        ])
        .await?;
    let mut documents = BTreeMap::new();
    for line in found.lines().filter(|line| !line.is_empty()) {
        let mut document: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if let Some(fields) = document.as_object_mut() {
            fields.remove("updated_at");
        }
        let name = document["_id"].as_str().context("a document without a name")?.to_owned();
        documents.insert(name, document);
    }
    Ok(documents)
}

/// Jobs run while the database is dropped and made again. What it had of steps that were over is the same afterwards.
async fn mongo_dropped(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    let step = format!("step/{}", case.world.step.0);
    let ran = case.ran()?;
    let before = documents(case).await?;
    ensure!(before.contains_key(&step), "a step that is over has no document: {:?}", before.keys());
    stack.documents(&["SELECT documentdb_api.drop_database('gantry')"]).await?;
    let begun = Instant::now();
    let done = rebuilt(case).await?;
    let took = begun.elapsed();
    let after = documents(case).await?;
    // One that ran then may have changed since.
    let is_over = |document: &Value| document.pointer("/body/step/ended_at").is_some_and(|at| !at.is_null());
    let over: Vec<_> = before.iter().filter(|(_, document)| is_over(document)).collect();
    for (name, document) in &over {
        let again = after.get(*name).with_context(|| format!("{name} is not made again"))?;
        let sealed = document.pointer("/body/step/log_state") != Some(&Value::from("open"));
        ensure!(!sealed || again == *document, "{name} was {document} and is {again}");
    }
    let missing = before.keys().find(|name| !after.contains_key(*name));
    ensure!(missing.is_none(), "{missing:?} is not made again");
    case.saw(format!(
        "dropped at {ran} jobs begun, {} documents made again in {:.1} s while jobs ran, {} of steps that were over compared",
        done["written"],
        took.as_secs_f64(),
        over.len()
    ));
    case.read_log().await;
    rebuilt(case).await.context("a repeat").map(drop)
}

/// Runs `gantry admin rebuild-records`; what it says it did.
async fn rebuilt(case: &Case<'_>) -> anyhow::Result<Value> {
    let said = case.world.suite.admin(&["rebuild-records", "--json"]).await?;
    serde_json::from_str(&said).with_context(|| said.clone())
}

/// F26: no data, no sign-in and no page depends on it.
pub async fn redis(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    let how = case.pick(&["FLUSHALL", "out of memory", "KILL", "STOP"]);
    case.saw(format!("{how} at {} jobs begun", case.ran()?));
    match how {
        "FLUSHALL" => drop(stack.redis(&["FLUSHALL"]).await?),
        "out of memory" => drop(stack.redis(&["CONFIG", "SET", "maxmemory", "1"]).await?),
        signal => stack.stop("redis", signal).await?,
    }
    let begun = Instant::now();
    let mut reads = 0;
    while begun.elapsed() < case.outage || reads == 0 {
        for path in ["/api/v2/me", "/readyz"] {
            let (status, text) = case.world.ask("GET", path, None).await?;
            ensure!(status == 200, "{path} is answered {status} {text}");
        }
        let jobs = within(LIMITED, case.world.jobs(&case.project)).await?;
        ensure!(!jobs.is_empty(), "the workflow shows no jobs");
        case.world.suite.bytes(&format!("/logs/{}/raw", case.world.step.0)).await?;
        reads += 4;
    }
    let follower = case.world.suite.request("POST", "/graphql/stream");
    let query = json!({ "query": "subscription { pipelines { id } }" });
    let follower =
        within(LIMITED, async { Ok(follower.json(&query).send().await?.error_for_status()?) }).await;
    case.push_meanwhile().await;
    let told = async {
        let (mut follower, mut seen) = (follower?, Vec::new());
        let found = |seen: &[u8]| String::from_utf8_lossy(seen).contains("\"pipelines\"");
        while !found(&seen) {
            seen.extend(follower.chunk().await?.context("the stream ended")?);
        }
        ensure!(!String::from_utf8_lossy(&seen).contains("errors"), "{}", String::from_utf8_lossy(&seen));
        Ok("told".to_owned())
    };
    case.claim("a subscriber of pipelines", within(LIMITED * 2, told).await);
    case.saw(format!("{reads} reads answered 200"));
    case.back();
    match how {
        "FLUSHALL" => {}
        "out of memory" => drop(stack.redis(&["CONFIG", "SET", "maxmemory", "0"]).await?),
        _ => stack.start("redis").await?,
    }
    Ok(())
}

/// F27: pushes, claims, reports and output need no broker.
pub async fn rabbitmq_away(case: &Case<'_>) -> anyhow::Result<()> {
    case.know_besides().await?;
    gone(case, "rabbitmq", &["KILL", "TERM", "STOP"]).await?;
    case.push_meanwhile().await;
    case.read_log().await;
    case.edit_refused().await;
    case.last().await;
    return_of(case, "rabbitmq").await
}

/// F28: publishers stop, consumers do not.
pub async fn rabbitmq_alarm(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    let (alarm, clear): (&[&str], &[&str]) = if case.draw(2) == 0 {
        (&["set_vm_memory_high_watermark", "absolute", "1MB"], &["set_vm_memory_high_watermark", "0.4"])
    } else {
        (&["set_disk_free_limit", "10000GB"], &["set_disk_free_limit", "50MB"])
    };
    case.know_besides().await?;
    stack.rabbitmqctl(alarm).await?;
    case.saw(format!("{} at {} jobs begun", alarm[0], case.ran()?));
    case.push_meanwhile().await;
    case.read_log().await;
    case.edit_refused().await;
    case.last().await;
    case.back();
    stack.rabbitmqctl(clear).await.map(|_| ())
}

/// F29: what was on its way is read from history.
pub async fn rabbitmq_wiped(case: &Case<'_>) -> anyhow::Result<()> {
    gone(case, "rabbitmq", &["KILL", "TERM"]).await?;
    fs::remove_dir_all(case.world.stack.folder.join("rabbitmq/mnesia"))?;
    return_of(case, "rabbitmq").await
}

/// F31: output is kept, uploads are repeated, pages of artifacts say so.
pub async fn s3_away(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    let how = case.pick(&["KILL", "500", "slow", "silent"]);
    case.saw(format!("{how} at {} jobs begun", case.ran()?));
    match how {
        "500" => stack.way("s3", Way::Errors)?,
        "slow" => stack.way("s3", Way::Slow { by: Duration::from_secs(2), lost: 0 })?,
        "silent" => stack.way("s3", Way::Silent)?,
        signal => stack.stop("s3", signal).await?,
    }
    case.push_meanwhile().await;
    case.last().await;
    case.none_failed().await;
    case.back();
    match how {
        "KILL" => stack.start("s3").await,
        _ => stack.way("s3", Way::Through),
    }
}

/// F32: what a job would restore is not what was saved: it never sees it.
pub async fn s3_corrupt(case: &Case<'_>) -> anyhow::Result<()> {
    let (world, project) = (case.world, format!("{}-cache", case.project));
    let files = world.ledger.work.path().join("files").join(&project);
    let words = format!("kept by {project} ").repeat(4096);
    let job = |steps: &str| {
        format!(
            "version: 2.1\njobs:\n  j:\n    machine: true\n    steps:\n{steps}workflows:\n  main:\n    jobs: [j]\n"
        )
    };
    fs::create_dir_all(files.join(".circleci"))?;
    let push = async |config: String| -> anyhow::Result<Value> {
        fs::write(files.join(".circleci/config.yml"), config)?;
        let work = world.ledger.work.path().join("repositories");
        let before = world
            .suite
            .items(&format!("/api/v2/project/git/local/{project}/pipeline"))
            .await
            .unwrap_or_default();
        world.suite.push(&work, &project, &files, "refs/heads/main").await?;
        until("the job's end", LIMITED * 20, || async {
            let now = world.suite.items(&format!("/api/v2/project/git/local/{project}/pipeline")).await?;
            ensure!(now.len() > before.len(), "no pipeline yet");
            let jobs = world.jobs(&project).await?;
            Ok(jobs.into_iter().next().filter(|job| !job["stopped_at"].is_null()))
        })
        .await
    };
    fs::create_dir_all(&files)?;
    fs::write(files.join("words"), &words)?;
    let bucket = world.stack.folder.join("s3/buckets/gantry");
    let before = stored(&bucket)?;
    let saved = push(job("      - checkout\n      - save_cache: { key: words, paths: [words] }\n")).await?;
    ensure!(saved["status"] == "success", "the cache is not saved: {saved}");
    let mut objects = stored(&bucket)?;
    objects.retain(|object| !before.contains(object));
    ensure!(!objects.is_empty(), "the store holds no object of the cache");
    case.saw(format!("{} objects changed", objects.len()));
    let sound: Vec<_> = objects.iter().map(fs::read).collect::<Result<_, _>>()?;
    for (object, bytes) in objects.iter().zip(&sound) {
        let mut bytes = bytes.clone();
        let at = case.draw(bytes.len());
        bytes[at] ^= 0x20;
        fs::write(object, bytes)?;
    }
    let restored = push(job(
        "      - restore_cache: { keys: [words] }\n      - run: { name: work, command: \"if test -e words; then cat words; fi\" }\n",
    ))
    .await;
    for (object, bytes) in objects.iter().zip(&sound) {
        fs::write(object, bytes)?;
    }
    case.back();
    let restored = restored?;
    case.saw(format!("the job that restores it is {}", restored["status"].as_str().unwrap_or_default()));
    let number = restored["job_number"].as_i64().context("no number")?;
    let build = world.suite.get(&format!("/api/v1.1/project/git/local/{project}/{number}")).await?;
    let (mut said, mut whole) = (false, false);
    for step in build["steps"].as_array().into_iter().flatten() {
        let id = step["actions"][0]["step_id"].as_str().context("no step")?;
        let log = world.suite.bytes(&format!("/logs/{id}/raw")).await?;
        let text = String::from_utf8_lossy(&log);
        let name = step["name"].as_str().unwrap_or_default();
        if name == "work" {
            whole = log == words.as_bytes();
            ensure!(log.is_empty() || whole, "the job sees other bytes: {text:.200}");
        } else if text.contains("integrity_check_failed") {
            said = true;
            case.saw(format!("“{name}” says so"));
        }
    }
    // A bit that decides nothing may have been the one.
    ensure!(said || whole, "nobody says why the cache is not there");
    Ok(())
}

/// Objects of caches, workspaces and artifacts.
fn stored(bucket: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![bucket.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.display().to_string().contains("/stores/") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// F33: jobs with secrets wait, edits are refused, and both go on by themselves.
pub async fn vault_sealed(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    let how = case.pick(&["sealed", "KILL", "STOP"]);
    match how {
        "sealed" => drop(stack.vault(&["operator", "seal"]).await?),
        signal => stack.stop("vault", signal).await?,
    }
    case.saw(format!("{how} at {} jobs begun", case.ran()?));
    case.edit_refused().await;
    case.push_meanwhile().await;
    case.last().await;
    case.none_failed().await;
    case.back();
    if how == "sealed" {
        // Unsealing is a part of its start.
        let key = stack.unseal_key()?;
        stack.vault(&["operator", "unseal", &key]).await?;
    } else {
        stack.start("vault").await?;
    }
    Ok(())
}

/// F34: older versions still open what they closed.
pub async fn vault_rotated(case: &Case<'_>) -> anyhow::Result<()> {
    for round in 1..=3 {
        case.world.stack.vault(&["write", "-f", "transit/keys/gantry/rotate"]).await?;
        ensure!(case.world.set_word().await? == 200, "no value is taken after rotation {round}");
        case.push_meanwhile().await;
    }
    case.saw("rotated 3 times, a value set after each");
    case.back();
    Ok(())
}
