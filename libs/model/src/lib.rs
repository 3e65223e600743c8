//! The vocabulary and the decisions of Gantry, without any I/O.
//!
//! Each aggregate has a state, commands, events, `decide` and `evolve` (architecture §3).

pub mod lease;
pub mod permission;
pub mod plan;
pub mod queue;
pub mod serial;
pub mod ssh;
pub mod status;
pub mod version;
pub mod workflow;
