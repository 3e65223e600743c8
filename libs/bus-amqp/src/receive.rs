//! Events in: a quorum queue per group, source and lane, acknowledged one by one after the effect is committed.

use crate::{
    declare::declared,
    link::Link,
    publish::{AT, BEFORE, BEFORE_IN_LANE},
    signature::{SigningKey, header},
    topology::{EVENTS, bindings, group_arguments, queue_name, unfiltered},
    unavailable,
};
use bus::broker::{BrokerError, Deliveries, Delivery, LaneQueue, Trail};
use contracts::Envelope;
use futures::{FutureExt, StreamExt, stream};
use lapin::{
    message::Delivery as Message,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::FieldTable,
};
use std::sync::Arc;

/// Messages on their way to one lane.
const PREFETCH: u16 = 256;

pub(crate) async fn receive(
    link: &Link,
    key: &SigningKey,
    queue: &LaneQueue,
) -> Result<Deliveries, BrokerError> {
    let name = queue_name(queue);
    let channel = declared(link, &name, QueueDeclareOptions::durable(), group_arguments(queue)).await?;
    // Nobody waits for each of them: the answer to what follows on this channel comes after all of them.
    let options = QueueBindOptions { nowait: true };
    for binding in bindings(queue) {
        channel
            .queue_bind(name.as_str().into(), EVENTS.into(), binding.into(), options, FieldTable::default())
            .await
            .map_err(unavailable)?;
    }
    channel
        .queue_unbind(name.as_str().into(), EVENTS.into(), unfiltered(queue).into(), FieldTable::default())
        .await
        .map_err(unavailable)?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(unavailable)?;
    let consumer = channel
        .basic_consume(name.as_str().into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .map_err(unavailable)?;
    let (key, queue) = (key.clone(), Arc::new(queue.clone()));
    let deliveries = consumer.filter_map(move |message| {
        let (key, queue) = (key.clone(), Arc::clone(&queue));
        async move {
            match message {
                Ok(message) => read(&key, &queue, message).await.map(Ok),
                Err(error) => Some(Err(unavailable(error))),
            }
        }
    });
    // The channel lives as long as the stream.
    Ok(stream::unfold((Box::pin(deliveries), channel), |(mut deliveries, channel)| async move {
        deliveries.next().await.map(|delivery| (delivery, (deliveries, channel)))
    })
    .boxed())
}

/// The delivery in a message; what is not ours is put away.
async fn read(key: &SigningKey, queue: &LaneQueue, message: Message) -> Option<Delivery> {
    let read = || -> Result<Delivery, String> {
        key.check(message.routing_key.as_str(), &message.data, &message.properties)
            .map_err(|error| error.to_string())?;
        let header = |name| header(&message.properties, name);
        let at = header(AT).and_then(|at| at.parse().ok());
        let at = at.ok_or("it does not say where it stands in the log")?;
        let envelope: Envelope = serde_json::from_slice(&message.data).map_err(|error| error.to_string())?;
        let acker = message.acker.clone();
        let acknowledge = async move {
            if let Err(error) = acker.ack(BasicAckOptions::default()).await {
                // It comes again, and is known then.
                tracing::debug!(%error, "a delivery was not acknowledged");
            }
        };
        let before = header(if queue.lane.is_some() { BEFORE_IN_LANE } else { BEFORE });
        let before = before.and_then(|before| before.parse::<Trail>().ok());
        let after = before.map(|before| before.last_of(&queue.kinds));
        Ok(Delivery { at, after, message: envelope, acknowledge: acknowledge.boxed() })
    };
    match read() {
        Ok(delivery) => Some(delivery),
        Err(reason) => {
            tracing::error!(routing_key = %message.routing_key, reason, "a message from the broker was refused");
            metrics::counter!("gantry.bus.refused").increment(1);
            let _ = message.acker.reject(BasicRejectOptions { requeue: false }).await;
            None
        }
    }
}
