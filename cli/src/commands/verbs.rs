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

/// What of a workflow is rerun, and how.
pub(super) struct Rerun {
    pub(super) failed: bool,
    pub(super) failed_tests: bool,
    /// Names or ids; none: all, or what failed.
    pub(super) jobs: Vec<String>,
    pub(super) ssh: bool,
}

/// Reruns a workflow.
pub(super) async fn rerun(global: &Global, workflow: &str, which: Rerun) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let Rerun { failed, failed_tests, jobs, ssh } = which;
    let mut body = json!({ "from_failed": failed || failed_tests, "failed_tests": failed_tests });
    if !jobs.is_empty() {
        if ssh {
            super::ssh::has_key(&client).await?;
        }
        let known = client.items(&format!("/api/v2/workflow/{workflow}/job"), 100_000).await?;
        let ids = jobs.iter().map(|wanted| {
            let found = known.iter().find(|job| text(job, "name") == wanted || text(job, "id") == wanted);
            let none = || Failure::new(Exit::NotFound, format!("workflow {workflow} has no job {wanted}"));
            Ok(text(found.ok_or_else(none)?, "id").to_owned())
        });
        let ids = ids.collect::<Result<Vec<_>, Failure>>()?;
        body = json!({ "jobs": ids, "enable_ssh": ssh });
    }
    let answer = client.post(&format!("/api/v2/workflow/{workflow}/rerun"), &body).await?;
    done(global, &answer, &format!("Started workflow {}.", text(&answer, "workflow_id")));
    Ok(Exit::Success)
}
