//! What the suite runs on: a section per port, whose `kind` chooses the adapter.

use super::Invalid;
use serde::{Deserialize, Serialize};

/// `[bus]`: what carries messages between services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bus {
    /// Which adapter.
    pub kind: BusKind,
    /// Of `kind = "amqp"`: `amqp://user:password@host:port/vhost`.
    pub url: String,
}

/// Adapters of the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusKind {
    /// In process, over the event tables.
    #[default]
    Local,
    /// RabbitMQ.
    Amqp,
}

/// `[live]`: what is happening right now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Live {
    /// Which adapter.
    pub kind: LiveKind,
    /// Of `kind = "redis"`: `redis://host:port`.
    pub url: String,
}

/// Adapters of live state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LiveKind {
    /// In process.
    #[default]
    Local,
    /// Redis.
    Redis,
}

/// `[records]`: records of what ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Records {
    /// `postgres`: in the database; `mongo`: in MongoDB, or what speaks its protocol.
    pub kind: RecordsKind,
    /// Of `kind = "mongo"`: `mongodb://user:password@host:port/database`.
    pub url: String,
}

impl Records {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let needed = [("url", &self.url)];
        if self.kind == RecordsKind::Mongo { all_set("records", "mongo", &needed) } else { Ok(()) }
    }
}

/// Adapters of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordsKind {
    /// JSONB in Postgres.
    #[default]
    Postgres,
    /// MongoDB.
    Mongo,
}

/// `[compute]`: what starts agents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Compute {
    /// `local`: processes of this machine; `nomad`: jobs of a Nomad cluster. The other keys are of `nomad`.
    pub kind: ComputeKind,
    /// Address of Nomad, for example `https://nomad.example.com:4646`.
    pub address: String,
    /// ACL token of the scheduler; `GANTRY_COMPUTE_TOKEN_FILE` keeps it out of this file.
    pub token: String,
    /// File with the authorities that Nomad's certificate is checked against, PEM; empty: the machine's.
    pub ca: String,
    /// File with our certificate, PEM, where Nomad asks for one.
    pub cert: String,
    /// File with its key, PEM.
    pub key: String,
    /// `[[compute.pools]]`: machines, by what runs on them. Their keys are in the guide to Nomad.
    pub pools: Vec<Pool>,
}

impl Default for Compute {
    fn default() -> Self {
        Self {
            kind: ComputeKind::Local,
            address: String::new(),
            token: String::new(),
            ca: String::new(),
            cert: String::new(),
            key: String::new(),
            pools: Vec::new(),
        }
    }
}

impl Compute {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.kind != ComputeKind::Nomad {
            return Ok(());
        }
        all_set("compute", "nomad", &[("address", &self.address)])?;
        if self.cert.is_empty() != self.key.is_empty() {
            return Err(Invalid::new("compute.cert and compute.key go together: set both, or none"));
        }
        for (at, pool) in self.pools.iter().enumerate() {
            let wrong = |text: &str| Err(Invalid::new(format!("compute.pools[{at}]{text}")));
            match pool.driver {
                PoolDriver::RawExec if !pool.i_accept_no_isolation => {
                    return wrong(
                        ": with driver = \"raw_exec\" agents and host jobs run on the machine with nothing of Nomad's around \
                         them; set i_accept_no_isolation = true, or driver = \"docker\"",
                    );
                }
                PoolDriver::Docker if pool.image.is_empty() => {
                    return wrong(".image must name an image with the agent in it");
                }
                PoolDriver::RawExec | PoolDriver::Docker => {}
            }
            if pool.constraints.iter().any(|constraint| constraint.len() != 3) {
                return wrong(".constraints are lists of three: attribute, operator, value");
            }
        }
        Ok(())
    }
}

/// What starts agents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeKind {
    /// Processes of this machine.
    #[default]
    Local,
    /// Jobs of a Nomad cluster.
    Nomad,
}

/// `[[compute.pools]]`: machines of a Nomad cluster that serve some classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pool {
    /// Names of resource classes; empty: all.
    pub classes: Vec<String>,
    /// `docker` and `machine` jobs; empty: both.
    pub executors: Vec<String>,
    /// Region of Nomad; empty: that of the server that is asked.
    pub region: String,
    /// Namespace of Nomad, of this installation alone.
    pub namespace: String,
    /// Datacenters; `*` stands for any text.
    pub datacenters: Vec<String>,
    /// Node pool.
    pub node_pool: String,
    /// What machines must have besides: `[["${attr.cpu.arch}", "=", "arm64"]]`.
    pub constraints: Vec<Vec<String>>,
    /// `raw_exec` or `docker`.
    pub driver: PoolDriver,
    /// Of `raw_exec`, which sets nothing between a job and the machine: that you know it.
    pub i_accept_no_isolation: bool,
    /// Of `docker`: an image with the agent in it.
    pub image: String,
    /// Path of `gantry-runner` on the machine or in the image.
    pub agent: String,
    /// What keeps steps from the machine's files: `user`, `namespace` or `none`.
    pub isolation: String,
    /// Number of the user as whom steps run, with isolation `user`.
    pub job_uid: u32,
    /// Number of its group.
    pub job_gid: u32,
    /// Whether the machines have the container engine of `[executors.engine]`.
    pub engine: bool,
    /// What Nomad counts for one processor of a class, in MHz.
    pub mhz: u32,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            classes: Vec::new(),
            executors: Vec::new(),
            region: String::new(),
            namespace: "gantry".to_owned(),
            datacenters: vec!["*".to_owned()],
            node_pool: "default".to_owned(),
            constraints: Vec::new(),
            driver: PoolDriver::default(),
            i_accept_no_isolation: false,
            image: String::new(),
            agent: "/usr/local/bin/gantry-runner".to_owned(),
            isolation: "namespace".to_owned(),
            job_uid: 0,
            job_gid: 0,
            engine: false,
            mhz: 1000,
        }
    }
}

/// What starts an agent on a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolDriver {
    /// A container.
    #[default]
    Docker,
    /// A process with nothing around it.
    RawExec,
}

/// `[blobs]`: bytes by key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Blobs {
    /// `fs`: files in the data folder; `s3`: objects of a bucket. The other keys are of `s3`.
    pub kind: BlobsKind,
    /// Address of the store, for example `https://s3.eu-central-1.amazonaws.com`.
    pub endpoint: String,
    /// Address under which agents and people reach the store; empty: the same.
    pub public_endpoint: String,
    /// Its region; a store without regions takes any.
    pub region: String,
    /// The bucket; it must be there.
    pub bucket: String,
    /// Name of the access key.
    pub access_key: String,
    /// Its secret; `GANTRY_BLOBS_SECRET_KEY_FILE` keeps it out of this file.
    pub secret_key: String,
    /// Whether the bucket is in the path of URLs, not in their host.
    pub path_style: bool,
}

impl Default for Blobs {
    fn default() -> Self {
        Self {
            kind: BlobsKind::Fs,
            endpoint: String::new(),
            public_endpoint: String::new(),
            region: "us-east-1".to_owned(),
            bucket: String::new(),
            access_key: String::new(),
            secret_key: String::new(),
            path_style: true,
        }
    }
}

impl Blobs {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let needed = [
            ("endpoint", &self.endpoint),
            ("bucket", &self.bucket),
            ("access_key", &self.access_key),
            ("secret_key", &self.secret_key),
        ];
        if self.kind == BlobsKind::S3 { all_set("blobs", "s3", &needed) } else { Ok(()) }
    }
}

/// Adapters of blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobsKind {
    /// Files.
    #[default]
    Fs,
    /// Objects of an S3 bucket.
    S3,
}

/// `[secrets]`: keys of secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Secrets {
    /// `keyring`: a file of mode 0600 in the data folder; `vault`: the transit engine of a Vault. The other keys are
    /// of `vault`.
    pub kind: SecretsKind,
    /// Address of Vault, for example `https://vault.example.com:8200`.
    pub address: String,
    /// Where its transit engine is mounted.
    pub mount: String,
    /// Name of the key there. It must be derived.
    pub key: String,
    /// AppRole whose policy may seal and rewrap.
    pub role_id: String,
    /// Its secret; `GANTRY_SECRETS_SECRET_ID_FILE` keeps it out of this file.
    pub secret_id: String,
    /// AppRole whose policy may open; only processes with the role `contexts` use it.
    pub deliver_role_id: String,
    /// Its secret.
    pub deliver_secret_id: String,
}

impl Default for Secrets {
    fn default() -> Self {
        Self {
            kind: SecretsKind::Keyring,
            address: String::new(),
            mount: "transit".to_owned(),
            key: "gantry".to_owned(),
            role_id: String::new(),
            secret_id: String::new(),
            deliver_role_id: String::new(),
            deliver_secret_id: String::new(),
        }
    }
}

impl Secrets {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let needed = [
            ("address", &self.address),
            ("mount", &self.mount),
            ("key", &self.key),
            ("role_id", &self.role_id),
            ("secret_id", &self.secret_id),
        ];
        if self.kind == SecretsKind::Vault { all_set("secrets", "vault", &needed) } else { Ok(()) }
    }
}

/// Adapters of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretsKind {
    /// A key ring in a file of mode 0600.
    #[default]
    Keyring,
    /// Vault.
    Vault,
}

/// Refuses an adapter without what it needs.
fn all_set(section: &str, kind: &str, needed: &[(&str, &String)]) -> Result<(), Invalid> {
    match needed.iter().find(|(_, value)| value.is_empty()) {
        Some((key, _)) => {
            Err(Invalid::new(format!("{section}.{key} must be set with {section}.kind = \"{kind}\"")))
        }
        None => Ok(()),
    }
}

/// `[database]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `embedded`: a private PostgreSQL in the data folder; `url`: the one that `url` names.
    pub kind: DatabaseKind,
    /// Of `kind = "url"`.
    pub url: String,
    /// Connections of one process to each database.
    pub connections: Connections,
    /// Databases of single services.
    pub of: OwnDatabases,
}

impl Database {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        match self.kind {
            DatabaseKind::Embedded => match self.of.named().into_iter().find(|(_, _, url)| !url.is_empty()) {
                Some((_, key, _)) => Err(Invalid::new(format!(
                    "database.of.{key} needs [database] kind = \"url\": the private server is one database"
                ))),
                None => Ok(()),
            },
            DatabaseKind::Url if self.url.is_empty() => Err(Invalid::new(
                "[database] kind = \"url\" needs the url key, for example postgres://gantry@db/gantry",
            )),
            DatabaseKind::Url => Ok(()),
        }
    }
}

/// `[database.of]`: the addresses of databases that hold one service each (or several, with the same address); who has
/// none is in `url`'s. `api` is where `projector` is, whose tables it reads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OwnDatabases {
    /// Address of `domain`'s database; empty: the common one.
    pub domain: String,
    /// Of `permissions`'s.
    pub permissions: String,
    /// Of `contexts`'s.
    pub contexts: String,
    /// Of `pipelines`'s.
    pub pipelines: String,
    /// Of `conductor`'s.
    pub conductor: String,
    /// Of `dispatcher`'s.
    pub dispatcher: String,
    /// Of `scheduler`'s.
    pub scheduler: String,
    /// Of `output-processor`'s.
    pub output_processor: String,
    /// Of `test-results`'s.
    pub test_results: String,
    /// Of `projector`'s and `api`'s.
    pub projector: String,
}

impl OwnDatabases {
    /// Service, key and address of each.
    pub fn named(&self) -> [(&'static str, &'static str, &str); 10] {
        [
            ("domain", "domain", &self.domain),
            ("permissions", "permissions", &self.permissions),
            ("contexts", "contexts", &self.contexts),
            ("pipelines", "pipelines", &self.pipelines),
            ("conductor", "conductor", &self.conductor),
            ("dispatcher", "dispatcher", &self.dispatcher),
            ("scheduler", "scheduler", &self.scheduler),
            ("output-processor", "output_processor", &self.output_processor),
            ("test-results", "test_results", &self.test_results),
            ("projector", "projector", &self.projector),
        ]
    }
}

/// Where the database is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatabaseKind {
    /// A private server in the data folder.
    #[default]
    Embedded,
    /// A server of one's own.
    Url,
}

/// Size of the connection pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Connections(pub u32);

impl Default for Connections {
    fn default() -> Self {
        Self(12)
    }
}
