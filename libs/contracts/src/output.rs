//! Output, step reports and run records; owner: `output-processor`.

use crate::{ask, event};
use ids::{JobId, StepId, TaskId, Timestamp};
use serde::{Deserialize, Serialize};

/// A step changed its status (aggregate kind `record`, id = the task's). Published so that pages are live.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReported {
    /// Its task.
    pub task_id: TaskId,
    /// Its job.
    pub job_id: JobId,
    /// The step as it is now.
    pub step: StepRecord,
}
event!(StepReported, "step.reported", 1);

/// One step of one task (execution §13.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Its id: the `{step}` of `/logs/{step}/…`.
    pub step_id: StepId,
    /// Number: 0 spin-up, 99 environment, 101… configured steps (execution §10).
    pub number: u32,
    /// Parallel index.
    pub index: u32,
    /// Shown name.
    pub name: String,
    /// `running`, `success`, `failed`, `canceled`, `timedout`, `infrastructure_fail`.
    pub status: String,
    /// Shell line, newline, script; of run steps and checkout.
    pub bash_command: Option<String>,
    /// Exit code, once ended.
    pub exit_code: Option<i32>,
    /// Whether it was started and left.
    pub background: bool,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Bytes of output known.
    pub bytes: u64,
    /// `open`, `complete`, `truncated_by_limit` or `interrupted`.
    pub log_state: String,
    /// SHA-256 (hex) of the whole output, once sealed.
    pub sha256: Option<String>,
}

/// Reads a window of a step's output; waits up to `wait_ms` for bytes beyond `offset` while it is open.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReadLog {
    /// Which.
    pub step_id: StepId,
    /// First byte.
    pub offset: u64,
    /// At most so many bytes, itself at most 128 KiB.
    pub limit: u32,
    /// How long to wait.
    pub wait_ms: u64,
}
ask!(query ReadLog, "output-processor", "log.read", LogWindow);

/// A window of output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogWindow {
    /// Bytes, base64.
    pub data: String,
    /// Offset after them.
    pub next: u64,
    /// Bytes known in all.
    pub total: u64,
    /// Whether no more will come.
    pub sealed: bool,
}

/// All steps of a job, by index and number.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetSteps {
    /// Which.
    pub job_id: JobId,
}
ask!(query GetSteps, "output-processor", "job.steps", Vec<StepRecord>);

/// One step and where it belongs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetStep {
    /// Which.
    pub step_id: StepId,
}
ask!(query GetStep, "output-processor", "step.get", StepPlace);

/// A step and where it belongs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepPlace {
    /// Its job.
    pub job_id: JobId,
    /// Its task.
    pub task_id: TaskId,
    /// The step.
    pub step: StepRecord,
}

/// Makes the documents of steps again that the store of records lost: what processes of the service hold, and what the
/// sealed records of tasks tell, of some tasks in the order of their ids. Documents that are as new stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildRecords {
    /// Goes on after this task; without one it begins, with what is held.
    pub after: Option<TaskId>,
}
ask!(idempotent RebuildRecords, "output-processor", "records.rebuild", RebuiltRecords);

/// Writes the documents of all steps that the asked process holds. Between processes of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewriteHeld {}
ask!(idempotent RewriteHeld, "output-processor", "records.rewrite_held", RebuiltRecords);

/// What was looked at, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuiltRecords {
    /// Tasks that were looked at.
    pub tasks: u64,
    /// Documents that were missing or older.
    pub written: u64,
    /// Documents that were as new already.
    pub current: u64,
    /// What cannot be made again.
    pub unreadable: Vec<UnreadableRecord>,
    /// There are more tasks: ask again after this one.
    pub next: Option<TaskId>,
}

impl RebuiltRecords {
    /// Counts what another look found; where that ended is where to go on.
    pub fn add(&mut self, other: Self) {
        let Self { tasks, written, current, unreadable, next } = other;
        self.tasks += tasks;
        self.written += written;
        self.current += current;
        self.unreadable.extend(unreadable);
        self.next = next;
    }
}

/// A source of documents that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableRecord {
    /// Name of the blob, or of the journal.
    pub what: String,
    /// Why not.
    pub why: String,
}
