//! What the conductor says of jobs that keep or fetch files.

use super::Caller;
use crate::http::Refused;
use async_trait::async_trait;
use bus::{Fault, Group};
use contracts::{Envelope, Event, conductor::JobReady};
use eventstore::{Key, Tx};
use model::plan::Step;
use std::time::Duration;

/// Remembers ready jobs whose steps use a store; of all others nothing is written.
pub(crate) struct Jobs;

fn uses_a_store(ready: &JobReady) -> bool {
    ready.definition.steps.iter().any(|step| {
        matches!(
            step,
            Step::SaveCache { .. }
                | Step::RestoreCache { .. }
                | Step::StoreArtifacts { .. }
                | Step::StoreTestResults { .. }
                | Step::PersistToWorkspace { .. }
                | Step::AttachWorkspace { .. }
        )
    })
}

#[async_trait]
impl Group for Jobs {
    fn name(&self) -> &'static str {
        "output-processor.jobs"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[JobReady::TYPE]
    }

    fn batch(&self) -> usize {
        64
    }

    /// No step comes to a store sooner.
    fn gather(&self, _: &str, _: &str) -> Duration {
        Duration::from_millis(10)
    }

    fn relaxed(&self) -> bool {
        true // a copy: read again from the source after a crash
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            let job: JobReady = message.body_as()?;
            if !uses_a_store(&job) {
                continue;
            }
            sqlx::query(
                "INSERT INTO output_processor.jobs \
                     (job_id, org_id, project_id, workspace_id, name, number, branch, revision, cache_days) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
            )
            .bind(job.job_id.uuid())
            .bind(job.project.org_id.uuid())
            .bind(job.project.id.uuid())
            .bind(job.workspace_id.uuid())
            .bind(&job.name)
            .bind(job.number)
            .bind(&job.vcs.branch)
            .bind(&job.vcs.revision)
            .bind(job.definition.cache_days.map(u32::cast_signed))
            .execute(tx.conn())
            .await?;
        }
        Ok(())
    }
}

/// The parallel index of the calling task, as the dispatcher said.
pub(super) async fn index_of(caller: &Caller) -> Result<i32, Refused> {
    let index: Option<i32> =
        sqlx::query_scalar("SELECT index FROM output_processor.tasks WHERE task_id = $1")
            .bind(caller.task.id.uuid())
            .fetch_optional(caller.hub.store.pool())
            .await?;
    index.ok_or_else(|| super::objects::unavailable("the dispatcher's news of this task has not come yet"))
}
