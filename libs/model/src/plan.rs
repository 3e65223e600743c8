//! The checked plan: what the compiler makes of a configuration and the conductor runs.

use crate::status::JobStatus;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Everything that one compile yields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Workflows that run for this trigger, in file order.
    pub workflows: Vec<WorkflowPlan>,
    /// Whether this is a setup configuration: one of its jobs continues the pipeline (config-language §19).
    #[serde(default)]
    pub setup: bool,
    /// Workflows that run at times of their own while this file is the branch's newest (config-language §13.1).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<Schedule>,
}

/// A time at which a workflow runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Its name; compiled again with this schedule, the file yields that workflow alone.
    pub workflow: String,
    /// Five fields of cron, in UTC; checked.
    pub cron: String,
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
    /// Key of the serial group in which it takes its turn, organisation-wide; of a lock and of an unlock, the one
    /// that is held between them (execution §7).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_group: Option<String>,
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
    /// Succeeds in its turn of the serial group, and keeps it until the [`JobKind::Unlock`] of the same key has
    /// ended, or the workflow (config-language §10.2).
    Lock,
    /// Succeeds at once; the next one may have its turn.
    Unlock,
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
    /// Whether it belongs to a setup configuration: it is handed the key that continues its pipeline
    /// (config-language §19).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// How often its workflow is run again from its failed jobs because this one was lost with its machine
    /// (reliability R-16); 0: never.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub auto_rerun_on_infra_fail: u32,
    /// Days that what it saves in caches is kept, if the server does not keep it shorter (config-language §10.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_days: Option<u32>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
fn is_zero(number: &u32) -> bool {
    *number == 0
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
    /// A machine with macOS.
    Macos {
        /// Version of Xcode, as written.
        xcode: String,
    },
    /// Containers that share one network; the first is the primary one, in which the steps run. Never empty.
    Docker {
        /// In file order.
        containers: Vec<Container>,
    },
}

/// One container of a docker job (config-language §11.1).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// Image reference as written.
    pub image: String,
    /// Host name by which the others reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Instead of the image's entrypoint. A text is split as a shell would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the image's command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// User of all its processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Environment of its own processes, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<(String, String)>,
    /// How its image is pulled, if not without credentials. Values still hold `$NAME`: they are filled in
    /// from contexts and project variables when the task starts (config-language §11.2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<RegistryAuth>,
}

/// Credentials of a registry, with `$NAME` not yet filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RegistryAuth {
    /// `auth`.
    Basic {
        /// User name.
        username: String,
        /// Password, usually `$NAME`.
        password: String,
    },
    /// `aws_auth`: keys of its map as written.
    Aws {
        /// Key and value, in order.
        values: Vec<(String, String)>,
    },
    /// `gcp_auth`: keys of its map as written.
    Gcp {
        /// Key and value, in order.
        values: Vec<(String, String)>,
    },
}

/// A step of a job (config-language §12). What expands at run time (cache keys, `~`, `$NAME`) is as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// A shell command.
    Run(RunStep),
    /// A shell command that runs on node 0 alone, after all other nodes have succeeded (deprecated).
    Deploy(RunStep),
    /// The repository at the pipeline's revision.
    Checkout {
        /// Relative to the working directory; default `.`.
        path: Option<String>,
        /// How much of the history is fetched.
        #[serde(default)]
        method: CheckoutMethod,
        /// Shown name; default `Checkout code`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// When it runs.
        #[serde(default, skip_serializing_if = "When::is_usual")]
        when: When,
    },
    /// A docker engine for the job's own use.
    SetupRemoteDocker {
        /// Whether layers are kept between jobs.
        #[serde(default)]
        docker_layer_caching: bool,
        /// Engine version that was asked for.
        #[serde(default)]
        version: Option<String>,
        /// Shown name.
        name: String,
        /// When it runs.
        #[serde(default, skip_serializing_if = "When::is_usual")]
        when: When,
    },
    /// Keeps paths under a key.
    SaveCache {
        /// Key template.
        key: String,
        /// What is kept, without wildcards.
        paths: Vec<String>,
        /// Shown name; default `Saving Cache`.
        name: String,
        /// On which state of the job it runs.
        #[serde(default)]
        when: When,
    },
    /// Brings back the first key that is found.
    RestoreCache {
        /// Key templates, tried in order, each as a prefix. Never empty.
        keys: Vec<String>,
        /// Shown name; default `Restoring Cache`.
        name: String,
        /// On which state of the job it runs.
        #[serde(default)]
        when: When,
    },
    /// Uploads files for people.
    StoreArtifacts {
        /// A file or folder.
        path: String,
        /// Where it stands in the list of artifacts.
        destination: Option<String>,
        /// Shown name; default `Uploading artifacts`.
        name: String,
        /// On which state of the job it runs.
        #[serde(default = "always")]
        when: When,
    },
    /// Uploads JUnit files.
    StoreTestResults {
        /// A file or folder.
        path: String,
        /// Shown name; default `Uploading test results`.
        name: String,
        /// On which state of the job it runs.
        #[serde(default = "always")]
        when: When,
    },
    /// Adds a layer to the workflow's workspace.
    PersistToWorkspace {
        /// Folder that the paths are relative to.
        root: String,
        /// Globs (Go `filepath.Glob`) below the root.
        paths: Vec<String>,
        /// Shown name; default `Persisting to workspace`.
        name: String,
        /// On which state of the job it runs.
        #[serde(default)]
        when: When,
    },
    /// Unpacks the layers of upstream jobs.
    AttachWorkspace {
        /// Where to.
        at: String,
        /// Shown name; default `Attaching workspace`.
        name: String,
        /// On which state of the job it runs.
        #[serde(default)]
        when: When,
    },
    /// Adds the project's SSH keys to an agent of the job.
    AddSshKeys {
        /// Which; empty: all of the project.
        fingerprints: Vec<String>,
        /// Shown name; default `Installing additional ssh keys`.
        name: String,
        /// When it runs.
        #[serde(default, skip_serializing_if = "When::is_usual")]
        when: When,
    },
}

fn always() -> When {
    When::Always
}

impl Step {
    /// On which state of the job it runs.
    pub fn when(&self) -> When {
        match self {
            Step::Run(run) | Step::Deploy(run) => run.when,
            Step::SaveCache { when, .. }
            | Step::RestoreCache { when, .. }
            | Step::StoreArtifacts { when, .. }
            | Step::StoreTestResults { when, .. }
            | Step::PersistToWorkspace { when, .. }
            | Step::AttachWorkspace { when, .. }
            | Step::Checkout { when, .. }
            | Step::SetupRemoteDocker { when, .. }
            | Step::AddSshKeys { when, .. } => *when,
        }
    }

    /// Shown name.
    pub fn name(&self) -> &str {
        match self {
            Step::Run(run) | Step::Deploy(run) => &run.name,
            Step::Checkout { name, .. } => name.as_deref().unwrap_or("Checkout code"),
            Step::SetupRemoteDocker { name, .. }
            | Step::SaveCache { name, .. }
            | Step::RestoreCache { name, .. }
            | Step::StoreArtifacts { name, .. }
            | Step::StoreTestResults { name, .. }
            | Step::PersistToWorkspace { name, .. }
            | Step::AttachWorkspace { name, .. }
            | Step::AddSshKeys { name, .. } => name,
        }
    }
}

/// How much of the history a checkout fetches (config-language §12.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CheckoutMethod {
    /// Everything.
    #[default]
    Full,
    /// All commits and trees, file contents on demand.
    Blobless,
    /// The last commits only.
    Shallow {
        /// How many, at least 1.
        depth: u32,
    },
}

/// A `run` step (execution §13).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// How often a failed attempt is repeated (0–5; execution §9).
    #[serde(default)]
    pub max_auto_reruns: u32,
    /// Seconds between two attempts, at most 600.
    #[serde(default)]
    pub auto_rerun_delay_secs: u64,
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

impl When {
    /// What most steps have, which need not be told.
    fn is_usual(&self) -> bool {
        *self == Self::OnSuccess
    }
}
