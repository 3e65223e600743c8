//! What can go wrong here, and what each asker is told of it.

use bus::Fault;
use contracts::{Refusal, RequestError};
use model::workflow;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The database or its log.
    #[error(transparent)]
    Store(#[from] eventstore::Error),
    /// A decision against it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The plan is no graph.
    #[error(transparent)]
    Graph(#[from] workflow::GraphError),
    /// Another service refused or failed.
    #[error(transparent)]
    Asked(#[from] RequestError),
    /// A stored row is no state.
    #[error("{table}.{column} of {id} cannot be read: {value:?}")]
    Row {
        /// Table.
        table: &'static str,
        /// Column.
        column: &'static str,
        /// Row.
        id: uuid::Uuid,
        /// What is there.
        value: String,
    },
    /// A body or a stored document cannot be read.
    #[error("a document cannot be read")]
    Json(#[from] serde_json::Error),
    /// A message that no right history has.
    #[error("{0}")]
    Message(String),
}

/// Result of an operation here.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<workflow::Refusal> for Error {
    fn from(refusal: workflow::Refusal) -> Self {
        let code = match &refusal {
            workflow::Refusal::WorkflowEnded { .. } | workflow::Refusal::JobEnded { .. } => "already_ended",
            workflow::Refusal::AlreadyDecided { .. } => "already_decided",
            workflow::Refusal::NotOnHold { .. } => "not_on_hold",
            workflow::Refusal::Illegal { .. } => "illegal_transition",
        };
        Self::Refused(Refusal::new(code, refusal.to_string()))
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) => error.into(),
            Error::Asked(error) => Self::Retry(error.into()),
            // The same message will meet the same refusal.
            Error::Refused(_) | Error::Graph(_) | Error::Row { .. } | Error::Json(_) | Error::Message(_) => {
                Self::Dead(error.into())
            }
        }
    }
}

impl From<Error> for RequestError {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => refusal.into(),
            Error::Asked(error) => error,
            Error::Store(error) => error.into(),
            Error::Graph(_) | Error::Row { .. } | Error::Json(_) | Error::Message(_) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a request failed");
                Self::Failed { service: crate::NAME.to_owned() }
            }
        }
    }
}
