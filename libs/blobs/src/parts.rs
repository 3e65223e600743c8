//! Uploads in parts: of what is too large to be sent again as a whole because its last byte was lost (reliability §8.4).

use crate::{Digest, Error, Key, Put, Result, Signed, digest};
use async_trait::async_trait;
use chrono::{DateTime, Utc};

/// Bytes of each part but the last, which has the rest.
pub const PART: u64 = 8 << 20;
/// Parts that an upload has at most: stores number them up to this.
pub const MAX_PARTS: usize = 10_000;

/// What is announced of a blob that comes in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    size: u64,
    parts: Vec<Digest>,
}

impl Announced {
    /// Of a size and the SHA-256 of each part. `None` unless there is one for each, and more than one.
    pub fn new(size: u64, parts: Vec<Digest>) -> Option<Self> {
        let fits = size.div_ceil(PART) == parts.len() as u64;
        (fits && (2..=MAX_PARTS).contains(&parts.len())).then_some(Self { size, parts })
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many parts.
    pub fn count(&self) -> usize {
        self.parts.len()
    }

    /// The SHA-256 of each part, of 32 bytes, one after another.
    pub fn digests(&self) -> &[u8] {
        self.parts.as_flattened()
    }

    /// Bytes and SHA-256 of each part, in order.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = (u64, Digest)> {
        let rest = |at: usize| (self.size - at as u64 * PART).min(PART);
        self.parts.iter().enumerate().map(move |(at, sha256)| (rest(at), *sha256))
    }

    /// One part, counted from 0.
    pub fn part(&self, at: usize) -> Option<(u64, Digest)> {
        self.parts().nth(at)
    }

    /// What such a blob is known by: the SHA-256 of its parts' SHA-256s. That of the whole is known to nobody who did not read it.
    pub fn sha256(&self) -> Digest {
        digest(self.digests())
    }
}

/// A store that takes parts of a blob by presigned URLs.
#[async_trait]
pub trait InParts: Send + Sync {
    /// Begins an upload, and returns its name. Nothing is visible before it is finished; one that nobody finishes is given up by
    /// the store's rules.
    async fn begin(&self, key: &Key, announced: &Announced) -> Result<String>;

    /// Allows to write a part, counted from 0, until `expires`: exactly its bytes, as often as it takes. `None`: there is no such part.
    fn sign_part(
        &self,
        key: &Key,
        upload: &str,
        announced: &Announced,
        at: usize,
        expires: DateTime<Utc>,
    ) -> Option<Signed>;

    /// Makes a blob of the parts. May be repeated.
    ///
    /// # Errors
    /// [`Error::Mismatch`]: not all parts are there.
    async fn finish(&self, key: &Key, upload: &str, announced: &Announced) -> Result<Put>;
}

/// The error of an upload of which not all parts came.
pub fn incomplete(key: &Key, announced: &Announced, came: usize) -> Error {
    let (announced, actual) = (announced.count().to_string(), came.to_string());
    Error::Mismatch { key: key.clone(), what: "number of parts", announced, actual }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_announced_fits_together() {
        let parts = |count| vec![[7; 32]; count];
        for (size, count) in [(0, 0), (1, 1), (PART, 1), (PART + 1, 1), (2 * PART, 3), (2 * PART + 1, 2)] {
            assert_eq!(Announced::new(size, parts(count)), None, "{size} bytes in {count} parts");
        }
        let announced = Announced::new(2 * PART + 5, vec![[1; 32], [2; 32], [3; 32]]).unwrap();
        let sizes: Vec<u64> = announced.parts().map(|(size, _)| size).collect();
        assert_eq!(sizes, [PART, PART, 5]);
        assert_eq!(announced.part(2), Some((5, [3; 32])));
        assert_eq!(announced.part(3), None);
        let other = Announced::new(2 * PART + 5, vec![[1; 32], [2; 32], [4; 32]]).unwrap();
        assert_ne!(announced.sha256(), other.sha256());
    }
}
