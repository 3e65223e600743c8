//! Configuration: one TOML file, overridden by `GANTRY_<SECTION>_<KEY>` (outside §6).

mod load;

pub use load::{Invalid, Loaded};

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Everything that can be configured, with its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[bus]`
    pub bus: Bus,
    /// `[records]`
    pub records: Records,
    /// `[live]`
    pub live: Live,
    /// `[blobs]`
    pub blobs: Blobs,
    /// `[secrets]`
    pub secrets: Secrets,
    /// `[compute]`
    pub compute: Compute,
    /// `[database]`
    pub database: Database,
    /// `[executors]`
    pub executors: Executors,
    /// `[resource_classes]`
    pub resource_classes: std::collections::BTreeMap<String, ResourceClass>,
    /// `[stores]`
    pub stores: Stores,
    /// `[dispatcher]`
    pub dispatcher: Dispatcher,
    /// `[agents]`
    pub agents: Agents,
    /// `[server]`
    pub server: Server,
    /// `[tls]`
    pub tls: Tls,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// `[disk]`
    pub disk: Disk,
    /// `[logs]`
    pub logs: Logs,
    /// `[retention]`
    pub retention: Retention,
}

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

impl Records {
    fn check(&self) -> Result<(), Invalid> {
        let needed = [("url", &self.url)];
        if self.kind == RecordsKind::Mongo { all_set("records", "mongo", &needed) } else { Ok(()) }
    }
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
    fn check(&self) -> Result<(), Invalid> {
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
    fn check(&self) -> Result<(), Invalid> {
        let needed = [
            ("endpoint", &self.endpoint),
            ("bucket", &self.bucket),
            ("access_key", &self.access_key),
            ("secret_key", &self.secret_key),
        ];
        if self.kind == BlobsKind::S3 { all_set("blobs", "s3", &needed) } else { Ok(()) }
    }
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
    fn check(&self) -> Result<(), Invalid> {
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
    /// Connections of one process for all its services.
    pub connections: Connections,
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

/// `[executors]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Executors {
    /// What a job that asks for a container does.
    pub docker: DockerPolicy,
    /// `none` lets host jobs run without any isolation from the server's own files.
    pub host_isolation: HostIsolation,
    /// The container engine.
    pub engine: ContainerEngine,
    /// Entering jobs that are rerun with SSH.
    pub ssh: Ssh,
}

/// `[executors.ssh]`: an agent listens on its machine while it runs a job that was rerun with SSH, and for no other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ssh {
    /// Whether jobs can be rerun with SSH.
    pub enabled: bool,
    /// Address of the agents' machines to listen on; `0.0.0.0`: every one.
    pub address: String,
    /// Host that people are told to connect to; empty: the address, or the machine's name where that is every address.
    pub advertise: String,
    /// The first port that may be taken.
    pub first_port: u16,
    /// The last one: as many jobs of a machine can be entered at once.
    pub last_port: u16,
    /// How long such a job stays after its steps while nobody is connected.
    pub idle: Span,
    /// How long it stays after its steps in all.
    pub total: Span,
}

impl Default for Ssh {
    fn default() -> Self {
        Self {
            enabled: true,
            address: "127.0.0.1".to_owned(),
            advertise: String::new(),
            first_port: 64535,
            last_port: 65535,
            idle: Span::secs(10 * 60),
            total: Span::secs(2 * 3600),
        }
    }
}

impl Ssh {
    /// What agents are told.
    pub fn listen(&self) -> Option<agent_api::SshListen> {
        self.enabled.then(|| agent_api::SshListen {
            address: self.address.clone(),
            advertise: self.advertise.clone(),
            first_port: self.first_port,
            last_port: self.last_port,
        })
    }

    fn check(&self) -> Result<(), Invalid> {
        let wrong = |text: &str| Err(Invalid::new(format!("executors.ssh.{text}")));
        if self.address.parse::<std::net::IpAddr>().is_err() {
            return wrong("address must be an IP address to listen on, such as \"0.0.0.0\"");
        }
        if self.first_port == 0 || self.first_port > self.last_port {
            return wrong("first_port must be at least 1 and at most executors.ssh.last_port");
        }
        Ok(())
    }
}

/// `[executors.engine]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerEngine {
    /// Path of its Unix socket.
    pub socket: String,
    /// `always` asks the registry for each job; `missing` uses every image that is on the machine; `never` asks
    /// nobody.
    pub pull: executors_docker::Pull,
    /// Most processes and threads of a container.
    pub pids: i64,
    /// Whether programs may not gain rights by being started: breaks `sudo` in containers.
    pub no_new_privileges: bool,
    /// Name of the network of all tasks' containers; it is made when it is missing.
    pub network: String,
    /// Image of the Docker engine that a job with `setup_remote_docker` gets for itself, such as
    /// `docker:28-dind`. It runs in a *privileged* container: whoever may change a configuration then owns the
    /// machine. Empty: such a step fails.
    pub remote_docker_image: String,
}

impl ResourceClass {
    fn check(&self, name: &str) -> Result<(), Invalid> {
        let wrong = |what: &str| Err(Invalid::new(format!("resource_classes.{name}.{what}")));
        match self {
            Self { executor, .. } if !["", "docker", "machine"].contains(&executor.as_str()) => {
                wrong("executor must be \"docker\", \"machine\" or absent")
            }
            Self { cpu, .. } if !(0.01..=4096.0).contains(cpu) => wrong("cpu must lie between 0.01 and 4096"),
            Self { memory_mb, .. } if !(6..=1 << 24).contains(memory_mb) => {
                wrong("memory_mb must lie between 6 and 16777216")
            }
            Self { .. } => Ok(()),
        }
    }
}

impl Default for ContainerEngine {
    fn default() -> Self {
        let executors_docker::Config { socket, pull, pids, no_new_privileges, network, remote_docker_image } =
            executors_docker::Config::default();
        let remote_docker_image = remote_docker_image.unwrap_or_default();
        Self { socket, pull, pids, no_new_privileges, network, remote_docker_image }
    }
}

/// `[resource_classes.NAME]`: beside those of the reference product, or instead of one of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceClass {
    /// `docker` or `machine`; empty: both.
    #[serde(default)]
    pub executor: String,
    /// Processors; parts of one are possible.
    pub cpu: f64,
    /// Memory in MiB.
    pub memory_mb: u64,
}

/// What becomes of docker jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DockerPolicy {
    /// They run in containers if an engine answers when the server starts, else they are refused.
    #[default]
    Auto,
    /// They run in containers.
    Engine,
    /// They end `infrastructure_fail`, and say so.
    Refuse,
    /// They run on the host as if they had asked for a machine.
    Host,
}

/// What keeps host jobs from the server's own files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostIsolation {
    /// Another user when the server is root, else namespaces; refuses to start with neither.
    #[default]
    Auto,
    /// Nothing.
    None,
}

/// `[dispatcher]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dispatcher {
    /// Tasks that run at once; 0: twice the processors.
    pub slots: u32,
    /// Of those, at most so many for one organisation; 0: no limit of its own.
    pub org_slots: u32,
    /// At most so many for one project; 0: no limit of its own.
    pub project_slots: u32,
    /// At most so many for a resource class: `class_slots = { large = 2 }`.
    pub class_slots: std::collections::BTreeMap<String, u32>,
    /// Length of a lease.
    pub lease: Span,
    /// Between two renewals.
    pub renew: Span,
    /// Without a renewal for so long, a task is shown as unreachable.
    pub unreachable: Span,
    /// An agent that could not renew for so long ends its task.
    pub self_stop: Span,
    /// After a start, nothing is declared lost for so long.
    pub recovery_grace: Span,
    /// A task that no agent claims within this is placed again.
    pub claim_timeout: Span,
    /// Longest run of a job.
    pub job_timeout: Span,
    /// Between SIGTERM and SIGKILL.
    pub grace: Span,
}

impl Default for Dispatcher {
    fn default() -> Self {
        Self {
            slots: 0,
            org_slots: 0,
            project_slots: 0,
            class_slots: std::collections::BTreeMap::new(),
            lease: Span::secs(180),
            renew: Span::secs(10),
            unreachable: Span::secs(45),
            self_stop: Span::secs(150),
            recovery_grace: Span::secs(60),
            claim_timeout: Span::secs(60),
            job_timeout: Span::secs(5 * 3600),
            grace: Span::secs(10),
        }
    }
}

/// `[agents]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agents {
    /// Path of `gantry-runner`; empty: beside `gantry`.
    pub binary: String,
    /// Address under which agents of this machine reach the services that they call, for example
    /// `http://127.0.0.1:8585` of a balancer before them; empty: a socket of this process.
    pub url: String,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Address under which people and agents reach us, for example `https://ci.example.com`; empty: the listener's.
    pub public_url: String,
    /// Of `gantry serve`: where people and programs are served, by the role `api`.
    pub listen: String,
    /// Of `gantry serve`: where agents of other machines are served, by the roles that agents call.
    pub agents: String,
    /// Of `gantry serve`: probes, metrics and operators, of every process.
    pub internal: String,
    /// Of `gantry serve`: where other processes of the same service reach the listener for agents of this one, for example
    /// `http://10.0.3.7:8585`; empty: the listener's address, with the machine's name where it listens on all.
    pub peer_url: String,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            public_url: String::new(),
            listen: "127.0.0.1:8080".to_owned(),
            agents: "127.0.0.1:8585".to_owned(),
            internal: "127.0.0.1:0".to_owned(),
            peer_url: String::new(),
        }
    }
}

/// `[tls]`: the public listener's certificate. With none of these, connections are in clear.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Chain of certificates, PEM; also `--tls-cert`.
    pub cert: String,
    /// Its private key, PEM; also `--tls-key`.
    pub key: String,
    /// Make a certificate of our own in the data folder; also `--tls self-signed`.
    pub self_signed: bool,
}

/// `[telemetry]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// How log lines look. `GANTRY_LOG` filters them, for example `debug,sqlx=warn`.
    pub log: LogLines,
    /// Where metrics are sent as statsd, for example `127.0.0.1:8125`; empty: nowhere.
    pub statsd: String,
    /// Who may read `/metrics`.
    pub metrics: MetricsFor,
    /// Where traces are sent, as OTLP over HTTP: the base address of a collector, for example `http://collector:4318`;
    /// empty: nowhere.
    pub otlp: String,
    /// Headers of these requests, `name=value,name=value`; `GANTRY_TELEMETRY_OTLP_HEADERS_FILE` keeps them out of this file.
    pub otlp_headers: String,
}

impl Telemetry {
    fn check(&self) -> Result<(), Invalid> {
        self.collector().map(drop)
    }

    /// The collector of traces, if there is one.
    ///
    /// # Errors
    /// Its address or headers cannot be used.
    pub fn collector(&self) -> Result<Option<spans_otlp::Target>, Invalid> {
        if self.otlp.is_empty() {
            return Ok(None);
        }
        let key = |refused: &spans_otlp::Refused| match refused {
            spans_otlp::Refused::Headers => "otlp_headers",
            spans_otlp::Refused::Address(_) | spans_otlp::Refused::Client(_) => "otlp",
        };
        let target = spans_otlp::Target::new(&self.otlp, &self.otlp_headers);
        target.map(Some).map_err(|refused| Invalid::new(format!("telemetry.{}: {refused}", key(&refused))))
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLines {
    /// For people.
    #[default]
    Text,
    /// One JSON document per line.
    Json,
}

/// Who may read `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricsFor {
    /// Programs on this machine, and whoever shows an administrator's token.
    #[default]
    Local,
    /// Whoever shows an administrator's token.
    Token,
    /// Everybody who reaches the listener.
    Everybody,
}

/// `[disk]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Disk {
    /// With fewer MiB free on the data folder's disk no new work is taken; running work goes on. 0: never look.
    pub min_free_mib: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Self { min_free_mib: 256 }
    }
}

/// `[logs]`: output and records of tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logs {
    /// Days that output and records of a finished task are kept; 0: for ever.
    pub retention_days: u32,
    /// Between two looks for what is past its retention.
    pub sweep: Span,
    /// MiB of output that one step may store; what exceeds them is counted and not kept.
    pub max_step_mib: u64,
    /// MiB of output that one task may store.
    pub max_task_mib: u64,
}

impl Default for Logs {
    fn default() -> Self {
        Self { retention_days: 0, sweep: Span::secs(3600), max_step_mib: 1024, max_task_mib: 4096 }
    }
}

/// `[retention]`: how long pipelines are kept, with their workflows, jobs, output, artifacts and test results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// A pipeline goes so long after the end of its last workflow, for example `400d`; at least `reruns`. `0s`: never.
    pub pipelines: Span,
    /// A workflow can be rerun for so long after its creation; at most `90d`.
    pub reruns: Span,
    /// Between two looks for pipelines that are past it.
    pub sweep: Span,
}

impl Default for Retention {
    fn default() -> Self {
        Self { pipelines: Span::secs(0), reruns: Span::secs(90 * 86_400), sweep: Span::secs(3600) }
    }
}

impl Retention {
    /// Nothing goes that can still run (reliability R-9).
    fn check(&self) -> Result<(), Invalid> {
        let (keep, reruns) = (self.pipelines.0, self.reruns.0);
        if reruns > Duration::from_secs(90 * 86_400) {
            return Err(Invalid::new("retention.reruns must be at most 90d"));
        }
        if !keep.is_zero() && keep < reruns {
            return Err(Invalid::new(format!(
                "retention.pipelines ({}) must be at least retention.reruns ({}), for a pipeline that can be rerun must not \
                 go; 0s keeps all for ever",
                self.pipelines, self.reruns
            )));
        }
        if self.sweep.0.is_zero() {
            return Err(Invalid::new("retention.sweep must be longer than 0s, for example 1h"));
        }
        Ok(())
    }

    /// How long pipelines are kept; `None`: for ever.
    pub fn keep(&self) -> Option<Duration> {
        (!self.pipelines.0.is_zero()).then_some(self.pipelines.0)
    }
}

/// `[stores]`: what jobs keep. Days of 0: for ever.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stores {
    /// Days that a cache is kept after it was saved.
    pub cache_days: u32,
    /// Days that a layer of a workspace is kept.
    pub workspace_days: u32,
    /// Days that artifacts are kept.
    pub artifact_days: u32,
    /// Days that test results are kept.
    pub test_days: u32,
    /// MiB of one cache or workspace layer, before compression.
    pub max_archive_mib: u64,
    /// MiB of one artifact.
    pub max_artifact_mib: u64,
    /// MiB of all artifacts of a job.
    pub max_job_artifact_mib: u64,
    /// Artifacts of a job.
    pub max_artifacts: u64,
}

impl Default for Stores {
    fn default() -> Self {
        Self {
            cache_days: 15,
            workspace_days: 15,
            artifact_days: 30,
            test_days: 30,
            max_archive_mib: 5 << 10,
            max_artifact_mib: 3 << 10,
            max_job_artifact_mib: 50 << 10,
            max_artifacts: 5_000,
        }
    }
}

impl Stores {
    /// As the service has them.
    pub fn limits(&self) -> output_processor::Stores {
        output_processor::Stores {
            cache_days: self.cache_days,
            workspace_days: self.workspace_days,
            artifact_days: self.artifact_days,
            max_archive_bytes: self.max_archive_mib << 20,
            max_artifact_bytes: self.max_artifact_mib << 20,
            max_job_artifact_bytes: self.max_job_artifact_mib << 20,
            max_artifacts: self.max_artifacts,
            ..output_processor::Stores::default()
        }
    }
}

/// A duration, written as text: `10s`, `2h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

impl std::fmt::Display for Span {
    /// Many days are not written as months, which have no fixed length.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        if self.0.subsec_nanos() == 0 && seconds > 0 && seconds.is_multiple_of(86_400) {
            write!(f, "{}d", seconds / 86_400)
        } else {
            humantime::format_duration(self.0).fmt(f)
        }
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|error| {
            serde::de::Error::custom(format!("\"{text}\" is no duration ({error}); write it as 10s or 2h"))
        })
    }
}

impl Dispatcher {
    /// Agent self-stop must come before the server gives the lease to another.
    fn check(&self) -> Result<(), Invalid> {
        let margin = self.lease.0 / 12;
        if self.self_stop.0 + margin > self.lease.0 {
            return Err(Invalid::new(format!(
                "dispatcher.self_stop ({}) must be at least a twelfth of dispatcher.lease ({}) shorter than it",
                humantime::format_duration(self.self_stop.0),
                humantime::format_duration(self.lease.0)
            )));
        }
        if self.renew.0 * 3 > self.self_stop.0 {
            return Err(Invalid::new(
                "dispatcher.renew must be at most a third of dispatcher.self_stop".to_owned(),
            ));
        }
        Ok(())
    }
}
