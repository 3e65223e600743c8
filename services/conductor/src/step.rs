//! One step of a workflow: load what it needs, let the model decide, store and announce.

use crate::{
    error::{Error, Result},
    me,
    store::{self, Beginning, Workflow},
};
use contracts::{
    Actor, NewEvent,
    conductor::{
        CancelRequested, JobEnded, JobOnHold, JobReady, JobRunning, WorkflowFinished, WorkflowStatusChanged,
    },
};
use eventstore::Tx;
use ids::{JobId, MessageId, Timestamp};
use model::{
    plan::JobKind,
    workflow::{Changes, Command, Event, Job, Walk},
};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

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
    first: Option<NewEvent>,
    changes: &Changes,
    cause: &Cause,
    now: Timestamp,
) -> Result<()> {
    if changes.events.is_empty() && first.is_none() {
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
    let mut numbers = BTreeMap::new();
    let mut beginnings = HashMap::new();
    if !ready.is_empty() {
        beginnings = store::beginnings(tx.conn(), &ready).await?;
        let n = i64::try_from(ready.len()).map_err(|_| Error::Message("too many jobs at once".into()))?;
        let from = store::take_numbers(tx.conn(), workflow.project.id, n).await?;
        numbers = ready.iter().copied().zip(from..).collect();
    }
    let mut events: Vec<NewEvent> = first.into_iter().collect();
    for event in &changes.events {
        if let Some(event) = announce(workflow, changes, event, &numbers, &mut beginnings, cause)? {
            events.push(event);
        }
    }
    let stored = tx.append(&events).await?;
    if let Some(last) = stored.last() {
        workflow.version = last.aggregate.version;
    }
    let asked = changes.events.iter().any(|event| matches!(event, Event::CancelRequested { .. }));
    let retry = asked.then(|| now + REVOKE_RETRY);
    store::save(tx.conn(), workflow, changes, &numbers, retry, now).await?;
    workflow.root = changes.root.clone();
    Ok(())
}

/// An event with the names that every event of a workflow carries.
pub(crate) fn event<E: contracts::Event>(workflow: &Workflow, cause: &Cause, body: &E) -> NewEvent {
    NewEvent::new("workflow", workflow.id.uuid(), cause.actor.clone(), body)
        .in_project(workflow.project.org_id, workflow.project.id)
        .of_pipeline(workflow.pipeline_id)
        .caused_by(cause.message)
}

fn announce(
    workflow: &Workflow,
    changes: &Changes,
    what: &Event,
    numbers: &BTreeMap<JobId, i64>,
    beginnings: &mut HashMap<JobId, Beginning>,
    cause: &Cause,
) -> Result<Option<NewEvent>> {
    Ok(Some(match what {
        Event::EdgeMet { .. } => return Ok(None),
        Event::CancelRequested { job } => event(workflow, cause, &CancelRequested { job_id: *job }),
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
            let (Some(beginning), Some(number)) = (beginnings.remove(job), numbers.get(job)) else {
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
                number: *number,
                vcs: workflow.vcs.clone(),
                trigger: workflow.trigger.clone(),
                upstream: beginning.upstream,
                contexts: beginning.plan.contexts,
                acting_user: approver.or(workflow.started_by),
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
