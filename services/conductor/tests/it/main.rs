//! Workflows on a real database and the local bus, with stand-ins for pipelines, dispatcher and permissions.

mod cancel;
mod graph;
mod redundant;
mod reruns;
mod retention;
mod rows;
mod serial;
mod support;
