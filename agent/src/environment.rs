//! What steps find in their environment (execution §11).

use agent_api::{Secrets, TaskSpec};
use executors::Facts;
use model::plan::{Executor, Step};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Built-in variables that come with the secrets (execution §21).
pub(crate) const TOKENS: [&str; 2] = ["CIRCLE_OIDC_TOKEN", "CIRCLE_OIDC_TOKEN_V2"];

/// The folders of a task, as its steps see them.
pub(crate) struct Places {
    pub(crate) home: PathBuf,
    pub(crate) bin: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) bash_env: PathBuf,
    /// The job's working directory.
    pub(crate) work: PathBuf,
}

impl Places {
    pub(crate) fn of(facts: &Facts, spec: &TaskSpec) -> Self {
        Self {
            home: facts.home.clone(),
            bin: facts.bin.clone(),
            data: facts.data.clone(),
            bash_env: facts.data.join(format!(".bash_env-{}-{}-build", spec.job_id, spec.index)),
            work: expand(&spec.definition.working_directory, &facts.home, &facts.home),
        }
    }

    /// Where a step says that no further one runs.
    pub(crate) fn halt(&self) -> PathBuf {
        self.data.join("halt")
    }

    /// Where a script of a step is that cannot be an argument.
    pub(crate) fn script(&self, number: u32) -> PathBuf {
        self.data.join(format!("scripts/step-{number}"))
    }
}

/// A path of the configuration: absolute, below the home folder, or below `base`.
pub(crate) fn expand(path: &str, home: &Path, base: &Path) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ if path.is_empty() || path == "." => base.to_owned(),
        _ => base.join(path),
    }
}

/// The variables of a job, and what the step that shows them prints.
pub(crate) struct Environment {
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) shown: String,
    /// What the agent was given, without what the configuration adds: cache keys are made of it.
    pub(crate) given: BTreeMap<String, String>,
}

impl Environment {
    pub(crate) fn build(
        spec: &TaskSpec,
        secrets: &Secrets,
        places: &Places,
        facts: &Facts,
    ) -> Result<Self, String> {
        let definition = &spec.definition;
        let primary = match &definition.executor {
            Executor::Docker { containers } => {
                containers.first().map(|primary| primary.environment.as_slice())
            }
            _ => None,
        };
        let primary = primary.unwrap_or_default();
        let of_steps = definition.steps.iter().flat_map(|step| match step {
            Step::Run(run) | Step::Deploy(run) => run.environment.as_slice(),
            _ => &[],
        });
        for (name, value) in primary.iter().chain(&definition.environment).chain(of_steps) {
            if !is_name(name) {
                return Err(format!("{name:?} is not a name that an environment variable can have"));
            }
            if value.contains('\0') {
                return Err(format!("the value of {name} contains a NUL byte"));
            }
        }
        let mut variables = facts.environment.clone();
        // An engine made the container with it; where a job's containers are not made, it counts all the same.
        variables.extend(primary.iter().cloned());
        let path = variables.get("PATH").cloned().unwrap_or_else(|| DEFAULT_PATH.to_owned());
        let mut set = |name: &str, value: String| drop(variables.insert(name.to_owned(), value));
        set("PATH", format!("{}:{path}", places.bin.display()));
        set("HOME", places.home.display().to_string());
        set("USER", facts.user.clone());
        set("LOGNAME", facts.user.clone());
        set("TERM", "xterm".into());
        for (name, value) in &secrets.variables {
            set(name, value.clone());
        }
        let built_in = built_in(spec, places);
        for (name, value) in &built_in {
            set(name, value.clone());
        }
        let mut given: BTreeMap<String, String> = secrets.variables.iter().cloned().collect();
        given.extend(built_in.clone());
        for (name, value) in &definition.environment {
            set(name, value.clone());
        }
        let shown = show(&built_in, &definition.environment, secrets);
        Ok(Self { variables, shown, given })
    }

    /// What programs of the agent's own get.
    pub(crate) fn of_helpers(&self) -> Vec<(String, String)> {
        const NAMES: [&str; 5] = ["PATH", "HOME", "USER", "LOGNAME", "CIRCLE_INTERNAL_TASK_DATA"];
        let kept = self.variables.iter().filter(|(name, _)| NAMES.contains(&name.as_str()));
        kept.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    pub(crate) fn with(&self, more: &[(String, String)]) -> Vec<(String, String)> {
        let mut all = self.variables.clone();
        all.extend(more.iter().cloned());
        all.into_iter().collect()
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn built_in(spec: &TaskSpec, places: &Places) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut set = |name: &str, value: String| drop(all.insert(name.to_owned(), value));
    set("CI", "true".into());
    set("CIRCLECI", "true".into());
    set("CIRCLE_BUILD_NUM", spec.job_number.to_string());
    set("CIRCLE_BUILD_URL", spec.job_url.clone());
    set("CIRCLE_JOB", spec.job_name.clone());
    set("CIRCLE_STAGE", spec.job_name.clone());
    set("CIRCLE_NODE_INDEX", spec.index.to_string());
    set("CIRCLE_NODE_TOTAL", spec.total.to_string());
    set("CIRCLE_ORGANIZATION_ID", spec.org_id.to_string());
    set("CIRCLE_PROJECT_ID", spec.project_id.to_string());
    set("CIRCLE_PIPELINE_ID", spec.pipeline_id.to_string());
    set("CIRCLE_PROJECT_REPONAME", spec.repo.clone());
    set("CIRCLE_PROJECT_USERNAME", spec.org.clone());
    set("CIRCLE_REPOSITORY_URL", spec.repository_url.clone());
    set("CIRCLE_SHA1", spec.revision.clone());
    set("CIRCLE_WORKFLOW_ID", spec.workflow_id.to_string());
    set("CIRCLE_WORKFLOW_JOB_ID", spec.job_id.to_string());
    set("CIRCLE_WORKFLOW_WORKSPACE_ID", spec.workspace_id.to_string());
    set("CIRCLE_WORKING_DIRECTORY", spec.definition.working_directory.clone());
    set("CIRCLE_INTERNAL_TASK_DATA", places.data.display().to_string());
    set("BASH_ENV", places.bash_env.display().to_string());
    set("CIRCLE_SHELL_ENV", places.bash_env.display().to_string());
    set("GANTRY_PIPELINE_NUMBER", spec.pipeline_number.to_string());
    if let Some(number) = spec.previous_number {
        set("CIRCLE_PREVIOUS_BUILD_NUM", number.to_string());
    }
    if !spec.upstream.is_empty() {
        let ids: Vec<String> = spec.upstream.iter().map(ToString::to_string).collect();
        set("CIRCLE_WORKFLOW_UPSTREAM_JOB_IDS", ids.join(","));
    }
    // Scripts ask whether these are set at all.
    for (name, value) in
        [("CIRCLE_BRANCH", &spec.branch), ("CIRCLE_TAG", &spec.tag), ("CIRCLE_USERNAME", &spec.username)]
    {
        if let Some(value) = value {
            set(name, value.clone());
        }
    }
    all
}

fn show(built_in: &BTreeMap<String, String>, job: &[(String, String)], secrets: &Secrets) -> String {
    let mut text = String::from("Using build environment variables:\n");
    for (name, value) in built_in {
        text.push_str(&format!("  {name}={value}\n"));
    }
    let (own, given): (BTreeSet<&str>, BTreeSet<&str>) =
        secrets.variables.iter().map(|(name, _)| name.as_str()).partition(|name| TOKENS.contains(name));
    for name in own {
        text.push_str(&format!("  {name}=**REDACTED**\n"));
    }
    if !job.is_empty() {
        text.push_str("\nUsing environment variables from the configuration of the job:\n");
        for (name, value) in job {
            text.push_str(&format!("  {name}={value}\n"));
        }
    }
    if !given.is_empty() {
        text.push_str("\nUsing environment variables from project settings and/or contexts:\n");
        for name in given {
            text.push_str(&format!("  {name}=**REDACTED**\n"));
        }
        text.push_str("\nThe redacted variables listed above will be masked in run step output.\n");
    }
    text
}
