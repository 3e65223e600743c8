//! What people do while a pipeline runs, and the waits between.

use anyhow::{Context, bail, ensure};
use gantry_e2e::Suite;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Workflows of a pipeline, oldest first; the second one of a name is `NAME#2`.
pub async fn workflows(suite: &Suite, pipeline: &str) -> anyhow::Result<Vec<(String, Value)>> {
    let mut found = suite.items(&format!("/api/v2/pipeline/{pipeline}/workflow")).await?;
    found.sort_by(|a, b| {
        let key = |workflow: &Value| {
            let text = |key: &str| workflow[key].as_str().unwrap_or_default().to_owned();
            (text("created_at"), text("id"))
        };
        key(a).cmp(&key(b))
    });
    let mut seen: HashMap<String, usize> = HashMap::new();
    Ok(found
        .into_iter()
        .map(|workflow| {
            let name = workflow["name"].as_str().unwrap_or_default().to_owned();
            let count = seen.entry(name.clone()).or_default();
            *count += 1;
            (if *count == 1 { name } else { format!("{name}#{count}") }, workflow)
        })
        .collect())
}

/// Performs an action as soon as it can be, or looks whether what is waited for holds; whether it did.
pub async fn perform(suite: &Suite, slug: &str, pipeline: &str, act: &str) -> anyhow::Result<bool> {
    let (verb, rest) = act.split_once(' ').unwrap_or((act, ""));
    let all = workflows(suite, pipeline).await?;
    let named = |name: &str| all.iter().find(|(found, _)| found == name).map(|(_, workflow)| workflow);
    match verb {
        "pipeline" => {
            let (number, status) = rest.split_once(" is ").context("pipeline NUMBER is STATUS")?;
            let other = suite.get(&format!("/api/v2/project/{slug}/pipeline/{number}")).await?;
            let all = workflows(suite, other["id"].as_str().unwrap_or_default()).await?;
            return Ok(!all.is_empty() && all.iter().all(|(_, workflow)| workflow["status"] == status));
        }
        "workflow" => {
            let (name, status) = rest.split_once(" is ").context("workflow NAME is STATUS")?;
            return Ok(named(name).is_some_and(|workflow| workflow["status"] == status));
        }
        "cancel" | "rerun" | "rerun-failed" | "rerun-failed-tests" => {
            let Some(workflow) = named(rest) else { return Ok(false) };
            let id = workflow["id"].as_str().unwrap_or_default();
            if verb == "cancel" {
                return send(suite, act, &format!("/api/v2/workflow/{id}/cancel"), &json!({})).await;
            }
            if workflow["stopped_at"].is_null() {
                return Ok(false);
            }
            let body = match verb {
                "rerun-failed-tests" => json!({ "failed_tests": true }),
                _ => json!({ "from_failed": verb == "rerun-failed" }),
            };
            return send(suite, act, &format!("/api/v2/workflow/{id}/rerun"), &body).await;
        }
        "rerun-jobs" | "rerun-tree" => {
            let (name, wanted) = rest.split_once(": ").context("rerun-jobs WORKFLOW: JOB, JOB")?;
            let Some(workflow) = named(name).filter(|workflow| !workflow["stopped_at"].is_null()) else {
                return Ok(false);
            };
            let id = workflow["id"].as_str().unwrap_or_default();
            let jobs = suite.items(&format!("/api/v2/workflow/{id}/job")).await?;
            let wanted: Vec<&str> = wanted.split(", ").collect();
            let ids: Vec<_> = jobs
                .iter()
                .filter(|job| job["name"].as_str().is_some_and(|name| wanted.contains(&name)))
                .map(|job| &job["id"])
                .collect();
            ensure!(ids.len() == wanted.len(), "{act}: not all of these jobs are there");
            let body = json!({ "jobs": ids, "sparse_tree": verb == "rerun-tree" });
            return send(suite, act, &format!("/api/v2/workflow/{id}/rerun"), &body).await;
        }
        _ => {}
    }
    for (_, workflow) in &all {
        let id = workflow["id"].as_str().unwrap_or_default();
        let jobs = suite.items(&format!("/api/v2/workflow/{id}/job")).await?;
        let job = |name: &str| jobs.iter().find(|job| job["name"] == name);
        match verb {
            "job" => {
                let (name, status) = rest.split_once(" is ").context("job JOB is STATUS")?;
                if job(name).is_some_and(|job| job["status"] == status) {
                    return Ok(true);
                }
            }
            "output" => {
                let (place, text) = rest.split_once(": ").context("output JOB STEP: TEXT")?;
                let (name, step) = place.split_once(' ').context("output JOB STEP: TEXT")?;
                if let Some(job) = job(name)
                    && so_far(suite, slug, job, step).await?.contains(text)
                {
                    return Ok(true);
                }
            }
            "tests" => {
                let (name, wanted) = rest.split_once(": ").context("tests JOB: COUNT")?;
                let number = job(name).and_then(|job| job["job_number"].as_i64());
                if let Some(number) = number {
                    let tests = suite.items(&format!("/api/v2/project/{slug}/{number}/tests")).await?;
                    if tests.len() == wanted.parse::<usize>()? {
                        return Ok(true);
                    }
                }
            }
            "approve" => {
                if let Some(job) = job(rest).filter(|job| job["status"] == "on_hold") {
                    let path = format!(
                        "/api/v2/workflow/{id}/approve/{}",
                        job["approval_request_id"].as_str().unwrap_or_default()
                    );
                    return send(suite, act, &path, &json!({})).await;
                }
            }
            "release-serial" => {
                if let Some(job) = job(rest).filter(|job| job["status"] == "running") {
                    let id = job["id"].as_str().unwrap_or_default();
                    let path = format!("/api/private/jobs/{id}/release-serial-group");
                    return send(suite, act, &path, &json!({})).await;
                }
            }
            "cancel-job" => {
                let can = |job: &&Value| job["status"] == "running" || job["status"] == "on_hold";
                if let Some(job) = job(rest).filter(can) {
                    let path = format!("/api/v2/jobs/{}/cancel", job["id"].as_str().unwrap_or_default());
                    return send(suite, act, &path, &json!({})).await;
                }
            }
            _ => bail!("no such action: {act}"),
        }
    }
    Ok(false)
}

async fn send(suite: &Suite, act: &str, path: &str, body: &Value) -> anyhow::Result<bool> {
    let (status, answer) = suite.post(path, body).await?;
    ensure!((200..300).contains(&status), "{act}: {status} {answer}");
    Ok(true)
}

/// What a running step has printed.
async fn so_far(suite: &Suite, slug: &str, job: &Value, step: &str) -> anyhow::Result<String> {
    let Some(number) = job["job_number"].as_i64() else { return Ok(String::new()) };
    let build = suite.get(&format!("/api/v1.1/project/{slug}/{number}")).await?;
    let found = build["steps"].as_array().into_iter().flatten().find(|found| found["name"] == step);
    let Some(id) = found.and_then(|step| step["actions"][0]["step_id"].as_str()) else {
        return Ok(String::new());
    };
    Ok(String::from_utf8_lossy(&suite.bytes(&format!("/logs/{id}/raw")).await?).into_owned())
}
