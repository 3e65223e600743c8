//! Requests of other services, and what the dispatcher says of tasks.

use crate::{
    http::bounded,
    hub::Hub,
    peers::{AGAIN, Peers, Whose},
    rebuild, scribe,
    store::{self, Journal},
    stores,
};
use async_trait::async_trait;
use bus::{Ask, Fault, Group, Responder, body, failed, route, unknown};
use chrono::{TimeDelta, Utc};
use contracts::{
    Actor, Envelope, Event, Refusal, Request, RequestError,
    dispatcher::{CloseEpoch, TaskFinished, TaskQueued},
    output::{GetStep, GetSteps, ReadLog, RebuildRecords, RewriteHeld, StepRecord},
    stores::{ListArtifacts, OpenArtifact},
};
use eventstore::{Key, Tx};
use ids::{JobId, MessageId, StepId, TaskId};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

pub(crate) const SERVICE: &str = "output-processor";
/// Of the 256 KiB that a message may have.
const STEPS_BUDGET: usize = 200 * 1024;
/// An answer leaves so long before its deadline.
const MARGIN: Duration = Duration::from_millis(300);
const MAX_WAIT: Duration = Duration::from_secs(25);

/// At most so long is an answer awaited of a process that may not know either.
const GUESS: TimeDelta = TimeDelta::seconds(1);

pub(crate) struct Answers(pub(crate) Arc<Hub>);

#[async_trait]
impl Responder for Answers {
    async fn respond(&self, req: Request) -> Result<Value, RequestError> {
        let Some(peers) = &self.0.peers else { return here(&self.0, req).await };
        match req.name.as_str() {
            ReadLog::NAME => {
                let ask: ReadLog = body(&req)?;
                of_step(&self.0, peers, ask.step_id, req).await
            }
            GetStep::NAME => {
                let ask: GetStep = body(&req)?;
                of_step(&self.0, peers, ask.step_id, req).await
            }
            GetSteps::NAME => {
                route::<GetSteps, _, _>(&req, |ask, req| async move {
                    all_steps(&self.0, peers, ask.job_id, req).await.map(fitting).map_err(unanswered)
                })
                .await
            }
            CloseEpoch::NAME => {
                let ask: CloseEpoch = body(&req)?;
                by_owner(&self.0, peers, req, About::Task(ask.task_id)).await
            }
            _ => here(&self.0, req).await,
        }
    }
}

/// A store that does not answer is no failure of ours.
pub(crate) fn unanswered(error: anyhow::Error) -> RequestError {
    let away = error.chain().any(|cause| {
        cause.is::<records::Error>() || matches!(cause.downcast_ref(), Some(blobs::Error::Io(_)))
    });
    if away {
        tracing::warn!(error = %format_args!("{error:#}"), "a request found no store");
        return RequestError::Unavailable { service: SERVICE.to_owned() };
    }
    failed(SERVICE)(error)
}

/// What a request is about.
#[derive(Clone, Copy)]
enum About {
    /// A task, which becomes ours if it is nobody's.
    Task(TaskId),
    /// A step of a task.
    Step(StepId, TaskId),
}

impl About {
    /// The other process that holds it.
    async fn elsewhere(self, hub: &Hub, peers: &Peers) -> sqlx::Result<Option<Journal>> {
        match self {
            Self::Task(task) => match hub.whose(task).await? {
                Whose::Ours => Ok(None),
                Whose::Theirs(owner) => Ok(Some(owner)),
            },
            Self::Step(step, _) if hub.owner(step).is_some() => Ok(None),
            Self::Step(_, task) => {
                Ok(store::owner(hub.store.pool(), task).await?.filter(|owner| owner.id != peers.me))
            }
        }
    }
}

/// Lets the owner of a task answer. It may be about to end: then the one that takes over its journal does.
async fn by_owner(hub: &Arc<Hub>, peers: &Peers, req: Request, about: About) -> Result<Value, RequestError> {
    loop {
        let owner = about.elsewhere(hub, peers).await.map_err(failed(SERVICE))?;
        let Some(owner) = owner else { return here(hub, req).await };
        match peers.ask(&owner, &req).await {
            Ok(answer) => return answer,
            Err(error) => {
                tracing::debug!(error = %format_args!("{error:#}"), "the owner of a task does not answer")
            }
        }
        if Utc::now() + MARGIN >= req.deadline {
            return Err(RequestError::Unavailable { service: SERVICE.to_owned() });
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The same for a step. One that began a moment ago may be in no record yet: then all are asked.
async fn of_step(hub: &Arc<Hub>, peers: &Peers, step: StepId, req: Request) -> Result<Value, RequestError> {
    if hub.owner(step).is_some() {
        return here(hub, req).await;
    }
    match hub.step(step).await {
        Ok(Some(place)) => return by_owner(hub, peers, req, About::Step(step, place.task_id)).await,
        Ok(None) => {}
        // One of the others may hold it; if nobody does, what is here is said without its record.
        Err(error) => tracing::warn!(error = %format_args!("{error:#}"), %step, "the record of a step"),
    }
    let guess = Request { deadline: req.deadline.min(Utc::now() + GUESS), ..req.clone() };
    for peer in store::journals(hub.store.pool(), peers.me).await.map_err(failed(SERVICE))? {
        if let Ok(Ok(answer)) = peers.ask(&peer, &guess).await {
            return Ok(answer);
        }
    }
    here(hub, req).await
}

/// Steps of a job whose tasks may be with several processes. What one that does not answer holds is told by the records,
/// which are a moment behind.
async fn all_steps(
    hub: &Arc<Hub>,
    peers: &Peers,
    job: JobId,
    req: &Request,
) -> anyhow::Result<Vec<StepRecord>> {
    let mut steps: BTreeMap<StepId, StepRecord> =
        hub.steps_of(job).await?.into_iter().map(|step| (step.step_id, step)).collect();
    let guess = Request { deadline: req.deadline.min(Utc::now() + GUESS), ..req.clone() };
    for peer in store::owners_of_job(hub.store.pool(), job, peers.me).await? {
        match peers.ask(&peer, &guess).await {
            Ok(Ok(theirs)) => {
                for step in serde_json::from_value::<Vec<StepRecord>>(theirs)? {
                    // What they do not hold they know from the records, as we do.
                    if hub.owner(step.step_id).is_none() {
                        steps.insert(step.step_id, step);
                    }
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, "steps are told by the records"),
            Err(error) => {
                tracing::debug!(error = %format_args!("{error:#}"), "steps are told by the records")
            }
        }
    }
    let mut steps: Vec<StepRecord> = steps.into_values().collect();
    steps.sort_by_key(|step| (step.index, step.number, step.started_at, step.step_id));
    Ok(steps)
}

/// Answers with what this process holds, and the records.
pub(crate) async fn here(hub: &Arc<Hub>, req: Request) -> Result<Value, RequestError> {
    match req.name.as_str() {
        ReadLog::NAME => {
            route::<ReadLog, _, _>(&req, |ask, req| async move {
                let left = (req.deadline - Utc::now()).to_std().unwrap_or_default().saturating_sub(MARGIN);
                let wait = Duration::from_millis(ask.wait_ms).min(MAX_WAIT).min(left);
                let window = hub.window_when_ready(ask.step_id, ask.offset, ask.limit, wait).await;
                window.map_err(unanswered)?.ok_or_else(|| Refusal::not_found("step").into())
            })
            .await
        }
        GetSteps::NAME => {
            route::<GetSteps, _, _>(&req, |ask, _| async move {
                hub.steps_of(ask.job_id).await.map(fitting).map_err(unanswered)
            })
            .await
        }
        GetStep::NAME => {
            route::<GetStep, _, _>(&req, |ask, _| async move {
                let place = hub.step(ask.step_id).await.map_err(unanswered)?;
                let mut place = place.ok_or_else(|| Refusal::not_found("step"))?;
                shorten(&mut place.step, STEPS_BUDGET / 2);
                Ok(place)
            })
            .await
        }
        CloseEpoch::NAME => {
            route::<CloseEpoch, _, _>(&req, |ask, _| async move {
                scribe::close(hub, ask.task_id, ask.epoch).await.map_err(failed(SERVICE))
            })
            .await
        }
        RebuildRecords::NAME => {
            route::<RebuildRecords, _, _>(&req, |ask, req| rebuild::page(hub, ask, req)).await
        }
        RewriteHeld::NAME => {
            route::<RewriteHeld, _, _>(&req, |RewriteHeld {}, _| async {
                rebuild::held(hub).await.map_err(unanswered)
            })
            .await
        }
        ListArtifacts::NAME => {
            route::<ListArtifacts, _, _>(&req, |ask, _| stores::list_artifacts(hub, ask)).await
        }
        OpenArtifact::NAME => {
            route::<OpenArtifact, _, _>(&req, |ask, _| stores::open_artifact(hub, ask)).await
        }
        _ => Err(unknown(&req)),
    }
}

fn shorten(step: &mut StepRecord, limit: usize) {
    step.bash_command = step.bash_command.take().map(|command| bounded(&command, limit));
}

/// Steps with their commands cut until the answer fits a message; each alone is answered whole.
fn fitting(mut steps: Vec<StepRecord>) -> Vec<StepRecord> {
    let mut limit = 64 * 1024;
    while limit > 0 && serde_json::to_vec(&steps).map_or(0, |json| json.len()) > STEPS_BUDGET {
        for step in &mut steps {
            shorten(step, limit);
        }
        limit /= 4;
    }
    steps
}

/// Learns the parallel index of each task, and of ends that nobody asked it to close.
pub(crate) struct Tasks(pub(crate) Arc<Hub>);

#[async_trait]
impl Group for Tasks {
    fn name(&self) -> &'static str {
        "output-processor.tasks"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[TaskQueued::TYPE, TaskFinished::TYPE]
    }

    fn batch(&self) -> usize {
        64
    }

    fn relaxed(&self) -> bool {
        true
    }

    fn locks(&self, _msg: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        let queued = batch.iter().filter(|msg| msg.is::<TaskQueued>());
        let tasks = queued.map(Envelope::body_as::<TaskQueued>).collect::<Result<Vec<_>, _>>()?;
        if !tasks.is_empty() {
            store::learn(tx.conn(), &tasks).await?;
        }
        Ok(())
    }

    async fn after_commit(&self, batch: &[Envelope]) {
        // The dispatcher asks for the close before it says the end, unless this service was away. A task that is
        // not in memory left nothing open.
        let ends = batch.iter().filter(|msg| msg.is::<TaskFinished>());
        let ends: Vec<TaskFinished> = ends.filter_map(|msg| msg.body_as().ok()).collect();
        let mut elsewhere = Vec::new();
        for end in ends {
            let task = self.0.task_in_memory(end.task_id);
            let Some(task) = task else {
                elsewhere.push(end);
                continue;
            };
            let open = task.lock().closed < end.epoch;
            if open && let Err(error) = scribe::close(&self.0, end.task_id, end.epoch).await {
                tracing::warn!(task_id = %end.task_id, error = %format_args!("{error:#}"), "its epoch stays open");
            }
        }
        if let Some(peers) = &self.0.peers
            && let Err(error) = close_elsewhere(&self.0, peers, &elsewhere).await
        {
            tracing::warn!(error = %format_args!("{error:#}"), "epochs of other processes' tasks may stay open");
        }
    }
}

/// Tells the processes that hold these tasks that they are over.
async fn close_elsewhere(hub: &Hub, peers: &Peers, ends: &[TaskFinished]) -> anyhow::Result<()> {
    let tasks: Vec<TaskId> = ends.iter().map(|end| end.task_id).collect();
    if tasks.is_empty() {
        return Ok(());
    }
    let held = store::held_elsewhere(hub.store.pool(), &tasks, peers.me).await?;
    for (end, owner) in ends.iter().filter_map(|end| Some((end, held.get(&end.task_id)?))) {
        let ask = CloseEpoch { task_id: end.task_id, epoch: end.epoch };
        let request = Request {
            id: MessageId::new(),
            service: SERVICE.to_owned(),
            name: CloseEpoch::NAME.to_owned(),
            deadline: Utc::now() + GUESS,
            actor: Actor::service(SERVICE),
            idempotency_key: None,
            trace: None,
            body: serde_json::to_value(ask)?,
        };
        peers.ask(owner, &request).await??;
    }
    Ok(())
}
