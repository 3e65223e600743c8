//! Files as a stream and back: tar, cut into chunks by content, each chunk compressed with zstd. Blocking and without
//! a network: the agent moves the bytes, its helper inside the task's environment packs and unpacks.
//!
//! - [`pack`] writes names, modes, times to the nanosecond, links, holes and empty folders, always in the same order,
//!   so that the same files give the same bytes.
//! - [`unpack`] trusts nothing that it reads: see there for what it refuses (security §9.3).
//! - [`Cutter`] cuts where the content says, so that a small change leaves most chunks as they were.
//! - [`frames`] carry an archive and a last word through a pipe, so that a stream that broke off is not taken for a
//!   short one.

mod chunk;
pub mod frames;
mod pack;
mod tree;
mod unpack;

pub use chunk::{Cutter, MAX_CHUNK, compress, decompress, sha256};
pub use pack::{Packed, Source, pack};
pub use unpack::{Limits, Roots, Unpacked, unpack, unpack_with};

/// Why an archive was not packed or not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive holds what no archive of ours does; nothing of it is left on disk.
    #[error("unsafe archive: {entry}: {why}")]
    Unsafe {
        /// Name of the entry.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// Who asked for it does not want this entry.
    #[error("{0}")]
    Refused(String),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The stream broke off, or is no archive.
    #[error("the archive cannot be read or written: {0}")]
    Stream(#[from] std::io::Error),
}

/// The result of an operation on archives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reads the files of a small archive one after another, without writing any.
///
/// # Errors
/// The stream breaks off or is no archive.
pub fn each_file<R: std::io::Read>(from: R, mut each: impl FnMut(&str, &[u8])) -> Result<()> {
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content)?;
            each(&name, &content);
        }
    }
    Ok(())
}
