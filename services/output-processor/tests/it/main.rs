//! The service with a real database and real files, called as agents and other services call it.

mod chunks;
mod closing;
mod peers;
mod rebuild;
mod restart;
mod retention;
mod stores;
mod support;
