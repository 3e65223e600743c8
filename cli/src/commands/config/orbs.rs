//! Where orbs come from: folders, a lock file, and what they lack from the server, if one is configured.

use super::server::ServerOrbs;
use crate::{Exit, Failure, Global};
use clap::Args;
use compiler::{OrbError, OrbRef, OrbSource, OrbText, UsedOrb};
use orb_folder::{Lock, LockedOrbs, OrbFolder};
use std::path::PathBuf;

/// Options of every command that compiles.
#[derive(Args, Clone, Debug, Default)]
#[group(skip)]
pub(super) struct Options {
    /// Folder of orbs: `namespace/name@1.2.3.yml` files, or source trees with their catalog; may be repeated
    #[arg(long, value_name = "DIR", env = "GANTRY_ORB_DIR")]
    orb_dir: Vec<PathBuf>,
    /// Lock file that says what each orb reference means
    #[arg(long, value_name = "FILE")]
    orb_lock: Option<PathBuf>,
    /// Write the lock file anew from what is found
    #[arg(long, requires = "orb_lock")]
    update_orb_lock: bool,
}

/// Orbs of several folders, the first one that has it.
pub(super) struct Orbs {
    folders: Vec<OrbFolder>,
    server: Option<ServerOrbs>,
    lock: Option<Lock>,
    write: Option<PathBuf>,
}

impl Options {
    pub fn open(&self, global: &Global) -> Result<Orbs, Failure> {
        let mut folders = Vec::new();
        for dir in &self.orb_dir {
            let folder = OrbFolder::open(dir).map_err(|error| {
                let message = format!("the folder of orbs {} cannot be read: {error}", dir.display());
                Failure::new(Exit::NotFound, message)
            })?;
            folders.push(folder);
        }
        let mut orbs = Orbs { folders, server: ServerOrbs::of(global), lock: None, write: None };
        let Some(path) = &self.orb_lock else { return Ok(orbs) };
        if self.update_orb_lock {
            orbs.write = Some(path.clone());
            return Ok(orbs);
        }
        let refuse = |exit, reason: String| Failure::new(exit, format!("{}: {reason}", path.display()));
        match Lock::read(path) {
            Ok(Some(lock)) => orbs.lock = Some(lock),
            Ok(None) => {
                let reason = "there is no such lock file; write it with `--update-orb-lock`";
                return Err(refuse(Exit::NotFound, reason.to_owned()));
            }
            Err(error) => return Err(refuse(Exit::Invalid, error.to_string())),
        }
        Ok(orbs)
    }
}

impl Orbs {
    /// Keeps what compiles used, where that was asked for.
    pub fn keep(&self, used: &[UsedOrb]) -> Result<(), Failure> {
        let Some(path) = &self.write else { return Ok(()) };
        let lock = Lock::of(used);
        let failed = |error| {
            Failure::new(Exit::Failed, format!("the lock file {} cannot be written: {error}", path.display()))
        };
        lock.write(path).map_err(failed)?;
        eprintln!("Wrote {} with {} orb(s).", path.display(), lock.len());
        Ok(())
    }
}

impl OrbSource for Orbs {
    fn fetch(&self, reference: &OrbRef) -> Result<OrbText, OrbError> {
        let found = Unlocked { folders: &self.folders, server: self.server.as_ref() };
        match &self.lock {
            Some(lock) => LockedOrbs { lock: lock.clone(), source: &found }.fetch(reference),
            None => found.fetch(reference),
        }
    }
}

struct Unlocked<'f> {
    folders: &'f [OrbFolder],
    server: Option<&'f ServerOrbs>,
}

impl OrbSource for Unlocked<'_> {
    fn fetch(&self, reference: &OrbRef) -> Result<OrbText, OrbError> {
        let mut failed = None;
        for folder in self.folders {
            match folder.fetch(reference) {
                Ok(text) => return Ok(text),
                // An orb that is there and broken says more than one that is not there.
                Err(error @ OrbError::NotFound(_)) => failed = failed.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        match self.server {
            // What a folder says of other versions helps more than that the server has none.
            Some(server) => server.fetch(reference).map_err(|error| match (error, failed) {
                (OrbError::NotFound(_), Some(nearer @ OrbError::NotFound(Some(_)))) => nearer,
                (error, _) => error,
            }),
            None => Err(failed.unwrap_or_else(|| {
                let hint = "no folder of orbs and no server is given; use `--orb-dir DIR` or `--server URL`";
                OrbError::NotFound(Some(hint.to_owned()))
            })),
        }
    }
}
