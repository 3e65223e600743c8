//! What an operator asks of a running suite: is it consistent, what waits, how much of what.
//!
//! Everything here only reads, but for dead letters, which an operator replays or discards. It is the one place
//! that looks across the services' schemas, and nothing that the suite decides depends on it.

pub mod dead_letters;
pub mod gauges;
pub mod health;
pub mod invariants;
pub mod routes;
pub mod topology;
pub mod verify;
pub mod wiring;
