//! The lock file: which text each reference meant when it was written.

use compiler::{OrbError, OrbRef, OrbSource, OrbText, UsedOrb};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// What each reference means. Written as JSON, sorted, so that a change is a small diff.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Form of the file; 1.
    version: u32,
    /// By reference as written, for example `circleci/node@5`.
    orbs: BTreeMap<String, Locked>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Locked {
    resolved: String,
    digest: String,
}

/// Why a lock file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is no lock file.
    #[error("it is no lock file: {0}. Write it anew with `--update-orb-lock`")]
    Malformed(#[from] serde_json::Error),
    /// It was written by a newer version.
    #[error("it has version {0}; this program reads version 1")]
    Version(u32),
}

impl Lock {
    /// Reads a lock file; `None` when there is none.
    ///
    /// # Errors
    /// The file is there and cannot be read or understood.
    pub fn read(path: &Path) -> Result<Option<Self>, LockError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let lock: Self = serde_json::from_str(&text)?;
        if lock.version == 1 { Ok(Some(lock)) } else { Err(LockError::Version(lock.version)) }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), LockError> {
        Ok(std::fs::write(path, serde_json::to_string_pretty(self)? + "\n")?)
    }

    /// The lock of what compiles used.
    pub fn of<'u>(used: impl IntoIterator<Item = &'u UsedOrb>) -> Self {
        let locked = |orb: &UsedOrb| {
            (orb.reference.clone(), Locked { resolved: orb.resolved.clone(), digest: orb.digest.clone() })
        };
        Self { version: 1, orbs: used.into_iter().map(locked).collect() }
    }

    /// How many references it holds.
    pub fn len(&self) -> usize {
        self.orbs.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.orbs.is_empty()
    }
}

/// A source that gives exactly what a lock file says.
pub struct LockedOrbs<'s> {
    /// What each reference means.
    pub lock: Lock,
    /// Where the texts come from.
    pub source: &'s dyn OrbSource,
}

impl OrbSource for LockedOrbs<'_> {
    fn fetch(&self, reference: &OrbRef) -> Result<OrbText, OrbError> {
        let shown = reference.to_string();
        let Some(locked) = self.lock.orbs.get(&shown) else {
            return Err(OrbError::Unavailable(format!(
                "the lock file does not name {shown}; add it with `--update-orb-lock`"
            )));
        };
        let exact = locked.resolved.parse().unwrap_or_else(|_| reference.clone());
        let mut text = self.source.fetch(&exact)?;
        if text.digest != locked.digest {
            return Err(OrbError::Forbidden(format!(
                "the text of {} is not the one that the lock file names: {} instead of {}. If the change is wanted, \
                 use `--update-orb-lock`",
                locked.resolved, text.digest, locked.digest
            )));
        }
        text.resolved.clone_from(&locked.resolved);
        Ok(text)
    }
}
