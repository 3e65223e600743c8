//! Documents of what ran. They can be made again from journal and blobs, and can be dropped.

use async_trait::async_trait;
use ids::Timestamp;
use serde_json::Value;
use std::fmt;
use uuid::Uuid;

#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod postgres;

pub use postgres::PostgresRecords;

/// Why the store of records failed.
#[derive(Debug, thiserror::Error)]
#[error("the store of records failed: {0}")]
pub struct Error(#[from] Box<dyn std::error::Error + Send + Sync>);

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self(error.into())
    }
}

/// The result of a record operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A document to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct NewDocument {
    /// What it is, for example `step`.
    pub kind: &'static str,
    /// Its id.
    pub id: Uuid,
    /// What it is listed by, for example its job.
    pub group: Uuid,
    /// Replaces only what has a lower version.
    pub version: i64,
    /// Content, without NUL in its text.
    pub body: Value,
}

/// A stored document.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Its id.
    pub id: Uuid,
    /// What it is listed by.
    pub group: Uuid,
    /// Its version.
    pub version: i64,
    /// When it was last changed, by the clock of the store.
    pub updated_at: Timestamp,
    /// Content.
    pub body: Value,
}

/// The port.
#[async_trait]
pub trait Records: Send + Sync + fmt::Debug {
    /// Makes what documents are kept in, as far as it is missing: all of it in a new store, and in one that lost everything
    /// while it was used.
    async fn prepare(&self) -> Result<()>;

    /// Stores documents; of each, whether it was newer than what was there. A failure may leave some stored: a repeat is
    /// harmless.
    async fn put(&self, documents: &[NewDocument]) -> Result<Vec<bool>>;

    /// One document.
    async fn get(&self, kind: &str, id: Uuid) -> Result<Option<Document>>;

    /// All documents of a group, by id.
    async fn list_by(&self, kind: &str, group: Uuid) -> Result<Vec<Document>>;

    /// Removes documents; those that do not exist are no error.
    async fn remove(&self, kind: &str, ids: &[Uuid]) -> Result<()>;

    /// Returns once all that was put before survives a crash of the store.
    async fn flush(&self) -> Result<()>;
}
