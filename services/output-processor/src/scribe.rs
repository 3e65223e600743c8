//! Writes what changed to the event log and the records, many steps at once.

use crate::{
    http::bounded,
    hub::{Hub, Work},
    store,
    task::Deny,
};
use contracts::{
    Actor, NewEvent,
    output::{StepPlace, StepReported},
    trace::Trace,
};
use eventstore::Key;
use ids::{StepId, TaskId};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Events of one transaction.
const BATCH: usize = 256;
/// An event has at most 256 KiB; a longer command is cut there, not in the record.
const COMMAND_IN_EVENT: usize = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs until `stop`, then writes once more.
pub(crate) async fn run(hub: Arc<Hub>, writing: Arc<tokio::sync::Mutex<()>>, stop: CancellationToken) {
    let gather = Duration::from_millis(hub.config.gather_ms);
    let mut pause = gather;
    loop {
        let stopping = tokio::select! {
            () = hub.changes.notified() => false,
            () = stop.cancelled() => true,
        };
        if !stopping {
            // Changes come in groups: one commit for all of them. A failure makes the pause longer.
            tokio::select! { () = tokio::time::sleep(pause) => {}, () = stop.cancelled() => {} }
        }
        let tasks = std::mem::take(&mut *hub.changed.lock().unwrap_or_else(PoisonError::into_inner));
        match write(&hub, &writing, &tasks).await {
            Ok(()) => pause = gather,
            Err(error) => {
                tracing::warn!(error = %format_args!("{error:#}"), "step changes cannot be written now");
                pause = (pause * 2).clamp(Duration::from_millis(50), PATIENCE);
                for task in tasks {
                    hub.changed(task);
                }
            }
        }
        if stopping {
            return;
        }
    }
}

/// Writes the changed steps of these tasks. One writer at a time: else an older state could follow a newer one.
pub(crate) async fn write(
    hub: &Hub,
    writing: &tokio::sync::Mutex<()>,
    tasks: &HashSet<TaskId>,
) -> anyhow::Result<()> {
    let _writing = writing.lock().await;
    learn_indexes(hub, tasks).await?;
    let mut changes: Vec<(StepPlace, i64)> = Vec::new();
    let mut traces = HashMap::new();
    for task in tasks.iter().filter_map(|id| hub.task_in_memory(*id)) {
        let state = task.lock();
        let Some(job_id) = state.job else { continue };
        let index = state.index.unwrap_or_default();
        traces.extend(state.trace.map(|trace| (task.id, trace)));
        changes.extend(state.unwritten().filter_map(|(id, step)| {
            let record = step.record(id, index)?;
            Some((StepPlace { job_id, task_id: task.id, step: record }, step.version))
        }));
    }
    // The order of their entries is the order in which things happened.
    changes.sort_by_key(|(_, version)| *version);
    for batch in changes.chunks(BATCH) {
        append(hub, batch, &traces).await?;
        let documents = batch.iter().map(|(place, version)| Hub::document(place, *version));
        hub.records.put(&documents.collect::<Result<Vec<_>, _>>()?).await?;
        for (place, version) in batch {
            written(hub, place.task_id, place.step.step_id, *version);
            hub.tell_job(place.job_id, place.step.step_id).await;
        }
    }
    Ok(())
}

fn written(hub: &Hub, task: TaskId, step: StepId, version: i64) {
    if let Some(task) = hub.task_in_memory(task)
        && let Some(step) = task.lock().steps.get_mut(&step)
    {
        step.persisted = step.persisted.max(version);
    }
}

async fn append(
    hub: &Hub,
    changes: &[(StepPlace, i64)],
    traces: &HashMap<TaskId, Trace>,
) -> eventstore::Result<()> {
    let tasks: HashSet<TaskId> = changes.iter().map(|(place, _)| place.task_id).collect();
    let locks: Vec<Key> = tasks.iter().map(|task| Key::new("record", task.uuid())).collect();
    let actor = Actor::service("output-processor");
    let events: Vec<NewEvent> = changes
        .iter()
        .map(|(StepPlace { job_id, task_id, step }, _)| {
            let mut step = step.clone();
            step.bash_command = step.bash_command.map(|command| bounded(&command, COMMAND_IN_EVENT));
            let body = StepReported { task_id: *task_id, job_id: *job_id, step };
            let trace = traces.get(task_id).map(Trace::to_string);
            NewEvent::new("record", task_id.uuid(), actor.clone(), &body).traced(trace)
        })
        .collect();
    // Durable: the journal is read again only when this process starts, so a database that loses its last commits
    // alone would leave a gap that nobody fills.
    let mut tx = hub.store.begin(&locks).await?;
    tx.append(&events).await?;
    tx.commit().await
}

/// Asks for the parallel indexes that were not known when the tasks came.
async fn learn_indexes(hub: &Hub, tasks: &HashSet<TaskId>) -> sqlx::Result<()> {
    let tasks: Vec<_> = tasks.iter().filter_map(|id| hub.task_in_memory(*id)).collect();
    let unknown: Vec<TaskId> =
        tasks.iter().filter(|task| task.lock().index.is_none()).map(|task| task.id).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let known = store::known(hub.store.pool(), &unknown).await?;
    for task in tasks {
        if let Some(index) = known.get(&task.id).and_then(|known| known.index) {
            task.lock().index.get_or_insert(index);
        }
    }
    Ok(())
}

/// Closes an epoch and leaves the rest to the background.
pub(crate) async fn close(hub: &Hub, task_id: TaskId, epoch: i64) -> anyhow::Result<()> {
    loop {
        let task = hub.task(task_id).await?;
        let (new, ticket) = match task.close(&hub.journal, epoch, chrono::Utc::now()) {
            Err(Deny::Gone) => continue,
            closed => closed?,
        };
        if new {
            hub.later(Work::Finish(task_id));
            hub.changed(task_id);
            let steps: Vec<_> = {
                let state = task.lock();
                state.steps.iter().map(|(id, step)| (*id, step.total())).collect()
            };
            for (step, total) in steps {
                hub.tell_output(step, total).await; // it ends for those who wait
            }
        } else {
            hub.let_go(&task).await;
        }
        // What was in time is committed before the close is answered; nothing of the epoch comes after.
        drop(task.commits.write().await);
        return Ok(hub.journal.durable(ticket).await?);
    }
}
