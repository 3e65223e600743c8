//! What a networked adapter does: it carries messages between processes, at least once, and nothing more. Order,
//! dedupe, parking and history stay above it, so that they cannot differ between adapters (architecture §4).

use async_trait::async_trait;
use contracts::Envelope;
use eventstore::Position;
use futures::{future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Why a broker did not do it.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Nobody consumes the requests to this service.
    #[error("nobody answers for this service")]
    NoResponder,
    /// The deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The broker is away, refused, or did not confirm.
    #[error("the message broker is not available: {0}")]
    Unavailable(String),
}

/// Executes an encoded request, within the time that its asker still waits, and returns the encoded answer. Never fails: a
/// failure is an answer.
pub type Answer = Arc<dyn Fn(Vec<u8>, Duration) -> BoxFuture<'static, Vec<u8>> + Send + Sync>;

/// An event on its way from a source's log to the groups.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The service that appended it.
    pub source: String,
    /// Where it stands in the source's log.
    pub at: Position,
    /// The lane of its aggregate, of [`crate::LANES`].
    pub lane: i32,
    /// The event of the source that was published before it; `None`: not known, readers look into the log.
    pub after: Option<Position>,
    /// The same within its lane.
    pub after_in_lane: Option<Position>,
    /// The event.
    pub message: Envelope,
}

/// A queue: what one lane of one group has to handle from one source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LaneQueue {
    /// Name of the group.
    pub group: &'static str,
    /// The service whose events it holds.
    pub source: &'static str,
    /// One lane of [`crate::LANES`], or `None` for all events of the source.
    pub lane: Option<i32>,
}

/// A queue to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Watched {
    /// What one lane of a group has to handle from one source.
    Group {
        /// Name of the group.
        group: String,
        /// The service whose events it holds.
        source: String,
        /// As in [`LaneQueue`].
        lane: Option<i32>,
    },
    /// Requests to a service.
    Requests {
        /// Which.
        service: String,
    },
}

/// What lies in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Depth {
    /// Messages that no consumer has been given.
    pub messages: u32,
    /// Who consumes.
    pub consumers: u32,
}

/// A message out of a queue.
pub struct Delivery {
    /// Where it stands in the source's log.
    pub at: Position,
    /// The message before it in this queue's part of the log, if the publisher knew.
    pub after: Option<Position>,
    /// The event.
    pub message: Envelope,
    /// Tells the broker that it need not come again. Without it, it comes again.
    pub acknowledge: BoxFuture<'static, ()>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("at", &self.at).field("message", &self.message.id).finish()
    }
}

/// Messages of a queue. An error or its end means: ask again.
pub type Deliveries = BoxStream<'static, Result<Delivery, BrokerError>>;

/// The port of networked adapters. Every call may be repeated; a lost connection is an error of the call at hand
/// and is made anew by the next.
#[async_trait]
pub trait Broker: Send + Sync + fmt::Debug {
    /// Sends an encoded request and waits for the encoded answer. The request is not delivered after `until`.
    ///
    /// # Errors
    /// Nobody answers, the deadline passed, or the broker is away.
    async fn request(&self, service: &str, request: &[u8], until: Instant) -> Result<Vec<u8>, BrokerError>;

    /// Answers requests to a service, in competition with other processes, until the connection breaks or `stop`. After it
    /// no request is taken, and those that were are answered before this returns.
    ///
    /// # Errors
    /// Why it ended before `stop`.
    async fn serve(&self, service: &str, answer: Answer, stop: CancellationToken) -> Result<(), BrokerError>;

    /// Publishes events; returns once the broker has confirmed that every one lies in every queue that wants it.
    ///
    /// # Errors
    /// Some may have been published and some not: publish all of them again.
    async fn publish(&self, messages: &[Outgoing]) -> Result<(), BrokerError>;

    /// Makes the queue if it is not there, and receives from it. Events published after this returns arrive.
    ///
    /// # Errors
    /// The broker is away.
    async fn receive(&self, queue: &LaneQueue) -> Result<Deliveries, BrokerError>;

    /// What lies in queues now, in the order of the question; `None` for one that does not exist.
    ///
    /// # Errors
    /// The broker is away.
    async fn depths(&self, queues: &[Watched]) -> Result<Vec<Option<Depth>>, BrokerError>;
}
