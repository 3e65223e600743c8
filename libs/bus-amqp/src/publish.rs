//! Events out. A batch counts as published when every message is confirmed and none came back (reliability §5.2).

use crate::{
    link::Link,
    signature::SigningKey,
    topology::{EVENTS, routing_key},
    unavailable,
};
use bus::broker::{BrokerError, Outgoing};
use eventstore::Position;
use futures::future::try_join_all;
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, LongString},
};
use std::time::Duration;
use tokio::time::timeout;

/// Time in which the broker has to confirm a batch.
const CONFIRM: Duration = Duration::from_secs(10);
/// `delivery_mode`: the message is written to disk.
const PERSISTENT: u8 = 2;

/// Headers that say where an event stands.
pub(crate) const AT: &str = "gantry-at";
pub(crate) const AFTER: &str = "gantry-after";
pub(crate) const AFTER_IN_LANE: &str = "gantry-after-in-lane";

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
            headers.insert(AT.into(), position_value(outgoing.at));
            if let Some(after) = outgoing.after {
                headers.insert(AFTER.into(), position_value(after));
            }
            if let Some(after) = outgoing.after_in_lane {
                headers.insert(AFTER_IN_LANE.into(), position_value(after));
            }
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

fn position_value(position: Position) -> AMQPValue {
    AMQPValue::LongString(LongString::from(format!("{}.{}", position.xid, position.seq)))
}

/// Reads what [`position_value`] wrote.
pub(crate) fn position(text: &str) -> Option<Position> {
    let (xid, seq) = text.split_once('.')?;
    Some(Position { xid: xid.parse().ok()?, seq: seq.parse().ok()? })
}
