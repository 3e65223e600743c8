//! The sealed record of a task: all that is left of its steps when an epoch is over, as one blob. Documents of steps are made
//! from it.

use crate::hub::Hub;
use backon::{ExponentialBuilder, Retryable};
use blobs::Key;
use contracts::output::{StepPlace, StepRecord};
use ids::{JobId, TaskId};
use records::NewDocument;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Pauses between tries to read one: 100 ms, 200 ms, 400 ms, each up to twice as long.
const AGAIN: Duration = Duration::from_millis(100);
const TRIES: usize = 3;

/// The record.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) task_id: TaskId,
    pub(crate) job_id: JobId,
    pub(crate) index: u32,
    pub(crate) epoch: i64,
    pub(crate) steps: Vec<Sealed>,
}

/// A step of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sealed {
    #[serde(flatten)]
    pub(crate) step: StepRecord,
    /// Of its document. Records of earlier builds do not say, and lose against any document that there is.
    #[serde(default)]
    pub(crate) version: i64,
}

impl Record {
    /// Documents of its steps.
    pub(crate) fn documents(self) -> serde_json::Result<Vec<NewDocument>> {
        let Self { task_id, job_id, steps, .. } = self;
        let documents = steps
            .into_iter()
            .map(|Sealed { step, version }| Hub::document(&StepPlace { job_id, task_id, step }, version));
        documents.collect()
    }
}

/// Name of the blob.
pub(crate) fn key(task: TaskId, epoch: i64) -> blobs::Result<Key> {
    Key::new(format!("records/{task}/{epoch}"))
}

/// The record of an epoch; `None`: there is none.
///
/// # Errors
/// The store does not answer, or what it has is not a record.
pub(crate) async fn read(hub: &Hub, task: TaskId, epoch: i64) -> anyhow::Result<Option<Record>> {
    let key = key(task, epoch)?;
    let pauses = ExponentialBuilder::default().with_min_delay(AGAIN).with_max_times(TRIES).with_jitter();
    let whole = || async {
        match hub.blobs.get(&key, None).await {
            Ok(got) => {
                let sha256 = got.meta.sha256;
                Ok(Some((got.bytes().await?, sha256)))
            }
            Err(blobs::Error::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let found = whole.retry(pauses).when(|error| matches!(error, blobs::Error::Io(_))).await?;
    let Some((bytes, sha256)) = found else { return Ok(None) };
    // Not every store looks while it reads.
    if blobs::digest(&bytes) != sha256 {
        return Err(blobs::Error::Damaged(key).into());
    }
    let record: Record = serde_json::from_slice(&bytes)?;
    anyhow::ensure!(
        record.task_id == task && record.epoch == epoch,
        "it is the record of task {}, epoch {}",
        record.task_id,
        record.epoch
    );
    Ok(Some(record))
}
