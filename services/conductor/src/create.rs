//! New workflows: of a plan, and as reruns of others.

use crate::{
    error::Result,
    step::{self, Cause},
    store::{self, Former, NewJob, Workflow},
};
use contracts::{
    Refusal,
    conductor::{Edge, JobNode, WorkflowCreated},
    pipelines::PipelineCreated,
};
use eventstore::Tx;
use ids::{JobId, Timestamp, UserId, WorkflowId};
use model::{
    plan::{Plan, WorkflowPlan},
    status::{JobStatus, WorkflowStatus},
    workflow::{Graph, Root},
};
use std::collections::HashMap;

/// Reruns per workflow of a pipeline, reruns of reruns included (execution §9).
const MAX_RERUNS: i64 = 100;

/// How a rerun came about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Why {
    /// Somebody asked.
    Asked {
        /// Who, if a person.
        by: Option<UserId>,
        /// Whether what succeeded is kept.
        from_failed: bool,
    },
    /// The workflow failed and has automatic reruns left.
    Automatic,
}

/// Makes all workflows of a pipeline.
pub(crate) async fn of_pipeline(
    tx: &mut Tx,
    pipeline: &PipelineCreated,
    plan: &Plan,
    cause: &Cause,
    now: Timestamp,
) -> Result<()> {
    for workflow in &plan.workflows {
        let id = WorkflowId::new();
        let row = Workflow {
            id,
            version: 0,
            pipeline_id: pipeline.pipeline_id,
            pipeline_number: pipeline.number,
            project: pipeline.project.clone(),
            name: workflow.name.clone(),
            root: Root::new(),
            started_by: pipeline.trigger.actor,
            rerun_of: None,
            workspace_id: id,
            max_auto_reruns: i32::try_from(workflow.max_auto_reruns).unwrap_or(i32::MAX),
            auto_rerun: 0,
            vcs: pipeline.vcs.clone(),
            trigger: pipeline.trigger.clone(),
            created_at: now,
        };
        make(tx, row, workflow, &HashMap::new(), cause, now).await?;
    }
    Ok(())
}

/// Makes a new instance of a workflow that exists.
pub(crate) async fn rerun(
    tx: &mut Tx,
    old: &Workflow,
    why: Why,
    cause: &Cause,
    now: Timestamp,
) -> Result<Workflow> {
    let from_failed = matches!(why, Why::Automatic | Why::Asked { from_failed: true, .. });
    if from_failed && !old.root.status.is_terminal() {
        let message =
            format!("the workflow is still {}: rerun from failed when it has ended", old.root.status);
        return Err(Refusal::new("not_ended", message).into());
    }
    if from_failed && old.root.status == WorkflowStatus::Success {
        return Err(Refusal::new("nothing_failed", "every job of the workflow succeeded").into());
    }
    if now - old.created_at > chrono::TimeDelta::days(store::DAYS.into()) {
        let message = format!("the workflow is older than {} days", store::DAYS);
        return Err(Refusal::new("too_old", message).into());
    }
    if store::instances(tx.conn(), old.workspace_id).await? > MAX_RERUNS {
        let message = format!("the workflow has been rerun {MAX_RERUNS} times, which is the limit");
        return Err(Refusal::new("too_many_reruns", message).into());
    }
    let former = store::former_jobs(tx.conn(), old.id).await?;
    let kept: HashMap<String, (JobId, Option<i64>)> = former
        .iter()
        .filter(|job| from_failed && job.status == JobStatus::Success)
        .map(|Former { id, number, plan, .. }| (plan.name.clone(), (*id, *number)))
        .collect();
    let plan = WorkflowPlan {
        name: old.name.clone(),
        jobs: former.into_iter().map(|job| job.plan).collect(),
        max_auto_reruns: u32::try_from(old.max_auto_reruns).unwrap_or_default(),
    };
    let row = Workflow {
        id: WorkflowId::new(),
        version: 0,
        root: Root::new(),
        started_by: match why {
            Why::Asked { by, .. } => by,
            Why::Automatic => old.started_by,
        },
        rerun_of: Some(old.id),
        auto_rerun: match why {
            Why::Asked { .. } => 0,
            Why::Automatic => old.auto_rerun + 1,
        },
        created_at: now,
        ..old.clone()
    };
    make(tx, row, &plan, &kept, cause, now).await
}

/// Whether a workflow that just failed is run again by itself.
pub(crate) fn reruns_itself(workflow: &Workflow) -> bool {
    let asked_for = workflow.rerun_of.is_some() && workflow.auto_rerun == 0;
    workflow.root.status == WorkflowStatus::Failed
        && !asked_for
        && workflow.auto_rerun < workflow.max_auto_reruns
}

async fn make(
    tx: &mut Tx,
    mut workflow: Workflow,
    plan: &WorkflowPlan,
    kept: &HashMap<String, (JobId, Option<i64>)>,
    cause: &Cause,
    now: Timestamp,
) -> Result<Workflow> {
    let graph = Graph::of_plan(plan, |_| JobId::new(), |name| kept.contains_key(name))?;
    let edges =
        |index: usize| graph.nodes[index].requires.iter().map(|(up, set)| (graph.nodes[*up].job.id, *set));
    let jobs: Vec<NewJob<'_>> = graph
        .nodes
        .iter()
        .zip(&plan.jobs)
        .enumerate()
        .map(|(index, (node, plan))| NewJob {
            job: &node.job,
            plan,
            requires: edges(index).collect(),
            carried: kept.get(&plan.name).copied(),
        })
        .collect();
    for job in &jobs {
        workflow.root.counts.add(job.job.status);
    }
    store::insert(tx.conn(), &workflow, &jobs).await?;
    let created = WorkflowCreated {
        workflow_id: workflow.id,
        pipeline_id: workflow.pipeline_id,
        pipeline_number: workflow.pipeline_number,
        project: workflow.project.clone(),
        name: workflow.name.clone(),
        started_by: workflow.started_by,
        rerun_of: workflow.rerun_of,
        jobs: jobs
            .iter()
            .map(|new| JobNode {
                job_id: new.job.id,
                name: new.plan.name.clone(),
                kind: new.job.kind.as_str().to_owned(),
                status: new.job.status,
                requires: new
                    .requires
                    .iter()
                    .map(|(job_id, accepts)| Edge { job_id: *job_id, accepts: accepts.iter().collect() })
                    .collect(),
            })
            .collect(),
    };
    let first = step::event(&workflow, cause, &created);
    let changes = graph.begin(now)?;
    step::commit(tx, &mut workflow, Some(first), &changes, cause, now).await?;
    Ok(workflow)
}
