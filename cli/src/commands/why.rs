//! `gantry why`: why a job waits, or why it failed, in words.

use super::{log::actions, text};
use crate::{Client, Exit, Failure, Global, place};
use serde_json::{Value, json};

pub(super) async fn run(global: &Global, job: &str) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let slug = place::project(global).await?;
    let id = find(&client, &slug, job).await?;
    let found = client.get(&format!("/api/private/jobs/{id}/explanation")).await?;
    let status = text(&found, "status").to_owned();
    let mut reasons: Vec<String> = Vec::new();
    if let Some(reason) = found.get("reason").and_then(Value::as_str) {
        reasons.push(reason.to_owned());
    }
    let waits = found.get("waits").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    reasons.extend(waits.iter().map(|wait| text(wait, "text").to_owned()));
    // What has steps has a number.
    if let Some(number) = number_of(&client, &found, &id).await? {
        for action in actions(&client, &slug, number).await? {
            if text(&action, "status") == "failed" {
                let code = action.get("exit_code").and_then(Value::as_i64);
                reasons.push(match code {
                    Some(code) => format!("step \"{}\" failed with exit code {code}", text(&action, "name")),
                    None => format!("step \"{}\" failed", text(&action, "name")),
                });
            }
        }
    }
    if global.json {
        let since = found.get("since").cloned().unwrap_or_default();
        println!(
            "{}",
            json!({ "job": job, "id": id, "status": status, "since": since, "reasons": reasons, "waits": waits })
        );
    } else {
        let since = text(&found, "since");
        let since = if since.is_empty() { String::new() } else { format!(" since {since}") };
        println!("{} is {status}{since}", text(&found, "name"));
        for reason in reasons {
            println!("  {reason}");
        }
    }
    Ok(Exit::Success)
}

/// The id of a job that is named by its number, its id, or its name in the newest pipeline.
async fn find(client: &Client, slug: &str, job: &str) -> Result<String, Failure> {
    if job.bytes().all(|byte| byte.is_ascii_digit()) {
        let found = client.get(&format!("/api/v2/project/{slug}/job/{job}")).await?;
        return Ok(text(&found, "id").to_owned());
    }
    if job.len() == 36 && job.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Ok(job.to_owned());
    }
    let missing = |what: &str| Failure::new(Exit::NotFound, format!("{slug} has no {what}"));
    let pipelines = client.items(&format!("/api/v2/project/{slug}/pipeline"), 1).await?;
    let pipeline = pipelines.first().ok_or_else(|| missing("pipeline"))?;
    let path = format!("/api/v2/pipeline/{}/workflow", text(pipeline, "id"));
    let mut workflows = client.items(&path, 1000).await?;
    // The newest instance first: a rerun has jobs of the same names.
    workflows.sort_by(|a, b| text(b, "created_at").cmp(text(a, "created_at")));
    for workflow in &workflows {
        let jobs = client.items(&format!("/api/v2/workflow/{}/job", text(workflow, "id")), 10_000).await?;
        if let Some(found) = jobs.iter().find(|found| text(found, "name") == job) {
            return Ok(text(found, "id").to_owned());
        }
    }
    Err(missing(&format!("job `{job}` in its newest pipeline")))
}

async fn number_of(client: &Client, found: &Value, id: &str) -> Result<Option<i64>, Failure> {
    if text(found, "status") != "failed" {
        return Ok(None);
    }
    let path = format!("/api/v2/workflow/{}/job", text(found, "workflow_id"));
    let jobs = client.items(&path, 10_000).await?;
    Ok(jobs.iter().find(|job| text(job, "id") == id).and_then(|job| job.get("job_number")?.as_i64()))
}
