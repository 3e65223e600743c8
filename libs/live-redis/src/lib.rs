//! Live state in Redis, shared by all processes of the suite. May be flushed or away at any moment: the truth is
//! elsewhere, and callers go on without it.

mod topics;

use async_trait::async_trait;
use bytes::Bytes;
use live::{Error, Live, Quota, Result, Subscription, Taken};
use redis::{
    AsyncCommands, Client, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};
use tokio::sync::OnceCell;
use topics::Topics;

/// Before every key and channel, so that a server may be shared.
const PREFIX: &str = "gantry:";
/// Longest wait for an answer: live state is worth no more.
const PATIENCE: Duration = Duration::from_millis(500);
/// Milliseconds after which a bucket that never fills is forgotten.
const DAY: u64 = 86_400_000;

/// A token bucket, by the server's own clock. Returns 1 if there was a token, and what is left.
static BUCKET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local burst, rate, day = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
        local time = redis.call('TIME')
        local now = time[1] * 1000 + time[2] / 1000
        local old = redis.call('HMGET', KEYS[1], 'tokens', 'at')
        local tokens, at = tonumber(old[1]) or burst, tonumber(old[2]) or now
        tokens = math.min(burst, tokens + math.max(0, now - at) / 1000 * rate)
        local allowed = 0
        if tokens >= 1 then
            tokens = tokens - 1
            allowed = 1
        end
        redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', tostring(now))
        local full = day
        if rate > 0 then full = math.min(day, (burst - tokens) / rate * 1000) end
        redis.call('PEXPIRE', KEYS[1], math.max(1, math.ceil(full)))
        return {allowed, tostring(tokens)}",
    )
});

/// Sets a member's end, and forgets the key when its last member has ended.
static TOUCH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local time = redis.call('TIME')
        local now = time[1] * 1000 + math.floor(time[2] / 1000)
        redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
        redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
        local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
        redis.call('PEXPIREAT', KEYS[1], last[2])
        return 1",
    )
});

/// The members that have not ended.
static PRESENT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local time = redis.call('TIME')
        local now = time[1] * 1000 + math.floor(time[2] / 1000)
        return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')",
    )
});

/// The adapter; cheap to clone.
#[derive(Clone)]
pub struct RedisLive(Arc<Inner>);

struct Inner {
    client: Client,
    commands: OnceCell<ConnectionManager>,
    topics: Topics,
}

impl fmt::Debug for RedisLive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the address: it may hold a password.
        f.write_str("RedisLive")
    }
}

impl RedisLive {
    /// An adapter for the server at `url` (`redis://…`, `rediss://…`). Connects when it is first used.
    ///
    /// # Errors
    /// The URL cannot be read.
    pub fn new(url: &str) -> Result<Self> {
        let client = Client::open(url).map_err(away)?;
        let topics = Topics::new(client.clone());
        Ok(Self(Arc::new(Inner { client, commands: OnceCell::new(), topics })))
    }

    /// The shared connection; it makes itself anew when it broke.
    async fn commands(&self) -> Result<ConnectionManager> {
        let connect = || {
            let config = ConnectionManagerConfig::new()
                .set_number_of_retries(1)
                .set_response_timeout(Some(PATIENCE))
                .set_connection_timeout(Some(PATIENCE));
            ConnectionManager::new_with_config(self.0.client.clone(), config)
        };
        self.0.commands.get_or_try_init(connect).await.cloned().map_err(away)
    }
}

#[async_trait]
impl Live for RedisLive {
    async fn publish(&self, topic: &str, message: Bytes) -> Result<()> {
        let mut commands = self.commands().await?;
        commands.publish::<_, _, ()>(key(topic), message.as_ref()).await.map_err(away)
    }

    async fn subscribe(&self, topic: &str) -> Result<Subscription> {
        self.0.topics.subscribe(key(topic)).await
    }

    async fn take(&self, bucket: &str, quota: Quota) -> Result<Taken> {
        let mut commands = self.commands().await?;
        let (allowed, left): (i64, f64) = BUCKET
            .key(key(&format!("bucket:{bucket}")))
            .arg(quota.burst)
            .arg(quota.per_second.max(0.0))
            .arg(DAY)
            .invoke_async(&mut commands)
            .await
            .map_err(away)?;
        Ok(Taken { allowed: allowed == 1, left })
    }

    async fn touch(&self, place: &str, member: &str, ttl: Duration) -> Result<()> {
        let mut commands = self.commands().await?;
        TOUCH
            .key(key(&format!("presence:{place}")))
            .arg(member)
            .arg(millis(ttl))
            .invoke_async::<i64>(&mut commands)
            .await
            .map(drop)
            .map_err(away)
    }

    async fn leave(&self, place: &str, member: &str) -> Result<()> {
        let mut commands = self.commands().await?;
        commands.zrem::<_, _, ()>(key(&format!("presence:{place}")), member).await.map_err(away)
    }

    async fn present(&self, place: &str) -> Result<Vec<String>> {
        let mut commands = self.commands().await?;
        let mut members: Vec<String> =
            PRESENT.key(key(&format!("presence:{place}"))).invoke_async(&mut commands).await.map_err(away)?;
        members.sort();
        Ok(members)
    }

    async fn count(&self, counter: &str, by: i64, ttl: Duration) -> Result<i64> {
        let mut commands = self.commands().await?;
        let name = key(&format!("counter:{counter}"));
        let (value,): (i64,) = redis::pipe()
            .atomic()
            .incr(&name, by)
            .pexpire(&name, i64::try_from(millis(ttl)).unwrap_or(i64::MAX))
            .ignore()
            .query_async(&mut commands)
            .await
            .map_err(away)?;
        Ok(value)
    }
}

fn key(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn away(error: impl fmt::Display) -> Error {
    Error(format!("Redis: {error}"))
}
