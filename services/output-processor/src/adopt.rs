//! Takes over the journals of processes of this folder that ended: what they had accepted is written into this process's own,
//! and its tasks are this process's from then on. A process that starts again finds its place empty.
//!
//! Cut short anywhere, it begins again: what was written twice is known by its place in the stream, and the rows of owners
//! say whose a task is.

use crate::{
    hub::{Hub, Index},
    journal,
    slot::Slot,
    store,
};
use anyhow::Context;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// The kernel tells nobody that a place became free; to ask costs one call for each process.
const LOOK: Duration = Duration::from_secs(1);

/// Runs until `stop`.
pub(crate) async fn run(hub: Arc<Hub>, root: PathBuf, stop: CancellationToken) {
    loop {
        if let Err(error) = all(&hub, &root).await {
            tracing::warn!(error = %format_args!("{error:#}"), "the journal of a process that ended is left for now");
        }
        tokio::select! { () = tokio::time::sleep(LOOK) => {}, () = stop.cancelled() => return }
    }
}

async fn all(hub: &Arc<Hub>, root: &std::path::Path) -> anyhow::Result<()> {
    let (root, mine) = (root.to_owned(), hub.slot.folder.clone());
    let orphans = tokio::task::spawn_blocking(move || Slot::orphans(&root, &mine)).await??;
    for orphan in orphans {
        let folder = orphan.folder.clone();
        adopt(hub, orphan).await.with_context(|| format!("in {}", folder.display()))?;
    }
    Ok(())
}

async fn adopt(hub: &Arc<Hub>, orphan: Slot) -> anyhow::Result<()> {
    let writer = Arc::clone(hub);
    let from = orphan.folder.clone();
    let written = tokio::task::spawn_blocking(move || {
        let mut index = Index::default();
        let mut last = None;
        let numbers = journal::numbers(&from)?;
        // Versions of records are places in a journal: they must go on growing.
        writer.journal.begin_above(numbers.last().copied().unwrap_or_default())?;
        for number in numbers {
            journal::payloads(&from, number, |payload| {
                last = index.write(&writer.journal, payload)?.or(last);
                anyhow::Ok(())
            })?;
        }
        anyhow::Ok((index, last))
    });
    let (index, last) = written.await??;
    if let Some(ticket) = last {
        hub.journal.durable(ticket).await?;
    }
    let tasks = {
        // From the moment at which the rows say that they are ours until they are in memory, a call would begin them anew.
        let _moving = hub.moving.lock().await;
        let tasks = hub.settle(index.tasks.values().cloned().collect(), Some(orphan.id)).await?;
        if let Some(peers) = &hub.peers {
            store::hand_over(hub.store.pool(), orphan.id, peers.me).await?;
        }
        hub.take_in(index);
        tasks
    };
    let count = tasks.len();
    hub.go_on(tasks);
    let from = orphan.folder.clone();
    tokio::task::spawn_blocking(move || journal::discard(&from)).await??;
    tracing::info!(from = %orphan.folder.display(), tasks = count, "took over the journal of a process that ended");
    metrics::counter!("gantry.output_processor.adopted").increment(count as u64);
    Ok(())
}
