//! Starting, listing and ending agents.
//!
//! The port knows names and tokens, never jobs: what an agent runs it learns from the dispatcher, whose lease
//! is the truth about a task. An adapter may lose everything it was told; the scheduler tells it again.
//!
//! Order of calls: `start` may come any number of times, also at once; `stop` ends the processes and keeps
//! the folder; `remove` ends them and forgets the placement. All are safe for names that were never started.

use ids::TaskId;
use serde::{Deserialize, Serialize};
use std::{io, path::PathBuf, time::SystemTime};

mod cgroup;
pub mod contract;
mod local;
mod process;

pub use local::{Containers, Local, LocalConfig};

/// What is to be started.
#[derive(Clone, Serialize, Deserialize)]
pub struct Placement {
    /// `task-<id>-<epoch>`; see [`Placement::name_of`].
    pub name: String,
    /// The task.
    pub task_id: TaskId,
    /// The epoch of the task that it is started for.
    pub epoch: i64,
    /// One-time token with which the agent claims the task.
    pub token: String,
}

impl Placement {
    /// The name of the agent for one epoch of a task.
    pub fn name_of(task_id: TaskId, epoch: i64) -> String {
        format!("task-{task_id}-{epoch}")
    }
}

/// The token stays out of logs.
impl std::fmt::Debug for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Placement").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A placement that the adapter knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Whether its agent runs.
    pub alive: bool,
    /// When it was started.
    pub since: SystemTime,
    /// Whether it holds something that its agent has not delivered.
    pub unsent: bool,
}

/// Why compute could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Names become paths and ids of other systems.
    #[error("{0:?} is not a placement's name: lower-case letters, digits and hyphens, at most 80")]
    Name(String),
    /// A file or process operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Processes are still there after they were killed.
    #[error("processes of {0} do not end")]
    Stuck(String),
    /// Containers are still there.
    #[error("containers of {name} are left: {message}")]
    Containers {
        /// Of which placement.
        name: String,
        /// What the engine said.
        message: String,
    },
}

/// Starts and ends agents.
#[async_trait::async_trait]
pub trait Compute: Send + Sync {
    /// Starts the agent unless it runs.
    ///
    /// # Errors
    /// It could not be started; trying again is safe.
    async fn start(&self, placement: &Placement) -> Result<(), Error>;

    /// Ends the agent and everything that it started, at once. The folder stays.
    ///
    /// # Errors
    /// Something of it is still there.
    async fn stop(&self, name: &str) -> Result<(), Error>;

    /// All placements that are known, running or not.
    ///
    /// # Errors
    /// They cannot be read.
    async fn list(&self) -> Result<Vec<Running>, Error>;

    /// Ends what is left of a placement and forgets it. One that still holds something undelivered stays
    /// listed for a day.
    ///
    /// # Errors
    /// Something of it is still there.
    async fn remove(&self, name: &str) -> Result<(), Error>;
}

/// Refuses names that would leave their folder.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let fine = !name.is_empty()
        && name.len() <= 80
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    fine.then_some(()).ok_or_else(|| Error::Name(name.to_owned()))
}
