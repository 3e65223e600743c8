//! Queues are declared by whoever uses them.

use crate::{link::Link, unavailable};
use bus::broker::BrokerError;
use lapin::{Channel, Error, ErrorKind, options::QueueDeclareOptions, types::FieldTable};

/// AMQP: there is no such queue.
pub(crate) const NOT_FOUND: u16 = 404;
/// AMQP: the queue exists with other arguments.
const PRECONDITION_FAILED: u16 = 406;

/// A channel, and a queue in the broker. One that is there with other arguments is used as it is: an operator may have
/// decided so, or a build that runs beside this one declares it otherwise.
pub(crate) async fn declared(
    link: &Link,
    name: &str,
    options: QueueDeclareOptions,
    arguments: FieldTable,
) -> Result<Channel, BrokerError> {
    let channel = link.channel().await?;
    match channel.queue_declare(name.into(), options, arguments).await {
        Ok(_) => Ok(channel),
        Err(error) if is_refusal(&error, PRECONDITION_FAILED) => {
            tracing::warn!(
                queue = name,
                %error,
                "the queue differs from what is configured and is used as it is"
            );
            // The refusal closed the channel.
            link.channel().await
        }
        Err(error) => Err(unavailable(error)),
    }
}

/// Whether the broker refused with this code.
pub(crate) fn is_refusal(error: &Error, code: u16) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if error.get_id() == code)
}
