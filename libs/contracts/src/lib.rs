//! Messages between services: one envelope, a module of events and requests per owner.
//!
//! An event's body carries all that its consumers need; nobody re-reads another service's tables
//! (architecture §4). A sample of each, by version, lies in `samples/`.

pub mod envelope;
pub mod request;
pub mod retention;
pub mod trace;

pub mod conductor;
pub mod contexts;
pub mod delivery;
pub mod dispatcher;
pub mod domain;
pub mod orbs;
pub mod output;
pub mod permissions;
pub mod pipelines;
pub mod policies;
pub mod stores;
pub mod test_results;
pub mod text;

pub use envelope::{Actor, Aggregate, Envelope, Event, NewEvent, UnknownSchema};
pub use request::{Refusal, Request, RequestError};

/// Declares the type name and schema number of an event's body.
#[macro_export]
macro_rules! event {
    ($body:ty, $name:literal, $schema:literal) => {
        impl $crate::Event for $body {
            const TYPE: &'static str = $name;
            const SCHEMA: u32 = $schema;
        }
    };
}

/// Declares a request: the service that answers it, its name, and the type of its answer. With `query` before
/// them, that it changes nothing; with `idempotent`, that to execute it twice does no harm.
#[macro_export]
macro_rules! ask {
    (query $body:ty, $service:literal, $name:literal, $reply:ty) => {
        $crate::ask!($body, $service, $name, $reply, true);
    };
    (idempotent $body:ty, $service:literal, $name:literal, $reply:ty) => {
        $crate::ask!($body, $service, $name, $reply, true);
    };
    ($body:ty, $service:literal, $name:literal, $reply:ty) => {
        $crate::ask!($body, $service, $name, $reply, false);
    };
    ($body:ty, $service:literal, $name:literal, $reply:ty, $idempotent:literal) => {
        impl $crate::request::Ask for $body {
            const SERVICE: &'static str = $service;
            const NAME: &'static str = $name;
            const IDEMPOTENT: bool = $idempotent;
            type Reply = $reply;
        }
    };
}
