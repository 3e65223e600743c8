//! A job became ready: make its run and its tasks, take slots, announce the tasks that have one.

use crate::{line, rules, state::State, store};
use bus::{Fault, Group};
use contracts::{Envelope, Event, conductor::JobReady};
use eventstore::{Key, Tx, trace};
use ids::TaskId;
use model::status::JobStatus;
use std::sync::Arc;
use uuid::Uuid;

/// Consumes `workflow.job_ready`.
pub struct Ready(pub Arc<State>);

#[async_trait::async_trait]
impl Group for Ready {
    fn name(&self) -> &'static str {
        "dispatcher.jobs"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[JobReady::TYPE]
    }

    /// A workflow with many jobs is taken in one commit, not in one for each.
    fn batch(&self) -> usize {
        64
    }

    fn locks(&self, msg: &Envelope) -> Vec<Key> {
        let run = msg.body_as::<JobReady>().map(|ready| Key::new("run", ready.job_id.uuid()));
        run.into_iter().chain([store::slots()]).collect()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            let ready: JobReady = message.body_as()?;
            self.admit(tx, message, &ready).await?;
        }
        // Once for all of them, by fairness and not by the order in which they came.
        let queued = line::fill(tx, &self.0).await?;
        tx.append(&queued).await?;
        Ok(())
    }

    async fn after_commit(&self, _batch: &[Envelope]) {
        self.0.due.notify_one();
        self.0.wake_runners();
    }
}

impl Ready {
    /// Makes a job's run and its tasks, or ends it where it cannot run here.
    async fn admit(&self, tx: &mut Tx, message: &Envelope, ready: &JobReady) -> Result<(), Fault> {
        let job = ready.job_id.uuid();
        let made = sqlx::query(
            "INSERT INTO dispatcher.runs (job_id, workflow_id, org_id, project_id, pipeline_id, state, ready, trace) \
             VALUES ($1, $2, $3, $4, $5, 'queued', $6, $7) ON CONFLICT (job_id) DO NOTHING",
        )
        .bind(job)
        .bind(ready.workflow_id.uuid())
        .bind(ready.project.org_id.uuid())
        .bind(ready.project.id.uuid())
        .bind(ready.pipeline_id.uuid())
        .bind(&message.body)
        .bind(trace::after(message).map(|trace| trace.to_string()))
        .execute(tx.conn())
        .await?;
        if made.rows_affected() == 0 {
            return Ok(());
        }
        let run = store::run(tx, job).await?;
        let revoked: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM dispatcher.revocations WHERE job_id = $1)")
                .bind(job)
                .fetch_one(tx.conn())
                .await?;
        let config = &self.0.config;
        let stillborn = if revoked {
            Some((JobStatus::Canceled, None))
        } else {
            rules::impossible(ready, config).map(|reason| (JobStatus::InfrastructureFail, Some(reason)))
        };
        if let Some((status, reason)) = stillborn {
            let ended = store::finish_run(tx, &run, status, reason, false).await?;
            tx.append(&[ended.caused_by(message.id)]).await?;
            return Ok(());
        }
        let total =
            i32::try_from(ready.definition.parallelism.max(1)).map_err(|error| Fault::Dead(error.into()))?;
        let ids: Vec<Uuid> = (0..total).map(|_| TaskId::new().uuid()).collect();
        sqlx::query(
            "INSERT INTO dispatcher.tasks (task_id, job_id, org_id, project_id, resource_class, index, total, state, next_action_at) \
             SELECT t.id, $2, $3, $5, $6, t.n - 1, $4, 'waiting', clock_timestamp() + $7 FROM unnest($1::uuid[]) WITH ORDINALITY AS t(id, n) ORDER BY t.n",
        )
        .bind(&ids)
        .bind(job)
        .bind(run.org_id)
        .bind(total)
        .bind(run.project_id)
        .bind(&ready.definition.resource_class)
        .bind(config.queue_timeout)
        .execute(tx.conn())
        .await?;
        Ok(())
    }
}
