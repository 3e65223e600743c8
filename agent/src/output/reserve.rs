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

/// A file that is in nobody's way, in the folder of the task's output.
pub(super) struct Reserve {
    folder: PathBuf,
}

impl Reserve {
    /// Takes the room. A disk that has none now will say so at the first output.
    pub(super) fn make(folder: &Path) -> Self {
        let reserve = Self { folder: folder.to_owned() };
        let made = File::create(reserve.file()).and_then(|file| Ok(posix_fallocate(file, 0, BYTES)?));
        if let Err(error) = made {
            tracing::warn!(%error, "no room is kept for the end of the task");
        }
        reserve
    }

    fn file(&self) -> PathBuf {
        self.folder.join("reserve")
    }

    /// Gives it away; whether there was some.
    pub(super) fn release(&self) -> bool {
        fs::remove_file(self.file()).is_ok()
    }

    /// Whether nothing is left beside it.
    pub(super) fn is_last(&self) -> bool {
        statvfs(&self.folder).is_ok_and(|found| found.blocks_available() * found.fragment_size() < NOTHING)
    }

    /// What is said then.
    pub(super) fn disk_full(&self) -> io::Error {
        let text = format!("disk_full: no space is left on the machine, at {}", self.folder.display());
        io::Error::new(io::ErrorKind::StorageFull, text)
    }
}

/// A write failed for want of room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
