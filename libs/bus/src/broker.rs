//! What a networked adapter does: it carries messages between processes, at least once, and nothing more. Order,
//! dedupe, parking and history stay above it, so that they cannot differ between adapters (architecture §4).

use async_trait::async_trait;
use contracts::Envelope;
use eventstore::{ParsePositionError, Position};
use futures::{future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Duration};
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
    /// What was published of the source before it.
    pub before: Trail,
    /// The same within its lane.
    pub before_in_lane: Trail,
    /// The event.
    pub message: Envelope,
}

/// What was published of a log so far: where it began, and the last event of each type since then. A reader of some of the
/// types sees by it whether it missed one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    since: Position,
    last: BTreeMap<Arc<str>, Position>,
}

impl Trail {
    /// Of a log that is published from here on: nothing is known yet.
    pub fn since(since: Position) -> Self {
        Self { since, last: BTreeMap::new() }
    }

    /// Goes on by an event, and returns what was before it.
    pub fn pass(&mut self, kind: &str, at: Position) -> Self {
        let before = self.clone();
        match self.last.get_mut(kind) {
            Some(last) => *last = at,
            None => {
                self.last.insert(kind.into(), at);
            }
        }
        before
    }

    /// None of these types was published after this position.
    pub fn last_of(&self, kinds: &[&str]) -> Position {
        let last = kinds.iter().filter_map(|kind| self.last.get(*kind)).max();
        last.copied().unwrap_or(self.since)
    }
}

/// As it goes with a message: `XID.SEQ`, and ` TYPE=XID.SEQ` for each type.
impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.since)?;
        self.last.iter().try_for_each(|(kind, at)| write!(f, " {kind}={at}"))
    }
}

impl FromStr for Trail {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(' ');
        let since = words.next().unwrap_or_default().parse()?;
        let last = words.map(|word| {
            let (kind, at) = word.rsplit_once('=').ok_or(ParsePositionError)?;
            Ok((kind.into(), at.parse()?))
        });
        Ok(Self { since, last: last.collect::<Result<_, _>>()? })
    }
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
    /// Types of the events that it gets.
    pub kinds: Vec<&'static str>,
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
    /// Since then nothing was published for this queue before it, if the publisher knew.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: i64) -> Position {
        Position { xid: 7, seq }
    }

    #[test]
    fn a_trail_knows_what_was_last_of_some_types() {
        let mut trail = Trail::since(at(1));
        assert_eq!(trail.last_of(&["job.ready"]), at(1), "nothing was published since");
        assert_eq!(trail.pass("job.ready", at(2)).last_of(&["job.ready"]), at(1));
        assert_eq!(trail.pass("job.ended", at(3)).last_of(&["job.ready"]), at(2));
        let before = trail.pass("job.ready", at(4));
        assert_eq!(before.last_of(&["job.ready"]), at(2));
        assert_eq!(before.last_of(&["job.ready", "job.ended"]), at(3));
        assert_eq!(before.last_of(&["job.lost"]), at(1));
    }

    #[test]
    fn a_trail_is_read_as_it_was_written() {
        let mut trail = Trail::since(at(1));
        assert_eq!(trail.to_string().parse(), Ok(trail.clone()));
        trail.pass("job.ready", at(2));
        trail.pass("job.ended", at(3));
        assert_eq!(trail.to_string(), "7.1 job.ended=7.3 job.ready=7.2");
        assert_eq!(trail.to_string().parse(), Ok(trail));
        for wrong in ["", "7", "7.x", "7.1 ", "7.1 job.ready", "7.1 job.ready=3"] {
            assert_eq!(wrong.parse::<Trail>(), Err(ParsePositionError), "{wrong:?}");
        }
    }
}
