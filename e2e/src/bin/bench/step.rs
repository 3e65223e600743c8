//! What one step of a workflow costs, by the size of the workflow: an approval, and the job that waited for it.

use crate::{
    LIMIT, api,
    database::Database,
    files, jobs,
    numbers::{median, ms, round},
};
use anyhow::{Context, ensure};
use gantry_e2e::{Suite, until};
use serde_json::{Map, Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Jobs of the workflows: a configuration holds at most a thousand. What larger ones cost, the conductor's tests hold.
const SIZES: [usize; 3] = [10, 100, 1000];
/// Steps measured in each: the median counts.
const STEPS: usize = 5;

/// From an approval to the end of the one job that it lets run, in workflows of several sizes: rows, bytes of log and
/// transactions until that job has ended, and the time until its code runs.
pub async fn measure(suite: &Suite, work: &Path, data: &Path) -> anyhow::Result<Value> {
    let database = Database::of(data)?;
    let mut figures = Map::new();
    for size in SIZES {
        let project = format!("step-{size}");
        let signal = work.join(&project);
        let files = files(work, &format!("{project}-files"), &config(size, &signal))?;
        suite.push(work, &project, &files, "refs/heads/main").await?;
        let workflow = workflow(suite, &project).await?;
        let approvals = approvals(suite, &workflow, size).await?;
        // Until what the push began has been written down.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (mut times, mut rows, mut bytes, mut transactions) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (step, approval) in approvals.iter().enumerate() {
            let (before, begun) = (database.work()?, Instant::now());
            let path = format!("/api/v2/workflow/{workflow}/approve/{approval}");
            let (status, answer) = suite.post(&path, &json!({})).await?;
            ensure!(status == 202, "approve: {status} {answer}");
            let signal = signal.with_extension(step.to_string());
            times.push(jobs::effect(&signal, begun).await?);
            until("the job's end", LIMIT, || async {
                let ended = database.numbers::<1>(&format!(
                    "SELECT count(*) FROM conductor.jobs WHERE workflow_id = '{workflow}' AND status = 'success'"
                ))?;
                // The approval of each step succeeds too.
                Ok((ended[0] as usize >= 2 * (step + 1)).then_some(()))
            })
            .await?;
            // Views and records follow in batches.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let after = database.work()?;
            rows.push(after.rows - before.rows);
            bytes.push(after.wal_bytes - before.wal_bytes);
            transactions.push(after.transactions - before.transactions);
        }
        figures.insert(
            size.to_string(),
            json!({
                "first_effect_ms": ms(median(&mut times)), "rows": middle(rows),
                "wal_kib": round(middle(bytes) as f64 / 1024.0), "writing_transactions": middle(transactions),
            }),
        );
    }
    Ok(Value::Object(figures))
}

fn middle(mut counts: Vec<i64>) -> i64 {
    counts.sort_unstable();
    counts.get(counts.len() / 2).copied().unwrap_or_default()
}

/// So many jobs: for each step an approval and the job behind it; the others wait for one that nobody approves.
fn config(jobs: usize, signal: &Path) -> String {
    let mut config = String::from(
        "version: 2.1\njobs:\n  one:\n    machine: true\n    parameters: { step: { type: integer, default: 0 } }\n    steps:\n",
    );
    config.push_str(&format!("      - run: touch {}.<< parameters.step >>\n", signal.display()));
    config.push_str("workflows:\n  main:\n    jobs:\n");
    let steps = STEPS.min((jobs - 1) / 2);
    for step in 0..steps {
        config.push_str(&format!(
            "      - hold{step}: {{ type: approval }}\n      - one: {{ name: one{step}, step: {step}, requires: [hold{step}] }}\n"
        ));
    }
    if jobs > 2 * steps {
        config.push_str("      - never: { type: approval }\n");
    }
    for job in 2 * steps + 1..jobs {
        config.push_str(&format!("      - one: {{ name: j{job}, requires: [never] }}\n"));
    }
    config
}

async fn workflow(suite: &Suite, project: &str) -> anyhow::Result<String> {
    let id = api::newest(suite, project).await?;
    until("the workflow", LIMIT, || async {
        let found = suite.items(&format!("/api/v2/pipeline/{id}/workflow")).await?;
        Ok(found.first().and_then(|workflow| workflow["id"].as_str()).map(str::to_owned))
    })
    .await
}

/// The approvals of the steps, in their order, as soon as all jobs are known.
async fn approvals(suite: &Suite, workflow: &str, jobs: usize) -> anyhow::Result<Vec<String>> {
    let found = until("all jobs", LIMIT, || async {
        let found = suite.items(&format!("/api/v2/workflow/{workflow}/job")).await?;
        Ok((found.len() == jobs).then_some(found))
    })
    .await?;
    let mut holds: Vec<(&str, &str)> = found
        .iter()
        .filter_map(|job| {
            Some((job["name"].as_str()?.strip_prefix("hold")?, job["approval_request_id"].as_str()?))
        })
        .collect();
    holds.sort_unstable();
    ensure!(!holds.is_empty(), "no approval has an id: {:?}", found.first().context("no jobs")?);
    Ok(holds.into_iter().map(|(_, id)| id.to_owned()).collect())
}
