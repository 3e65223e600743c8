//! Moves sealed streams to the blob store, completes the records of finished tasks, and lets the journal go.

use crate::{
    hub::{Hub, STEP, Todo, Work, log_key},
    scribe,
    sealed::{self, Record, Sealed},
    store::{self, Fence},
    task::{Task, Whereabouts},
};
use blobs::{Body, Put};
use bytes::Bytes;
use futures::StreamExt;
use ids::{JobId, StepId, TaskId, Timestamp};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// After a failure the work is tried again, at first soon.
const AGAIN: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(30);
/// Streams that are moved at the same time.
const AT_A_TIME: usize = 4;

/// Runs until `stop`; what is under way then is found again at the next start.
pub(crate) async fn run(
    hub: Arc<Hub>,
    writing: Arc<tokio::sync::Mutex<()>>,
    mut todo: mpsc::UnboundedReceiver<Todo>,
    stop: CancellationToken,
) {
    let stream = futures::stream::poll_fn(move |context| todo.poll_recv(context));
    let done = stream.for_each_concurrent(AT_A_TIME, |Todo { work, failures }| {
        let (hub, writing) = (&hub, &writing);
        async move {
            let result = match work {
                Work::Store(task, step) => match hub.task_in_memory(task) {
                    Some(task) => store_stream(hub, &task, step).await,
                    None => Ok(()),
                },
                Work::Finish(task) => finish(hub, writing, task).await,
            };
            let Err(error) = result else { return };
            let pause = (AGAIN * 2u32.saturating_pow(failures.min(16))).min(PATIENCE);
            tracing::warn!(error = %format_args!("{error:#}"), ?work, ?pause, "will be tried again");
            // Aside, so that what cannot be done keeps nothing else waiting.
            let todo = hub.work.clone();
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                // A closed channel: the service stopped, and the next start finds this work again.
                todo.send(Todo { work, failures: failures.saturating_add(1) }).ok();
            });
        }
    });
    tokio::select! { () = done => {}, () = stop.cancelled() => {} }
}

/// Moves one sealed stream. Repeating it does no harm; two at once find the same blob.
async fn store_stream(hub: &Hub, task: &Arc<Task>, id: StepId) -> anyhow::Result<()> {
    let (seal, ticket, whereabouts) = {
        let state = task.lock();
        let Some(step) = state.steps.get(&id) else { return Ok(()) };
        let Some(seal) = &step.seal else { return Ok(()) };
        if step.stored {
            return Ok(());
        }
        (seal.clone(), step.ticket, step.whereabouts(0, step.total()))
    };
    hub.journal.durable(ticket).await?;
    if seal.total_bytes > 0
        && let Whereabouts::Journal(chunks) = whereabouts
    {
        let total = seal.total_bytes;
        // One chunk in memory at a time, read back from the disk: its digest is checked by the blob store.
        let body: Body = futures::stream::iter(chunks)
            .then(move |chunk| async move {
                let read = tokio::task::spawn_blocking(move || chunk.read(0, total)).await;
                read.unwrap_or_else(|error| Err(std::io::Error::other(error))).map(Bytes::from)
            })
            .boxed();
        let sha256 = hex::decode(&seal.sha256)?
            .try_into()
            .map_err(|_| anyhow::anyhow!("a digest of another length"))?;
        match hub.blobs.put(&log_key(id)?, body, sha256).await {
            Ok(Put::Stored(_)) => {}
            Ok(Put::AlreadyExists(meta)) if meta.sha256 == sha256 => {}
            Ok(Put::AlreadyExists(_)) => anyhow::bail!("another output is stored for step {id}"),
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(ticket) = task.stored(&hub.journal, id)? {
        hub.journal.durable(ticket).await?;
        hub.journal.release(id.uuid());
    }
    Ok(())
}

/// Completes the record of a task and lets it leave memory.
async fn finish(hub: &Hub, writing: &tokio::sync::Mutex<()>, id: TaskId) -> anyhow::Result<()> {
    let Some(task) = hub.task_in_memory(id) else { return Ok(()) };
    let (over, unstored) = {
        let state = task.lock();
        let unstored = state.steps.iter().filter(|(_, step)| step.seal.is_some() && !step.stored);
        (state.is_over(), unstored.map(|(id, _)| *id).collect::<Vec<_>>())
    };
    for step in unstored {
        store_stream(hub, &task, step).await?;
    }
    if !over {
        return Ok(()); // a newer epoch writes; its close comes here again
    }
    scribe::write(hub, writing, &HashSet::from([id])).await?;

    let (epoch, job_id, index, steps) = {
        let state = task.lock();
        let index = state.index.unwrap_or_default();
        let steps = state
            .steps
            .iter()
            .filter_map(|(id, step)| Some(Sealed { step: step.record(*id, index)?, version: step.version }));
        let mut steps: Vec<_> = steps.collect();
        steps.sort_by_key(|Sealed { step, .. }| (step.number, step.started_at, step.step_id));
        (state.closed, state.job, index, steps)
    };
    if let Some(job_id) = job_id
        && !steps.is_empty()
    {
        let record = serde_json::to_vec(&Record { task_id: id, job_id, index, epoch, steps })?;
        let sha256 = blobs::digest(&record);
        hub.blobs.put(&sealed::key(id, epoch)?, blobs::body(record), sha256).await?;
    }
    // From here on the journal is not needed: first all of it must survive a crash elsewhere.
    hub.records.flush().await?;
    let _moving = hub.moving.lock().await;
    store::close(hub.store.pool(), id, epoch).await?;
    let over = {
        let mut state = task.lock();
        let over = state.is_over() && state.closed == epoch;
        anyhow::ensure!(
            !over || state.unwritten().next().is_none(),
            "steps changed while the record was sealed"
        );
        state.gone = over; // nothing comes in between the look and the leaving
        over
    };
    if over {
        // In this order: whoever finds a task in memory that is gone looks again at once.
        hub.evict(&task);
        hub.disown(id).await;
    }
    Ok(())
}

/// Removes the records and the output of tasks that ended more than `logs.retention_days` before `now`. How many.
pub(crate) async fn sweep(hub: &Hub, now: Timestamp) -> anyhow::Result<usize> {
    const PAGE: i64 = 100;
    let Some(before) = hub.retained_since(now) else { return Ok(0) };
    let mut swept = 0;
    loop {
        let due = store::closed_before(hub.store.pool(), before, PAGE).await?;
        remove(hub, &due).await?;
        let tasks: Vec<Uuid> = due.iter().map(|fence| fence.task.uuid()).collect();
        store::forget(hub.store.pool(), &tasks).await?;
        swept += tasks.len();
        if tasks.len() < usize::try_from(PAGE)? {
            return Ok(swept);
        }
    }
}

/// Removes the output of these tasks, what is recorded of their steps, and their sealed records. By what the events tell of
/// them and not by the records: those can be lost or damaged. The rows that name the tasks are left to the caller: a crash
/// leaves nothing that nobody names.
async fn remove(hub: &Hub, tasks: &[Fence]) -> anyhow::Result<()> {
    let ids: Vec<TaskId> = tasks.iter().map(|fence| fence.task).collect();
    let told = store::told(hub.store.pool(), &ids).await?;
    for Fence { task, closed_to } in tasks {
        let steps = told.get(task).map(Vec::as_slice).unwrap_or_default();
        for step in steps {
            hub.blobs.delete(&log_key(*step)?).await?;
        }
        let steps: Vec<_> = steps.iter().map(|step| step.uuid()).collect();
        hub.records.remove(STEP, &steps).await?;
        for epoch in 1..=*closed_to {
            hub.blobs.delete(&sealed::key(*task, epoch)?).await?;
        }
    }
    Ok(())
}

/// Removes the output and the records of a job.
pub(crate) async fn forget_job(hub: &Hub, job: Uuid) -> anyhow::Result<()> {
    remove(hub, &store::fences_of_job(hub.store.pool(), JobId(job)).await?).await?;
    // Steps of a task that has no record.
    let steps: Vec<_> = hub.records.list_by(STEP, job).await?.iter().map(|step| step.id).collect();
    for step in &steps {
        hub.blobs.delete(&log_key(StepId(*step))?).await?;
    }
    Ok(hub.records.remove(STEP, &steps).await?)
}

/// Sweeps now and then until `stop`.
pub(crate) async fn sweep_loop(hub: Arc<Hub>, stop: CancellationToken) {
    let pause = Duration::from_secs(hub.config.sweep_seconds.max(1));
    loop {
        match sweep(&hub, chrono::Utc::now()).await {
            Ok(0) => {}
            Ok(swept) => tracing::info!(swept, "removed tasks past their retention"),
            Err(error) => tracing::warn!(error = %format_args!("{error:#}"), "the sweep did not finish"),
        }
        metrics::gauge!("gantry.output_processor.journal_segments").set(hub.journal.segments() as f64);
        tokio::select! { () = tokio::time::sleep(pause) => {}, () = stop.cancelled() => return }
    }
}
