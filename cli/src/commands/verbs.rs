//! `cancel`, `approve`, `rerun`.

use super::{done, text};
use crate::{Client, Exit, Failure, Global};
use serde_json::{Value, json};

/// Cancels a workflow or one job.
pub(super) async fn cancel(global: &Global, id: &str, job: bool) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let what = if job { "jobs" } else { "workflow" };
    let answer = client.post(&format!("/api/v2/{what}/{id}/cancel"), &json!({})).await?;
    done(global, &answer, &format!("Canceled {id}."));
    Ok(Exit::Success)
}

/// Approves a waiting job.
pub(super) async fn approve(global: &Global, workflow: &str, job: Option<&str>) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let jobs = client.items(&format!("/api/v2/workflow/{workflow}/job"), 100_000).await?;
    let waiting: Vec<&Value> = jobs.iter().filter(|found| text(found, "status") == "on_hold").collect();
    let chosen = match job {
        Some(wanted) => jobs
            .iter()
            .find(|found| text(found, "name") == wanted || text(found, "id") == wanted)
            .ok_or_else(|| {
                Failure::new(Exit::NotFound, format!("workflow {workflow} has no job {wanted}"))
            })?,
        None => match waiting[..] {
            [only] => only,
            [] => return Err(Failure::new(Exit::Conflict, "nothing waits for approval in this workflow")),
            _ => {
                let names: Vec<_> = waiting.iter().map(|found| text(found, "name")).collect();
                return Err(Failure::new(
                    Exit::Usage,
                    format!("several jobs wait; name one of: {}", names.join(", ")),
                ));
            }
        },
    };
    let id = match text(chosen, "approval_request_id") {
        "" => text(chosen, "id"),
        id => id,
    };
    let answer = client.post(&format!("/api/v2/workflow/{workflow}/approve/{id}"), &json!({})).await?;
    done(global, &answer, &format!("Approved {}.", text(chosen, "name")));
    Ok(Exit::Success)
}

/// Reruns a workflow.
pub(super) async fn rerun(
    global: &Global,
    workflow: &str,
    from_failed: bool,
    failed_tests: bool,
) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let body = json!({ "from_failed": from_failed, "failed_tests": failed_tests });
    let answer = client.post(&format!("/api/v2/workflow/{workflow}/rerun"), &body).await?;
    done(global, &answer, &format!("Started workflow {}.", text(&answer, "workflow_id")));
    Ok(Exit::Success)
}
