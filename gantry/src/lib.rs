//! Wires adapters and services: the only crate that imports services (architecture §2).

pub mod admin;
pub mod config;
pub mod down;
pub mod serve;
pub mod up;

mod instance;
mod isolation;
mod layout;
mod listen;
mod postgres;
mod suite;
