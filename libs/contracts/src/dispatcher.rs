//! Tasks; owner: `dispatcher`. Task events have aggregate kind `task`, job events `run` with the job's id.

use crate::{ask, conductor::Wait, event};
use chrono::TimeDelta;
use ids::{JobId, OrgId, RunnerClassId, RunnerTokenId, TaskId, Timestamp, WorkflowId};
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
    /// What it asks of the machine; absent where a runner has taken it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<Demand>,
}
event!(TaskQueued, "task.queued", 1);

/// What a task asks of the machine that it runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// `docker`, `machine` or `macos`.
    pub executor: String,
    /// Its resource class: the one that the job names, or the default.
    pub class: String,
    /// Thousandths of a processor; `None`: what there is.
    pub cpu_millis: Option<u32>,
    /// Bytes of memory; `None`: what there is.
    pub memory_bytes: Option<u64>,
}

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
    /// Whether the steps of all its tasks had ended when it was canceled, if it was: it stayed for SSH (execution §26).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub settled: bool,
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
ask!(idempotent RevokeJobs, "dispatcher", "jobs.revoke", ());

/// What do a job's tasks wait for? One entry per task that does not run; what runs or ended waits for nothing.
/// People ask [`crate::conductor::ExplainWait`], which knows the rest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExplainJob {
    /// Which.
    pub job_id: JobId,
}
ask!(query ExplainJob, "dispatcher", "job.explain", Vec<Wait>);

/// What compute says of tasks whose agents have not been heard of. A hint: a task that an agent has claimed is the lease's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReportPlacements {
    /// Of each task that there is something to say of.
    pub placements: Vec<PlacementReport>,
}
ask!(ReportPlacements, "dispatcher", "placements.report", ());

/// What compute says of one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementReport {
    /// Which.
    pub task_id: TaskId,
    /// The epoch that it was queued with.
    pub epoch: i64,
    /// What.
    pub news: PlacementNews,
}

/// What became of a placement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PlacementNews {
    /// It waits for a machine: the task's agent cannot have come.
    Waits {
        /// Why, for people.
        why: String,
    },
    /// Its agent has ended. If it never claimed the task, none will.
    Ended,
}

/// Fences an epoch at a receiver: later writes of it are refused (reliability §7). Asked of `output-processor`
/// and `contexts` before the outcome is committed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CloseEpoch {
    /// Which task.
    pub task_id: TaskId,
    /// Up to this epoch.
    pub epoch: i64,
}
ask!(idempotent CloseEpoch, "output-processor", "epoch.close", ());

/// A resource class that self-hosted runners serve (execution §25).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerClass {
    /// Its id.
    pub id: RunnerClassId,
    /// Whose.
    pub org_id: OrgId,
    /// `namespace/name`.
    pub resource_class: String,
    /// For people.
    pub description: String,
}

/// Makes a class. Refused `invalid`, `exists`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateRunnerClass {
    /// Whose.
    pub org_id: OrgId,
    /// `namespace/name`.
    pub resource_class: String,
    /// For people.
    pub description: String,
}
ask!(CreateRunnerClass, "dispatcher", "runner_class.create", RunnerClass);

/// Classes of these organisations, by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListRunnerClasses {
    /// Whose.
    pub org_ids: Vec<OrgId>,
}
ask!(query ListRunnerClasses, "dispatcher", "runner_class.list", Vec<RunnerClass>);

/// A class by its id or its name. Refused `not_found`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetRunnerClass {
    /// Id or name.
    pub reference: String,
}
ask!(query GetRunnerClass, "dispatcher", "runner_class.get", RunnerClass);

/// Removes a class. Refused `not_found`, `has_tokens`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeleteRunnerClass {
    /// Which.
    pub id: RunnerClassId,
    /// Whether its tokens go too.
    pub force: bool,
}
ask!(DeleteRunnerClass, "dispatcher", "runner_class.delete", ());

/// A token with which runners serve one class; never its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerToken {
    /// Its id.
    pub id: RunnerTokenId,
    /// Whose.
    pub org_id: OrgId,
    /// Of which class.
    pub resource_class: String,
    /// For people.
    pub nickname: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Makes a token. Refused `not_found`, `limit_reached`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateRunnerToken {
    /// Of which class.
    pub class_id: RunnerClassId,
    /// For people.
    pub nickname: String,
    /// SHA-256 of the token, hex.
    pub sha256: String,
}
ask!(CreateRunnerToken, "dispatcher", "runner_token.create", RunnerToken);

/// Tokens of a class, oldest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListRunnerTokens {
    /// Of which class.
    pub class_id: RunnerClassId,
}
ask!(query ListRunnerTokens, "dispatcher", "runner_token.list", Vec<RunnerToken>);

/// One token. Refused `not_found`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetRunnerToken {
    /// Which.
    pub id: RunnerTokenId,
}
ask!(query GetRunnerToken, "dispatcher", "runner_token.get", RunnerToken);

/// Revokes a token: runners that hold it take no further task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeleteRunnerToken {
    /// Which.
    pub id: RunnerTokenId,
}
ask!(DeleteRunnerToken, "dispatcher", "runner_token.delete", ());

/// A self-hosted runner that was not heard of for so long is not connected: it calls three times as often.
pub const RUNNER_SILENT: TimeDelta = TimeDelta::seconds(90);

/// A self-hosted runner that was heard of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runner {
    /// Which class it serves.
    pub resource_class: String,
    /// Its name, unique in the class.
    pub name: String,
    /// Its machine.
    pub hostname: String,
    /// Version of its agent.
    pub version: String,
    /// When it was first heard of.
    pub first_connected: Timestamp,
    /// When it was last heard of.
    pub last_connected: Timestamp,
    /// When it last took a task.
    pub last_used: Option<Timestamp>,
}

/// Runners of these classes, by class and name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListRunners {
    /// Which classes.
    pub class_ids: Vec<RunnerClassId>,
}
ask!(query ListRunners, "dispatcher", "runner.list", Vec<Runner>);

/// How many tasks of a class wait and run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerTasks {
    /// Wait for a runner.
    pub unclaimed: i64,
    /// Are with one.
    pub running: i64,
}

/// Counts a class's tasks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CountRunnerTasks {
    /// Which class.
    pub class_id: RunnerClassId,
}
ask!(query CountRunnerTasks, "dispatcher", "runner.tasks", RunnerTasks);

/// A class came into being (aggregate kind `runner_class`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunnerClassCreated {
    /// `namespace/name`.
    pub resource_class: String,
}
event!(RunnerClassCreated, "runner_class.created", 1);

/// A class and its tokens are gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunnerClassDeleted {
    /// `namespace/name`.
    pub resource_class: String,
}
event!(RunnerClassDeleted, "runner_class.deleted", 1);

/// A class has one token more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunnerTokenCreated {
    /// Which.
    pub id: RunnerTokenId,
    /// For people.
    pub nickname: String,
}
event!(RunnerTokenCreated, "runner_token.created", 1);

/// A token is worth nothing any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunnerTokenRevoked {
    /// Which.
    pub id: RunnerTokenId,
}
event!(RunnerTokenRevoked, "runner_token.revoked", 1);
