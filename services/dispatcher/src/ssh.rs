//! Who entered a job by SSH, and when they left: kept as acts (security §14), never what they did there.

use crate::{http::Refused, lease, state::State, store};
use agent_api::SshSession;
use contracts::Actor;
use eventstore::Act;
use kit::keys::FenceClaims;
use serde_json::json;

/// Longest text of a field.
const LONGEST: usize = 200;

/// Records that a session began or ended.
pub async fn record(state: &State, fence: &FenceClaims, session: SshSession) -> Result<(), Refused> {
    let task = lease::live(state, fence).await?;
    if session.key.len() > LONGEST || session.from.len() > LONGEST {
        return Err(Refused::Invalid(format!("a session's fields have at most {LONGEST} bytes")));
    }
    let (ready, _) = store::ready(state.store.pool(), task.job_id).await?;
    let Some(access) = ready.ssh else {
        return Err(Refused::Invalid("nobody may enter this job by SSH".to_owned()));
    };
    let kind = if session.open { "job.ssh_session.open" } else { "job.ssh_session.close" };
    let detail = json!({
        "session_id": session.session_id, "task_id": fence.task_id, "epoch": fence.epoch, "login": access.login,
        "key": session.key, "from": session.from,
    });
    let mut act = Act::new(kind, Actor::service("dispatcher"), detail).on("run", task.job_id);
    act.org_id = Some(ready.project.org_id);
    act.correlation_id = Some(ready.pipeline_id);
    let mut tx = state.store.begin(&[]).await?;
    tx.act(act).await?;
    tx.commit().await?;
    Ok(())
}
