//! Wires adapters and services: the only crate that imports services (architecture §2).

pub mod adapters;
pub mod admin;
pub mod command;
pub mod config;
pub mod down;
pub mod help;
pub mod reference;
pub mod rotate;
pub mod serve;
pub mod up;

mod counted;
mod databases;
mod disk;
mod engine;
mod instance;
mod isolation;
mod layout;
mod listen;
pub mod migrate;
pub mod operator;
mod port;
mod postgres;
mod suite;
mod tls;
mod upkeep;
