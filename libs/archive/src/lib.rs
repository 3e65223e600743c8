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
pub use unpack::{Limits, Roots, Unpacked, unpack};

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
