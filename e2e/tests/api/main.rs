//! What the public API promises beside its routes: limits of documents, streams that go on where they broke off, and
//! decisions that are made once. And what a command line does with a server.

mod config;
mod decisions;
mod files;
mod leaks;
mod limits;
mod links;
mod retention;
mod runners;
mod ssh;
mod streams;
mod support;
mod timeouts;
mod why;
