//! Requests: ask the owner and wait, with a deadline (architecture §4).

use crate::Actor;
use ids::{MessageId, Timestamp};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// The body of a request and the type of its answer.
pub trait Ask: Serialize + DeserializeOwned {
    /// Service that answers.
    const SERVICE: &'static str;
    /// Name, imperative, for example `workflow.cancel`.
    const NAME: &'static str;
    /// Whether it may be executed twice, or late, without harm: it only asks, or sees to it that something is so. Such a
    /// request finds its owner without the broker too.
    const IDEMPOTENT: bool = false;
    /// The answer.
    type Reply: Serialize + DeserializeOwned;
}

/// An encoded request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Command id: a repeat with the same id returns the recorded answer.
    pub id: MessageId,
    /// Service that answers.
    pub service: String,
    /// Name.
    pub name: String,
    /// Past this moment it is not executed.
    pub deadline: Timestamp,
    /// Who asks.
    pub actor: Actor,
    /// The client's `Idempotency-Key`, if it sent one.
    #[serde(default)]
    pub idempotency_key: Option<String>,
    /// W3C traceparent of what the asker was doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Encoded [`Ask`].
    pub body: Value,
}

/// The owner's "no": a decision, not a failure. Its text is shown to people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Stable code, for example `already_decided`, `not_found`, `forbidden`, `invalid`.
    pub code: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }

    /// `not_found` for a kind of thing.
    pub fn not_found(what: &str) -> Self {
        Self::new("not_found", format!("{what} not found"))
    }
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", rename_all = "snake_case")]
pub enum RequestError {
    /// The owner decided against it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nobody answers for this service now.
    #[error("service {service} does not answer")]
    NoResponder {
        /// Which.
        service: String,
    },
    /// The message broker took nothing; once it is back, what it held may still have its effect.
    #[error("service {service} cannot be asked: the message broker does not answer")]
    Unsent {
        /// Which.
        service: String,
    },
    /// The deadline passed; the effect may or may not have happened.
    #[error("service {service} did not answer in time")]
    Deadline {
        /// Which.
        service: String,
    },
    /// More than the limit of 256 KiB.
    #[error("the message to {service} has {size} bytes; at most {limit} are allowed")]
    Oversize {
        /// Which.
        service: String,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The owner cannot reach its database; the effect may or may not have happened.
    #[error("service {service} cannot reach its database")]
    Unavailable {
        /// Which.
        service: String,
    },
    /// The owner failed; the details are in its log.
    #[error("service {service} failed")]
    Failed {
        /// Which.
        service: String,
    },
}
