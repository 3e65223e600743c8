//! The in-process adapter.

use crate::{Live, Message, Quota, Result, Subscription, Taken};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

/// Messages that a slow subscriber may be behind.
const BEHIND: usize = 256;
/// Entries after which the maps are searched for what is stale.
const CROWDED: usize = 4096;

/// Live state of one process. Cheap to clone.
#[derive(Clone, Default)]
pub struct LocalLive(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    topics: HashMap<String, broadcast::Sender<Bytes>>,
    buckets: HashMap<String, Bucket>,
    presence: HashMap<String, HashMap<String, Instant>>,
    counters: HashMap<String, (i64, Instant)>,
    /// Size at which the next search for stale entries is due; grows with what is really in use.
    search_at: usize,
}

struct Bucket {
    tokens: f64,
    filled_at: Instant,
    full_at: Instant,
}

impl std::fmt::Debug for LocalLive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalLive")
    }
}

impl State {
    fn size(&self) -> usize {
        self.topics.len() + self.buckets.len() + self.presence.len() + self.counters.len()
    }

    /// Keeps memory bounded by what is in use, at a cost that is constant per call on average.
    fn forget_stale(&mut self, now: Instant) {
        if self.size() < self.search_at.max(CROWDED) {
            return;
        }
        self.topics.retain(|_, sender| sender.receiver_count() > 0);
        self.buckets.retain(|_, bucket| bucket.full_at > now);
        self.counters.retain(|_, (_, until)| *until > now);
        self.presence.retain(|_, members| {
            members.retain(|_, until| *until > now);
            !members.is_empty()
        });
        self.search_at = self.size() * 2;
    }
}

impl LocalLive {
    /// Empty live state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything, as a restart of a live store would; subscriptions end.
    pub fn flush(&self) {
        *self.state() = State::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half done that matters: all of this may be lost anyway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Live for LocalLive {
    async fn publish(&self, topic: &str, message: Bytes) -> Result<()> {
        let mut state = self.state();
        if state.topics.get(topic).is_some_and(|sender| sender.send(message).is_err()) {
            state.topics.remove(topic); // the last listener left
        }
        Ok(())
    }

    async fn subscribe(&self, topic: &str) -> Result<Subscription> {
        let mut state = self.state();
        state.forget_stale(Instant::now());
        let sender = state.topics.entry(topic.to_owned()).or_insert_with(|| broadcast::channel(BEHIND).0);
        let messages = BroadcastStream::new(sender.subscribe()).map(|message| match message {
            Ok(bytes) => Message::Data(bytes),
            Err(BroadcastStreamRecvError::Lagged(_)) => Message::Missed,
        });
        Ok(messages.boxed())
    }

    async fn take(&self, bucket: &str, quota: Quota) -> Result<Taken> {
        let now = Instant::now();
        let burst = f64::from(quota.burst);
        let mut state = self.state();
        state.forget_stale(now);
        let bucket = state.buckets.entry(bucket.to_owned()).or_insert(Bucket {
            tokens: burst,
            filled_at: now,
            full_at: now,
        });
        let refill =
            now.saturating_duration_since(bucket.filled_at).as_secs_f64() * quota.per_second.max(0.0);
        bucket.tokens = (bucket.tokens + refill).min(burst);
        bucket.filled_at = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        // A bucket that is full again is as good as none.
        bucket.full_at = now + quota.until(bucket.tokens, burst);
        Ok(Taken { allowed, left: bucket.tokens })
    }

    async fn touch(&self, key: &str, member: &str, ttl: Duration) -> Result<()> {
        let now = Instant::now();
        let mut state = self.state();
        state.forget_stale(now);
        state.presence.entry(key.to_owned()).or_default().insert(member.to_owned(), now + ttl);
        Ok(())
    }

    async fn leave(&self, key: &str, member: &str) -> Result<()> {
        let mut state = self.state();
        if let Some(members) = state.presence.get_mut(key) {
            members.remove(member);
            if members.is_empty() {
                state.presence.remove(key);
            }
        }
        Ok(())
    }

    async fn present(&self, key: &str) -> Result<Vec<String>> {
        let now = Instant::now();
        let state = self.state();
        let members = state.presence.get(key).into_iter().flatten();
        let mut present: Vec<_> =
            members.filter(|(_, until)| **until > now).map(|(member, _)| member.clone()).collect();
        present.sort();
        Ok(present)
    }

    async fn count(&self, key: &str, by: i64, ttl: Duration) -> Result<i64> {
        let now = Instant::now();
        let mut state = self.state();
        state.forget_stale(now);
        let (value, until) = state.counters.entry(key.to_owned()).or_insert((0, now + ttl));
        if *until <= now {
            *value = 0;
        }
        *value = value.saturating_add(by);
        *until = now + ttl;
        Ok(*value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_local_adapter_keeps_the_contract() {
        let live = LocalLive::new();
        crate::contract::suite(&live, || live.flush()).await;
    }

    #[tokio::test]
    async fn topics_that_nobody_hears_take_no_memory() {
        let live = LocalLive::new();
        for n in 0..10 {
            drop(live.subscribe(&format!("topic:{n}")).await.unwrap());
            live.publish(&format!("topic:{n}"), Bytes::from_static(b"x")).await.unwrap();
        }
        assert!(live.state().topics.is_empty());
    }
}
