//! How a long history changes what is fast: copies of one real pipeline, made in bulk through all tables.

use crate::{
    Bench, api,
    database::Database,
    files,
    jobs::{self, many},
    machine::{self, Limits},
    numbers::{ms, round},
};
use anyhow::{Context, ensure};
use gantry_e2e::Suite;
use serde_json::json;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Jobs of one measurement of the rate.
const JOBS: usize = 200;
/// Copies of one statement: progress is seen, and memory stays small.
const AT_ONCE: u32 = 2000;

/// Measures at each length of history.
pub async fn measure(bench: &mut Bench, lengths: &[u32], limits: &Limits) -> anyhow::Result<()> {
    let suite = bench.suite("history", 8).await?;
    let database = Database::of(&bench.work.join("history"))?;
    let template = template(&suite, bench).await?;
    let mut places = api::prepare(&suite, &bench.work, "past").await?;
    let files = files(&bench.work, "rate-files", &many(JOBS))?;
    let (mut made, mut first_rate) = (0, None);
    for length in lengths {
        let begun = Instant::now();
        while made < *length {
            let to = (*length).min(made + AT_ONCE);
            database.run(&copies(&template, made + 1, to))?;
            made = to;
        }
        database.run("VACUUM ANALYZE")?;
        let took = begun.elapsed();
        places.find_deep(&suite).await?;
        let recent = api::recent(&suite, "past").await?;
        let mix = api::mix(&suite, &places).await?;
        let begun = Instant::now();
        let project = format!("rate-{length}");
        suite.push(&bench.work, &project, &files, "refs/heads/main").await?;
        jobs::settle(&suite, &project, 1).await?;
        let rate = JOBS as f64 / begun.elapsed().as_secs_f64();
        let first = *first_rate.get_or_insert(rate);
        let [bytes] = database.numbers("SELECT pg_database_size(current_database())")?;
        bench.note(
            &format!("history_{length}"),
            json!({
                "generated_in_ms": ms(took), "database_mib": bytes >> 20, "recent": recent, "mix": mix,
                "jobs_per_s": round(rate), "of_the_shortest_history": round(rate / first),
                "times_a_30th_of_the_shell_rate": round(rate / limits.shells * 30.0),
                "resident": machine::resident(&[suite.pid])?,
            }),
        );
    }
    suite.down().await
}

/// A pipeline whose rows are copied.
struct Template {
    pipeline: String,
    /// What its ids begin with, and no others do.
    prefix: String,
}

/// Runs one real pipeline. Its ids are told from those of its project and people by the time in them.
async fn template(suite: &Suite, bench: &Bench) -> anyhow::Result<Template> {
    let config = "version: 2.1\njobs:\n  one:\n    machine: true\n    steps:\n      - run: echo hello\nworkflows:\n  main:\n    jobs: [one]\n";
    let files = files(&bench.work, "past-files", config)?;
    suite.push(&bench.work, "past", &files, "refs/heads/main").await?;
    jobs::settle(suite, "past", 1).await?;
    let before = prefix_now()?;
    eprintln!("waiting up to 66 s for ids that begin otherwise");
    while prefix_now()? == before {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let prefix = prefix_now()?;
    let (status, answer) = suite.post("/api/v2/project/git/local/past/pipeline", &json!({})).await?;
    ensure!(status == 201, "{status} {answer}");
    jobs::settle(suite, "past", 1).await?;
    let pipeline = answer["id"].as_str().context("no pipeline")?.to_owned();
    ensure!(
        prefix_now()? == prefix && pipeline.starts_with(&prefix),
        "the pipeline took too long to be copied"
    );
    // Views and records follow.
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(Template { pipeline, prefix })
}

/// The first eight digits of an id made now: they change every 65 s.
fn prefix_now() -> anyhow::Result<String> {
    let ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    Ok(format!("{:08x}", ms >> 16))
}

/// The script that makes copies number `from` to `to`.
fn copies(template: &Template, from: u32, to: u32) -> String {
    include_str!("history.sql")
        .replace(":pipeline", &template.pipeline)
        .replace(":prefix", &template.prefix)
        .replace(":from", &from.to_string())
        .replace(":to", &to.to_string())
}
