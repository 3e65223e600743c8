//! Orbs from folders of this machine, the lock file that pins them, and the cache of those of a server.
//!
//! A folder holds orbs in one or both of two layouts:
//!
//! - plain: `namespace/name@1.2.3.yml` (also `name@dev:first.yml`), each a packed source;
//! - trees: `owner__name/commit/…`, the unpacked sources of an orb at a commit, with a catalog beside or above
//!   the folder: a JSON file whose `orbs` list gives `orb`, `version`, `dir` and `root` of each. Without a catalog
//!   the orb's name is taken from its repository's (`CircleCI-Public__node-orb` is `circleci/node`), and its
//!   version is not known.
//!
//! A source whose version is not known stands for `volatile` (where nothing is published) and for `dev:…`.
//! Nothing is read but names until an orb is asked for.

mod cache;
mod catalog;
mod lock;
mod tree;

pub use cache::OrbCache;
pub use lock::{Lock, LockError, LockedOrbs};
pub use tree::{TreeError, pack_folder, read_folder};

use catalog::{Catalog, Place};
use compiler::{OrbError, OrbRef, OrbSource, OrbText, OrbVersion};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Orbs of a folder.
#[derive(Debug)]
pub struct OrbFolder {
    root: PathBuf,
    catalog: Catalog,
    /// Texts that were read, by place: a run over many files asks for the same orbs again and again.
    read: Mutex<HashMap<PathBuf, Result<Arc<str>, OrbError>>>,
}

impl OrbFolder {
    /// Lists what the folder holds.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn open(root: &Path) -> io::Result<Self> {
        Ok(Self { root: root.to_owned(), catalog: Catalog::of(root)?, read: Mutex::default() })
    }

    /// How many sources there are.
    pub fn len(&self) -> usize {
        self.catalog.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn text(&self, place: &Place) -> Result<Arc<str>, OrbError> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.entry(place.path().to_owned()).or_insert_with(|| place.text()).clone()
    }
}

/// The digest by which texts are told apart.
pub fn digest(text: &str) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(text.as_bytes())))
}

impl OrbSource for OrbFolder {
    fn fetch(&self, reference: &OrbRef) -> Result<OrbText, OrbError> {
        let OrbRef::Registry { namespace, name, version } = reference else {
            return Err(OrbError::Unavailable(format!(
                "{reference} is on the network, and only the folder {} is searched",
                self.root.display()
            )));
        };
        let full = format!("{namespace}/{name}");
        let Some(orb) = self.catalog.orb(&full) else {
            let near = self.catalog.near(&full);
            let hint = near.map(|near| format!("{} holds `{near}`", self.root.display()));
            return Err(OrbError::NotFound(hint));
        };
        if let Some(picked) = version.pick(orb.published()) {
            let place = orb.at(picked).ok_or(OrbError::NotFound(None))?;
            let text = self.text(place)?;
            let digest = digest(&text);
            let (major, minor, patch) = picked;
            return Ok(OrbText::new(format!("{full}@{major}.{minor}.{patch}"), text, digest));
        }
        let unversioned = match version {
            OrbVersion::Dev(tag) => orb.dev(tag).or_else(|| orb.newest()),
            OrbVersion::Volatile => orb.newest(),
            _ => None,
        };
        match unversioned {
            Some(place) => {
                let text = self.text(place)?;
                let digest = digest(&text);
                Ok(OrbText::new(reference.to_string(), text, digest))
            }
            None => Err(OrbError::NotFound(Some(format!(
                "{} holds {} of `{full}`",
                self.root.display(),
                orb.versions()
            )))),
        }
    }
}
