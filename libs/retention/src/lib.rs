//! Histories that are past their retention leave the log: first they are archived, then they are deleted together with
//! their rows (architecture §3, reliability R-9).
//!
//! A service says what may go and how its rows go ([`Owner`]); the order of things is here, the same for all
//! ([`Sweeper`]): read the final rows and the events, note the archive as planned, store its blob, remove what lies outside
//! of Postgres, and then, in one transaction under the leader's fence, delete rows and events, append what is announced and
//! note the archive as sealed. A crash anywhere before that transaction leaves everything in place; the next sweep throws
//! the planned archive away and begins anew, so that nothing is lost and nothing lies in two places.
//!
//! [`audit`] reads archives back and checks them.

mod archive;
mod audit;
mod follow;
mod sweep;

pub use archive::{Entry, State, read};
pub use audit::{Audited, Fold, audit};
pub use follow::ExpiredJobs;
pub use sweep::{Done, Sealed, Sweeper};

use async_trait::async_trait;
use contracts::NewEvent;
use eventstore::{Key, Store, Tx};
use std::collections::HashSet;
use uuid::Uuid;

/// Aggregates of a batch: each is locked in the transaction that forgets it, and Postgres has room for some thousands.
pub const KEYS: usize = 500;

/// What goes together: a pipeline, a workflow, a job with its tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its id.
    pub id: Uuid,
    /// The aggregates whose histories go with it.
    pub keys: Vec<Key>,
}

/// A service whose terminal rows go when their time has come.
#[async_trait]
pub trait Owner: Send + Sync {
    /// Its schema.
    fn store(&self) -> &Store;

    /// Units that may go now, with at most [`KEYS`] aggregates unless the first alone has more; none of `skip`, which
    /// could not go in this sweep.
    ///
    /// # Errors
    /// The database, or another service that has to be asked, is away.
    async fn due(&self, skip: &HashSet<Uuid>) -> anyhow::Result<Vec<Unit>>;

    /// Their final rows, for the archive; without what people wrote.
    ///
    /// # Errors
    /// The database is away.
    async fn states(&self, units: &[Unit]) -> anyhow::Result<Vec<State>>;

    /// Removes what lies outside of Postgres. It may run again after a crash.
    ///
    /// # Errors
    /// A store is away.
    async fn prepare(&self, _units: &[Unit]) -> anyhow::Result<()> {
        Ok(())
    }

    /// Deletes the rows in `tx`, which may delete what is final and holds the locks of all aggregates; what others are to
    /// know of it.
    ///
    /// # Errors
    /// One of them may not go after all, or the database is away.
    async fn remove(&self, tx: &mut Tx, units: &[Unit], sealed: &Sealed) -> anyhow::Result<Vec<NewEvent>>;
}

/// Their ids.
pub fn ids(units: &[Unit]) -> Vec<Uuid> {
    units.iter().map(|unit| unit.id).collect()
}

/// The first of these units that have room in one batch.
pub fn fitting(units: Vec<Unit>) -> Vec<Unit> {
    let mut keys = 0;
    units
        .into_iter()
        .enumerate()
        .take_while(|(place, unit)| {
            keys += unit.keys.len();
            *place == 0 || keys <= KEYS
        })
        .map(|(_, unit)| unit)
        .collect()
}
