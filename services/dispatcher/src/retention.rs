//! Runs and tasks go with their workflow when its pipeline is past its retention.

use crate::store::SERVICE;
use anyhow::ensure;
use contracts::NewEvent;
use eventstore::{Key, Store, Tx};
use retention::{ExpiredJobs, Owner, Sealed, State, Unit, fitting, ids};
use serde_json::Value;
use std::{collections::HashSet, sync::Arc};
use tokio::sync::Notify;
use uuid::Uuid;

/// Runs that go at once.
const RUNS: i64 = 100;

/// Notes jobs whose workflow is gone.
pub fn expired(wake: Arc<Notify>) -> ExpiredJobs {
    ExpiredJobs {
        name: "dispatcher.expired",
        statements: &[
            "INSERT INTO dispatcher.expiring (id) SELECT job_id FROM dispatcher.runs WHERE job_id = ANY($1) \
             ON CONFLICT DO NOTHING",
        ],
        wake: Some(wake),
    }
}

/// Runs of jobs that are gone.
pub struct Runs(pub Store);

#[async_trait::async_trait]
impl Owner for Runs {
    fn store(&self) -> &Store {
        &self.0
    }

    async fn due(&self, skip: &HashSet<Uuid>) -> anyhow::Result<Vec<Unit>> {
        let found: Vec<(Uuid, Vec<Uuid>)> = sqlx::query_as(
            "SELECT x.id, ARRAY(SELECT t.task_id FROM dispatcher.tasks t WHERE t.job_id = x.id ORDER BY t.index) \
             FROM dispatcher.expiring x JOIN dispatcher.runs r ON r.job_id = x.id \
             WHERE r.state = 'finished' AND x.id <> ALL($1) ORDER BY x.noted_at, x.id LIMIT $2",
        )
        .bind(skip.iter().copied().collect::<Vec<_>>())
        .bind(RUNS)
        .fetch_all(self.0.pool())
        .await?;
        let units = found.into_iter().map(|(job, tasks)| {
            let tasks = tasks.into_iter().map(|task| Key::new("task", task));
            Unit { id: job, keys: std::iter::once(Key::new("run", job)).chain(tasks).collect() }
        });
        Ok(fitting(units.collect()))
    }

    async fn states(&self, units: &[Unit]) -> anyhow::Result<Vec<State>> {
        // What asked for a run is an event of the conductor, which has archived it.
        let rows: Vec<(String, Uuid, Value)> = sqlx::query_as(
            "SELECT 'run', r.job_id, to_jsonb(r) - 'ready' FROM dispatcher.runs r WHERE r.job_id = ANY($1) \
             UNION ALL SELECT 'task', t.task_id, to_jsonb(t) FROM dispatcher.tasks t WHERE t.job_id = ANY($1)",
        )
        .bind(ids(units))
        .fetch_all(self.0.pool())
        .await?;
        Ok(rows.into_iter().map(|(kind, id, row)| State { kind, id, row }).collect())
    }

    async fn remove(&self, tx: &mut Tx, units: &[Unit], _: &Sealed) -> anyhow::Result<Vec<NewEvent>> {
        let ids = ids(units);
        let tasks: Vec<Uuid> =
            sqlx::query_scalar("DELETE FROM dispatcher.tasks WHERE job_id = ANY($1) RETURNING task_id")
                .bind(&ids)
                .fetch_all(tx.conn())
                .await?;
        let known: usize = units.iter().map(|unit| unit.keys.len() - 1).sum();
        ensure!(tasks.len() == known, "{} of {known} tasks are there", tasks.len());
        sqlx::query("DELETE FROM dispatcher.late_reports WHERE task_id = ANY($1)")
            .bind(&tasks)
            .execute(tx.conn())
            .await?;
        let runs = sqlx::query("DELETE FROM dispatcher.runs WHERE job_id = ANY($1) AND state = 'finished'")
            .bind(&ids)
            .execute(tx.conn())
            .await?;
        ensure!(runs.rows_affected() == ids.len() as u64, "not all of {} runs have ended", ids.len());
        for sql in [
            "DELETE FROM dispatcher.revocations WHERE job_id = ANY($1)",
            "DELETE FROM dispatcher.expiring WHERE id = ANY($1)",
        ] {
            sqlx::query(sql).bind(&ids).execute(tx.conn()).await?;
        }
        tracing::debug!(service = SERVICE, runs = ids.len(), "runs past their retention");
        Ok(Vec::new())
    }
}
