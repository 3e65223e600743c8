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
    /// `build`, `approval`, `no-op`, `lock` or `unlock`.
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
    /// How many jobs it has in all; 0 in events from before there was more than one part.
    #[serde(default)]
    pub total: u32,
    /// SHA-256 (hex) of the pipeline's plan: the blob `plans/<digest>`, where it is too large for a message.
    #[serde(default)]
    pub plan_digest: Option<String>,
    /// The first jobs of the graph, in file order; the others follow in [`JobsAdded`], in the same commit.
    pub jobs: Vec<JobNode>,
}
event!(WorkflowCreated, "workflow.created", 1);

/// More jobs of a workflow that was just made: a graph may be larger than a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobsAdded {
    /// Its workflow.
    pub workflow_id: WorkflowId,
    /// Its pipeline.
    pub pipeline_id: PipelineId,
    /// Project.
    pub project: Project,
    /// Place in the file of the first of them, from 0.
    pub from: u32,
    /// The jobs, in file order.
    pub jobs: Vec<JobNode>,
    /// Edges of jobs that were told of before without all of theirs.
    #[serde(default)]
    pub edges: Vec<MoreEdges>,
}
event!(JobsAdded, "workflow.jobs_added", 1);

/// Edges of a job that has too many for one message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoreEdges {
    /// Which.
    pub job_id: JobId,
    /// Edges beside those that it was told with.
    pub requires: Vec<Edge>,
}

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
    /// The job number before it on the branch (execution §11.3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_number: Option<i64>,
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
    /// The job of an earlier instance whose failed tests are all that it is to run (execution §9).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_tests_of: Option<JobId>,
    /// Of a rerun with SSH: who may enter the job (execution §26). Public keys: no secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<model::ssh::Access>,
    /// What is run.
    pub definition: JobDefinition,
}
event!(JobReady, "workflow.job_ready", 1);

/// A job has everything but its turn in a serial group (execution §7).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnWanted {
    /// Which.
    pub job_id: JobId,
    /// Its workflow.
    pub workflow_id: WorkflowId,
    /// The group's key, unique in the organisation.
    pub group: String,
    /// The pipeline's number.
    pub pipeline_number: i64,
}
event!(TurnWanted, "workflow.turn_wanted", 1);

/// A job that waited for its turn, or had it, ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnDone {
    /// Which.
    pub job_id: JobId,
    /// The group's key.
    pub group: String,
}
event!(TurnDone, "workflow.turn_done", 1);

/// A serial group's lock went to a job. Aggregate kind `serial_group`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnGiven {
    /// Which.
    pub job_id: JobId,
    /// Its workflow.
    pub workflow_id: WorkflowId,
}
event!(TurnGiven, "serial_group.turn_given", 1);

/// A job is not run: a newer pipeline of its project is in the serial group already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PassedOver {
    /// Which.
    pub job_id: JobId,
    /// Its workflow.
    pub workflow_id: WorkflowId,
}
event!(PassedOver, "serial_group.passed_over", 1);

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

/// Reruns a workflow as a new instance (execution §9). Neither `from_failed` nor `jobs`: all of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RerunWorkflow {
    /// Which.
    pub id: WorkflowId,
    /// Keep what succeeded.
    pub from_failed: bool,
    /// Only these jobs; what succeeded elsewhere is kept, and the rest is left out. Not with `from_failed`.
    #[serde(default)]
    pub jobs: Option<Vec<JobId>>,
    /// With `jobs`: also what directly or indirectly waits for them.
    #[serde(default)]
    pub sparse_tree: bool,
    /// Keep what succeeded, and run only the failed tests of jobs that failed, where they are run by
    /// `circleci tests run`. Not with `jobs`.
    #[serde(default)]
    pub failed_tests: bool,
    /// The jobs that run can be entered by SSH with the keys of the actor. Only with `jobs`. Refused `ssh_disabled` where
    /// it is switched off.
    #[serde(default)]
    pub ssh: bool,
}
ask!(RerunWorkflow, "conductor", "workflow.rerun", WorkflowState);

/// Takes the lock of a serial group from the job that holds it: that job goes on, and the next may start.
/// Refused `not_found`, `not_holding`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReleaseTurn {
    /// The job that holds the lock.
    pub job_id: JobId,
}
ask!(ReleaseTurn, "conductor", "serial_group.release", WorkflowState);

/// Why does a job not run, or what became of it? Answered whatever state it is in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExplainWait {
    /// Which.
    pub job_id: JobId,
}
ask!(query ExplainWait, "conductor", "job.explain_wait", Explanation);

/// Where a job stands and what it waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Which.
    pub job_id: JobId,
    /// Its workflow.
    pub workflow_id: WorkflowId,
    /// Its name.
    pub name: String,
    /// Its status.
    pub status: JobStatus,
    /// Since when it has that status, as far as that is known.
    pub since: Option<Timestamp>,
    /// What it waits for; empty once it runs or has ended.
    pub waits: Vec<Wait>,
    /// Why it ended so, if it did.
    pub reason: Option<String>,
}

/// One thing that a job, or a task of it, waits for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Wait {
    /// `requirement`, `approval`, `serial_group`, `slot`, `org_limit`, `project_limit`, `class_limit`, `placement`, `runner`,
    /// `stop`, `other`. Readers keep unknown words.
    pub kind: String,
    /// A sentence for people, with what to do where something can be done.
    pub text: String,
    /// Since when.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// Place in line, from 1.
    #[serde(default)]
    pub place: Option<u64>,
    /// How many are in line.
    #[serde(default)]
    pub line: Option<u64>,
    /// The jobs that it waits for.
    #[serde(default)]
    pub jobs: Vec<JobId>,
    /// Parallel index of the task, of what a task waits for.
    #[serde(default)]
    pub index: Option<u32>,
    /// Configuration key of the limit that holds it up.
    #[serde(default)]
    pub key: Option<String>,
}

/// The jobs upstream of a job, all the way up: whose workspace layers it sees, and in which order (execution §16).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobAncestry {
    /// Which job.
    pub job_id: JobId,
}
ask!(query JobAncestry, "conductor", "job.ancestry", Vec<Ancestor>);

/// A job upstream of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// Its name.
    pub name: String,
    /// The job that really ran: a rerun takes over the success of an earlier one. An older conductor does not say.
    #[serde(default)]
    pub job_id: Option<JobId>,
    /// Names of the jobs that it requires itself.
    pub requires: Vec<String>,
}
