//! The edge against a real database and the real bus; owners are fakes that answer with fixed values.

mod configs;
mod git;
mod graphql;
mod rest;
mod schema;
mod setup;
mod variables;
mod world;
