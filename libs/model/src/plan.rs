//! The checked plan: what the compiler makes of a configuration and the conductor runs.

use crate::status::JobStatus;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Everything that one compile yields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Workflows that run for this trigger, in file order.
    pub workflows: Vec<WorkflowPlan>,
}

/// One workflow: its filtered jobs, in file order. Names are unique in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkflowPlan {
    /// Name as in the file.
    pub name: String,
    /// Nodes of the graph. Every `requires` names a job of this list; there is no cycle.
    pub jobs: Vec<JobPlan>,
    /// Automatic reruns from failed (execution §9).
    #[serde(default)]
    pub max_auto_reruns: u32,
}

/// A node of the graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobPlan {
    /// Compiled name, unique in the workflow.
    pub name: String,
    /// What kind of node it is.
    pub kind: JobKind,
    /// Edges to upstream jobs.
    #[serde(default)]
    pub requires: Vec<Requirement>,
    /// Names of contexts, in list order: a later one overrides an earlier one.
    #[serde(default)]
    pub contexts: Vec<String>,
}

/// The kinds of nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum JobKind {
    /// Runs steps.
    Build {
        /// What is run.
        definition: Box<JobDefinition>,
    },
    /// Waits for a person (execution §6).
    Approval,
    /// Succeeds at once.
    NoOp,
}

/// An edge: the upstream job must end with one of the accepted statuses (execution §5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirement {
    /// Name of the upstream job in the same workflow.
    pub job: String,
    /// Terminal statuses that satisfy the edge; the default edge is `{success}`.
    pub accepts: BTreeSet<JobStatus>,
}

/// What an agent runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobDefinition {
    /// Where it runs.
    pub executor: Executor,
    /// Resource class, as written; empty: the executor's default.
    #[serde(default)]
    pub resource_class: String,
    /// Job environment with the executor's merged in (the job wins), in order.
    #[serde(default)]
    pub environment: Vec<(String, String)>,
    /// Unexpanded, as in the file; default `~/project`.
    pub working_directory: String,
    /// Shell line of the job, if it has one.
    #[serde(default)]
    pub shell: Option<String>,
    /// Number of tasks, at least 1.
    pub parallelism: u32,
    /// Steps in order.
    pub steps: Vec<Step>,
}

/// Where a job runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Executor {
    /// A virtual machine or the host.
    Machine {
        /// Image name, if one was given.
        image: Option<String>,
    },
    /// Containers; the first is the primary one.
    Docker {
        /// Images as written.
        images: Vec<String>,
    },
}

/// A step of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// A shell command.
    Run(RunStep),
    /// The repository at the pipeline's revision.
    Checkout {
        /// Relative to the working directory; default `.`.
        path: Option<String>,
    },
}

/// A `run` step (execution §13).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunStep {
    /// Shown name; the command's first line when the author gave none.
    pub name: String,
    /// The script.
    pub command: String,
    /// Shell line of the step, if it has one.
    #[serde(default)]
    pub shell: Option<String>,
    /// Step environment, in order.
    #[serde(default)]
    pub environment: Vec<(String, String)>,
    /// Directory of the step, if it has one.
    #[serde(default)]
    pub working_directory: Option<String>,
    /// Seconds without output after which the step is killed; default 600.
    pub no_output_timeout_secs: u64,
    /// Started and left.
    #[serde(default)]
    pub background: bool,
    /// On which state of the job it runs.
    #[serde(default)]
    pub when: When,
}

/// On which state of the job a step runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Nothing has failed.
    #[default]
    OnSuccess,
    /// Something has failed.
    OnFail,
    /// In any case.
    Always,
}
