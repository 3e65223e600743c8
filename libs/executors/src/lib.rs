//! Prepares an environment and runs steps in it. This crate has the host executor; engines are crates of
//! their own beside it.
//!
//! # How a task is enclosed
//!
//! The agent starts the program of itself as a helper ([`helper_main`]), which enters the namespaces and then
//! starts every step on request. Steps are its children, so that all that they leave behind, whatever
//! sessions it made, is below the helper:
//!
//! - with a PID namespace the helper is its first process, and the kernel ends the namespace with it;
//! - without one it is the reaper of orphans (`PR_SET_CHILD_SUBREAPER`) and kills its descendants until none is left.
//!
//! The helper ends when its standard input does: when the agent says so, and when the agent dies, however it
//! dies.
//!
//! A separate program instead of code between fork and exec keeps the agent free of unsafe code: a new user
//! namespace needs a process of one thread, and the agent has several.

mod helper;
mod host;
mod terminal;
mod wire;

pub use helper::main as helper_main;
pub use host::{Command, Error, Identity, Isolation, Options, Process, Sandbox};
pub use nix::sys::signal::Signal;
pub use terminal::Terminal;
