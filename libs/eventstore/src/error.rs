//! What can go wrong in a store.

use contracts::{Refusal, RequestError};
use uuid::Uuid;

/// Result of a store's operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong in a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Somebody else wrote the same thing first; the transaction may be tried again.
    #[error("somebody else changed it at the same time")]
    Conflict,
    /// The idempotency key was used for another body.
    #[error("the idempotency key was used with another body")]
    KeyReused,
    /// The same command is being executed.
    #[error("the same command is being executed")]
    InProgress,
    /// An event was appended to an aggregate that exists and whose lock `begin` was not asked for.
    #[error("{kind} {id} was appended to without its lock")]
    NotLocked {
        /// Kind of the aggregate.
        kind: String,
        /// Its id.
        id: Uuid,
    },
    /// An event's body is larger than a message may be.
    #[error("the body of {kind} has {size} bytes; at most {limit} are allowed", limit = crate::MESSAGE_LIMIT)]
    Oversize {
        /// Type of the event.
        kind: &'static str,
        /// Bytes of its body.
        size: usize,
    },
    /// This process no longer leads the role.
    #[error("no longer the leader of {role}")]
    Fenced {
        /// Which role.
        role: String,
    },
    /// A service's name cannot be a schema's.
    #[error("{0:?} is not a service name")]
    BadService(String),
    /// A stored row cannot be read.
    #[error("a stored row cannot be read")]
    Json(#[from] serde_json::Error),
    /// The schema cannot be brought to its newest form.
    #[error("the schema cannot be migrated")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// The schema is older than this build needs, and this process may not change it.
    #[error(
        "the schema of {service} has version {found} and this build needs {wanted}; run `gantry admin migrate` first"
    )]
    OldSchema {
        /// Whose schema.
        service: String,
        /// Its version; 0: there is none.
        found: i64,
        /// What is needed at least.
        wanted: i64,
    },
    /// A failpoint said so.
    #[error("failpoint {0}")]
    Failpoint(String),
    /// The database refused or is away.
    #[error(transparent)]
    Db(sqlx::Error),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        if let sqlx::Error::Database(db) = &error {
            let code = db.code();
            let two_writers = db.constraint() == Some("events_version");
            // 40001: serialization failure, 40P01: deadlock detected.
            if two_writers || matches!(code.as_deref(), Some("40001" | "40P01")) {
                return Self::Conflict;
            }
        }
        Self::Db(error)
    }
}

impl Error {
    /// Whether the same transaction may succeed at once when it is tried again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict)
    }

    /// Whether the database could not be reached, or cannot serve anybody now.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Db(error) if is_away(error))
    }
}

/// Whether a database could not be reached, or cannot serve anybody now.
pub fn is_away(error: &sqlx::Error) -> bool {
    match error {
        // 57P0x: the server shuts down or ended the session; 53xxx: out of resources; 08xxx: connection; 25006: it only
        // reads, as one does that follows another or was told to (reliability F23).
        sqlx::Error::Database(db) => db.code().is_some_and(|c| {
            c.starts_with("57P") || c.starts_with("53") || c.starts_with("08") || c == "25006"
        }),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => true,
        _ => false,
    }
}

/// What the asker of a request is told.
impl From<Error> for RequestError {
    fn from(error: Error) -> Self {
        match error {
            Error::KeyReused => Refusal::new(
                "idempotency_key_reused",
                "This Idempotency-Key was used with another request. Send a new key.",
            )
            .into(),
            Error::InProgress => Refusal::new(
                "idempotency_in_progress",
                "A request with this Idempotency-Key is being executed. Try again in a second.",
            )
            .into(),
            Error::Conflict => {
                Refusal::new("conflict", "Somebody else changed it at the same time. Try again.").into()
            }
            away if away.is_away() => {
                tracing::warn!(error = &away as &dyn std::error::Error, "a request found no database");
                Self::Unavailable { service: String::new() }
            }
            other => {
                tracing::error!(error = &other as &dyn std::error::Error, "a request failed in the store");
                Self::Failed { service: String::new() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_is_away_is_no_failure_of_the_service() {
        let told = |error: sqlx::Error| RequestError::from(Error::from(error));
        assert_eq!(told(sqlx::Error::PoolTimedOut), RequestError::Unavailable { service: String::new() });
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(told(sqlx::Error::Io(broken)), RequestError::Unavailable { service: String::new() });
        assert_eq!(told(sqlx::Error::RowNotFound), RequestError::Failed { service: String::new() });
    }
}
