//! One connection that listens for all subscribers of the process. When it breaks, every subscription ends, and
//! whoever still cares subscribes again.

use crate::{PATIENCE, away};
use bytes::Bytes;
use futures::StreamExt;
use live::{Error, Message, Result, Subscription};
use redis::{Client, aio::PubSubSink};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::broadcast, time::timeout};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

/// Messages that a slow subscriber may be behind.
const BEHIND: usize = 256;

type Senders = Arc<Mutex<HashMap<String, broadcast::Sender<Bytes>>>>;

pub(crate) struct Topics {
    client: Client,
    /// Held while subscribing: a subscription is active before it is handed out.
    listener: tokio::sync::Mutex<Option<Listener>>,
}

struct Listener {
    sink: PubSubSink,
    senders: Senders,
    ended: Arc<std::sync::atomic::AtomicBool>,
}

impl Topics {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, listener: tokio::sync::Mutex::default() }
    }

    pub(crate) async fn subscribe(&self, channel: String) -> Result<Subscription> {
        let mut slot = self.listener.lock().await;
        if slot.as_ref().is_none_or(|listener| listener.ended.load(std::sync::atomic::Ordering::Acquire)) {
            *slot = Some(self.listen().await?);
        }
        let Some(listener) = slot.as_mut() else { return Err(Error("Redis: not connected".to_owned())) };
        let known = lock(&listener.senders).get(&channel).map(broadcast::Sender::subscribe);
        let receiver = match known {
            Some(receiver) => receiver,
            None => {
                listener.forget_silent().await;
                let (sender, receiver) = broadcast::channel(BEHIND);
                lock(&listener.senders).insert(channel.clone(), sender);
                let subscribed = timeout(PATIENCE, listener.sink.subscribe(&channel)).await;
                if let Err(error) = subscribed.map_err(away).and_then(|done| done.map_err(away)) {
                    *slot = None;
                    return Err(error);
                }
                receiver
            }
        };
        let messages = BroadcastStream::new(receiver).map(|message| match message {
            Ok(bytes) => Message::Data(bytes),
            Err(BroadcastStreamRecvError::Lagged(_)) => Message::Missed,
        });
        Ok(messages.boxed())
    }

    async fn listen(&self) -> Result<Listener> {
        let connection =
            timeout(PATIENCE, self.client.get_async_pubsub()).await.map_err(away)?.map_err(away)?;
        let (sink, mut stream) = connection.split();
        let senders = Senders::default();
        let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (hand_out, over) = (Arc::clone(&senders), Arc::clone(&ended));
        tokio::spawn(async move {
            while let Some(message) = stream.next().await {
                if let Some(sender) = lock(&hand_out).get(message.get_channel_name()) {
                    // Nobody may listen any more; the next subscription cleans up.
                    let _ = sender.send(Bytes::copy_from_slice(message.get_payload_bytes()));
                }
            }
            over.store(true, std::sync::atomic::Ordering::Release);
            lock(&hand_out).clear();
        });
        Ok(Listener { sink, senders, ended })
    }
}

impl Listener {
    /// Leaves the channels to which nobody listens.
    async fn forget_silent(&mut self) {
        let mut silent = Vec::new();
        lock(&self.senders).retain(|channel, sender| {
            let heard = sender.receiver_count() > 0;
            if !heard {
                silent.push(channel.clone());
            }
            heard
        });
        for channel in silent {
            // A channel that is not left costs some bytes, no more.
            let _ = timeout(PATIENCE, self.sink.unsubscribe(&channel)).await;
        }
    }
}

fn lock(senders: &Senders) -> MutexGuard<'_, HashMap<String, broadcast::Sender<Bytes>>> {
    senders.lock().unwrap_or_else(PoisonError::into_inner)
}
