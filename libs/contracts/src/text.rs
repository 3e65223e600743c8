//! Texts that may be larger than a message.

use serde::{Deserialize, Serialize};

/// Texts up to so many bytes ride in the message.
pub const INLINE: usize = 48 * 1024;

/// A text in a request or an answer: a small one rides in the message, a large one lies in the blob store under a
/// key of its own until the one that it was sent to has read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// Here.
    Inline(String),
    /// There.
    Blob {
        /// Key, below `messages/`.
        blob: String,
    },
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::Inline(text.to_owned())
    }
}
