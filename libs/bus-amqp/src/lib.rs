//! The bus over RabbitMQ (reliability §5): delivery between processes, confirmed and signed.
//!
//! | what | where |
//! |---|---|
//! | names of exchanges and queues, and their arguments | [`topology`] |
//! | connections, one for each purpose, made anew when they break | `link` |
//! | events out: confirms and `mandatory` | `publish` |
//! | events in: one quorum queue per group, source and lane | `receive` |
//! | requests and answers: direct reply-to | `request` |
//! | what lies in queues, for operators | `depth` |
//! | the signature that each message carries | `signature` |

mod declare;
mod depth;
mod link;
mod publish;
mod receive;
mod request;
mod signature;
pub mod topology;

use async_trait::async_trait;
use bus::broker::{Answer, Broker, BrokerError, Deliveries, Depth, LaneQueue, Outgoing, Watched};
use link::Link;
use std::{fmt, sync::Arc, time::Duration};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

pub use signature::SigningKey;

/// The broker takes a request within this, connecting included; who asks learns within 2 s that it does not
/// (architecture §4).
const TAKEN: Duration = Duration::from_millis(1500);

/// The adapter; cheap to clone.
#[derive(Clone)]
pub struct Amqp(Arc<Inner>);

struct Inner {
    key: SigningKey,
    /// A broker's alarm blocks the connections that publish; those that consume go on (reliability §5.2).
    publishing: Link,
    consuming: Link,
    requests: Link,
    /// Answers are published too: on the connection of the consumers an alarm would hold back what they acknowledge.
    answers: Link,
    publisher: Mutex<Option<lapin::Channel>>,
    caller: Mutex<Option<Arc<request::Caller>>>,
}

impl fmt::Debug for Amqp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the address: it holds a password.
        f.write_str("Amqp")
    }
}

impl Amqp {
    /// An adapter for the broker at `url` (`amqp://user:password@host:port/vhost`, `amqps://…`). Connects when
    /// it is first used. Messages without a signature by `key` are refused.
    pub fn new(url: &str, key: SigningKey) -> Self {
        let link = |purpose| Link::new(url, purpose);
        Self(Arc::new(Inner {
            key,
            publishing: link("publish"),
            consuming: link("consume"),
            requests: link("request"),
            answers: link("answer"),
            publisher: Mutex::default(),
            caller: Mutex::default(),
        }))
    }

    /// Whether the broker can be reached now; what readiness asks.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self) -> Result<(), BrokerError> {
        self.0.requests.channel().await.map(drop)
    }
}

#[async_trait]
impl Broker for Amqp {
    async fn request(&self, service: &str, request: &[u8], until: Instant) -> Result<Vec<u8>, BrokerError> {
        let sent = async {
            let caller = self.caller().await?;
            caller.send(&self.0.key, service, request, until).await
        };
        let sent =
            timeout(TAKEN, sent).await.map_err(|_| unavailable("it did not take a request in time"))??;
        sent.answer(&self.0.key).await
    }

    async fn serve(&self, service: &str, answer: Answer, stop: CancellationToken) -> Result<(), BrokerError> {
        request::serve(&self.0.answers, &self.0.key, service, answer, stop).await
    }

    async fn publish(&self, messages: &[Outgoing]) -> Result<(), BrokerError> {
        let mut publisher = self.0.publisher.lock().await;
        let channel = match publisher.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => publish::open(&self.0.publishing).await?,
        };
        publish::publish(&channel, &self.0.key, messages).await?;
        // Only a channel that has confirmed everything is used again.
        *publisher = Some(channel);
        Ok(())
    }

    async fn receive(&self, queue: &LaneQueue) -> Result<Deliveries, BrokerError> {
        receive::receive(&self.0.consuming, &self.0.key, queue).await
    }

    async fn depths(&self, queues: &[Watched]) -> Result<Vec<Option<Depth>>, BrokerError> {
        depth::depths(&self.0.consuming, queues).await
    }
}

impl Amqp {
    async fn caller(&self) -> Result<Arc<request::Caller>, BrokerError> {
        if self.0.requests.is_blocked().await {
            return Err(unavailable("it takes no messages now"));
        }
        let mut known = self.0.caller.lock().await;
        match known.as_ref().filter(|caller| caller.is_open()) {
            Some(caller) => Ok(Arc::clone(caller)),
            None => {
                let caller = Arc::new(request::Caller::open(&self.0.requests).await?);
                *known = Some(Arc::clone(&caller));
                Ok(caller)
            }
        }
    }
}

fn unavailable(error: impl fmt::Display) -> BrokerError {
    BrokerError::Unavailable(error.to_string())
}
