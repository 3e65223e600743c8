//! What the journal holds.

use agent_api::StepReport;
use ids::{JobId, StepId, TaskId, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const CHUNK: u8 = 1;
const FACT: u8 = 2;

/// Bytes before a chunk's data.
pub(crate) const CHUNK_HEAD: usize = 1 + 16 * 3 + 8 + 8;

/// Where a chunk belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkHead {
    pub(crate) task_id: TaskId,
    pub(crate) job_id: JobId,
    pub(crate) step_id: StepId,
    pub(crate) epoch: i64,
    pub(crate) offset: u64,
}

impl ChunkHead {
    pub(crate) fn encode(&self) -> [u8; CHUNK_HEAD] {
        let mut head = [0; CHUNK_HEAD];
        head[0] = CHUNK;
        head[1..17].copy_from_slice(self.task_id.uuid().as_bytes());
        head[17..33].copy_from_slice(self.job_id.uuid().as_bytes());
        head[33..49].copy_from_slice(self.step_id.uuid().as_bytes());
        head[49..57].copy_from_slice(&self.epoch.to_le_bytes());
        head[57..65].copy_from_slice(&self.offset.to_le_bytes());
        head
    }
}

/// What happened to a task's output, other than bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub(crate) enum Fact {
    /// A step began or ended.
    Step { task_id: TaskId, job_id: JobId, epoch: i64, report: StepReport },
    /// A stream is complete.
    Sealed { task_id: TaskId, job_id: JobId, epoch: i64, step_id: StepId, seal: SealFact },
    /// A stream lies in the blob store.
    Stored { task_id: TaskId, job_id: JobId, epoch: i64, step_id: StepId, seal: SealFact },
    /// Nothing of these epochs is accepted any more.
    Closed { task_id: TaskId, epoch: i64, at: Timestamp },
}

/// What a stream was sealed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealFact {
    pub(crate) total_bytes: u64,
    pub(crate) produced_bytes: u64,
    pub(crate) sha256: String,
    /// The epoch was closed before the agent sealed it.
    pub(crate) interrupted: bool,
}

impl SealFact {
    /// The public word.
    pub(crate) fn log_state(&self) -> &'static str {
        if self.interrupted {
            "interrupted"
        } else if self.produced_bytes > self.total_bytes {
            "truncated_by_limit"
        } else {
            "complete"
        }
    }
}

impl Fact {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FACT];
        serde_json::to_writer(&mut bytes, self).expect("facts are plain data");
        bytes
    }
}

/// A payload that was read back.
pub(crate) enum Entry<'a> {
    Chunk(ChunkHead, &'a [u8]),
    Fact(Fact),
}

/// Reads a payload; `None`: a newer version wrote it, or it is not ours.
pub(crate) fn decode(payload: &[u8]) -> Option<Entry<'_>> {
    match *payload.first()? {
        CHUNK => {
            let (head, data) = payload.split_at_checked(CHUNK_HEAD)?;
            let id = |at: usize| Uuid::from_slice(&head[at..at + 16]).ok();
            let head = ChunkHead {
                task_id: TaskId(id(1)?),
                job_id: JobId(id(17)?),
                step_id: StepId(id(33)?),
                epoch: i64::from_le_bytes(head[49..57].try_into().ok()?),
                offset: u64::from_le_bytes(head[57..65].try_into().ok()?),
            };
            Some(Entry::Chunk(head, data))
        }
        FACT => serde_json::from_slice(&payload[1..]).ok().map(Entry::Fact),
        _ => None,
    }
}
