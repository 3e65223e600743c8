//! A workflow and its jobs: what may happen to them (execution §3–§6, §8).
//!
//! The aggregate has a [`Root`] and a [`Job`] per node. [`decide`] gets the root, one job and the jobs that
//! directly depend on it, never all of them: a step of a huge workflow costs what a step of a small one does.
//! When a dependant ends at once (its requirements can no longer hold, or it is a no-op), its own dependants
//! are looked at in a further call; [`Walk`] keeps the list of those calls, so that every caller walks alike.

mod decide;
mod graph;
mod state;
mod walk;

pub use decide::{Command, Refusal, Rules, Sound, decide, decide_as, request_cancel};
pub use graph::{Graph, GraphError, Node};
pub use state::{Approver, Counts, Dependant, Event, Job, Kind, Root, StatusSet, Turn, evolve};
pub use walk::{Changes, Walk};
