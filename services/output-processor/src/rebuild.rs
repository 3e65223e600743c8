//! Makes the documents of steps again from what they were made of: tasks that processes hold, with their journals, and the
//! sealed records of all others. For a store of records that was dropped, while everything goes on.
//!
//! Safe at any time: a document is replaced only by a newer version, and one that was not there is what it was. What is held
//! comes first. A task that ends meanwhile was held then; one that begins meanwhile writes its documents itself.

use crate::{
    answers::unanswered,
    hub::{Hub, STEP},
    peers::Peers,
    sealed::{self, Record},
    store::{self, Fence},
    task::Task,
};
use bus::Ask;
use chrono::{TimeDelta, Utc};
use contracts::{
    Request, RequestError,
    output::{RebuildRecords, RebuiltRecords, RewriteHeld, StepPlace, UnreadableRecord},
};
use futures::{StreamExt, TryStreamExt};
use ids::{JobId, StepId, TaskId, Timestamp};
use records::NewDocument;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::Instant;
use uuid::Uuid;

/// Tasks of one request.
const PAGE: u16 = 512;
/// Tasks whose records are in memory together.
const TOGETHER: usize = 32;
/// Records that are read at the same time.
const AT_A_TIME: usize = 8;
/// Documents of one write.
const BATCH: usize = 256;
/// A request does not begin more after it.
const WITHIN: Duration = Duration::from_secs(8);
/// Clocks of processes that sweep may differ by so much.
const SKEW: TimeDelta = TimeDelta::minutes(1);

/// Answers one request: what is held, if it is the first, and then a page of what is sealed.
pub(crate) async fn page(
    hub: &Arc<Hub>,
    ask: RebuildRecords,
    req: &Request,
) -> Result<RebuiltRecords, RequestError> {
    let begun = Instant::now();
    let mut done = RebuiltRecords::default();
    if ask.after.is_none() {
        hub.records.prepare().await.map_err(|error| unanswered(error.into()))?;
        done = held(hub).await.map_err(unanswered)?;
        if let Some(peers) = &hub.peers {
            held_elsewhere(hub, peers, req, &mut done).await.map_err(unanswered)?;
        }
    }
    sealed(hub, ask.after, begun, &mut done).await.map_err(unanswered)?;
    Ok(done)
}

/// Writes the documents of what this process holds.
pub(crate) async fn held(hub: &Hub) -> anyhow::Result<RebuiltRecords> {
    let mut done = RebuiltRecords::default();
    let tasks = hub.held().await;
    for some in tasks.chunks(TOGETHER) {
        let mut documents = Vec::new();
        for task in some {
            documents.extend(documents_of(task)?);
        }
        done.tasks += some.len() as u64;
        write(hub, &documents, &mut done).await?;
    }
    Ok(done)
}

/// All of them, also those that are about to be written: they may have been, to the store that was dropped.
fn documents_of(task: &Task) -> serde_json::Result<Vec<NewDocument>> {
    let state = task.lock();
    let Some(job_id) = state.job else { return Ok(Vec::new()) };
    let index = state.index.unwrap_or_default();
    let documents = state.steps.iter().filter_map(|(id, step)| {
        let place = StepPlace { job_id, task_id: task.id, step: step.record(*id, index)? };
        Some(Hub::document(&place, step.version))
    });
    documents.collect()
}

/// Lets the other processes do the same.
async fn held_elsewhere(
    hub: &Hub,
    peers: &Peers,
    req: &Request,
    done: &mut RebuiltRecords,
) -> anyhow::Result<()> {
    for peer in store::holders(hub.store.pool(), peers.me).await? {
        let request = Request {
            name: RewriteHeld::NAME.to_owned(),
            body: serde_json::to_value(RewriteHeld {})?,
            deadline: req.deadline.min(Utc::now() + TimeDelta::from_std(WITHIN)?),
            ..req.clone()
        };
        let answer = match peers.ask(&peer, &request).await {
            Ok(Ok(answer)) => serde_json::from_value::<RebuiltRecords>(answer).map_err(anyhow::Error::from),
            Ok(Err(error)) => Err(error.into()),
            Err(error) => Err(error),
        };
        match answer {
            // What is held has no pages: it names no task to go on after.
            Ok(held) => done.add(held),
            Err(error) => done.unreadable.push(UnreadableRecord {
                what: format!("journal {}", peer.id),
                why: format!(
                    "its process at {} does not answer: {error:#}; repeat this when it does",
                    peer.url
                ),
            }),
        }
    }
    Ok(())
}

/// What was found of a task whose record is complete.
struct Found {
    task: TaskId,
    closed_to: i64,
    records: Vec<Record>,
    /// Epochs that have none: nothing ran in them, or it is lost.
    without: Vec<i64>,
    unreadable: Vec<UnreadableRecord>,
}

impl Found {
    fn job(&self) -> (TaskId, Option<JobId>) {
        (self.task, self.records.first().map(|record| record.job_id))
    }

    /// A step that was told of and is in no record.
    fn lost(&self, told: &[StepId]) -> Option<UnreadableRecord> {
        let steps = self.records.iter().flat_map(|record| &record.steps);
        let there: HashSet<StepId> = steps.map(|sealed| sealed.step.step_id).collect();
        let lost = told.iter().find(|step| !there.contains(step))?;
        let names = self.without.iter().map(|epoch| format!("records/{}/{epoch}", self.task));
        Some(UnreadableRecord {
            what: names.collect::<Vec<_>>().join(", "),
            why: format!("it is not there, and no other has step {lost}"),
        })
    }
}

/// Writes the documents of tasks whose record is complete, after one of them.
async fn sealed(
    hub: &Hub,
    after: Option<TaskId>,
    begun: Instant,
    done: &mut RebuiltRecords,
) -> anyhow::Result<()> {
    let fences = store::fences_after(hub.store.pool(), after, i64::from(PAGE)).await?;
    done.next = fences.last().map(|fence| fence.task).filter(|_| fences.len() == usize::from(PAGE));
    let mut last = None;
    for together in fences.chunks(TOGETHER) {
        if last.is_some() && begun.elapsed() > WITHIN {
            done.next = last;
            break;
        }
        some(hub, together, done).await?;
        last = together.last().map(|fence| fence.task);
    }
    Ok(())
}

async fn some(hub: &Hub, fences: &[Fence], done: &mut RebuiltRecords) -> anyhow::Result<()> {
    let reads: Vec<_> = fences.iter().map(|fence| found(hub, *fence)).collect();
    let found: Vec<Found> = futures::stream::iter(reads).buffered(AT_A_TIME).try_collect().await?;
    // One that is about to be swept may be half gone.
    let since = || hub.retained_since(Utc::now()).map(|since: Timestamp| since + SKEW);
    let tasks: Vec<_> = found.iter().map(Found::job).collect();
    let kept = store::kept(hub.store.pool(), &tasks, since()).await?;
    let found: Vec<Found> = found.into_iter().filter(|found| kept.contains_key(&found.task)).collect();

    let lost = lost(hub, &found).await?;
    let (mut owners, mut documents) = (Vec::new(), Vec::new());
    for Found { task, records, unreadable, .. } in found {
        done.tasks += 1;
        done.unreadable.extend(unreadable);
        for record in records {
            let of_record = record.documents()?;
            owners.extend(std::iter::repeat_n(task, of_record.len()));
            documents.extend(of_record);
        }
    }
    write(hub, &documents, done).await?;

    // What was swept between the first look and the write must not stay behind, and is no loss.
    let kept = store::kept(hub.store.pool(), &tasks, since()).await?;
    let gone = owners.iter().zip(&documents).filter(|(task, _)| !kept.contains_key(task));
    let gone: Vec<_> = gone.map(|(_, document)| document.id).collect();
    if !gone.is_empty() {
        hub.records.remove(STEP, &gone).await?;
    }
    let lost = lost.into_iter().filter(|(fence, _)| kept.get(&fence.task) == Some(&fence.closed_to));
    done.unreadable.extend(lost.map(|(_, lost)| lost));
    Ok(())
}

/// Tasks of which a step was told that is in none of their records, as it seems. Not those that go on in a later epoch, which
/// somebody holds; if one ends in between, its fence is another afterwards.
async fn lost(hub: &Hub, found: &[Found]) -> anyhow::Result<Vec<(Fence, UnreadableRecord)>> {
    let doubtful = found.iter().filter(|found| !found.without.is_empty() && found.unreadable.is_empty());
    let doubtful: Vec<&Found> = doubtful.collect();
    if doubtful.is_empty() {
        return Ok(Vec::new());
    }
    let tasks: Vec<TaskId> = doubtful.iter().map(|found| found.task).collect();
    let told = store::told(hub.store.pool(), &tasks).await?;
    let me = hub.peers.as_ref().map_or_else(Uuid::nil, |peers| peers.me);
    let elsewhere = store::held_elsewhere(hub.store.pool(), &tasks, me).await?;
    let lost = doubtful.into_iter().filter_map(|found| {
        let held = hub.task_in_memory(found.task).is_some() || elsewhere.contains_key(&found.task);
        let lost = found.lost(told.get(&found.task)?).filter(|_| !held)?;
        Some((Fence { task: found.task, closed_to: found.closed_to }, lost))
    });
    Ok(lost.collect())
}

/// Reads the records of a task: an epoch's has the steps of the epochs before it that were still open then.
async fn found(hub: &Hub, Fence { task, closed_to }: Fence) -> anyhow::Result<Found> {
    let mut found =
        Found { task, closed_to, records: Vec::new(), without: Vec::new(), unreadable: Vec::new() };
    for epoch in 1..=closed_to {
        match sealed::read(hub, task, epoch).await {
            Ok(Some(record)) => found.records.push(record),
            Ok(None) => found.without.push(epoch),
            Err(error) => {
                let (what, why) = (sealed::key(task, epoch)?.to_string(), format!("{error:#}"));
                found.unreadable.push(UnreadableRecord { what, why });
            }
        }
    }
    Ok(found)
}

/// Puts documents and counts them.
async fn write(hub: &Hub, documents: &[NewDocument], done: &mut RebuiltRecords) -> anyhow::Result<()> {
    for batch in documents.chunks(BATCH) {
        let newer = hub.records.put(batch).await?;
        let written = newer.iter().filter(|newer| **newer).count() as u64;
        done.written += written;
        done.current += newer.len() as u64 - written;
    }
    Ok(())
}
