//! What lies in queues, asked by declaring them passively: the broker's management interface need not be there.

use crate::{
    declare::{NOT_FOUND, is_refusal},
    link::Link,
    topology::watched_name,
    unavailable,
};
use bus::broker::{BrokerError, Depth, Watched};
use lapin::{options::QueueDeclareOptions, types::FieldTable};

pub(crate) async fn depths(link: &Link, queues: &[Watched]) -> Result<Vec<Option<Depth>>, BrokerError> {
    let mut channel = link.channel().await?;
    let mut found = Vec::with_capacity(queues.len());
    for queue in queues {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let name = watched_name(queue);
        match channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await {
            Ok(queue) => {
                found.push(Some(Depth { messages: queue.message_count(), consumers: queue.consumer_count() }))
            }
            Err(error) if is_refusal(&error, NOT_FOUND) => {
                found.push(None);
                // The refusal closed the channel.
                channel = link.channel().await?;
            }
            Err(error) => return Err(unavailable(error)),
        }
    }
    if let Err(error) = channel.close(200, "asked".into()).await {
        tracing::debug!(%error, "a channel was not closed");
    }
    Ok(found)
}
