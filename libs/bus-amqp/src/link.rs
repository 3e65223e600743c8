//! A connection for one purpose, made when it is needed and made anew when it broke.

use crate::{topology, unavailable};
use bus::broker::BrokerError;
use futures::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties, Event, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Mutex, time::timeout};

/// Time to connect, the handshake included.
const CONNECT: Duration = Duration::from_secs(5);

pub(crate) struct Link {
    url: String,
    purpose: &'static str,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Link {
    pub(crate) fn new(url: &str, purpose: &'static str) -> Self {
        // The broker notices a dead peer after two missed heartbeats, and so do we.
        let separator = if url.contains('?') { '&' } else { '?' };
        let url =
            if url.contains("heartbeat=") { url.to_owned() } else { format!("{url}{separator}heartbeat=10") };
        Self { url, purpose, connection: Mutex::default() }
    }

    /// A new channel on the living connection.
    pub(crate) async fn channel(&self) -> Result<Channel, BrokerError> {
        let connection = self.connection().await?;
        timeout(CONNECT, connection.create_channel())
            .await
            .map_err(|_| unavailable("it did not open a channel in time"))?
            .map_err(unavailable)
    }

    /// Whether an alarm of the broker holds back what is published on this connection.
    pub(crate) async fn is_blocked(&self) -> bool {
        self.connection.lock().await.as_ref().is_some_and(|connection| connection.status().blocked())
    }

    async fn connection(&self) -> Result<Arc<Connection>, BrokerError> {
        let mut known = self.connection.lock().await;
        if let Some(connection) = known.as_ref().filter(|connection| connection.status().connected()) {
            return Ok(Arc::clone(connection));
        }
        let name = format!("gantry {}", self.purpose);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let connection = timeout(CONNECT, Connection::connect(&self.url, properties))
            .await
            .map_err(|_| unavailable("it did not answer in time"))?
            .map_err(unavailable)?;
        self.observe(&connection);
        let channel = connection.create_channel().await.map_err(unavailable)?;
        declare_shared(&channel).await?;
        let connection = Arc::new(connection);
        *known = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Makes an alarm of the broker visible: publishing then stands still until it is over.
    fn observe(&self, connection: &Connection) {
        let (mut events, purpose) = (connection.events_listener(), self.purpose);
        let blocked = metrics::gauge!("gantry.bus.blocked", "connection" => purpose);
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::ConnectionBlocked(reason) => {
                        blocked.set(1.0);
                        tracing::warn!(purpose, reason, "the message broker takes no messages now");
                    }
                    Event::ConnectionUnblocked => blocked.set(0.0),
                    Event::Error(error) => {
                        blocked.set(0.0);
                        tracing::warn!(purpose, %error, "the connection to the message broker broke");
                    }
                    _ => {}
                }
            }
        });
    }
}

/// Declares what all share: exchanges, the queue of dead messages, and the one that makes every event routable.
async fn declare_shared(channel: &Channel) -> Result<(), BrokerError> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    for (name, kind) in [(topology::EVENTS, ExchangeKind::Topic), (topology::DEAD, ExchangeKind::Fanout)] {
        channel
            .exchange_declare(name.into(), kind, durable, FieldTable::default())
            .await
            .map_err(unavailable)?;
    }
    for (name, exchange, arguments) in [
        (topology::DEAD_QUEUE, topology::DEAD, topology::dead_arguments()),
        (topology::CATCH_ALL, topology::EVENTS, topology::catch_all_arguments()),
    ] {
        channel
            .queue_declare(name.into(), QueueDeclareOptions::durable(), arguments)
            .await
            .map_err(unavailable)?;
        channel
            .queue_bind(
                name.into(),
                exchange.into(),
                "#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(unavailable)?;
    }
    Ok(())
}
