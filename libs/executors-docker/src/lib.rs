//! The docker executor: the containers of a task, through an engine's API.
//!
//! # How a task is enclosed
//!
//! The first process of the primary container is the agent's own program ([`executors::Remote`]), and the agent
//! holds its standard input. When the agent ends, however it does, the engine closes that input, the process ends,
//! and the engine ends and removes the container. Service containers live in the network namespace of the primary
//! one. They do not end with it by themselves, so every container carries the name of its placement as a label, and
//! [`sweep`] removes what carries one.
//!
//! A job's own engine ([`remote_docker`]), where the operator allows one, is one more container with that label, in a
//! network with it.
//!
//! The program comes into the container as a read-only volume of a container that is never started
//! ([`carrier`]), so that nothing of the machine is mounted and the engine may be elsewhere.

mod auth;
mod carrier;
mod create;
mod engine;
mod environment;
mod images;
mod network;
mod remote_docker;
mod service;
mod start;
mod sweep;

pub use auth::fill as fill_auth;
pub use engine::{Config, Engine, Error, Pull};
pub use environment::Docker;
pub use service::Service;
pub use start::{Log, Order, start};
pub use sweep::sweep;

/// Label with the name of the placement that a container belongs to.
pub const PLACEMENT_LABEL: &str = "gantry.placement";
/// Where the agent's programs are in a container.
pub const PROGRAMS: &str = "/opt/gantry/bin";
