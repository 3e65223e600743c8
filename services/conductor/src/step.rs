//! One step of a workflow: load what it needs, let the model decide, store and announce.

use crate::{
    NAME,
    error::{Error, Result},
    locks, me,
    store::{self, Beginning, Numbers, Workflow},
};
use contracts::{
    Actor, NewEvent,
    conductor::{
        CancelRequested, JobEnded, JobOnHold, JobReady, JobRunning, TurnDone, TurnWanted, WorkflowFinished,
        WorkflowStatusChanged,
    },
};
use eventstore::Tx;
use ids::{JobId, MessageId, Timestamp};
use model::{
    plan::JobKind,
    status::WorkflowStatus,
    workflow::{Changes, Command, Event, Job, Walk},
};
use spans::{Kind, Name, Span};
use std::{collections::HashMap, time::Duration};

/// After so long a revocation that was committed here is asked of the dispatcher again, in case that this
/// process ended between the two.
pub(crate) const REVOKE_RETRY: Duration = Duration::from_secs(5);

/// Who caused a step, and which message.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    pub actor: Actor,
    pub message: MessageId,
}

/// Decides on a command to one job and walks to its last consequence.
pub(crate) async fn decide(
    tx: &mut Tx,
    workflow: &Workflow,
    job: Job,
    command: &Command,
    now: Timestamp,
) -> Result<Changes> {
    let id = job.id;
    let mut walk = Walk::new(workflow.root.clone(), now);
    let mut below = match command {
        Command::Started { .. } => HashMap::new(),
        _ => store::dependants(tx.conn(), &[id]).await?,
    };
    walk.command(job, below.remove(&id).unwrap_or_default(), command)?;
    loop {
        let wanted = walk.wanted();
        if wanted.is_empty() {
            return Ok(walk.conclude());
        }
        let mut below = store::dependants(tx.conn(), &wanted).await?;
        for id in wanted {
            walk.propagate(id, below.remove(&id).unwrap_or_default())?;
        }
    }
}

/// Appends the events of a step, after `first`, and stores the rows; `workflow` is brought up to date.
pub(crate) async fn commit(
    tx: &mut Tx,
    workflow: &mut Workflow,
    first: Vec<NewEvent>,
    changes: &Changes,
    cause: &Cause,
    now: Timestamp,
) -> Result<()> {
    if changes.events.is_empty() && first.is_empty() {
        return Ok(());
    }
    let ready: Vec<JobId> = changes
        .events
        .iter()
        .filter_map(|event| match event {
            Event::JobReady { job } => Some(*job),
            _ => None,
        })
        .collect();
    let mut numbers = Numbers::default();
    let mut beginnings = HashMap::new();
    if !ready.is_empty() {
        beginnings = store::beginnings(tx.conn(), &ready).await?;
        let branch = workflow.vcs.branch.as_deref();
        numbers = store::take_numbers(tx.conn(), workflow.project.id, branch, &ready).await?;
    }
    let groups = serial_groups(tx, changes).await?;
    let released = locks::released(tx.conn(), workflow.id, changes).await?;
    let mut events: Vec<NewEvent> = first;
    for event in &changes.events {
        let Some(published) = announce(workflow, changes, event, &numbers, &groups, &mut beginnings, cause)?
        else {
            continue;
        };
        events.push(published);
        if let Event::JobEnded { job, .. } = event
            && let Some(group) = groups.get(job)
        {
            let done = TurnDone { job_id: *job, group: group.clone() };
            events.push(self::event(workflow, cause, &done));
        }
    }
    for (job_id, group) in released {
        events.push(self::event(workflow, cause, &TurnDone { job_id, group }));
    }
    let stored = tx.append(&events).await?;
    if let Some(last) = stored.last() {
        workflow.version = last.aggregate.version;
    }
    let asked = changes.events.iter().any(|event| matches!(event, Event::CancelRequested { .. }));
    let retry = asked.then(|| now + REVOKE_RETRY);
    store::save(tx.conn(), workflow, changes, &numbers, retry, now).await?;
    if !workflow.root.status.is_terminal() && changes.root.status.is_terminal() {
        ended(tx, workflow, changes.root.status, changes.root.ended_at.unwrap_or(now));
    }
    workflow.root = changes.root.clone();
    Ok(())
}

/// A workflow has ended: it is told of as one span, from its creation on.
fn ended(tx: &mut Tx, workflow: &Workflow, status: WorkflowStatus, at: Timestamp) {
    let lasted = (at - workflow.created_at).to_std().unwrap_or_default();
    metrics::histogram!("gantry.conductor.workflow_seconds", "status" => status.as_str())
        .record(lasted.as_secs_f64());
    let Some(context) = workflow.within() else { return };
    let parent = workflow.trace.map(|trace| trace.span);
    let name = Name::of("workflow", &workflow.name);
    let span = Span::known(context, parent, NAME, Kind::Internal, name).map(|span| {
        span.with("gantry.workflow.id", workflow.id.uuid())
            .with("gantry.pipeline.id", workflow.pipeline_id.uuid())
            .with("gantry.pipeline.number", workflow.pipeline_number)
            .with("gantry.project", Name::chosen(&workflow.project.slug))
            .with("gantry.status", status.as_str())
            .failing(!matches!(status, WorkflowStatus::Success | WorkflowStatus::Canceled))
            .lasted(workflow.created_at, at)
    });
    tx.tell(span);
}

/// The serial groups of the jobs that a step sends there or takes from there.
async fn serial_groups(tx: &mut Tx, changes: &Changes) -> Result<HashMap<JobId, String>> {
    let moved: Vec<JobId> = changes
        .events
        .iter()
        .filter_map(|event| match event {
            Event::TurnWanted { job } => Some(*job),
            Event::JobEnded { job, .. } => {
                let leaves = |job: &&Job| job.turn.is_in_group() && !locks::is_held(job);
                changes.jobs.get(job).filter(leaves).map(|job| job.id)
            }
            _ => None,
        })
        .collect();
    if moved.is_empty() { Ok(HashMap::new()) } else { store::serial_groups(tx.conn(), &moved).await }
}

/// An event with the names that every event of a workflow carries.
pub(crate) fn event<E: contracts::Event>(workflow: &Workflow, cause: &Cause, body: &E) -> NewEvent {
    NewEvent::new("workflow", workflow.id.uuid(), cause.actor.clone(), body)
        .in_project(workflow.project.org_id, workflow.project.id)
        .of_pipeline(workflow.pipeline_id)
        .caused_by(cause.message)
        .traced(workflow.within().map(|trace| trace.to_string()))
}

fn announce(
    workflow: &Workflow,
    changes: &Changes,
    what: &Event,
    numbers: &Numbers,
    groups: &HashMap<JobId, String>,
    beginnings: &mut HashMap<JobId, Beginning>,
    cause: &Cause,
) -> Result<Option<NewEvent>> {
    Ok(Some(match what {
        Event::EdgeMet { .. } => return Ok(None),
        Event::CancelRequested { job } => event(workflow, cause, &CancelRequested { job_id: *job }),
        Event::TurnWanted { job } => {
            let group = groups.get(job).cloned().ok_or_else(|| {
                Error::Message(format!("job {job} waits for its turn and belongs to no serial group"))
            })?;
            let body = TurnWanted {
                job_id: *job,
                workflow_id: workflow.id,
                group,
                pipeline_number: workflow.pipeline_number,
            };
            event(workflow, cause, &body)
        }
        Event::JobOnHold { job } => event(workflow, cause, &JobOnHold { job_id: *job }),
        Event::JobRunning { job, at } => event(workflow, cause, &JobRunning { job_id: *job, at: *at }),
        Event::JobEnded { job, status, reason, approved_by, at } => event(
            workflow,
            cause,
            &JobEnded {
                job_id: *job,
                status: *status,
                reason: reason.clone(),
                approved_by: *approved_by,
                at: *at,
            },
        ),
        Event::StatusChanged { status } => event(workflow, cause, &WorkflowStatusChanged { status: *status }),
        Event::Finished { status, at } => {
            event(workflow, cause, &WorkflowFinished { status: *status, at: *at })
        }
        Event::JobReady { job } => {
            let (Some(beginning), Some(number)) = (beginnings.remove(job), numbers.get(*job)) else {
                return Err(Error::Message(format!("job {job} begins and is not stored")));
            };
            let JobKind::Build { definition } = beginning.plan.kind else {
                return Err(Error::Message(format!("job {job} begins and has no steps")));
            };
            let approver = changes.jobs.get(job).and_then(|job| job.approver).map(|approver| approver.user);
            let body = JobReady {
                job_id: *job,
                workflow_id: workflow.id,
                workflow_name: workflow.name.clone(),
                workspace_id: workflow.workspace_id,
                pipeline_id: workflow.pipeline_id,
                pipeline_number: workflow.pipeline_number,
                project: workflow.project.clone(),
                name: beginning.name,
                number,
                previous_number: numbers.previous(number),
                vcs: workflow.vcs.clone(),
                trigger: workflow.trigger.clone(),
                upstream: beginning.upstream,
                contexts: beginning.plan.contexts,
                acting_user: approver.or(workflow.started_by),
                failed_tests_of: beginning.failed_tests_of,
                ssh: workflow.ssh.clone(),
                definition: *definition,
            };
            event(workflow, cause, &body)
        }
    }))
}

impl Cause {
    /// A timer of this service.
    pub fn timer() -> Self {
        Self { actor: me(), message: MessageId::new() }
    }
}
