//! What services say and ask of histories that are past their retention (architecture §3, reliability R-9).
//!
//! `pipelines` asks the conductor which pipelines may go ([`SettledPipelines`]) and tells of each that went
//! ([`PipelineExpired`]); the conductor lets its workflows go and tells of their jobs ([`WorkflowExpired`]), by which the
//! owners of runs, records and tests know theirs. Each of these events is the last of its aggregate, and all that the log
//! keeps of it.

use crate::{ask, event};
use ids::{JobId, PipelineId, ProjectId, Timestamp, WorkflowId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where the history of an aggregate lies that is no longer in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archived {
    /// Row of the owner's table `event_archives`, which names the blob and its digest.
    pub archive: Uuid,
    /// How many events of the aggregate lie there: versions 1 to this.
    pub events: i64,
}

/// A pipeline is past its retention and gone. Aggregate kind `pipeline`; owner: `pipelines`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineExpired {
    /// Which.
    pub pipeline_id: PipelineId,
    /// Its project.
    pub project_id: ProjectId,
    /// Its number, which no other pipeline of the project gets.
    pub number: i64,
    /// Its history.
    pub archived: Archived,
}
event!(PipelineExpired, "pipeline.expired", 1);

/// A workflow of a pipeline that is past its retention is gone. Aggregate kind `workflow`; owner: `conductor`. One with
/// more jobs than a message holds is told in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowExpired {
    /// Which.
    pub workflow_id: WorkflowId,
    /// Its pipeline.
    pub pipeline_id: PipelineId,
    /// Its jobs, or some of them.
    pub jobs: Vec<JobId>,
    /// Its history.
    pub archived: Archived,
}
event!(WorkflowExpired, "workflow.expired", 1);

/// A pipeline that may be past its retention, and the position of its last event in the log of `pipelines`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Which.
    pub pipeline_id: PipelineId,
    /// Transaction that appended the event.
    pub xid: u64,
    /// Number of its row.
    pub seq: i64,
}

/// Which of these pipelines may go: the conductor knows of their last event, all their workflows ended before a time, and
/// none of them can be rerun any more. Once it says so of a pipeline, it stays so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledPipelines {
    /// The pipelines, at most some hundreds.
    pub pipelines: Vec<Candidate>,
    /// The time.
    pub before: Timestamp,
}
ask!(query SettledPipelines, "conductor", "pipelines.settled", Vec<PipelineId>);

/// Looks for pipelines that are past their retention, or lets them go now instead of at the next sweep. Refused
/// `retention_off`, `retention_running`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRetention {
    /// Only looks.
    pub dry_run: bool,
}
ask!(RunRetention, "pipelines", "retention.run", RetentionReport);

/// What retention would do, or did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionReport {
    /// Pipelines whose last workflow ended before this may go.
    pub before: Timestamp,
    /// How many go, or went.
    pub pipelines: u64,
    /// The same by project, the largest first.
    pub projects: Vec<ExpiringProject>,
    /// There was no time for all of them: ask again.
    pub more: bool,
}

/// Pipelines of a project that are past their retention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiringProject {
    /// The project's slug.
    pub project: String,
    /// How many.
    pub pipelines: u64,
    /// The lowest of their numbers.
    pub first: i64,
    /// The highest.
    pub last: i64,
}
