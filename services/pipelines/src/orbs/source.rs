//! Orbs as the compiler asks for them.

use compiler::{OrbError, OrbRef, OrbSource, OrbText};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

/// Why orbs behind an address are refused.
pub(crate) const URL_ORBS: &str =
    "orbs are read from this server's registry only; import it with `gantry orb import`";

type Found = Result<OrbText, OrbError>;

/// Orbs that were read from the registry, and those that the compiler asked for and that have to be read before it
/// is asked again. The compiler runs away from async threads and inside a transaction whose connection must not be
/// joined by a second one, so it takes from this shelf only.
#[derive(Clone, Default)]
pub(crate) struct Shelf(Arc<Mutex<Books>>);

#[derive(Default)]
struct Books {
    found: HashMap<OrbRef, Found>,
    missing: BTreeSet<String>,
}

impl Shelf {
    /// Puts an orb, or why it cannot be had, on the shelf.
    pub(crate) fn put(&self, reference: OrbRef, found: Found) {
        self.books().found.insert(reference, found);
    }

    /// What was asked for in vain since the last call.
    pub(crate) fn missing(&self) -> Vec<OrbRef> {
        let missing = std::mem::take(&mut self.books().missing);
        missing.iter().filter_map(|reference| reference.parse().ok()).collect()
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        // Every change is one insertion: a panic elsewhere leaves nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OrbSource for Shelf {
    fn fetch(&self, reference: &OrbRef) -> Found {
        if let OrbRef::Url(_) = reference {
            return Err(OrbError::Forbidden(URL_ORBS.to_owned()));
        }
        let mut books = self.books();
        if let Some(found) = books.found.get(reference) {
            return found.clone();
        }
        books.missing.insert(reference.to_string());
        Err(OrbError::Unavailable("it has not been read yet".to_owned()))
    }
}
