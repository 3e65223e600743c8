//! The adapters that processes of one suite share, as the configuration names them.

use crate::config::{BusKind, Config, LiveKind};
use anyhow::Context;
use bus::Bus;
use bus_amqp::{Amqp, SigningKey};
use kit::keys::Keys;
use live::{Live, LocalLive};
use live_redis::RedisLive;
use sqlx::PgPool;
use std::sync::Arc;

/// The bus of this process. Messages to other processes carry a signature by the installation's key.
pub fn bus(config: &Config, pool: &PgPool, keys: &Keys) -> Bus {
    match config.bus.kind {
        BusKind::Local => Bus::local(pool.clone()),
        BusKind::Amqp => {
            let key = SigningKey::new(&keys.sign("bus messages", b""));
            Bus::networked(pool.clone(), Arc::new(Amqp::new(&config.bus.url, key)))
        }
    }
}

/// Live state, of this process or of all.
///
/// # Errors
/// The URL cannot be read.
pub fn live(config: &Config) -> anyhow::Result<Arc<dyn Live>> {
    Ok(match config.live.kind {
        LiveKind::Local => Arc::new(LocalLive::new()),
        LiveKind::Redis => Arc::new(RedisLive::new(&config.live.url).context("[live] url")?),
    })
}
