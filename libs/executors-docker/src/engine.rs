//! The connection to an engine, and what it says of itself.

use bollard::{API_DEFAULT_VERSION, Docker as Api, models::SystemInfo};
use serde::{Deserialize, Serialize};

/// Longest wait for the beginning of an answer, in seconds.
const TIMEOUT: u64 = 120;

/// Which engine, and what containers of tasks get from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Path of the engine's Unix socket.
    pub socket: String,
    /// When the registry is asked for an image.
    pub pull: Pull,
    /// Most processes and threads of one container.
    pub pids: i64,
    /// Whether programs may not gain rights by being started: breaks `sudo` in containers.
    pub no_new_privileges: bool,
    /// Name of the network, on which containers do not reach each other.
    pub network: String,
    /// Image of the engine that a job with `setup_remote_docker` gets for itself, in a *privileged* container;
    /// `None`: jobs get none.
    pub remote_docker_image: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/var/run/docker.sock".into(),
            pull: Pull::Always,
            pids: 4096,
            no_new_privileges: false,
            network: "gantry".into(),
            remote_docker_image: None,
        }
    }
}

/// What agents are told of the engine of their machine.
impl From<Config> for agent_api::Engine {
    fn from(config: Config) -> Self {
        Self {
            socket: config.socket,
            pull: match config.pull {
                Pull::Always => "always",
                Pull::Missing => "missing",
                Pull::Never => "never",
            }
            .into(),
            pids: config.pids,
            no_new_privileges: config.no_new_privileges,
            network: config.network,
            remote_docker_image: config.remote_docker_image,
        }
    }
}

impl TryFrom<agent_api::Engine> for Config {
    type Error = Error;

    fn try_from(told: agent_api::Engine) -> Result<Self, Error> {
        let pull = match told.pull.as_str() {
            "always" => Pull::Always,
            "missing" => Pull::Missing,
            "never" => Pull::Never,
            other => {
                return Err(Error::Job(format!(
                    "when images are pulled is set to {other:?}, which is unknown"
                )));
            }
        };
        Ok(Self {
            socket: told.socket,
            pull,
            pids: told.pids,
            no_new_privileges: told.no_new_privileges,
            network: told.network,
            remote_docker_image: told.remote_docker_image,
        })
    }
}

/// When the registry is asked for an image. What was built on the machine and never came from a registry is used
/// as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pull {
    /// For each job: whether the tag has moved, and whether *this* job may have the image (security §8).
    #[default]
    Always,
    /// Only for images that are not on the machine: every job may use every one that is.
    Missing,
    /// Never.
    Never,
}

/// Why a task's containers could not be had. The text is for the author of the job.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine cannot be reached.
    #[error(
        "the container engine at {socket} does not answer ({message}); start it, or name another with `[executors.engine] socket`"
    )]
    Unreachable {
        /// Where.
        socket: String,
        /// Why.
        message: String,
    },
    /// The engine refused.
    #[error("Error response from daemon: {0}")]
    Refused(String),
    /// What the job asks for cannot be.
    #[error("{0}")]
    Job(String),
}

impl From<bollard::errors::Error> for Error {
    fn from(error: bollard::errors::Error) -> Self {
        use bollard::errors::Error as Api;
        match error {
            Api::DockerResponseServerError { message, .. } | Api::DockerStreamError { error: message } => {
                Self::Refused(message)
            }
            other => Self::Refused(other.to_string()),
        }
    }
}

/// The status of an answer that refused something.
pub(crate) fn status(error: &bollard::errors::Error) -> Option<u16> {
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// An engine that answers.
#[derive(Clone)]
pub struct Engine {
    pub(crate) api: Api,
    pub(crate) config: Config,
}

impl Engine {
    /// Connects and agrees on a version.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub async fn connect(config: Config) -> Result<Self, Error> {
        let unreachable = |error: bollard::errors::Error| Error::Unreachable {
            socket: config.socket.clone(),
            message: error.to_string(),
        };
        let path = config.socket.trim_start_matches("unix://");
        let api = Api::connect_with_unix(path, TIMEOUT, API_DEFAULT_VERSION).map_err(unreachable)?;
        let api = api.negotiate_version().await.map_err(unreachable)?;
        Ok(Self { api, config })
    }

    /// Makes what all tasks share, so that the first need not wait for it: network and programs.
    ///
    /// # Errors
    /// The engine refused.
    pub async fn prepare(&self, program: &std::path::Path) -> Result<(), Error> {
        crate::network::ensure(self).await?;
        crate::carrier::ensure(self, program).await
    }

    pub(crate) async fn info(&self) -> Result<SystemInfo, Error> {
        Ok(self.api.info().await?)
    }
}

/// Lines of the spin-up step about the engine.
pub(crate) fn describe(info: &SystemInfo) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
    let cgroup = info.cgroup_version.as_ref().map_or_else(|| "unknown".into(), ToString::to_string);
    let security = info.security_options.clone().unwrap_or_default().join(", ");
    format!(
        "Docker engine {}\n  Storage driver: {}\n  Cgroup version: {cgroup}\n  Kernel version: {}\n  Operating system: {}\n  Security: {security}\n",
        text(&info.server_version),
        text(&info.driver),
        text(&info.kernel_version),
        text(&info.operating_system),
    )
}

/// Limits that this engine does not hold, by name.
pub(crate) fn limits_that_do_not_hold(info: &SystemInfo) -> Vec<&'static str> {
    [
        ("memory", info.memory_limit),
        ("swap", info.swap_limit),
        ("cpu", info.cpu_cfs_quota),
        ("processes", info.pids_limit),
    ]
    .into_iter()
    .filter_map(|(name, holds)| (holds != Some(true)).then_some(name))
    .collect()
}
