//! The dispatcher against a real database.

mod claims;
mod outcomes;
mod revocations;
mod slots;
mod support;
