//! Events, state and progress in one Postgres transaction (architecture §3).
//!
//! Each service has a schema of its own. [`Store::open`] makes it, with the tables every service has
//! (`events`, `acts`, `idempotency`, `cursors`, `parked`, `dead_letters`, `leaders`, `event_archives`) and the service's
//! own migrations. [`Store::begin`] takes the locks of all aggregates that the transaction will append to, before
//! its first write; [`Tx::append`] assigns ids, versions and times; [`Tx::commit`] makes it all durable at once
//! and then wakes whoever reads the log.
//!
//! ```ignore
//! let mut tx = store.begin(&[Key::new("workflow", id)]).await?;
//! sqlx::query("UPDATE conductor.workflows SET …").execute(tx.conn()).await?;
//! tx.append(&[NewEvent::new("workflow", id, actor, &WorkflowFinished { … })]).await?;
//! tx.commit().await?;
//! ```

mod clock;
mod databases;
mod error;
mod failpoint;
mod leader;
mod schema;
mod store;
mod tail;
pub mod trace;
mod tx;

pub use databases::{Databases, Own};
pub use error::{Error, Result, is_away};
pub use failpoint::failpoint;
pub use leader::Leader;
pub use schema::never_migrate;
pub use store::{Key, NO_MIGRATIONS, Store, lazy_pool, open_pool, open_pool_with, schema_of, wait_for_pool};
pub use tail::{Page, ParsePositionError, Position, Wanted, envelope_from_row, read_after, read_wanted};
pub use tx::{Act, Tx, digest};

/// A message has at most so many bytes; what is larger goes to the blob store.
pub const MESSAGE_LIMIT: usize = 256 * 1024;
