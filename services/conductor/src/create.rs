//! New workflows: of a plan, and as reruns of others.

use crate::{
    error::Result,
    locks,
    step::{self, Cause},
    store::{self, Former, NewJob, Workflow},
};
use contracts::{
    NewEvent, Refusal,
    conductor::{Edge, JobNode, JobsAdded, MoreEdges, WorkflowCreated},
    pipelines::PipelineCreated,
    trace::Trace,
};
use eventstore::{Tx, trace};
use ids::{JobId, MessageId, Timestamp, UserId, WorkflowId};
use model::{
    plan::{JobPlan, Plan, WorkflowPlan},
    ssh::Access,
    status::{JobStatus, WorkflowStatus},
    workflow::{Graph, Root},
};
use sqlx::PgConnection;
use std::collections::{HashMap, HashSet};

/// Reruns per workflow of a pipeline, reruns of reruns included (execution §9).
const MAX_RERUNS: i64 = 100;

/// Which jobs a rerun runs (execution §9).
#[derive(Clone, Debug)]
pub(crate) enum Which {
    /// Every one.
    All,
    /// Those that did not succeed; the others are carried over.
    Failed {
        /// Whether jobs that failed run their failed tests only.
        tests: bool,
    },
    /// These; what succeeded elsewhere is carried over, and the rest is left out.
    Selected {
        /// Which.
        jobs: Vec<JobId>,
        /// Whether what waits for them runs too.
        downstream: bool,
    },
}

/// How a rerun came about.
#[derive(Clone, Debug)]
pub(crate) enum Why {
    /// Somebody asked.
    Asked {
        /// Who, if a person.
        by: Option<UserId>,
        /// What is to be run.
        which: Which,
        /// Who may enter its jobs by SSH, if it is run so.
        ssh: Option<Access>,
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
            plan_digest: if pipeline.plan.is_none() { pipeline.plan_digest.clone() } else { None },
            ssh: None,
            created_at: now,
            trace: Some(here(id)),
        };
        let since_push = (now - pipeline.trigger.received_at).to_std().unwrap_or_default();
        metrics::histogram!("gantry.conductor.since_push_seconds").record(since_push.as_secs_f64());
        make(tx, row, workflow, &Past::default(), cause, now).await?;
    }
    Ok(())
}

/// The trace in which a workflow begins: what is being done, else one of its own.
fn here(id: WorkflowId) -> Trace {
    trace::current().unwrap_or_else(|| Trace::root(MessageId(id.uuid())))
}

/// Makes a new instance of a workflow that exists.
pub(crate) async fn rerun(
    tx: &mut Tx,
    old: &Workflow,
    why: Why,
    cause: &Cause,
    now: Timestamp,
) -> Result<Workflow> {
    let which = match &why {
        Why::Automatic => &Which::Failed { tests: false },
        Why::Asked { which, .. } => which,
    };
    if !matches!(which, Which::All) && !old.root.status.is_terminal() {
        let message =
            format!("the workflow is still {}: rerun parts of it when it has ended", old.root.status);
        return Err(Refusal::new("not_ended", message).into());
    }
    if matches!(which, Which::Failed { .. }) && old.root.status == WorkflowStatus::Success {
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
    let (jobs, past) = choose(former, which)?;
    let plan = WorkflowPlan {
        name: old.name.clone(),
        jobs,
        max_auto_reruns: u32::try_from(old.max_auto_reruns).unwrap_or_default(),
    };
    let id = WorkflowId::new();
    let row = Workflow {
        id,
        version: 0,
        root: Root::new(),
        trace: Some(here(id)),
        started_by: match why {
            Why::Asked { by, .. } => by,
            Why::Automatic => old.started_by,
        },
        // With the keys of who asks now, never with those of who asked before.
        ssh: match &why {
            Why::Asked { ssh, .. } => ssh.clone(),
            Why::Automatic => None,
        },
        rerun_of: Some(old.id),
        auto_rerun: match why {
            Why::Asked { .. } => 0,
            Why::Automatic => old.auto_rerun + 1,
        },
        // A rerun that somebody asked for is not repeated for every failure, and neither is what follows it.
        max_auto_reruns: match why {
            Why::Automatic if old.was_asked_for() => 0,
            _ => old.max_auto_reruns,
        },
        created_at: now,
        ..old.clone()
    };
    make(tx, row, &plan, &past, cause, now).await
}

/// What a rerun takes over from the instance before, by names of jobs.
#[derive(Default)]
struct Past {
    /// Jobs whose success is kept: the job that really ran, and its number.
    kept: HashMap<String, (JobId, Option<i64>)>,
    /// Jobs that run their failed tests only: the job in which they failed.
    failed_tests: HashMap<String, JobId>,
}

/// The jobs of the next instance, in file order, and what they take over.
fn choose(former: Vec<Former>, which: &Which) -> Result<(Vec<JobPlan>, Past)> {
    let selected: Option<HashSet<String>> = match which {
        Which::All | Which::Failed { .. } => None,
        Which::Selected { jobs, downstream } => Some(select(&former, jobs, *downstream)?),
    };
    let mut again: HashSet<String> = match &selected {
        Some(selected) => selected.clone(),
        None => {
            let runs = |job: &&Former| matches!(which, Which::All) || job.status != JobStatus::Success;
            former.iter().filter(runs).map(|job| job.plan.name.clone()).collect()
        }
    };
    let plans: Vec<JobPlan> = former.iter().map(|job| job.plan.clone()).collect();
    locks::with_locks(&plans, &mut again);
    let selected = selected.map(|_| again.clone());
    let runs = |job: &Former| again.contains(&job.plan.name);
    let kept: HashMap<String, (JobId, Option<i64>)> = former
        .iter()
        .filter(|job| !runs(job) && job.status == JobStatus::Success)
        .map(|job| (job.plan.name.clone(), (job.carried_from.unwrap_or(job.id), job.number)))
        .collect();
    let mut failed_tests = HashMap::new();
    if matches!(which, Which::Failed { tests: true }) {
        let failed = former.iter().filter(|job| job.status == JobStatus::Failed);
        failed_tests.extend(failed.map(|job| (job.plan.name.clone(), job.id)));
    }
    let mut jobs: Vec<JobPlan> = former
        .into_iter()
        .filter(|job| runs(job) || kept.contains_key(&job.plan.name))
        .map(|job| job.plan)
        .collect();
    if let Some(selected) = &selected {
        // Who is asked for runs: it waits for others that run, and for nothing that was left as it was.
        for job in jobs.iter_mut().filter(|job| selected.contains(&job.name)) {
            job.requires.retain(|edge| {
                let success_is_enough = edge.accepts.contains(&JobStatus::Success);
                selected.contains(&edge.job) || (kept.contains_key(&edge.job) && success_is_enough)
            });
        }
        // A job that is carried over has ended: what it once required may not be here any more.
        jobs.iter_mut().filter(|job| kept.contains_key(&job.name)).for_each(|job| {
            job.requires.retain(|edge| kept.contains_key(&edge.job));
        });
    }
    Ok((jobs, Past { kept, failed_tests }))
}

/// Names of the jobs that were asked for, with what waits for them if that was asked for too.
fn select(former: &[Former], ids: &[JobId], downstream: bool) -> Result<HashSet<String>> {
    let mut names = HashSet::new();
    for id in ids {
        let job = former.iter().find(|job| job.id == *id);
        let name = job
            .map(|job| job.plan.name.clone())
            .ok_or_else(|| Refusal::new("not_found", format!("job {id} is not one of the workflow's")))?;
        names.insert(name);
    }
    if names.is_empty() {
        return Err(Refusal::new("invalid", "`jobs` names no job: name at least one").into());
    }
    let mut grew = downstream;
    while grew {
        grew = false;
        for job in former {
            if !names.contains(&job.plan.name)
                && job.plan.requires.iter().any(|edge| names.contains(&edge.job))
            {
                grew |= names.insert(job.plan.name.clone());
            }
        }
    }
    Ok(names)
}

/// Whether a workflow that just ended is run again by itself: because it may after every failure and was not asked for as
/// a rerun (execution §9), or because all that spoilt it are jobs that were lost with their machines and said that they
/// may then run again (reliability R-16).
pub(crate) async fn reruns_itself(conn: &mut PgConnection, workflow: &Workflow) -> Result<bool> {
    let failed = workflow.root.status == WorkflowStatus::Failed;
    if failed && !workflow.was_asked_for() && workflow.auto_rerun < workflow.max_auto_reruns {
        return Ok(true);
    }
    // Nobody who had a shell on one machine waits at another.
    if !(failed || workflow.root.status == WorkflowStatus::Error) || workflow.ssh.is_some() {
        return Ok(false);
    }
    let spoilers = store::spoilers(conn, workflow.id).await?;
    let may = |spoiler: &store::Spoiler| {
        spoiler.status == JobStatus::InfrastructureFail && workflow.auto_rerun < spoiler.reruns
    };
    Ok(!spoilers.is_empty() && spoilers.iter().all(may))
}

async fn make(
    tx: &mut Tx,
    mut workflow: Workflow,
    plan: &WorkflowPlan,
    past: &Past,
    cause: &Cause,
    now: Timestamp,
) -> Result<Workflow> {
    let graph = Graph::of_plan(plan, |_| JobId::new(), |name| past.kept.contains_key(name))?;
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
            carried: past.kept.get(&plan.name).copied(),
            failed_tests_of: past.failed_tests.get(&plan.name).copied(),
        })
        .collect();
    for job in &jobs {
        workflow.root.counts.add(job.job.status);
    }
    store::insert(tx.conn(), &workflow, &jobs).await?;
    let first = announce(&workflow, &jobs, cause);
    let changes = graph.begin(now)?;
    step::commit(tx, &mut workflow, first, &changes, cause, now).await?;
    Ok(workflow)
}

/// Bytes of jobs in one event: with its other fields and the envelope it stays below the limit of a message.
const PART: usize = 160 * 1024;
/// Edges of a job that are told with it; more follow in parts of their own.
const EDGES: usize = 1000;

/// The events that tell of a new workflow and all its jobs.
fn announce(workflow: &Workflow, jobs: &[NewJob<'_>], cause: &Cause) -> Vec<NewEvent> {
    let (mut nodes, mut more) = (Vec::with_capacity(jobs.len()), Vec::new());
    for new in jobs {
        let edges: Vec<Edge> = new
            .requires
            .iter()
            .map(|(job_id, accepts)| Edge { job_id: *job_id, accepts: accepts.iter().collect() })
            .collect();
        let mut chunks = edges.chunks(EDGES);
        nodes.push(JobNode {
            job_id: new.job.id,
            name: new.plan.name.clone(),
            kind: new.job.kind.as_str().to_owned(),
            status: new.job.status,
            requires: chunks.next().unwrap_or_default().to_vec(),
        });
        more.extend(chunks.map(|chunk| MoreEdges { job_id: new.job.id, requires: chunk.to_vec() }));
    }
    let mut parts = parts(nodes).into_iter();
    let created = WorkflowCreated {
        workflow_id: workflow.id,
        pipeline_id: workflow.pipeline_id,
        pipeline_number: workflow.pipeline_number,
        project: workflow.project.clone(),
        name: workflow.name.clone(),
        started_by: workflow.started_by,
        rerun_of: workflow.rerun_of,
        total: u32::try_from(jobs.len()).unwrap_or(u32::MAX),
        plan_digest: workflow.plan_digest.clone(),
        jobs: parts.next().unwrap_or_default(),
    };
    let mut events = vec![step::event(workflow, cause, &created)];
    let mut from = created.jobs.len();
    let mut add = |jobs: Vec<JobNode>, edges: Vec<MoreEdges>| {
        let next = from + jobs.len();
        let added = JobsAdded {
            workflow_id: workflow.id,
            pipeline_id: workflow.pipeline_id,
            project: workflow.project.clone(),
            from: u32::try_from(from).unwrap_or(u32::MAX),
            jobs,
            edges,
        };
        from = next;
        events.push(step::event(workflow, cause, &added));
    };
    parts.for_each(|jobs| add(jobs, Vec::new()));
    self::parts(more).into_iter().for_each(|edges| add(Vec::new(), edges));
    events
}

/// Splits a list so that each part fits into a message.
fn parts<T: serde::Serialize>(list: Vec<T>) -> Vec<Vec<T>> {
    let (mut parts, mut room) = (Vec::new(), 0);
    for item in list {
        let size = serde_json::to_vec(&item).map_or(0, |json| json.len());
        if parts.is_empty() || size > room {
            parts.push(Vec::new());
            room = PART;
        }
        room = room.saturating_sub(size);
        if let Some(last) = parts.last_mut() {
            last.push(item);
        }
    }
    parts
}
