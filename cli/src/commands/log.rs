//! `gantry log`: the output of a job, as bytes.

use super::text;
use crate::{Client, Exit, Failure, Global, place};
use futures::StreamExt;
use serde_json::Value;
use std::io::Write;

/// Steps of a job with their outputs, through the v1.1 shape: one entry per step, one action per index.
pub(super) async fn actions(client: &Client, slug: &str, job: i64) -> Result<Vec<Value>, Failure> {
    let build = client.get(&format!("/api/v1.1/project/{slug}/{job}")).await?;
    let steps = build.get("steps").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(steps.iter().filter_map(|step| step.get("actions")?.as_array().cloned()).flatten().collect())
}

pub(super) async fn run(
    global: &Global,
    job: i64,
    step: Option<u64>,
    follow: bool,
    failed: bool,
) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let slug = place::project(global).await?;
    let mut found = false;
    for action in actions(&client, &slug, job).await? {
        let number = action.get("step").and_then(Value::as_u64);
        if step.is_some_and(|wanted| number != Some(wanted))
            || (failed && text(&action, "status") != "failed")
        {
            continue;
        }
        found = true;
        if step.is_none() {
            eprintln!("── {} ({})", text(&action, "name"), text(&action, "status"));
        }
        let query = if follow { "?follow=true" } else { "" };
        let mut bytes =
            std::pin::pin!(client.bytes(&format!("/logs/{}/raw{query}", text(&action, "step_id"))).await?);
        let mut out = std::io::stdout().lock();
        while let Some(part) = bytes.next().await {
            out.write_all(&part?)?;
        }
        out.flush()?;
    }
    if found {
        Ok(Exit::Success)
    } else {
        Err(Failure::new(Exit::NotFound, format!("job {job} of {slug} has no such step yet")))
    }
}
