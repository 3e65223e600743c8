//! What every operation needs.

use crate::Config;
use bus::{Bus, Hint, Hints};
use contracts::{Actor, RequestError, dispatcher::CloseEpoch};
use eventstore::Store;
use ids::TaskId;
use kit::keys::{FenceClaims, Keys};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

use crate::store::{SERVICE, TaskRow};

/// Before a task in a hint: it was told to stop, or has ended.
const TOLD: &str = "dispatcher.told=";
/// A hint: a task may wait for a runner.
const FOR_RUNNERS: &str = "dispatcher.for-runners";

/// Why a poll looks again.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// Something was said to this task.
    Of(TaskId),
    /// It cannot be known to which one.
    Perhaps,
}

pub struct State {
    pub store: Store,
    pub bus: Bus,
    pub keys: Keys,
    pub config: Config,
    pub public_url: String,
    pub git_url: String,
    /// Tasks that were told to stop, or ended, a moment ago: wakes their agents' polls.
    pub commands: broadcast::Sender<Told>,
    /// Ends waiting answers, so that a stop waits for no poll.
    pub stop: CancellationToken,
    /// Wakes the sweeper: something is due earlier than it knows.
    pub due: Notify,
    /// Wakes standing runners: a task may wait for one of them.
    pub for_runners: Notify,
}

impl State {
    /// The fence token of a lease: it ends with the lease, so that a receiver that nobody can reach closes by
    /// itself.
    pub fn fence(&self, claims: &FenceClaims) -> String {
        self.keys.seal_claims("fence", claims)
    }

    /// Has the receiver refuse later writes of an epoch. A receiver that is not there accepts none either.
    pub async fn close_epoch(&self, task: &TaskRow) -> Result<(), RequestError> {
        let ask = CloseEpoch { task_id: task.task(), epoch: task.epoch };
        match self.bus.ask(&Actor::service(SERVICE), &ask).await {
            Err(RequestError::NoResponder { service }) => {
                tracing::warn!(task = %task.task(), %service, "nobody to close the epoch at");
                Ok(())
            }
            result => result,
        }
    }

    /// Wakes the agents of these tasks, whichever process they ask.
    pub fn wake(&self, tasks: impl IntoIterator<Item = TaskId>) {
        for task in tasks {
            self.bus.hint(&format!("{TOLD}{task}"));
        }
    }

    /// Wakes standing runners, whichever process they ask.
    pub fn wake_runners(&self) {
        self.bus.hint(FOR_RUNNERS);
    }

    /// Passes hints on to who waits in this process.
    pub async fn heed(&self, mut hints: Hints) {
        while let Some(hint) = tokio::select! {
            hint = hints.next() => hint,
            () = self.stop.cancelled() => None,
        } {
            match &hint {
                Hint::Said(said) if &**said == FOR_RUNNERS => self.for_runners.notify_waiters(),
                Hint::Said(said) => {
                    if let Some(task) = said.strip_prefix(TOLD).and_then(|task| task.parse().ok()) {
                        // Nobody polls: nobody needs to be woken.
                        let _ = self.commands.send(Told::Of(task));
                    }
                }
                Hint::Missed => {
                    self.for_runners.notify_waiters();
                    let _ = self.commands.send(Told::Perhaps);
                }
            }
        }
    }
}
