//! Room on disk for what a task still has to say when the disk is full (reliability F20).

use nix::{fcntl::posix_fallocate, sys::statvfs::statvfs};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Enough for what was read last, a few lines of our own, and the final report.
const BYTES: i64 = 256 << 10;
/// With less room than this, programs fail for want of it.
const NOTHING: u64 = 64 << 10;

/// A file that is in nobody's way.
pub(super) struct Reserve(PathBuf);

impl Reserve {
    /// Takes the room. A disk that has none now will say so at the first output.
    pub(super) fn make(folder: &Path) -> Self {
        let path = folder.join("reserve");
        let made = File::create(&path).and_then(|file| Ok(posix_fallocate(file, 0, BYTES)?));
        if let Err(error) = made {
            tracing::warn!(%error, "no room is kept for the end of the task");
        }
        Self(path)
    }

    /// Gives it away; whether there was some.
    pub(super) fn release(&self) -> bool {
        fs::remove_file(&self.0).is_ok()
    }
}

/// A write failed for want of room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Nothing is left where a folder is.
pub(super) fn nothing_left(folder: &Path) -> bool {
    statvfs(folder).is_ok_and(|found| found.blocks_available() * found.fragment_size() < NOTHING)
}

/// What is said then.
pub(super) fn disk_full(folder: &Path) -> io::Error {
    let text = format!("disk_full: no space is left on the machine, at {}", folder.display());
    io::Error::new(io::ErrorKind::StorageFull, text)
}
