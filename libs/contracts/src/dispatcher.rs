//! Tasks; owner: `dispatcher`. Task events have aggregate kind `task`, job events `run` with the job's id.

use crate::{ask, conductor::Wait, event};
use ids::{JobId, TaskId, Timestamp, WorkflowId};
use model::status::JobStatus;
use serde::{Deserialize, Serialize};

/// A task waits for an agent; its slot is taken: compute may start one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskQueued {
    /// Its id.
    pub task_id: TaskId,
    /// Its job.
    pub job_id: JobId,
    /// Its workflow.
    pub workflow_id: WorkflowId,
    /// 0-based parallel index.
    pub index: u32,
    /// How often it has been queued; the name of the placement is `task-<id>-<epoch>`.
    pub epoch: i64,
    /// Resource class.
    pub resource_class: String,
}
event!(TaskQueued, "task.queued", 1);

/// An agent may run user code now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskStarted {
    /// Its id.
    pub task_id: TaskId,
    /// Its job.
    pub job_id: JobId,
    /// 0-based parallel index.
    pub index: u32,
    /// When.
    pub at: Timestamp,
}
event!(TaskStarted, "task.started", 1);

/// A task may not be handed out or go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRevoked {
    /// Its id.
    pub task_id: TaskId,
    /// Its job.
    pub job_id: JobId,
}
event!(TaskRevoked, "task.revoked", 1);

/// A task ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskFinished {
    /// Its id.
    pub task_id: TaskId,
    /// Its job.
    pub job_id: JobId,
    /// 0-based parallel index.
    pub index: u32,
    /// The lease's epoch.
    pub epoch: i64,
    /// How.
    pub status: JobStatus,
    /// Why, where the status alone does not say it, for example `runner_lost`.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}
event!(TaskFinished, "task.finished", 1);

/// A job's first task started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStarted {
    /// Which.
    pub job_id: JobId,
    /// Its workflow.
    pub workflow_id: WorkflowId,
    /// When.
    pub at: Timestamp,
}
event!(JobStarted, "job.started", 1);

/// All tasks of a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobFinished {
    /// Which.
    pub job_id: JobId,
    /// Its workflow.
    pub workflow_id: WorkflowId,
    /// How: failed if any task failed.
    pub status: JobStatus,
    /// Why.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}
event!(JobFinished, "job.finished", 1);

/// Revokes all tasks of these jobs: none is handed out after the answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RevokeJobs {
    /// Which.
    pub job_ids: Vec<JobId>,
}
ask!(RevokeJobs, "dispatcher", "jobs.revoke", ());

/// What do a job's tasks wait for? One entry per task that does not run; what runs or ended waits for nothing.
/// People ask [`crate::conductor::ExplainWait`], which knows the rest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExplainJob {
    /// Which.
    pub job_id: JobId,
}
ask!(ExplainJob, "dispatcher", "job.explain", Vec<Wait>);

/// Fences an epoch at a receiver: later writes of it are refused (reliability §7). Asked of `output-processor`
/// and `contexts` before the outcome is committed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CloseEpoch {
    /// Which task.
    pub task_id: TaskId,
    /// Up to this epoch.
    pub epoch: i64,
}
ask!(CloseEpoch, "output-processor", "epoch.close", ());
