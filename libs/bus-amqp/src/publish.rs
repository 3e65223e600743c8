//! Events out. A batch counts as published when every message is confirmed and none came back (reliability §5.2).

use crate::{
    link::Link,
    signature::SigningKey,
    topology::{EVENTS, routing_key},
    unavailable,
};
use bus::broker::{BrokerError, Outgoing};
use futures::future::try_join_all;
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use std::{fmt::Display, time::Duration};
use tokio::time::timeout;

/// Time in which the broker has to confirm a batch.
const CONFIRM: Duration = Duration::from_secs(10);
/// `delivery_mode`: the message is written to disk.
const PERSISTENT: u8 = 2;

/// Headers that say where an event stands, and what was published before it.
pub(crate) const AT: &str = "gantry-at";
pub(crate) const BEFORE: &str = "gantry-before";
pub(crate) const BEFORE_IN_LANE: &str = "gantry-before-in-lane";

/// A channel that confirms.
pub(crate) async fn open(link: &Link) -> Result<Channel, BrokerError> {
    let channel = link.channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(unavailable)?;
    Ok(channel)
}

pub(crate) async fn publish(
    channel: &Channel,
    key: &SigningKey,
    messages: &[Outgoing],
) -> Result<(), BrokerError> {
    let all = async {
        let mut confirms = Vec::with_capacity(messages.len());
        for outgoing in messages {
            let message = &outgoing.message;
            let address = routing_key(&outgoing.source, outgoing.lane, &message.kind);
            let payload = serde_json::to_vec(message).map_err(unavailable)?;
            let mut headers = FieldTable::default();
            // A position is not signed: a wrong one makes a reader look into the log, no more.
            headers.insert(AT.into(), text(outgoing.at));
            headers.insert(BEFORE.into(), text(&outgoing.before));
            headers.insert(BEFORE_IN_LANE.into(), text(&outgoing.before_in_lane));
            key.sign(&address, &payload, &mut headers);
            let properties = BasicProperties::default()
                .with_delivery_mode(PERSISTENT)
                .with_content_type("application/json".into())
                .with_message_id(message.id.to_string().into())
                .with_type(message.kind.as_str().into())
                .with_headers(headers);
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let confirm = channel
                .basic_publish(EVENTS.into(), address.as_str().into(), options, &payload, properties)
                .await
                .map_err(unavailable)?;
            confirms.push(confirm);
        }
        for confirmation in try_join_all(confirms).await.map_err(unavailable)? {
            match confirmation {
                Confirmation::Ack(None) => {}
                Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                    return Err(unavailable(format_args!(
                        "no queue takes {}: {}",
                        returned.routing_key, returned.reply_text
                    )));
                }
                Confirmation::Nack(None) => return Err(unavailable("it refused a message")),
                Confirmation::NotRequested => return Err(unavailable("it does not confirm")),
            }
        }
        Ok(())
    };
    timeout(CONFIRM, all).await.map_err(|_| unavailable("it did not confirm in time"))?
}

fn text(value: impl Display) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value.to_string()))
}
