//! Configuration: one TOML file, overridden by `GANTRY_<SECTION>_<KEY>` (outside §6).

mod adapters;
mod dispatcher;
mod executors;
mod kept;
mod load;
mod server;
mod span;

pub use adapters::{
    Blobs, BlobsKind, Bus, BusKind, Compute, ComputeKind, Connections, Database, DatabaseKind, Live,
    LiveKind, OwnDatabases, Pool, PoolDriver, Records, RecordsKind, Secrets, SecretsKind,
};
pub use dispatcher::Dispatcher;
pub use executors::{ContainerEngine, DockerPolicy, Executors, HostIsolation, ResourceClass, Ssh};
pub use kept::{Disk, Logs, Retention, Stores};
pub use load::{Invalid, Loaded};
pub use server::{Agents, Api, Contexts, Keys, LogLines, MetricsFor, Server, Telemetry, Tls};
pub use span::Span;

use serde::{Deserialize, Serialize};

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
    /// `[api]`
    pub api: Api,
    /// `[contexts]`
    pub contexts: Contexts,
    /// `[keys]`
    pub keys: Keys,
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
