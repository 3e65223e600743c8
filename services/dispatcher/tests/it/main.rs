//! The dispatcher against a real database.

mod claims;
mod outcomes;
mod permits;
mod placements;
mod retention;
mod revocations;
mod runners;
mod slots;
mod support;
