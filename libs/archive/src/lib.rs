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

pub use chunk::{Cutter, MAX_CHUNK, compress, decompress, is_named, name, sha256};
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

/// Copies a small archive of files, their names and contents changed on the way; whatever is no file stays behind.
///
/// # Errors
/// The stream breaks off or is no archive, or `to` takes no more.
pub fn change_files<R: std::io::Read, W: std::io::Write>(
    from: R,
    to: W,
    mut change: impl FnMut(&[u8]) -> Vec<u8>,
) -> Result<W> {
    let mut changed = tar::Builder::new(to);
    let mut failed = None;
    each_file(from, |name, content| {
        let (name, content) = (change(name.as_bytes()), change(content));
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        let name = String::from_utf8_lossy(&name).into_owned();
        if failed.is_none()
            && let Err(error) = changed.append_data(&mut header, name, content.as_slice())
        {
            failed = Some(error);
        }
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(changed.into_inner()?),
    }
}

#[cfg(test)]
mod tests {
    use super::{Source, change_files, each_file, pack};

    #[test]
    fn files_are_copied_with_what_is_changed_in_them() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a-secret.xml"), "<x name=\"secret\"/>").unwrap();
        std::fs::write(folder.path().join("b.xml"), "").unwrap();
        let mut packed = Vec::new();
        let source = Source { name: "reports".into(), path: folder.path().to_owned() };
        pack(&mut packed, &[source]).unwrap();
        let hide =
            |bytes: &[u8]| String::from_utf8_lossy(bytes).replace("secret", "hidden-from-all").into_bytes();
        let changed = change_files(packed.as_slice(), Vec::new(), hide).unwrap();
        let mut found = Vec::new();
        each_file(changed.as_slice(), |name, content| {
            found.push((name.to_owned(), String::from_utf8_lossy(content).into_owned()));
        })
        .unwrap();
        found.sort();
        let first = ("reports/a-hidden-from-all.xml".to_owned(), "<x name=\"hidden-from-all\"/>".to_owned());
        assert_eq!(found, [first, ("reports/b.xml".to_owned(), String::new())]);
    }
}
