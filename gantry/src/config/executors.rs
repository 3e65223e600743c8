//! Where jobs run.

use super::{Invalid, Span};
use serde::{Deserialize, Serialize};

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

    pub(super) fn check(&self) -> Result<(), Invalid> {
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

impl ResourceClass {
    pub(super) fn check(&self, name: &str) -> Result<(), Invalid> {
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
