//! Control groups of this machine: one that ends a placement with all that it started ([`Root`]), and one that bounds what
//! the processes or containers of a task use together ([`Bounds`]).
//!
//! They are two, because the agent that watches over a task must not be ended for what its steps use. The kernel's files are
//! written by hand: the crates for it bring a message bus along.

mod bounds;
mod placement;

pub use bounds::{Bounds, Limits, Unheld, oom_kills};
pub use placement::{Root, create, kill, remove};

/// The folder below a hierarchy's root in which all our groups are.
const FOLDER: &str = "gantry";
