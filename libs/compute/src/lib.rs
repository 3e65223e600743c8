//! Starting, listing and ending agents.
//!
//! The port knows names and tokens, never jobs: what an agent runs it learns from the dispatcher, whose lease
//! is the truth about a task. An adapter may lose everything it was told; the scheduler tells it again.
//!
//! Order of calls: `start` may come any number of times, also at once; `stop` ends the processes and keeps
//! the folder; `remove` ends them and forgets the placement. All are safe for names that were never started.

use ids::{TaskId, Timestamp};
use serde::{Deserialize, Serialize};
use std::{io, path::PathBuf, time::SystemTime};

pub mod contract;
mod local;
mod process;

pub use contracts::dispatcher::Demand;
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
    /// One-time token with which the agent claims the task. Only for an adapter that can leave it where nobody but the
    /// agent looks; the agents of others show who they are and get it then (see [`Compute::identify`]).
    pub token: String,
    /// What the task asks of the machine.
    pub demand: Demand,
}

impl Placement {
    /// The name of the agent for one epoch of a task.
    pub fn name_of(task_id: TaskId, epoch: i64) -> String {
        format!("task-{task_id}-{epoch}")
    }

    /// Task and epoch of an agent's name; `None`: it is no such name.
    pub fn of_name(name: &str) -> Option<(TaskId, i64)> {
        let (task, epoch) = name.strip_prefix("task-")?.rsplit_once('-')?;
        let (task_id, epoch) = (task.parse().ok()?, epoch.parse().ok()?);
        (Self::name_of(task_id, epoch) == name).then_some((task_id, epoch))
    }
}

/// The token stays out of logs.
impl std::fmt::Debug for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Placement").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Where a placement stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits for a machine.
    Waits {
        /// Why none takes it, for people, where that is known: `memory is exhausted on 2 of 2 machines`.
        why: Option<String>,
    },
    /// Its agent runs, as far as can be told.
    Runs,
    /// Its agent has ended, or was told to.
    Ended,
}

/// A placement that the adapter knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub phase: Phase,
    /// When it was started.
    pub since: SystemTime,
    /// Whether it holds something that its agent has not delivered.
    pub unsent: bool,
}

impl Running {
    /// Whether its agent runs, or is going to.
    pub fn alive(&self) -> bool {
        self.phase != Phase::Ended
    }
}

/// Who an agent has proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of its placement.
    pub placement: String,
    /// Which start of it, where compute may start one twice.
    pub instance: String,
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
    /// What starts agents on other machines does not answer, or refuses.
    #[error("{0}")]
    Scheduler(String),
    /// What an agent showed does not prove who it is.
    #[error("the agent's identity is not accepted: {0}")]
    Identity(String),
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

    /// Whether an agent that died can be started again in its folder, and so deliver what the dead one kept.
    fn resumes(&self) -> bool {
        true
    }

    /// Resolves when something may have changed that [`Self::list`] tells. A hint: some changes are told to nobody, so
    /// callers look from time to time as well.
    async fn changed(&self) {
        std::future::pending().await
    }

    /// Who an agent is, by the proof that compute itself gave to it: so that no token need lie where a job's description
    /// can be read. `now` is the time by which it must not have run out: this machine's may be wrong.
    ///
    /// # Errors
    /// The proof is not ours, or has run out ([`Error::Identity`]), or cannot be checked now.
    async fn identify(&self, _proof: &str, _now: Timestamp) -> Result<Identity, Error> {
        Err(Error::Identity("agents get their tokens when they are started here".to_owned()))
    }
}

/// Refuses names that would leave their folder.
///
/// # Errors
/// It has other characters than lower-case letters, digits and hyphens, none, or more than 80.
pub fn check_name(name: &str) -> Result<(), Error> {
    let fine = !name.is_empty()
        && name.len() <= 80
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    fine.then_some(()).ok_or_else(|| Error::Name(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_task_and_epoch() {
        let task = TaskId::new();
        assert_eq!(Placement::of_name(&Placement::name_of(task, 12)), Some((task, 12)));
        for name in [
            "",
            "task-",
            "task-x-1",
            &format!("task-{task}"),
            &format!("task-{task}-01"),
            &format!("task-{task}--1"),
        ] {
            assert_eq!(Placement::of_name(name).filter(|(_, epoch)| *epoch > 0), None, "{name}");
        }
    }
}
