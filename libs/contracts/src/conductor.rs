//! Workflows and their jobs; owner: `conductor`. All events have aggregate kind `workflow`.

use crate::{
    ask,
    domain::Project,
    event,
    pipelines::{Trigger, Vcs},
};
use ids::{JobId, PipelineId, Timestamp, UserId, WorkflowId};
use model::{
    plan::JobDefinition,
    status::{JobStatus, WorkflowStatus},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A node of the graph as others see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobNode {
    /// Its id.
    pub job_id: JobId,
    /// Its name.
    pub name: String,
    /// `build`, `approval` or `no-op`.
    pub kind: String,
    /// Status at creation: `blocked`, or `success` when a rerun carried it over.
    pub status: JobStatus,
    /// Edges.
    pub requires: Vec<Edge>,
}

/// An edge of the graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Edge {
    /// Upstream job.
    pub job_id: JobId,
    /// Statuses that satisfy it.
    pub accepts: BTreeSet<JobStatus>,
}

/// A workflow came into being with all its jobs at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkflowCreated {
    /// Its id.
    pub workflow_id: WorkflowId,
    /// Its pipeline.
    pub pipeline_id: PipelineId,
    /// The pipeline's number.
    pub pipeline_number: i64,
    /// Project.
    pub project: Project,
    /// Name.
    pub name: String,
    /// Who started it.
    pub started_by: Option<UserId>,
    /// The workflow of which this is a rerun.
    pub rerun_of: Option<WorkflowId>,
    /// The graph.
    pub jobs: Vec<JobNode>,
}
event!(WorkflowCreated, "workflow.created", 1);

/// A job's requirements hold: it is to be run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobReady {
    /// Which.
    pub job_id: JobId,
    /// Its workflow.
    pub workflow_id: WorkflowId,
    /// Name of the workflow.
    pub workflow_name: String,
    /// Id of the original workflow instance (execution §9).
    pub workspace_id: WorkflowId,
    /// Its pipeline.
    pub pipeline_id: PipelineId,
    /// The pipeline's number.
    pub pipeline_number: i64,
    /// Project.
    pub project: Project,
    /// Name.
    pub name: String,
    /// Job number: dense per project, from 1.
    pub number: i64,
    /// Revision.
    pub vcs: Vcs,
    /// What made the pipeline.
    pub trigger: Trigger,
    /// Upstream jobs.
    pub upstream: Vec<JobId>,
    /// Contexts by name.
    pub contexts: Vec<String>,
    /// On whose behalf contexts are used: the approver downstream of an approval, else who triggered.
    pub acting_user: Option<UserId>,
    /// What is run.
    pub definition: JobDefinition,
}
event!(JobReady, "workflow.job_ready", 1);

/// An approval job waits for a person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobOnHold {
    /// Which.
    pub job_id: JobId,
}
event!(JobOnHold, "workflow.job_on_hold", 1);

/// A job's first task started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRunning {
    /// Which.
    pub job_id: JobId,
    /// When.
    pub at: Timestamp,
}
event!(JobRunning, "workflow.job_running", 1);

/// A job reached a terminal status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobEnded {
    /// Which.
    pub job_id: JobId,
    /// How.
    pub status: JobStatus,
    /// Why, where the status alone does not say it.
    pub reason: Option<String>,
    /// Approver, of an approval.
    pub approved_by: Option<UserId>,
    /// When.
    pub at: Timestamp,
}
event!(JobEnded, "workflow.job_ended", 1);

/// The workflow's public status changed and is not terminal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkflowStatusChanged {
    /// To what.
    pub status: WorkflowStatus,
}
event!(WorkflowStatusChanged, "workflow.status_changed", 1);

/// Somebody asked to cancel it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CancelRequested {
    /// The one job, or all.
    pub job_id: Option<JobId>,
}
event!(CancelRequested, "workflow.cancel_requested", 1);

/// The workflow ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkflowFinished {
    /// How.
    pub status: WorkflowStatus,
    /// When.
    pub at: Timestamp,
}
event!(WorkflowFinished, "workflow.finished", 1);

/// A workflow as mutations return it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkflowState {
    /// Which.
    pub id: WorkflowId,
    /// Version of the aggregate.
    pub version: i64,
    /// Status.
    pub status: WorkflowStatus,
}

/// Cancels a workflow; answered after the dispatcher has committed the revocation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CancelWorkflow {
    /// Which.
    pub id: WorkflowId,
}
ask!(CancelWorkflow, "conductor", "workflow.cancel", WorkflowState);

/// Cancels one job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CancelJob {
    /// Which.
    pub job_id: JobId,
}
ask!(CancelJob, "conductor", "job.cancel", WorkflowState);

/// Approves an approval job. Refused `already_decided`, `not_found`, `not_on_hold`, `forbidden`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ApproveJob {
    /// Which workflow; `None`: the job's id is enough.
    pub workflow_id: Option<WorkflowId>,
    /// Which job.
    pub job_id: JobId,
}
ask!(ApproveJob, "conductor", "job.approve", WorkflowState);

/// Reruns a workflow as a new instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RerunWorkflow {
    /// Which.
    pub id: WorkflowId,
    /// Keep what succeeded.
    pub from_failed: bool,
}
ask!(RerunWorkflow, "conductor", "workflow.rerun", WorkflowState);

/// The jobs upstream of a job, all the way up: whose workspace layers it sees, and in which order (execution §16).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobAncestry {
    /// Which job.
    pub job_id: JobId,
}
ask!(JobAncestry, "conductor", "job.ancestry", Vec<Ancestor>);

/// A job upstream of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// Its name.
    pub name: String,
    /// Names of the jobs that it requires itself.
    pub requires: Vec<String>,
}
