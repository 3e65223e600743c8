//! Rows of placements, and the group that writes them: queued tasks want an agent, ended ones want none.

use crate::state::State;
use bus::{Fault, Group};
use compute::{Demand, Placement};
use contracts::{
    Envelope, Event,
    dispatcher::{TaskFinished, TaskQueued},
    trace::Trace,
};
use eventstore::{Key, Tx, trace};
use ids::TaskId;
use sqlx::types::Json;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use uuid::Uuid;

/// Name of the schema and of the service.
pub const SERVICE: &str = "scheduler";

/// Consumes `task.queued` and `task.finished`.
pub struct Placements(pub Arc<State>);

#[async_trait::async_trait]
impl Group for Placements {
    fn name(&self) -> &'static str {
        "scheduler.placements"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[TaskQueued::TYPE, TaskFinished::TYPE]
    }

    /// A lost commit is made again from the same event, and starting is idempotent by name.
    fn relaxed(&self) -> bool {
        true
    }

    /// What is queued together is placed together.
    fn batch(&self) -> usize {
        64
    }

    fn locks(&self, _msg: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            if message.is::<TaskQueued>() {
                let trace = trace::after(message).map(|trace| trace.to_string());
                want(tx, &message.body_as()?, trace).await?;
            } else {
                let ended: TaskFinished = message.body_as()?;
                end(tx, ended.task_id, ended.epoch, self.0.config.linger).await?;
            }
        }
        Ok(())
    }

    async fn after_commit(&self, batch: &[Envelope]) {
        let queued = || batch.iter().filter(|message| message.is::<TaskQueued>());
        let queued = || queued().filter_map(|message| message.body_as::<TaskQueued>().ok());
        if queued().any(|queued| wants_agent(&queued)) {
            self.0.wanted.notify_one();
        }
        // Whose first epoch begins has no agent that is to end.
        if batch.iter().any(|message| message.is::<TaskFinished>()) || queued().any(|queued| queued.epoch > 1)
        {
            self.0.ending.notify_one();
        }
    }
}

/// Whether an agent is to be placed for it: a self-hosted runner starts its own (execution §25).
fn wants_agent(queued: &TaskQueued) -> bool {
    !queued.resource_class.contains('/')
}

async fn want(tx: &mut Tx, queued: &TaskQueued, trace: Option<String>) -> sqlx::Result<()> {
    if !wants_agent(queued) {
        return Ok(());
    }
    // The agent of an earlier epoch can no longer do anything.
    end(tx, queued.task_id, queued.epoch - 1, Duration::ZERO).await?;
    sqlx::query(
        "INSERT INTO scheduler.placements (task_id, epoch, job_id, demand, trace, state, next_action_at) \
         VALUES ($1, $2, $3, $4, $5, 'wanted', clock_timestamp()) ON CONFLICT DO NOTHING",
    )
    .bind(queued.task_id.uuid())
    .bind(queued.epoch)
    .bind(queued.job_id.uuid())
    .bind(queued.demand.as_ref().map(Json))
    .bind(trace)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Has the task's agents up to this epoch ended; one that runs may take the time to leave by itself.
async fn end(tx: &mut Tx, task: TaskId, epoch: i64, linger: Duration) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE scheduler.placements SET state = 'ending', attempts = 0, ending_at = clock_timestamp(), \
             next_action_at = clock_timestamp() + CASE WHEN state = 'started' THEN $3 ELSE interval '0' END \
         WHERE task_id = $1 AND epoch <= $2 AND state IN ('wanted', 'started')",
    )
    .bind(task.uuid())
    .bind(epoch)
    .bind(linger)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// A placement.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Row {
    pub task_id: Uuid,
    pub epoch: i64,
    pub attempts: i32,
    demand: Option<Json<Demand>>,
    trace: Option<String>,
}

impl Row {
    /// What its agent is to be started with.
    pub fn placement(&self, token: String) -> Placement {
        let (task_id, epoch) = (self.task(), self.epoch);
        let demand = self.demand.as_ref().map(|demand| demand.0.clone()).unwrap_or_default();
        Placement { name: self.name(), task_id, epoch, token, demand }
    }

    /// What is done for it is told of there.
    pub fn trace(&self) -> Option<Trace> {
        self.trace.as_deref()?.parse().ok()
    }

    pub fn task(&self) -> TaskId {
        TaskId(self.task_id)
    }

    pub fn name(&self) -> String {
        Placement::name_of(self.task(), self.epoch)
    }
}

/// Placements that something is being done for.
#[derive(Debug, Default)]
pub struct Busy(HashSet<(Uuid, i64)>);

impl Busy {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn insert(&mut self, row: &Row) {
        self.0.insert((row.task_id, row.epoch));
    }

    pub fn remove(&mut self, row: &Row) {
        self.0.remove(&(row.task_id, row.epoch));
    }

    fn columns(&self) -> (Vec<Uuid>, Vec<i64>) {
        self.0.iter().copied().unzip()
    }
}

/// What is to be done now in one state and is not being done, longest due first.
pub async fn due(state: &State, which: &str, busy: &Busy, most: usize) -> sqlx::Result<Vec<Row>> {
    let (tasks, epochs) = busy.columns();
    sqlx::query_as(
        "SELECT task_id, epoch, attempts, demand, trace FROM scheduler.placements \
         WHERE next_action_at <= clock_timestamp() AND state = $1 \
             AND (task_id, epoch) NOT IN (SELECT * FROM unnest($2::uuid[], $3::bigint[])) \
         ORDER BY next_action_at LIMIT $4",
    )
    .bind(which)
    .bind(tasks)
    .bind(epochs)
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_all(state.store.pool())
    .await
}

/// How long nothing more is due in one state.
pub async fn next_due(state: &State, which: &str, busy: &Busy) -> sqlx::Result<Option<Duration>> {
    let (tasks, epochs) = busy.columns();
    let seconds: Option<f64> = sqlx::query_scalar(
        "SELECT extract(epoch FROM min(next_action_at) - clock_timestamp())::float8 FROM scheduler.placements \
         WHERE next_action_at IS NOT NULL AND state = $1 \
             AND (task_id, epoch) NOT IN (SELECT * FROM unnest($2::uuid[], $3::bigint[]))",
    )
    .bind(which)
    .bind(tasks)
    .bind(epochs)
    .fetch_one(state.store.pool())
    .await?;
    Ok(seconds.map(|seconds| Duration::from_secs_f64(seconds.clamp(0.0, 3600.0))))
}

/// Moves placements on, in one commit; without effect on those that are no longer where we saw them.
pub async fn advance(state: &State, rows: &[Row], from: &str, to: &str) -> eventstore::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut tx = state.store.begin_relaxed(&[]).await?;
    let moved = sqlx::query(
        "UPDATE scheduler.placements p SET state = $4, next_action_at = NULL, attempts = 0, \
             started_at = CASE WHEN $4 = 'started' THEN clock_timestamp() ELSE started_at END \
         FROM unnest($1::uuid[], $2::bigint[]) AS r(task_id, epoch) \
         WHERE p.task_id = r.task_id AND p.epoch = r.epoch AND p.state = $3",
    )
    .bind(rows.iter().map(|row| row.task_id).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.epoch).collect::<Vec<_>>())
    .bind(from)
    .bind(to)
    .execute(tx.conn())
    .await?;
    tx.commit().await?;
    if to == "started" {
        metrics::counter!("gantry.scheduler.started").increment(moved.rows_affected());
    }
    Ok(())
}

/// Tries again later: after 1, 2, 4 … 30 s.
pub async fn postpone(state: &State, row: &Row) -> sqlx::Result<()> {
    let wait = Duration::from_secs(1 << row.attempts.clamp(0, 5)).min(Duration::from_secs(30));
    sqlx::query(
        "UPDATE scheduler.placements SET attempts = attempts + 1, next_action_at = clock_timestamp() + $3 \
         WHERE task_id = $1 AND epoch = $2 AND state IN ('wanted', 'ending')",
    )
    .bind(row.task_id)
    .bind(row.epoch)
    .bind(wait)
    .execute(state.store.pool())
    .await?;
    Ok(())
}

/// A placement with its state.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Known {
    #[sqlx(flatten)]
    pub row: Row,
    pub state: String,
}

/// All placements that are not gone, by name.
pub async fn all(state: &State) -> sqlx::Result<HashMap<String, Known>> {
    let rows: Vec<Known> = sqlx::query_as(
        "SELECT task_id, epoch, attempts, demand, trace, state FROM scheduler.placements WHERE state <> 'gone'",
    )
    .fetch_all(state.store.pool())
    .await?;
    Ok(rows.into_iter().map(|known| (known.row.name(), known)).collect())
}

/// Notes that this start of a placement has shown who it is. `false`: the placement is not wanted any more, or another
/// start of it came first.
pub async fn hold(state: &State, task: TaskId, epoch: i64, instance: &str) -> sqlx::Result<bool> {
    let held = sqlx::query(
        "UPDATE scheduler.placements SET instance = $3 WHERE task_id = $1 AND epoch = $2 \
             AND state IN ('wanted', 'started') AND (instance IS NULL OR instance = $3)",
    )
    .bind(task.uuid())
    .bind(epoch)
    .bind(instance)
    .execute(state.store.pool())
    .await?;
    Ok(held.rows_affected() > 0)
}

/// Deletes placements that have been gone for long.
pub async fn forget(state: &State) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM scheduler.placements WHERE state = 'gone' AND ending_at < clock_timestamp() - $1::interval")
        .bind(state.config.remember)
        .execute(state.store.pool())
        .await?;
    Ok(())
}
