//! Ends what ran out of time, and gives time back that was lost on our side.

use crate::{
    line,
    state::State,
    store::{self, Outcome, TaskRow},
};
use contracts::dispatcher::TaskQueued;
use eventstore::Leader;
use futures::StreamExt;
use ids::{TaskId, Timestamp};
use model::lease::{self, Expiry};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The longest time between two looks, whatever the nudges do.
const AT_LEAST_EVERY: Duration = Duration::from_secs(10);
/// The shortest: a row that stays due is not hammered.
const AT_MOST_EVERY: Duration = Duration::from_millis(20);
/// Between two attempts to lead.
const AS_SECOND: Duration = Duration::from_secs(3);
/// Tasks ended per look.
const AT_A_TIME: i64 = 100;
/// Tasks ended at once: each may wait for a receiver.
const AT_ONCE: usize = 4;

pub async fn run(state: Arc<State>, stop: CancellationToken) {
    let leader = Leader::new(&state.store, "dispatcher.sweeper");
    let mut sweeper = Sweeper { leader, grace_until: Instant::now(), outage: true, expected: None };
    while !stop.is_cancelled() {
        let began = Instant::now();
        let wait = match sweeper.look(&state).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the sweeper could not look");
                sweeper.outage = true;
                Duration::from_secs(1)
            }
        };
        let wait = wait.clamp(AT_MOST_EVERY, AT_LEAST_EVERY);
        if let Some(expected) = &mut sweeper.expected {
            // Looking may take long by itself, when a receiver is slow to close epochs.
            *expected += began.elapsed() + wait;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
            () = state.due.notified() => tokio::time::sleep(AT_MOST_EVERY).await,
        }
    }
    // Another process need not wait for the deadline.
    if let Err(error) = sweeper.leader.release().await {
        tracing::debug!(error = &error as &dyn std::error::Error, "the sweeper's role was not given up");
    }
}

struct Sweeper {
    /// Of several processes one sweeps (reliability §7); what it ends is fenced by its row.
    leader: Leader,
    /// Nothing is declared lost before.
    grace_until: Instant,
    /// Whether we may have been unable to accept renewals since the last look; at the start we were.
    outage: bool,
    /// When, by the database's clock, the next look was to be.
    expected: Option<Timestamp>,
}

impl Sweeper {
    /// One look; returns how long nothing is due.
    async fn look(&mut self, state: &State) -> anyhow::Result<Duration> {
        let before = self.leader.epoch();
        if !self.leader.hold().await? {
            // Another process sweeps. If it stops, nothing was swept for up to its deadline.
            self.outage = true;
            return Ok(AS_SECOND);
        }
        // The one before may have been unable to accept renewals.
        self.outage |= before != self.leader.epoch();
        let now: Timestamp =
            sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(state.store.pool()).await?;
        // A look that comes far too late means that this process or this machine stood still.
        let stood_still =
            self.expected.is_some_and(|at| (now - at).to_std().is_ok_and(|d| d > state.config.slack()));
        self.expected = Some(now);
        if self.outage || stood_still {
            credit(state).await?;
            self.outage = false;
            self.grace_until = Instant::now() + state.config.recovery_grace;
        }
        fill(state).await?;
        let grace = self.grace_until.saturating_duration_since(Instant::now());
        if !grace.is_zero() {
            return Ok(grace);
        }
        let due: Vec<(uuid::Uuid,)> = sqlx::query_as(
            "SELECT task_id FROM dispatcher.tasks WHERE next_action_at <= clock_timestamp() ORDER BY next_action_at LIMIT $1",
        )
        .bind(AT_A_TIME)
        .fetch_all(state.store.pool())
        .await?;
        futures::stream::iter(&due)
            .for_each_concurrent(AT_ONCE, async |(task,)| {
                // One task that cannot be ended must not keep the others waiting.
                if let Err(error) = expire(state, &self.leader, TaskId(*task)).await {
                    tracing::error!(%task, error = format!("{error:#}"), "a task whose time ran out could not be ended");
                }
            })
            .await;
        let next: Option<Timestamp> = sqlx::query_scalar(
            "SELECT min(next_action_at) FROM dispatcher.tasks WHERE next_action_at IS NOT NULL",
        )
        .fetch_one(state.store.pool())
        .await?;
        let after = next.map_or(AT_LEAST_EVERY, |at| (at - now).to_std().unwrap_or_default());
        // What is due and could not be ended is tried again, not at once.
        Ok(if after.is_zero() { Duration::from_secs(1) } else { after })
    }
}

/// Extends every live lease and every wait for an agent: the time that passed was ours.
async fn credit(state: &State) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE dispatcher.tasks SET deadline = greatest(deadline, clock_timestamp() + coalesce(lease, $1)), \
             next_action_at = greatest(next_action_at, clock_timestamp() + coalesce(lease, $1)) WHERE state = 'leased'",
    )
    .bind(state.config.lease)
    .execute(state.store.pool())
    .await?;
    sqlx::query(
        "UPDATE dispatcher.tasks SET next_action_at = greatest(next_action_at, clock_timestamp() + $1) WHERE state = 'queued'",
    )
    .bind(state.config.claim_timeout)
    .execute(state.store.pool())
    .await?;
    Ok(())
}

/// Slots are filled when they are freed; this finds those that a larger limit has made.
async fn fill(state: &State) -> anyhow::Result<()> {
    let (waiting, held): (bool, i64) = sqlx::query_as(
        "SELECT EXISTS (SELECT 1 FROM dispatcher.tasks WHERE state = 'waiting' AND resource_class NOT LIKE '%/%'), \
             (SELECT count(*) FROM dispatcher.tasks WHERE state IN ('queued', 'leased') AND resource_class NOT LIKE '%/%')",
    )
    .fetch_one(state.store.pool())
    .await?;
    if !waiting || held >= i64::from(state.config.slots) {
        return Ok(());
    }
    let mut tx = state.store.begin(&[store::slots()]).await?;
    let events = line::fill(&mut tx, state).await?;
    tx.append(&events).await?;
    Ok(tx.commit().await?)
}

/// Ends or queues again one task whose time ran out.
async fn expire(state: &State, leader: &Leader, id: TaskId) -> anyhow::Result<()> {
    let Some(known) = store::peek(state.store.pool(), id).await? else { return Ok(()) };
    if known.state == "leased" {
        // The fence token has ended with the lease, so a receiver that does not answer has closed by itself.
        if let Err(error) = state.close_epoch(&known).await {
            tracing::warn!(task = %id, %error, "the epoch was not closed; its token has expired");
        }
    }
    let [run, task] = store::of_task(&known);
    let mut tx = state.store.begin(&[store::slots(), run, task]).await?;
    leader.fence(&mut tx).await?;
    let task = store::task(&mut tx, id).await?;
    let now = store::now(&mut tx).await?;
    if task.next_action_at.is_none_or(|due| due > now) {
        return Ok(());
    }
    let run = store::run(&mut tx, task.job_id).await?;
    let events = match lease::expire(&task.lease(), state.config.max_requeues) {
        Expiry::Requeue => {
            let queued = requeue(state, &mut tx, &run, &task).await?;
            queued.iter().map(|queued| run.event("task", task.task_id, queued)).collect()
        }
        Expiry::Finish(status, reason) => {
            tracing::warn!(task = %id, epoch = task.epoch, %status, reason, "a task's time ran out");
            let reason = Some(reason.to_owned());
            let outcome = Outcome { status, reason, reported: false, settled: false };
            let mut events = store::finish(&mut tx, &run, &task, outcome).await?;
            events.extend(line::fill(&mut tx, state).await?);
            events
        }
    };
    tx.append(&events).await?;
    tx.commit().await?;
    state.wake([id]);
    state.wake_runners();
    Ok(())
}

/// Keeps the slot: the task stays where it is in line, under a new epoch. One of a self-hosted runner waits for the next
/// that asks.
async fn requeue(
    state: &State,
    tx: &mut eventstore::Tx,
    run: &store::RunRow,
    task: &TaskRow,
) -> anyhow::Result<Option<TaskQueued>> {
    let waits = sqlx::query(
        "UPDATE dispatcher.tasks SET state = 'waiting', requeues = requeues + 1, claim_id = NULL, instance_id = NULL, \
             public_key = NULL, granted_at = NULL, permit_at = NULL, renewed_at = NULL, deadline = NULL, \
             next_action_at = clock_timestamp() + $2 WHERE task_id = $1 AND resource_class LIKE '%/%'",
    )
    .bind(task.task_id)
    .bind(state.config.queue_timeout)
    .execute(tx.conn())
    .await?;
    if waits.rows_affected() > 0 {
        return Ok(None);
    }
    let (epoch, resource_class, executor): (i64, Option<String>, Option<String>) = sqlx::query_as(
        "UPDATE dispatcher.tasks t SET state = 'queued', epoch = t.epoch + 1, requeues = t.requeues + 1, claim_id = NULL, \
             instance_id = NULL, public_key = NULL, granted_at = NULL, permit_at = NULL, renewed_at = NULL, deadline = NULL, \
             queued_at = clock_timestamp(), next_action_at = clock_timestamp() + $2, placement = NULL \
         FROM dispatcher.runs r WHERE t.task_id = $1 AND r.job_id = t.job_id \
         RETURNING t.epoch, r.ready #>> '{definition,resource_class}', r.ready #>> '{definition,executor,kind}'",
    )
    .bind(task.task_id)
    .bind(state.config.claim_timeout)
    .fetch_one(tx.conn())
    .await?;
    Ok(Some(TaskQueued {
        task_id: task.task(),
        job_id: run.job(),
        workflow_id: run.workflow(),
        index: task.index(),
        epoch,
        demand: Some(line::demand(
            &state.config.classes,
            &executor.unwrap_or_default(),
            resource_class.as_deref().unwrap_or_default(),
        )),
        resource_class: resource_class.unwrap_or_default(),
    }))
}
