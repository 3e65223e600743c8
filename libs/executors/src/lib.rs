//! Prepares an environment and runs the commands of a task in it. This crate has the port ([`Environment`]), the
//! host executor ([`Sandbox`]) and what runs inside of containers ([`helper_main`], [`Guest`]); engines are
//! crates of their own beside it.
//!
//! # How a task is enclosed
//!
//! The agent starts the program of itself as a helper ([`helper_main`]), which enters the namespaces and then
//! starts every step on request. Steps are its children, so that all that they leave behind, whatever
//! sessions it made, is below the helper:
//!
//! - with a PID namespace the helper is its first process, and the kernel ends the namespace with it;
//! - without one it is the reaper of orphans (`PR_SET_CHILD_SUBREAPER`) and kills its descendants until none is left;
//! - in a container it is the first process too, and the engine ends what is left with it.
//!
//! The helper ends when its standard input does: when the agent says so, and when the agent dies, however it
//! dies.
//!
//! A separate program instead of code between fork and exec keeps the agent free of unsafe code: a new user
//! namespace needs a process of one thread, and the agent has several.

pub mod contract;
mod environment;
mod frames;
mod guest;
mod helper;
mod host;
mod remote;
mod terminal;
mod wire;

pub use environment::{
    Command, Environment, Error, Facts, Input, Io, Output, Process, RemoteDocker, Resize, Size,
};
pub use guest::GUEST as GUEST_ARGUMENT;
pub use helper::main as helper_main;
pub use host::{Identity, Isolation, Options, Sandbox, out_of_memory};
pub use nix::sys::signal::Signal;
pub use remote::Remote;

/// Other names of the agent among the programs of a task (execution §20).
pub const PROGRAM_NAMES: [&str; 3] = ["circleci", "circleci-agent", "gantry-agent"];
