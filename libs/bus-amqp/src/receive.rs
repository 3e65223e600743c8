//! Events in: a quorum queue per group, source and lane, acknowledged one by one after the effect is committed.

use crate::{
    declare::declared,
    link::Link,
    publish::{AFTER, AFTER_IN_LANE, AT, position},
    signature::{SigningKey, header},
    topology::{EVENTS, binding, group_arguments, queue_name},
    unavailable,
};
use bus::broker::{BrokerError, Deliveries, Delivery, LaneQueue};
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

/// Messages on their way to one lane.
const PREFETCH: u16 = 256;

pub(crate) async fn receive(
    link: &Link,
    key: &SigningKey,
    queue: &LaneQueue,
) -> Result<Deliveries, BrokerError> {
    let name = queue_name(queue);
    let channel = declared(link, &name, QueueDeclareOptions::durable(), group_arguments(queue)).await?;
    channel
        .queue_bind(
            name.as_str().into(),
            EVENTS.into(),
            binding(queue).into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .map_err(unavailable)?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(unavailable)?;
    let consumer = channel
        .basic_consume(name.as_str().into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .map_err(unavailable)?;
    let (key, in_lane) = (key.clone(), queue.lane.is_some());
    let deliveries = consumer.filter_map(move |message| {
        let key = key.clone();
        async move {
            match message {
                Ok(message) => read(&key, in_lane, message).await.map(Ok),
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
async fn read(key: &SigningKey, in_lane: bool, message: Message) -> Option<Delivery> {
    let read = || -> Result<Delivery, String> {
        key.check(message.routing_key.as_str(), &message.data, &message.properties)
            .map_err(|error| error.to_string())?;
        let place = |name| header(&message.properties, name).as_deref().and_then(position);
        let at = place(AT).ok_or("it does not say where it stands in the log")?;
        let envelope: Envelope = serde_json::from_slice(&message.data).map_err(|error| error.to_string())?;
        let acker = message.acker.clone();
        let acknowledge = async move {
            if let Err(error) = acker.ack(BasicAckOptions::default()).await {
                // It comes again, and is known then.
                tracing::debug!(%error, "a delivery was not acknowledged");
            }
        };
        let after = place(if in_lane { AFTER_IN_LANE } else { AFTER });
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
