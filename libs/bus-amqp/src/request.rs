//! Requests and answers. The request lies in the service's queue until somebody takes it or its deadline passes;
//! the answer comes back by direct reply-to, without a queue of its own.

use crate::{
    declare::declared,
    link::Link,
    signature::SigningKey,
    topology::{request_arguments, request_queue},
    unavailable,
};
use bus::broker::{Answer, BrokerError};
use futures::StreamExt;
use lapin::{
    BasicProperties, Channel, Confirmation,
    message::Delivery,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The broker's name for "the answer comes to the channel that asked".
const REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// Requests that one process holds at a time; others are left to its rivals.
const PREFETCH: u16 = 64;

type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<Delivery>>>>;

/// A channel on which requests go out and answers come in.
pub(crate) struct Caller {
    channel: Channel,
    waiting: Waiting,
}

impl Caller {
    pub(crate) async fn open(link: &Link) -> Result<Self, BrokerError> {
        let channel = link.channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(unavailable)?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let mut answers = channel
            .basic_consume(REPLY_TO.into(), "".into(), options, FieldTable::default())
            .await
            .map_err(unavailable)?;
        let waiting = Waiting::default();
        let hand_out = Arc::clone(&waiting);
        tokio::spawn(async move {
            while let Some(Ok(answer)) = answers.next().await {
                let id = answer.properties.correlation_id().as_ref().map(ToString::to_string);
                if let Some(asker) = id.and_then(|id| lock(&hand_out).remove(&id)) {
                    // It may have gone: its deadline has passed.
                    let _ = asker.send(answer);
                }
            }
            // The channel broke: those who wait learn it now.
            lock(&hand_out).clear();
        });
        Ok(Self { channel, waiting })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    /// Sends a request; the broker has it when this returns.
    pub(crate) async fn send(
        &self,
        key: &SigningKey,
        service: &str,
        request: &[u8],
        until: Instant,
    ) -> Result<Sent, BrokerError> {
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        if left == 0 {
            return Err(BrokerError::Deadline);
        }
        let id = ids::MessageId::new().to_string();
        let (asker, answer) = oneshot::channel();
        lock(&self.waiting).insert(id.clone(), asker);
        let forget = Forget { waiting: Arc::clone(&self.waiting), id };
        let id = &forget.id;
        let queue = request_queue(service);
        let mut headers = FieldTable::default();
        key.sign(&queue, request, &mut headers);
        let properties = BasicProperties::default()
            .with_correlation_id(id.as_str().into())
            .with_reply_to(REPLY_TO.into())
            // Past the deadline the broker itself throws it away.
            .with_expiration(left.to_string().into())
            .with_headers(headers);
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let sent = self
            .channel
            .basic_publish("".into(), queue.as_str().into(), options, request, properties)
            .await
            .map_err(unavailable)?;
        match sent.await.map_err(unavailable)? {
            Confirmation::Ack(None) => {}
            // The queue exists while somebody answers.
            Confirmation::Ack(Some(_)) | Confirmation::Nack(_) => return Err(BrokerError::NoResponder),
            Confirmation::NotRequested => return Err(unavailable("it does not confirm")),
        }
        Ok(Sent { answer, forget })
    }
}

/// A request that the broker has taken.
pub(crate) struct Sent {
    answer: oneshot::Receiver<Delivery>,
    forget: Forget,
}

impl Sent {
    /// Waits for its answer.
    pub(crate) async fn answer(self, key: &SigningKey) -> Result<Vec<u8>, BrokerError> {
        let answer = self.answer.await.map_err(|_| unavailable("the connection broke before the answer"))?;
        key.check(&self.forget.id, &answer.data, &answer.properties)?;
        Ok(answer.data)
    }
}

/// Takes an asker out when it stops waiting, however that comes about.
struct Forget {
    waiting: Waiting,
    id: String,
}

impl Drop for Forget {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.id);
    }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<String, oneshot::Sender<Delivery>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers the requests to a service until the connection breaks or `stop`.
pub(crate) async fn serve(
    link: &Link,
    key: &SigningKey,
    service: &str,
    answer: Answer,
    stop: CancellationToken,
) -> Result<(), BrokerError> {
    let queue = request_queue(service);
    // Gone with its last consumer, so that a request to nobody is returned at once. Durable although no request is:
    // RabbitMQ refuses shared queues that are not from 4.3 on.
    let options = QueueDeclareOptions { durable: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let channel = declared(link, &queue, options, request_arguments()).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(unavailable)?;
    let mut requests = channel
        .basic_consume(
            queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .map_err(unavailable)?;
    let (answering, tag) = (TaskTracker::new(), requests.tag());
    let mut leaving = false;
    loop {
        let request = tokio::select! {
            () = stop.cancelled(), if !leaving => {
                leaving = true;
                // From here on rivals get all; what was sent to this process before still comes.
                channel.basic_cancel(tag.clone(), BasicCancelOptions::default()).await.map_err(unavailable)?;
                continue;
            }
            request = requests.next() => request,
        };
        let Some(request) = request else { break };
        let request = request.map_err(unavailable)?;
        let (channel, key, queue, answer) =
            (channel.clone(), key.clone(), queue.clone(), Arc::clone(&answer));
        answering.spawn(async move {
            if let Err(error) = reply(&channel, &key, &queue, request, answer).await {
                tracing::warn!(queue, %error, "a request was not answered");
            }
        });
    }
    answering.close();
    answering.wait().await;
    if leaving { Ok(()) } else { Err(unavailable("the consumer of requests was canceled")) }
}

async fn reply(
    channel: &Channel,
    key: &SigningKey,
    queue: &str,
    request: Delivery,
    answer: Answer,
) -> Result<(), BrokerError> {
    // Taken at once: a request that kills this process must not kill the next one too. The asker repeats it by
    // its command id.
    request.acker.ack(BasicAckOptions::default()).await.map_err(unavailable)?;
    key.check(queue, &request.data, &request.properties)?;
    let (Some(reply_to), Some(id)) =
        (request.properties.reply_to().clone(), request.properties.correlation_id().clone())
    else {
        return Err(unavailable("a request does not say where its answer goes"));
    };
    // The broker threw it away if that had passed; its clock and the asker's do not matter.
    let left = request.properties.expiration().as_ref().and_then(|left| left.as_str().parse().ok());
    let Some(left) = left.map(Duration::from_millis) else {
        return Err(unavailable("a request does not say how long its asker waits"));
    };
    let answer = answer(request.data, left).await;
    let mut headers = FieldTable::default();
    key.sign(id.as_str(), &answer, &mut headers);
    let properties = BasicProperties::default().with_correlation_id(id).with_headers(headers);
    channel
        .basic_publish("".into(), reply_to, BasicPublishOptions::default(), &answer, properties)
        .await
        .map_err(unavailable)?;
    Ok(())
}
