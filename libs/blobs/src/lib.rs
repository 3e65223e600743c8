//! Bytes by key, with presigned transfer (architecture §7, R-27).
//!
//! A blob is invisible until it is complete and verified, and immutable afterwards.

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream::BoxStream};
use std::{fmt, io, ops::Range, str::FromStr};

mod audit;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod fs;
mod http;
mod parts;
pub mod text;

pub use audit::Damage;
pub use fs::FsBlobs;
pub use http::disposition;
pub use parts::{Announced, InParts, MAX_PARTS, PART, incomplete};

/// A body in pieces.
pub type Body = BoxStream<'static, io::Result<Bytes>>;
/// SHA-256 of a body.
pub type Digest = [u8; 32];

/// Why a blob operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key is not one that every adapter can hold.
    #[error("{0:?} is not a key: 1 to 512 of A-Z a-z 0-9 - _ . ~ /, without empty, `.` or `..` segments")]
    Key(String),
    /// Nothing has this key.
    #[error("no blob has the key {0}")]
    Missing(Key),
    /// The bytes are not those that were announced; nothing was stored.
    #[error("{key}: {what} is {actual}, announced was {announced}")]
    Mismatch {
        /// Which blob.
        key: Key,
        /// `size`, `digest` or `number of parts`.
        what: &'static str,
        /// What was announced.
        announced: String,
        /// What came.
        actual: String,
    },
    /// The range begins after the end.
    #[error("{key} has {size} bytes")]
    Range {
        /// Which blob.
        key: Key,
        /// Its size.
        size: u64,
    },
    /// A stored blob is not what was written: an integrity alarm.
    #[error("{0} is damaged")]
    Damaged(Key),
    /// The store failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The result of a blob operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Name of a blob.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// A checked key.
    ///
    /// # Errors
    /// It is empty, too long, or has a character or segment that some store or URL could read as something else.
    pub fn new(key: impl Into<String>) -> Result<Self> {
        let key = key.into();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b'/');
        let plain = |segment: &str| !matches!(segment, "" | "." | "..");
        if (1..=512).contains(&key.len()) && key.bytes().all(allowed) && key.split('/').all(plain) {
            Ok(Self(key))
        } else {
            Err(Error::Key(key))
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Key {
    type Err = Error;
    fn from_str(key: &str) -> Result<Self> {
        Self::new(key)
    }
}

/// What a store knows of a blob without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of them; of what came in parts, see [`Announced::sha256`].
    pub sha256: Digest,
}

/// What became of a `put`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is stored.
    Stored(Meta),
    /// An earlier writer was first; nothing changed.
    AlreadyExists(Meta),
}

impl Put {
    /// What lies under the key now.
    pub fn meta(self) -> Meta {
        match self {
            Self::Stored(meta) | Self::AlreadyExists(meta) => meta,
        }
    }
}

/// A blob being read.
pub struct Get {
    /// Of the whole blob.
    pub meta: Meta,
    /// Which bytes the body has.
    pub range: Range<u64>,
    /// The bytes.
    pub body: Body,
}

impl fmt::Debug for Get {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Get").field("meta", &self.meta).field("range", &self.range).finish_non_exhaustive()
    }
}

impl Get {
    /// The whole body in memory; for small windows.
    ///
    /// # Errors
    /// The store failed while reading.
    pub async fn bytes(mut self) -> Result<Vec<u8>> {
        let mut all =
            Vec::with_capacity(usize::try_from(self.range.end - self.range.start).unwrap_or_default());
        while let Some(piece) = self.body.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }
}

/// What a signed URL allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// To read it.
    Get,
    /// To write exactly these bytes.
    Put {
        /// How many.
        size: u64,
        /// Their SHA-256.
        sha256: Digest,
    },
}

/// A permission for one operation, to be handed on. Whoever has it needs nothing else.
#[derive(Clone, PartialEq, Eq)]
pub struct Signed {
    /// A URL, or a path of our own listener.
    pub url: String,
    /// Headers that the request must have, as they stand here.
    pub headers: Vec<(String, String)>,
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URL: it is a permission.
        f.debug_struct("Signed").finish_non_exhaustive()
    }
}

/// The port.
#[async_trait]
pub trait Blobs: Send + Sync + fmt::Debug {
    /// Stores a body whose SHA-256 must be `sha256`.
    async fn put(&self, key: &Key, body: Body, sha256: Digest) -> Result<Put>;

    /// Reads a blob, or the part of `range` that it has.
    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Get>;

    /// What is known of a blob, if it exists.
    async fn head(&self, key: &Key) -> Result<Option<Meta>>;

    /// Removes a blob; whether there was one.
    async fn delete(&self, key: &Key) -> Result<bool>;

    /// Uploads in parts; `None`: this store takes everything in one request.
    fn in_parts(&self) -> Option<&dyn InParts> {
        None
    }

    /// Allows one operation until `expires`.
    fn sign(&self, key: &Key, method: Method, expires: DateTime<Utc>) -> Signed;

    /// A URL for people to read a blob, which is saved under `name`. Never shown as a page: what it holds is not ours.
    fn sign_download(&self, key: &Key, expires: DateTime<Utc>, name: &str) -> String;
}

/// A body of one piece.
pub fn body(bytes: impl Into<Bytes>) -> Body {
    let bytes = bytes.into();
    futures::stream::once(async move { Ok(bytes) }).boxed()
}

/// SHA-256 of bytes in memory.
pub fn digest(bytes: &[u8]) -> Digest {
    let mut sha256 = Digest::default();
    sha256.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    sha256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_data_and_never_paths() {
        for good in ["a", "logs/0198", "records/x/1", "a..b", "...", "~/x"] {
            assert!(Key::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "..",
            "a/../b",
            "./a",
            "a b",
            "a%2e",
            "a\\b",
            "a\0",
            "ü",
            &"x".repeat(513),
        ] {
            assert!(Key::new(bad).is_err(), "{bad}");
        }
    }
}
