//! Decisions of the dispatcher, without I/O.

use crate::{
    config::{Config, Docker},
    runners::is_self_hosted,
};
use agent_api::{FinalReport, TaskSpec};
use contracts::conductor::JobReady;
use model::{
    plan::{Executor, JobDefinition},
    status::JobStatus,
};

/// Status and reason of a job whose tasks have all ended: the gravest of its tasks'.
pub fn job_outcome(tasks: Vec<(JobStatus, Option<String>)>) -> (JobStatus, Option<String>) {
    // The first of this list that any task has.
    const GRAVEST_FIRST: [JobStatus; 5] = [
        JobStatus::Canceled,
        JobStatus::Unauthorized,
        JobStatus::Failed,
        JobStatus::Timedout,
        JobStatus::InfrastructureFail,
    ];
    GRAVEST_FIRST
        .into_iter()
        .find_map(|status| tasks.iter().find(|(task, _)| *task == status).cloned())
        .unwrap_or((JobStatus::Success, None))
}

/// Status and reason of a task whose agent reported. A cancel that was acknowledged holds, but for a task whose
/// steps had ended: it ended the wait for SSH sessions (execution §26).
pub fn reported_outcome(cancel_requested: bool, report: FinalReport) -> (JobStatus, Option<String>) {
    match report {
        FinalReport { settled: false, .. } if cancel_requested => (JobStatus::Canceled, None),
        FinalReport { status, reason, .. } => (status, reason),
    }
}

/// Why a job cannot run here, if it cannot.
pub fn impossible(ready: &JobReady, config: &Config) -> Option<String> {
    let definition = &ready.definition;
    if is_self_hosted(&definition.resource_class) {
        return None;
    }
    if let (Executor::Docker { containers }, Docker::Refuse) = (&definition.executor, config.docker) {
        return Some(format!(
            "the job asks for the container image {} and no container engine answers here; start one, or set \
             `[executors] docker = \"host\"` to run such jobs on the machine itself",
            containers.first().map_or("(none)", |container| container.image.as_str()),
        ));
    }
    config.classes.resolve(definition).err()
}

/// Whether the environment of a job has to be prepared before its code may run: then the start permit is asked for
/// when it stands, and an agent that is lost before that costs nothing.
pub fn is_prepared(definition: &JobDefinition, docker: Docker) -> bool {
    let docker = docker == Docker::Engine || is_self_hosted(&definition.resource_class);
    matches!(definition.executor, Executor::Docker { .. }) && docker
}

/// The spec of one task.
pub fn spec(ready: JobReady, index: u32, total: u32, public_url: &str, config: &Config) -> TaskSpec {
    TaskSpec {
        job_id: ready.job_id,
        job_name: ready.name,
        job_number: ready.number,
        previous_number: ready.previous_number.filter(|_| !is_self_hosted(&ready.definition.resource_class)),
        job_url: format!("{public_url}/jobs/{}", ready.job_id),
        workflow_id: ready.workflow_id,
        workspace_id: ready.workspace_id,
        pipeline_id: ready.pipeline_id,
        pipeline_number: ready.pipeline_number,
        org_id: ready.project.org_id,
        repository_url: repository_url(public_url, &ready.project.org, &ready.project.name),
        org: ready.project.org,
        project_id: ready.project.id,
        repo: ready.project.name,
        revision: ready.vcs.revision,
        branch: ready.vcs.branch,
        tag: ready.vcs.tag,
        username: ready.trigger.actor_login,
        upstream: ready.upstream,
        index,
        total,
        has_secrets: true,
        failed_tests: ready.failed_tests_of.is_some(),
        ssh: ready.ssh,
        containers: is_prepared(&ready.definition, config.docker),
        // Checked before the task was queued.
        resources: config.classes.resolve(&ready.definition).unwrap_or_default(),
        definition: ready.definition,
    }
}

/// Where a repository of the embedded git server is.
pub fn repository_url(base: &str, org: &str, repo: &str) -> String {
    format!("{base}/git/{org}/{repo}.git")
}
