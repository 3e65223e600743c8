//! Output, records and files of a job go with it when its pipeline is past its retention.

use crate::{hub::Hub, keeper, store};
use async_trait::async_trait;
use contracts::NewEvent;
use eventstore::{Key, Store, Tx};
use ids::TaskId;
use retention::{ExpiredJobs, Owner, Sealed, State, Unit, fitting, ids};
use std::{collections::HashSet, sync::Arc};
use tokio::sync::Notify;
use uuid::Uuid;

/// Jobs that go at once.
const JOBS: i64 = 100;

/// Notes jobs whose workflow is gone.
pub(crate) fn expired(wake: Arc<Notify>) -> ExpiredJobs {
    ExpiredJobs {
        name: "output-processor.expired",
        statements: &[
            "INSERT INTO output_processor.expiring (id) SELECT * FROM unnest($1::uuid[]) ON CONFLICT DO NOTHING",
        ],
        wake: Some(wake),
    }
}

/// Jobs that are gone.
pub(crate) struct Jobs(pub(crate) Arc<Hub>);

#[async_trait]
impl Owner for Jobs {
    fn store(&self) -> &Store {
        &self.0.store
    }

    async fn due(&self, skip: &HashSet<Uuid>) -> anyhow::Result<Vec<Unit>> {
        let found: Vec<(Uuid, Vec<Uuid>)> = sqlx::query_as(
            "SELECT x.id, ARRAY(SELECT t.task_id FROM output_processor.tasks t WHERE t.job_id = x.id ORDER BY t.index)
             FROM output_processor.expiring x WHERE x.id <> ALL($1) ORDER BY x.noted_at, x.id LIMIT $2",
        )
        .bind(skip.iter().copied().collect::<Vec<_>>())
        .bind(JOBS)
        .fetch_all(self.0.store.pool())
        .await?;
        let units = found.into_iter().map(|(job, tasks)| {
            let keys = tasks.into_iter().map(|task| Key::new("record", task)).collect();
            Unit { id: job, keys }
        });
        Ok(fitting(units.collect()))
    }

    /// Steps are told whole by their last event.
    async fn states(&self, _: &[Unit]) -> anyhow::Result<Vec<State>> {
        Ok(Vec::new())
    }

    async fn prepare(&self, units: &[Unit]) -> anyhow::Result<()> {
        for unit in units {
            let tasks: Vec<TaskId> = unit.keys.iter().map(|key| TaskId(key.id)).collect();
            let mut open = tasks.iter().copied().find(|task| self.0.task_in_memory(*task).is_some());
            if let Some(peers) = &self.0.peers {
                let there = store::held_elsewhere(self.0.store.pool(), &tasks, peers.me).await?;
                open = open.or_else(|| there.into_keys().next());
            }
            if let Some(task) = open {
                // Its record is not sealed yet, which ends in a moment or when a store is back.
                anyhow::bail!("task {task} is still being put away");
            }
            keeper::forget_job(&self.0, unit.id).await?;
        }
        Ok(())
    }

    async fn remove(&self, tx: &mut Tx, units: &[Unit], _: &Sealed) -> anyhow::Result<Vec<NewEvent>> {
        let jobs = ids(units);
        let tasks: Vec<Uuid> = units.iter().flat_map(|unit| unit.keys.iter().map(|key| key.id)).collect();
        for sql in [
            "DELETE FROM output_processor.artifacts WHERE job_id = ANY($1)",
            "DELETE FROM output_processor.layers WHERE job_id = ANY($1)",
            "DELETE FROM output_processor.jobs WHERE job_id = ANY($1)",
            "DELETE FROM output_processor.expiring WHERE id = ANY($1)",
        ] {
            sqlx::query(sql).bind(&jobs).execute(tx.conn()).await?;
        }
        // The sweep of stored files removes their bytes, and then their rows.
        for sql in [
            "UPDATE output_processor.objects SET state = 'deleted', due = clock_timestamp()
             WHERE task_id = ANY($1) AND kind <> 'chunk'",
            "DELETE FROM output_processor.tasks WHERE task_id = ANY($1)",
            "DELETE FROM output_processor.fences WHERE task_id = ANY($1)",
        ] {
            sqlx::query(sql).bind(&tasks).execute(tx.conn()).await?;
        }
        Ok(Vec::new())
    }
}
