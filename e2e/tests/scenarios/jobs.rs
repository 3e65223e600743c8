//! Steps and output of a job that has ended.

use crate::{
    expected::{Job, Workflow},
    run::Names,
};
use anyhow::{Context, ensure};
use gantry_e2e::Suite;
use serde_json::Value;

/// Names the job for requests.
pub fn note(job: &Value, names: &mut Names) {
    let name = job["name"].as_str().unwrap_or_default();
    names.insert(format!("job:{name}"), job["id"].as_str().unwrap_or_default().to_owned());
    if let Some(number) = job["job_number"].as_i64() {
        names.insert(format!("number:{name}"), number.to_string());
    }
}

/// What the steps printed that failed in jobs that were to end otherwise: the end of it.
pub async fn failures(suite: &Suite, slug: &str, jobs: &[Value], wanted: &Workflow) -> String {
    let mut found = String::new();
    for job in jobs {
        let name = job["name"].as_str().unwrap_or_default();
        if wanted.jobs.get(name).is_none_or(|want| job["status"] == want.status.as_str()) {
            continue;
        }
        let Ok(build) = suite.get(&format!("/api/v1.1/project/{slug}/{}", job["job_number"])).await else {
            continue;
        };
        let steps = build["steps"].as_array().into_iter().flatten();
        for action in steps.flat_map(|step| step["actions"].as_array().into_iter().flatten()) {
            if action["status"] != "failed" {
                continue;
            }
            let step = action["step_id"].as_str().unwrap_or_default();
            let output = suite.bytes(&format!("/logs/{step}/raw")).await.unwrap_or_default();
            let end = String::from_utf8_lossy(&output[output.len().saturating_sub(400)..]).into_owned();
            found.push_str(&format!("\n  {name}, step {}: {end:?}", action["name"]));
        }
    }
    found
}

/// Compares steps and outputs with what is wanted.
pub async fn check(
    suite: &Suite,
    slug: &str,
    job: &Value,
    want: &Job,
    names: &mut Names,
) -> anyhow::Result<()> {
    let Some(number) = job["job_number"].as_i64() else {
        let asks = !want.steps.is_empty() || !want.output.is_empty() || !want.contains.is_empty();
        ensure!(!asks, "there is no job number");
        return Ok(());
    };
    let build = suite.get(&format!("/api/v1.1/project/{slug}/{number}")).await?;
    let steps = build["steps"].as_array().context("no steps")?;
    let job_name = job["name"].as_str().unwrap_or_default();
    for step in steps {
        let name = step["name"].as_str().unwrap_or_default();
        let id = step["actions"][0]["step_id"].as_str().unwrap_or_default();
        names.insert(format!("step:{job_name}/{name}"), id.to_owned());
    }
    let all: Vec<_> = steps.iter().map(|step| step["name"].as_str().unwrap_or_default()).collect();
    if !want.sequence.is_empty() {
        ensure!(all == want.sequence, "the steps are {all:?}");
    }
    // `NAME#1` is the action of parallel index 1, or the second attempt of a job's only node.
    let parallel = build["parallel"].as_i64() > Some(1);
    let action = |name: &str| -> anyhow::Result<&Value> {
        let (name, index) = match name.rsplit_once('#').map(|(name, index)| (name, index.parse::<usize>())) {
            Some((name, Ok(index))) => (name, index),
            _ => (name, 0),
        };
        let found = steps.iter().find(|step| step["name"] == name);
        let mut actions = found.and_then(|step| step["actions"].as_array()).into_iter().flatten();
        let found =
            if parallel { actions.find(|action| action["index"] == index) } else { actions.nth(index) };
        found.with_context(|| format!("no step \"{name}\" of index {index}: {all:?}"))
    };
    for (name, status) in &want.steps {
        if status == "absent" {
            ensure!(action(name).is_err(), "step \"{name}\" ran");
            continue;
        }
        let found = action(name)?;
        ensure!(found["status"] == status.as_str(), "step \"{name}\" is {}", found["status"]);
    }
    for (name, code) in &want.exit {
        let found = &action(name)?["exit_code"];
        ensure!(found == code, "step \"{name}\" ended with {found}");
    }
    let output = async |name: &str| -> anyhow::Result<String> {
        let step = action(name)?["step_id"].as_str().context("no step_id")?.to_owned();
        Ok(String::from_utf8_lossy(&suite.bytes(&format!("/logs/{step}/raw")).await?).into_owned())
    };
    for (name, whole) in &want.output {
        let found = output(name).await?;
        ensure!(&found == whole, "output of \"{name}\" is {found:?}");
    }
    for (name, parts) in &want.contains {
        let found = output(name).await?;
        for part in parts {
            ensure!(found.contains(part.as_str()), "output of \"{name}\" lacks {part:?}: {found}");
        }
    }
    for (name, parts) in &want.lacks {
        let found = output(name).await?;
        for part in parts {
            ensure!(!found.contains(part.as_str()), "output of \"{name}\" holds {part:?}");
        }
    }
    Ok(())
}
