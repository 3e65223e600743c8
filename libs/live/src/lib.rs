//! What is happening right now, and may be forgotten at any moment: live messages, presence, counters, rate limits.
//!
//! Nothing here is the truth. A message says "look again"; the reader looks where the truth is stored.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::{fmt, time::Duration};

#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod limiter;
mod local;

pub use limiter::Limiter;
pub use local::LocalLive;

/// Why live state is not available. Callers go on without it.
#[derive(Debug, thiserror::Error)]
#[error("live state is not available: {0}")]
pub struct Error(pub String);

/// The result of a live operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a subscriber gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A published message.
    Data(Bytes),
    /// The subscriber was too slow: some messages are gone. Look at the truth.
    Missed,
}

/// Messages of a topic from the moment of subscribing. Its end means: subscribe again and look at the truth.
pub type Subscription = BoxStream<'static, Message>;

/// The shape of a token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quota {
    /// Tokens that it holds at most, and at first.
    pub burst: u32,
    /// Tokens that it gets back per second.
    pub per_second: f64,
}

impl Quota {
    /// So many per second, and so many at once; a rate of 0 is no limit.
    pub fn of(per_second: u32, burst: u32) -> Option<Self> {
        (per_second > 0).then(|| Self { burst: burst.max(1), per_second: f64::from(per_second) })
    }

    /// How long a bucket with `left` tokens takes to have `wanted`; at most a day.
    pub fn until(self, left: f64, wanted: f64) -> Duration {
        let seconds = (wanted - left).max(0.0) / self.per_second.max(0.0);
        Duration::try_from_secs_f64(seconds).unwrap_or(DAY).min(DAY)
    }
}

/// A bucket that never fills is remembered for so long.
const DAY: Duration = Duration::from_secs(86_400);

/// What a bucket answered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taken {
    /// There was a token, and it is gone now.
    pub allowed: bool,
    /// Tokens and parts of one that are left.
    pub left: f64,
}

/// The port.
#[async_trait]
pub trait Live: Send + Sync + fmt::Debug {
    /// Tells all who listen now.
    async fn publish(&self, topic: &str, message: Bytes) -> Result<()>;

    /// Listens. What is published after this returns arrives, in order per publisher, or is reported as missed.
    async fn subscribe(&self, topic: &str) -> Result<Subscription>;

    /// Takes one token of a bucket, if it has one.
    async fn take(&self, bucket: &str, quota: Quota) -> Result<Taken>;

    /// Says that `member` is present under `key` for the next `ttl`.
    async fn touch(&self, key: &str, member: &str, ttl: Duration) -> Result<()>;

    /// Says that `member` is not present under `key` any more.
    async fn leave(&self, key: &str, member: &str) -> Result<()>;

    /// Who is present under `key`, sorted.
    async fn present(&self, key: &str) -> Result<Vec<String>>;

    /// Adds to a counter and returns its new value; it starts at 0 again once untouched for `ttl`.
    async fn count(&self, key: &str, by: i64, ttl: Duration) -> Result<i64>;
}

/// Topic of a step's output: the message is the new number of bytes, as decimal text.
pub fn step_topic(step: ids::StepId) -> String {
    format!("step:{step}")
}

/// Topic of a job: its steps changed.
pub fn job_topic(job: ids::JobId) -> String {
    format!("job:{job}")
}

/// Topic of a pipeline: it, a workflow or a job of it changed.
pub fn pipeline_topic(pipeline: ids::PipelineId) -> String {
    format!("pipeline:{pipeline}")
}
