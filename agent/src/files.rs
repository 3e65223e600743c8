//! The helper inside a task's environment: what the agent has done to files there, as the user of the steps, on the
//! machine and in containers alike. One request as an argument, bytes over standard input and output in frames
//! ([`archive::frames`]), what people are to read on standard error.

pub(crate) mod glob;
mod list;
pub(crate) mod results;

use agent_api::stores::PART;
use archive::{Limits, Roots, Source, frames};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

pub(crate) use list::{Artifact, Report};

/// The argument that makes this program the helper.
pub const NAME: &str = "__files";
/// Longest answer in bytes: five thousand artifacts with long paths.
pub(crate) const MAX_ANSWER: u64 = 32 << 20;

/// What the helper is asked for. Paths are absolute.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// SHA-256 of files. Answer: a `Result<String, String>` each.
    Checksums { files: Vec<PathBuf> },
    /// Sends an archive of these paths, whose names begin with their place in the list. Answer: [`Packed`].
    PackCache { paths: Vec<PathBuf> },
    /// Sends an archive of what the globs match below `root`. Answer: [`Packed`].
    PackWorkspace { root: PathBuf, globs: Vec<String> },
    /// Unpacks the archive that it is sent. Answer: `()`.
    UnpackCache { roots: Vec<PathBuf> },
    /// Unpacks one archive per layer, one stream of frames after another. `after` says for each which earlier ones
    /// it may overwrite. Answer: `()`.
    UnpackLayers { root: PathBuf, after: Vec<Vec<usize>> },
    /// Finds the files of an artifacts step. Answer: a list of [`Artifact`].
    ListArtifacts { path: PathBuf, written: String, destination: Option<String>, home: PathBuf },
    /// Sends the first bytes of these files, exactly as many as said. Answer: `()`.
    Send { files: Vec<(PathBuf, u64)> },
    /// Sends an archive of all JUnit files. Answer: a list of [`Report`].
    PackReports { path: PathBuf },
}

/// What was packed.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Packed {
    /// Files, folders and links.
    pub(crate) entries: u64,
    /// Places of paths that exist.
    pub(crate) found: Vec<usize>,
}

/// Why the helper could not do it, for the step's output.
type Failed = String;

/// Runs the helper; the exit code is 0 when the answer was given.
pub fn main(request: &str) -> i32 {
    let ask: Ask = match serde_json::from_str(request) {
        Ok(ask) => ask,
        Err(e) => return fail(&format!("the request cannot be read: {e}")),
    };
    let out = frames::Writer::new(io::stdout().lock());
    match answer(ask, out) {
        Ok(()) => 0,
        Err(e) => fail(&e),
    }
}

fn fail(message: &str) -> i32 {
    eprintln!("{message}");
    1
}

fn text(e: impl ToString) -> Failed {
    e.to_string()
}

fn answer<W: Write>(ask: Ask, mut out: frames::Writer<W>) -> Result<(), Failed> {
    let word = match ask {
        Ask::Checksums { files } => {
            let sums: Vec<Result<String, String>> = files.iter().map(|file| checksum(file)).collect();
            serde_json::to_vec(&sums)
        }
        Ask::PackCache { paths } => {
            let mut sources = Vec::new();
            let mut found = Vec::new();
            for (place, path) in paths.into_iter().enumerate() {
                if path.symlink_metadata().is_ok() {
                    found.push(place);
                    sources.push(Source { name: place.to_string().into(), path });
                }
            }
            serde_json::to_vec(&pack(&mut out, &sources, found)?)
        }
        Ask::PackWorkspace { root, globs } => {
            let sources = workspace(&root, &globs)?;
            serde_json::to_vec(&pack(&mut out, &sources, Vec::new())?)
        }
        Ask::UnpackCache { roots } => {
            let from = frames::Reader::new(io::stdin().lock());
            archive::unpack(from, &Roots::Listed(roots), Limits::default()).map_err(text)?;
            serde_json::to_vec(&())
        }
        Ask::UnpackLayers { root, after } => {
            unpack_layers(&root, &after)?;
            serde_json::to_vec(&())
        }
        Ask::ListArtifacts { path, written, destination, home } => {
            serde_json::to_vec(&list::artifacts(&path, &written, destination.as_deref(), &home)?)
        }
        Ask::Send { files } => {
            for (path, size) in files {
                send(&path, size, &mut out)?;
            }
            serde_json::to_vec(&())
        }
        Ask::PackReports { path } => {
            let (reports, sources) = list::reports(&path)?;
            pack(&mut out, &sources, Vec::new())?;
            serde_json::to_vec(&reports)
        }
    };
    out.finish(&word.map_err(text)?).map(drop).map_err(text)
}

fn checksum(path: &Path) -> Result<String, String> {
    let mut whole = sha256();
    read(path, |bytes| whole.update(bytes))?;
    Ok(hex::encode(whole.finish()))
}

/// SHA-256 (hex) of a file, and of each of its parts as a large artifact is cut.
fn checksums(path: &Path) -> Result<(String, Vec<String>), String> {
    let (mut whole, mut part, mut length) = (sha256(), sha256(), 0);
    let mut parts = Vec::new();
    read(path, |mut bytes| {
        whole.update(bytes);
        while !bytes.is_empty() {
            let room = usize::try_from(PART - length).unwrap_or(usize::MAX);
            let (of_this, rest) = bytes.split_at(room.min(bytes.len()));
            part.update(of_this);
            length += of_this.len() as u64;
            if length == PART {
                parts.push(hex::encode(std::mem::replace(&mut part, sha256()).finish()));
                length = 0;
            }
            bytes = rest;
        }
    })?;
    if length > 0 {
        parts.push(hex::encode(part.finish()));
    }
    Ok((hex::encode(whole.finish()), parts))
}

fn sha256() -> aws_lc_rs::digest::Context {
    aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256)
}

/// All bytes of a file, some at a time.
fn read(path: &Path, mut take: impl FnMut(&[u8])) -> Result<(), String> {
    let failed = |e: io::Error| format!("open {}: {}", path.display(), go_error(&e));
    let mut file = File::open(path).map_err(failed)?;
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(()),
            n => take(&buffer[..n]),
        }
    }
}

/// The operating system's words as Go has them: scripts look for them.
fn go_error(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::NotFound => "no such file or directory".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::IsADirectory => "is a directory".into(),
        _ => e.to_string(),
    }
}

fn pack<W: Write>(out: &mut W, sources: &[Source], found: Vec<usize>) -> Result<Packed, Failed> {
    if sources.is_empty() {
        return Ok(Packed::default());
    }
    let packed = archive::pack(out, sources).map_err(text)?;
    for (name, why) in &packed.skipped {
        eprintln!("Left out {name}: {why}");
    }
    Ok(Packed { entries: packed.entries, found })
}

fn workspace(root: &Path, globs: &[String]) -> Result<Vec<Source>, Failed> {
    let meta = std::fs::metadata(root).map_err(|e| {
        format!("Error locating workspace root directory: stat {}: {}", root.display(), go_error(&e))
    })?;
    if !meta.is_dir() {
        return Err(format!(
            "Error locating workspace root directory: {} is not a directory",
            root.display()
        ));
    }
    let mut sources: Vec<Source> = Vec::new();
    for pattern in globs {
        // Joined to the root, as a path: one that begins with a slash is below the root too (execution §16).
        for name in glob::expand(root, pattern.trim_start_matches('/'), glob::Syntax::Plain)? {
            if name == Path::new(".") {
                // All that is in the root; the root itself is where each job wants it.
                let entries = std::fs::read_dir(root).map_err(text)?.flatten();
                sources.extend(
                    entries.map(|entry| Source { name: entry.file_name().into(), path: entry.path() }),
                );
            } else {
                let path = root.join(&name);
                sources.push(Source { name, path });
            }
        }
    }
    if sources.is_empty() {
        return Err(format!("The specified paths did not match any files in {}", root.display()));
    }
    // A folder before what is in it, so that nothing is packed twice.
    sources.sort_by_cached_key(|source| (source.name.components().count(), source.name.clone()));
    Ok(sources)
}

/// Unpacks layers in their order; a file of two layers of which neither follows the other is a conflict.
fn unpack_layers(root: &Path, after: &[Vec<usize>]) -> Result<(), Failed> {
    let mut owners: HashMap<u64, usize> = HashMap::new();
    let mut stdin = io::stdin().lock();
    for (layer, after) in after.iter().enumerate() {
        let mut claim = |name: &Path| -> Result<(), String> {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            match owners.insert(hasher.finish(), layer) {
                Some(owner) if owner != layer && !after.contains(&owner) => {
                    Err("Concurrent upstream jobs persisted the same file(s)".to_owned())
                }
                _ => Ok(()),
            }
        };
        let mut from = frames::Reader::new(&mut stdin);
        archive::unpack_with(&mut from, &Roots::Below(root.to_owned()), Limits::default(), &mut claim)
            .map_err(text)?;
        // Whatever an archive has behind its end.
        io::copy(&mut from, &mut io::sink()).map_err(text)?;
    }
    Ok(())
}

/// Sends exactly so many bytes: what a file lost meanwhile is zeros, and its digest tells.
fn send<W: Write>(path: &Path, size: u64, out: &mut W) -> Result<(), Failed> {
    let failed = |e: io::Error| format!("{}: {}", path.display(), go_error(&e));
    let file = File::open(path).map_err(failed)?;
    let sent = io::copy(&mut file.take(size), out).map_err(failed)?;
    io::copy(&mut io::repeat(0).take(size - sent), out).map_err(text)?;
    Ok(())
}
