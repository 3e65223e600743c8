//! The adapters that processes of one suite share, as the configuration names them.

mod stored;

pub use stored::Stored;

use crate::{
    config::{BusKind, Config, Invalid, LiveKind, Pool, PoolDriver, RecordsKind, SecretsKind},
    engine,
    layout::Layout,
};
use anyhow::Context;
use bus::Bus;
use bus_amqp::{Amqp, SigningKey};
use compute_nomad::{Constraint, Driver, Nomad};
use eventstore::Databases;
use kit::keys::Keys;
use live::{Live, LocalLive};
use live_redis::RedisLive;
use records::{PostgresRecords, Records};
use records_mongo::MongoRecords;
use secrets::{Keyring, Secrets};
use secrets_vault::{AppRole, VaultSecrets};
use sqlx::PgPool;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The key that this installation signs with: of the file that the configuration names, else of the data folder.
///
/// # Errors
/// The file is missing, cannot be read, or holds no key.
pub fn keys(config: &Config, layout: &Layout) -> anyhow::Result<Keys> {
    let file = &config.keys.signing;
    if file.is_empty() {
        return Keys::load_or_create(&layout.join("keys").join("signing")).context("the signing key");
    }
    Ok(Keys::load(Path::new(file)).map_err(|error| Invalid::new(format!("keys.signing: {error}")))?)
}

/// The bus of this process. Messages to other processes carry a signature by the installation's key.
pub fn bus(config: &Config, databases: &Databases, keys: &Keys) -> Bus {
    match config.bus.kind {
        BusKind::Local => Bus::local(databases.clone()),
        BusKind::Amqp => {
            let key = SigningKey::new(&keys.of("bus messages"));
            Bus::networked(databases.clone(), Arc::new(Amqp::new(&config.bus.url, key)))
        }
    }
}

/// Longest time that the end of the process waits for the collector of traces.
const LAST_SPANS: Duration = Duration::from_secs(1);

/// Traces of this process, going to the collector that the configuration names.
pub struct Traces(Option<spans_otlp::Flush>);

impl Traces {
    /// Begins to record, if there is a collector.
    ///
    /// # Errors
    /// Its address or headers cannot be used.
    pub fn start(config: &Config) -> Result<Self, Invalid> {
        let Some(target) = config.telemetry.collector()? else { return Ok(Self(None)) };
        let process = spans_otlp::Process {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: ids::InstanceId::new().to_string(),
        };
        let (exporter, flush) = spans_otlp::start(target, process);
        spans::install(exporter);
        Ok(Self(Some(flush)))
    }

    /// Sends what has not been sent.
    pub async fn end(self) {
        if let Some(flush) = self.0 {
            flush.within(LAST_SPANS).await;
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

/// Nomad gives nobody longer than this to end, unless its clients are configured otherwise.
const LONGEST_KILL: Duration = Duration::from_secs(30);
/// What an agent needs to report, after the grace that its steps have.
const REPORT: Duration = Duration::from_secs(10);

/// A Nomad cluster. Agents there reach the suite at `[agents] url`.
///
/// # Errors
/// A pool that cannot be used, or a certificate that cannot be read.
pub fn nomad(config: &Config) -> anyhow::Result<Nomad> {
    let ours = &config.compute;
    let file = |name: &str| (!name.is_empty()).then(|| PathBuf::from(name));
    let nomad = Nomad::open(compute_nomad::Config {
        address: ours.address.clone(),
        token: ours.token.trim().to_owned(),
        ca: file(&ours.ca),
        identity: file(&ours.cert).zip(file(&ours.key)),
        endpoint: config.agents.url.clone(),
        kill_timeout: (config.dispatcher.grace.0 + REPORT).min(LONGEST_KILL),
        ssh: config.executors.ssh.listen(),
        pools: ours.pools.iter().map(|pool| nomad_pool(pool, config)).collect(),
    });
    nomad.context("[compute]")
}

fn nomad_pool(pool: &Pool, config: &Config) -> compute_nomad::Pool {
    let constraints = pool.constraints.iter().filter_map(|words| match words.as_slice() {
        [attribute, operator, value] => Some(Constraint {
            attribute: attribute.clone(),
            operator: operator.clone(),
            value: value.clone(),
        }),
        _ => None,
    });
    compute_nomad::Pool {
        classes: pool.classes.clone(),
        executors: pool.executors.clone(),
        region: pool.region.clone(),
        namespace: pool.namespace.clone(),
        datacenters: pool.datacenters.clone(),
        node_pool: pool.node_pool.clone(),
        constraints: constraints.collect(),
        driver: match pool.driver {
            PoolDriver::RawExec => Driver::RawExec,
            PoolDriver::Docker => Driver::Docker { image: pool.image.clone() },
        },
        agent: pool.agent.clone(),
        isolation: pool.isolation.clone(),
        // Steps that run as root are not kept from anything.
        job_user: (pool.job_uid > 0).then_some(agent_api::JobUser { uid: pool.job_uid, gid: pool.job_gid }),
        engine: pool.engine.then(|| engine::launched(config)),
        mhz: pool.mhz,
    }
}
