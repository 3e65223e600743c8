//! The lease: proving that the task is alive, and learning that it is to stop.

use crate::{
    client::{Call, Client, Failure},
    clock::{Clock, boottime},
    output::Aside,
};
use agent_api::{Commands, Lease, Renew, Renewed, Timing};
use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use hyper::Method;
use ids::TaskId;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// Longest that a call may take, but for the long poll.
const CALL: Duration = Duration::from_secs(10);
const POLL_MS: u64 = 25_000;

const STORE_AWAY: &str = "The store does not answer. What is to be moved is tried again until it does.";
const STORE_BACK: &str = "The store answers again.";

/// Why a task stops before its end. Ordered: a later one overrides an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    /// Longer than its maximum.
    TimedOut,
    /// Somebody canceled it.
    Canceled,
    /// The agent itself was told to end.
    Interrupted,
    /// No renewal was accepted for too long: another may have the task soon.
    LeaseLost,
    /// Another has the task.
    Stale,
}

impl Stop {
    /// Whether the task is no longer ours: nothing is reported, and nobody is asked to end in peace.
    pub(crate) fn is_fenced(self) -> bool {
        matches!(self, Self::LeaseLost | Self::Stale)
    }
}

/// A call was given up because the task is no longer ours, or was refused for good.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Gone {
    #[error("the lease is lost")]
    Fenced,
    #[error(transparent)]
    Refused(Failure),
}

pub(crate) struct Control {
    pub(crate) client: Client,
    pub(crate) task: TaskId,
    pub(crate) timing: Timing,
    pub(crate) clock: Clock,
    fence: Mutex<String>,
    /// When the last renewal that succeeded was sent.
    renewed_at: AtomicU64,
    stop: watch::Sender<Option<Stop>>,
    /// Where is told that a step waits for a store, and whether it is told by now.
    waiting: Mutex<Option<(Aside, bool)>>,
}

/// Milliseconds since the machine was started.
pub(crate) fn boottime_ms() -> u64 {
    u64::try_from(boottime().as_millis()).unwrap_or(u64::MAX)
}

/// Pauses between tries, for ever: short ones where the suite is on this machine.
pub(crate) fn backoff(client: &Client) -> impl Iterator<Item = Duration> + Send + use<> {
    let (min, max) = if client.is_local() {
        (Duration::from_millis(20), Duration::from_millis(500))
    } else {
        (Duration::from_secs(1), Duration::from_secs(30))
    };
    ExponentialBuilder::default()
        .with_min_delay(min)
        .with_max_delay(max)
        .with_jitter()
        .without_max_times()
        .build()
}

impl Control {
    pub(crate) fn new(client: Client, lease: &Lease, claimed_at: u64) -> Arc<Self> {
        Arc::new(Self {
            client,
            task: lease.task_id,
            timing: lease.timing,
            clock: Clock::set(lease.granted_at),
            fence: Mutex::new(lease.fence.clone()),
            renewed_at: AtomicU64::new(claimed_at),
            stop: watch::Sender::new(None),
            waiting: Mutex::new(None),
        })
    }

    /// Has it told here when the step that begins waits for a store; `None`: that step is over.
    pub(crate) fn tell_waiting(&self, to: Option<Aside>) {
        *self.waiting() = to.map(|aside| (aside, false));
    }

    /// A store did not answer for a while, or answers again. Several transfers may say so: it is told once.
    pub(crate) fn store_is_away(&self, away: bool) {
        if let Some((aside, told)) = &mut *self.waiting()
            && *told != away
        {
            aside.note(if away { STORE_AWAY } else { STORE_BACK });
            *told = away;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<(Aside, bool)>> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn stop(&self, why: Stop) {
        self.stop.send_if_modified(|now| {
            let changes = now.is_none_or(|before| before < why);
            if changes {
                tracing::info!(?why, "the task stops");
                *now = Some(why);
            }
            changes
        });
    }

    pub(crate) fn stopped(&self) -> Option<Stop> {
        *self.stop.borrow()
    }

    /// Waits until the task is to stop.
    pub(crate) async fn until_stopped(&self) -> Stop {
        let mut stop = self.stop.subscribe();
        loop {
            if let Some(why) = *stop.borrow_and_update() {
                return why;
            }
            if stop.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until the task is no longer ours.
    pub(crate) async fn until_fenced(&self) {
        let mut stop = self.stop.subscribe();
        loop {
            if stop.borrow_and_update().is_some_and(Stop::is_fenced) {
                return;
            }
            if stop.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn fence(&self) -> String {
        self.fence.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// One try of a call about this task.
    pub(crate) async fn once(
        &self,
        method: Method,
        rest: &str,
        header: Option<(&'static str, String)>,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, Failure> {
        let path = format!("/v1/tasks/{}/{rest}", self.task);
        let fence = self.fence();
        let call = Call { method, path: &path, bearer: Some(&fence), header, body, timeout };
        let answer = self.client.call(call).await;
        if let Err(failure) = &answer
            && failure.code() == "stale_lease"
        {
            self.stop(Stop::Stale);
        }
        answer
    }

    /// Tries a call until it succeeds, is refused, or the task is no longer ours.
    pub(crate) async fn insist(
        &self,
        method: Method,
        rest: &str,
        header: Option<(&'static str, String)>,
        body: Bytes,
    ) -> Result<Bytes, Gone> {
        for pause in backoff(&self.client) {
            if self.stopped().is_some_and(Stop::is_fenced) {
                break;
            }
            let tried = tokio::select! {
                tried = self.once(method.clone(), rest, header.clone(), body.clone(), CALL) => tried,
                () = self.until_fenced() => break,
            };
            match tried {
                Ok(answer) => return Ok(answer),
                Err(_) if self.stopped().is_some_and(Stop::is_fenced) => break,
                Err(failure) if !failure.is_temporary() => return Err(Gone::Refused(failure)),
                Err(failure) => {
                    tracing::debug!(error = %failure, call = rest, "tried again later");
                    tokio::time::sleep(pause).await;
                }
            }
        }
        Err(Gone::Fenced)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, rest: &str) -> Result<T, Gone> {
        let answer = self.insist(Method::GET, rest, None, Bytes::new()).await?;
        decode(&answer)
    }

    pub(crate) async fn post(&self, rest: &str, message: &impl Serialize) -> Result<Bytes, Gone> {
        self.insist(Method::POST, rest, None, encode(message)).await
    }

    /// Renews until told otherwise, and stops the task when renewals failed for too long.
    pub(crate) async fn keep_lease(self: Arc<Self>) {
        let every = self.timing.renew_ms.max(1);
        loop {
            // ±10 %, so that agents do not renew in step.
            let spread = every / 5;
            let pause = every - every / 10 + if spread == 0 { 0 } else { entropy() % spread };
            tokio::time::sleep(Duration::from_millis(pause)).await;
            for pause in backoff(&self.client) {
                let sent_at = boottime_ms();
                let timeout = CALL.min(Duration::from_millis(self.timing.self_stop_ms.max(1)));
                match self.once(Method::POST, "renew", None, encode(&Renew::default()), timeout).await {
                    Ok(answer) => {
                        if let Ok(renewed) = decode::<Renewed>(&answer) {
                            self.renewed_at.fetch_max(sent_at, Ordering::Relaxed);
                            *self.fence.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                                renewed.fence;
                            if renewed.cancel {
                                self.stop(Stop::Canceled);
                            }
                        }
                        break;
                    }
                    Err(failure) => {
                        tracing::warn!(error = %failure, "the lease was not renewed");
                        if self.stopped().is_some_and(Stop::is_fenced) {
                            return;
                        }
                        tokio::time::sleep(pause.min(Duration::from_millis(every))).await;
                    }
                }
            }
        }
    }

    pub(crate) async fn watch_lease(self: Arc<Self>) {
        let limit = self.timing.self_stop_ms;
        let tick = Duration::from_millis((limit / 20).clamp(10, 1000));
        loop {
            if boottime_ms().saturating_sub(self.renewed_at.load(Ordering::Relaxed)) >= limit {
                self.stop(Stop::LeaseLost);
                return;
            }
            tokio::time::sleep(tick).await;
        }
    }

    /// Hears of a cancel at once.
    pub(crate) async fn listen(self: Arc<Self>) {
        let path = format!("commands?wait_ms={POLL_MS}");
        let mut pauses = backoff(&self.client);
        loop {
            let timeout = Duration::from_millis(POLL_MS) + CALL;
            match self.once(Method::GET, &path, None, Bytes::new(), timeout).await {
                Ok(answer) => {
                    pauses = backoff(&self.client);
                    if decode::<Commands>(&answer).is_ok_and(|c| c.cancel) {
                        self.stop(Stop::Canceled);
                        return;
                    }
                }
                Err(_) if self.stopped().is_some_and(Stop::is_fenced) => return,
                Err(_) => {
                    let pause = pauses.next().unwrap_or(CALL);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

/// Something that differs between agents; not a secret.
fn entropy() -> u64 {
    let [.., a, b, c, d] = *ids::InstanceId::new().uuid().as_bytes();
    u64::from(u32::from_le_bytes([a, b, c, d]))
}

pub(crate) fn encode(message: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(message).expect("messages are plain data"))
}

pub(crate) fn decode<T: DeserializeOwned>(answer: &[u8]) -> Result<T, Gone> {
    serde_json::from_slice(answer).map_err(|e| {
        Gone::Refused(Failure::Problem {
            status: 200,
            problem: agent_api::Problem {
                code: "unreadable_answer".into(),
                message: e.to_string(),
                next_offset: None,
            },
        })
    })
}
