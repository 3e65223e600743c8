//! Requests of other services, and what the dispatcher says of tasks.

use crate::{http::bounded, hub::Hub, scribe, store, stores};
use async_trait::async_trait;
use bus::{Fault, Group, Responder, failed, route, unknown};
use chrono::Utc;
use contracts::{
    Envelope, Event, Refusal, Request, RequestError,
    dispatcher::{CloseEpoch, TaskFinished, TaskQueued},
    output::{GetStep, GetSteps, ReadLog, StepRecord},
    request::Ask,
    stores::{ListArtifacts, OpenArtifact},
};
use eventstore::{Key, Tx};
use serde_json::Value;
use std::{sync::Arc, time::Duration};

pub(crate) const SERVICE: &str = "output-processor";
/// Of the 256 KiB that a message may have.
const STEPS_BUDGET: usize = 200 * 1024;
/// An answer leaves so long before its deadline.
const MARGIN: Duration = Duration::from_millis(300);
const MAX_WAIT: Duration = Duration::from_secs(25);

pub(crate) struct Answers(pub(crate) Arc<Hub>);

#[async_trait]
impl Responder for Answers {
    async fn respond(&self, req: Request) -> Result<Value, RequestError> {
        let hub = &self.0;
        match req.name.as_str() {
            ReadLog::NAME => {
                route::<ReadLog, _, _>(&req, |ask, req| async move {
                    let left =
                        (req.deadline - Utc::now()).to_std().unwrap_or_default().saturating_sub(MARGIN);
                    let wait = Duration::from_millis(ask.wait_ms).min(MAX_WAIT).min(left);
                    let window = hub.window_when_ready(ask.step_id, ask.offset, ask.limit, wait).await;
                    window.map_err(failed(SERVICE))?.ok_or_else(|| Refusal::not_found("step").into())
                })
                .await
            }
            GetSteps::NAME => {
                route::<GetSteps, _, _>(&req, |ask, _| async move {
                    hub.steps_of(ask.job_id).await.map(fitting).map_err(failed(SERVICE))
                })
                .await
            }
            GetStep::NAME => {
                route::<GetStep, _, _>(&req, |ask, _| async move {
                    let place = hub.step(ask.step_id).await.map_err(failed(SERVICE))?;
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
            ListArtifacts::NAME => {
                route::<ListArtifacts, _, _>(&req, |ask, _| stores::list_artifacts(hub, ask)).await
            }
            OpenArtifact::NAME => {
                route::<OpenArtifact, _, _>(&req, |ask, _| stores::open_artifact(hub, ask)).await
            }
            _ => Err(unknown(&req)),
        }
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

    fn wants(&self, kind: &str) -> bool {
        kind == TaskQueued::TYPE || kind == TaskFinished::TYPE
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
        for msg in batch.iter().filter(|msg| msg.is::<TaskFinished>()) {
            let Ok(end) = msg.body_as::<TaskFinished>() else { continue };
            let open = self.0.task_in_memory(end.task_id).is_some_and(|task| task.lock().closed < end.epoch);
            if open && let Err(error) = scribe::close(&self.0, end.task_id, end.epoch).await {
                tracing::warn!(task_id = %end.task_id, error = %format_args!("{error:#}"), "its epoch stays open");
            }
        }
    }
}
