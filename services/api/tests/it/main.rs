//! The edge against a real database and the real bus; owners are fakes that answer with fixed values.

mod configs;
mod git;
mod graphql;
mod rates;
mod rest;
mod schema;
mod setup;
mod variables;
mod world;

/// With its own tests: the whole library is not compiled a second time for them.
#[path = "../../src/git/push_options.rs"]
mod push_options;
