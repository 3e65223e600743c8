//! What is happening right now, and may be forgotten at any moment: live messages, presence, counters, rate limits.
//!
//! Nothing here is the truth. A message says "look again"; the reader looks where the truth is stored.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::{fmt, time::Duration};

#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod local;

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

/// The port.
#[async_trait]
pub trait Live: Send + Sync + fmt::Debug {
    /// Tells all who listen now.
    async fn publish(&self, topic: &str, message: Bytes) -> Result<()>;

    /// Listens. What is published after this returns arrives, in order per publisher, or is reported as missed.
    async fn subscribe(&self, topic: &str) -> Result<Subscription>;

    /// Takes one token of a bucket that holds `burst` and refills at `per_second`; whether there was one.
    async fn allow(&self, key: &str, burst: u32, per_second: f64) -> Result<bool>;

    /// Says that `member` is present under `key` for the next `ttl`.
    async fn touch(&self, key: &str, member: &str, ttl: Duration) -> Result<()>;

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
