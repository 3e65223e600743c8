//! Kills at the worst moments: nothing is lost, nothing runs twice, every workflow ends.
//!
//! A ledger outside of the product counts how often user code really ran. `GANTRY_SEEDS=7,8` replays seeds,
//! `GANTRY_SEED_COUNT=30` runs so many new ones.

mod agent;
mod failpoints;
mod postgres;
mod random;
mod server;
mod support;
