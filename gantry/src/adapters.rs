//! The adapters that processes of one suite share, as the configuration names them.

mod stored;

pub use stored::Stored;

use crate::{
    config::{BusKind, Config, LiveKind, RecordsKind, SecretsKind},
    layout::Layout,
};
use anyhow::Context;
use bus::Bus;
use bus_amqp::{Amqp, SigningKey};
use kit::keys::Keys;
use live::{Live, LocalLive};
use live_redis::RedisLive;
use records::{PostgresRecords, Records};
use records_mongo::MongoRecords;
use secrets::{Keyring, Secrets};
use secrets_vault::{AppRole, VaultSecrets};
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

/// The records of what ran.
///
/// # Errors
/// The URL cannot be read, or the database cannot be prepared.
pub async fn records(config: &Config, pool: &PgPool) -> anyhow::Result<Arc<dyn Records>> {
    Ok(match config.records.kind {
        RecordsKind::Postgres => Arc::new(PostgresRecords::open(pool.clone()).await.context("the records")?),
        RecordsKind::Mongo => {
            Arc::new(MongoRecords::new(&config.records.url).await.context("[records] url")?)
        }
    })
}

/// The keys of secrets. Only a process that delivers them gets the login that opens (security §4.1).
///
/// # Errors
/// The key ring or the address of Vault cannot be read.
pub fn secrets(config: &Config, layout: &Layout, roles: &[&str]) -> anyhow::Result<Arc<dyn Secrets>> {
    let ours = &config.secrets;
    if ours.kind == SecretsKind::Keyring {
        let file = layout.join("keys").join("secrets.json");
        return Ok(Arc::new(Keyring::open_or_create(file).context("the key ring")?));
    }
    let login = |role_id: &str, secret_id: &str| AppRole {
        role_id: role_id.to_owned(),
        secret_id: secret_id.to_owned().into(),
    };
    let delivers = roles.contains(&"contexts");
    let vault = VaultSecrets::new(secrets_vault::Config {
        address: ours.address.clone(),
        mount: ours.mount.clone(),
        key: ours.key.clone(),
        write: login(&ours.role_id, &ours.secret_id),
        deliver: delivers.then(|| login(&ours.deliver_role_id, &ours.deliver_secret_id)),
    });
    Ok(Arc::new(vault.context("[secrets] address")?))
}
