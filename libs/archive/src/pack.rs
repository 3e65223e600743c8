//! Files into an archive.

use crate::{Error, Result};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstatat},
};
use std::{
    collections::{HashMap, HashSet},
    ffi::{CString, OsStr},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};
use tar::{Builder, EntryType, Header};

/// Deepest nesting of folders: each level holds a file descriptor.
const MAX_DEPTH: usize = 500;
/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;
/// So many of the files that were left out are named.
const NAMED: usize = 100;

/// Something to be packed.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its name in the archive: relative, without `..`.
    pub name: PathBuf,
    /// Where it is.
    pub path: PathBuf,
}

/// What was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of the files' contents, without their holes.
    pub bytes: u64,
    /// What was left out and why: sockets, devices, files that vanished or may not be read. The first hundred.
    pub skipped: Vec<(String, String)>,
}

/// Packs files and folders with all that is in them. A source below an earlier one is in it already. A source that
/// does not exist is an error: the caller looks before.
///
/// # Errors
/// A source cannot be read, or the stream does not take more.
pub fn pack<W: Write>(out: W, sources: &[Source]) -> Result<Packed> {
    let mut packer = Packer {
        out: Builder::new(out),
        links: HashMap::new(),
        packed: Packed::default(),
        buffer: vec![0; BUFFER],
    };
    let mut names: HashSet<&Path> = HashSet::new();
    for source in sources {
        if source.name.ancestors().any(|above| names.contains(above)) {
            continue;
        }
        names.insert(&source.name);
        let parent = source.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(if source.path.is_absolute() { "/" } else { "." }));
        let failed = |source_error: Errno| Error::File {
            path: source.path.display().to_string(),
            source: source_error.into(),
        };
        let folder =
            nix::fcntl::open(parent, FOLDER.difference(OFlag::O_NOFOLLOW), Mode::empty()).map_err(failed)?;
        let name = source.path.file_name().unwrap_or(OsStr::new("."));
        let name = CString::new(name.as_bytes()).map_err(|_| failed(Errno::EINVAL))?;
        // A source that is a link to a folder is that folder: its author named it.
        let stat = fstatat(&folder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
        let behind = fstatat(&folder, name.as_c_str(), AtFlags::empty());
        match behind {
            Ok(behind) if kind(&behind) == SFlag::S_IFDIR => {
                let flags = FOLDER.difference(OFlag::O_NOFOLLOW);
                let inner = openat(&folder, name.as_c_str(), flags, Mode::empty()).map_err(failed)?;
                packer.folder(inner, &behind, &source.name, 0)?;
            }
            _ => packer.entry(&folder, &name, &stat, &source.name, 0)?,
        }
    }
    packer.out.into_inner()?.flush()?;
    Ok(packer.packed)
}

const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

struct Packer<W: Write> {
    out: Builder<W>,
    /// Files with several names: device and number, and the first name.
    links: HashMap<(u64, u64), PathBuf>,
    packed: Packed,
    buffer: Vec<u8>,
}

impl<W: Write> Packer<W> {
    fn skip(&mut self, name: &Path, why: impl ToString) -> Result<()> {
        if self.packed.skipped.len() < NAMED {
            self.packed.skipped.push((name.display().to_string(), why.to_string()));
        }
        Ok(())
    }

    fn entry(
        &mut self,
        folder: &OwnedFd,
        file: &CString,
        stat: &FileStat,
        name: &Path,
        depth: usize,
    ) -> Result<()> {
        let opened = |flags| openat(folder, file.as_c_str(), flags | OFlag::O_CLOEXEC, Mode::empty());
        match kind(stat) {
            SFlag::S_IFDIR => match opened(FOLDER) {
                Ok(inner) => self.folder(inner, stat, name, depth),
                Err(e) => self.skip(name, e),
            },
            SFlag::S_IFLNK => match readlinkat(folder, file.as_c_str()) {
                Ok(target) => self.link(EntryType::Symlink, stat, name, Path::new(&target)),
                Err(e) => self.skip(name, e),
            },
            SFlag::S_IFREG => {
                let id = (stat.st_dev, stat.st_ino);
                if stat.st_nlink > 1 {
                    if let Some(first) = self.links.get(&id).cloned() {
                        return self.link(EntryType::Link, stat, name, &first);
                    }
                    self.links.insert(id, name.to_owned());
                }
                // Not blocking: meanwhile it may have become a pipe.
                match opened(OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK) {
                    Ok(file) => self.file(File::from(file), name),
                    Err(e) => {
                        self.links.remove(&id);
                        self.skip(name, e)
                    }
                }
            }
            _ => self.skip(name, "neither a file, a folder nor a link"),
        }
    }

    fn folder(&mut self, folder: OwnedFd, stat: &FileStat, name: &Path, depth: usize) -> Result<()> {
        if depth == MAX_DEPTH {
            return self.skip(name, format!("folders are nested deeper than {MAX_DEPTH}"));
        }
        let mut header = self.header(EntryType::Directory, stat)?;
        self.out.append_data(&mut header, name, io::empty())?;
        self.packed.entries += 1;
        let failed = |e: Errno| Error::File { path: name.display().to_string(), source: e.into() };
        let mut names = Vec::new();
        let mut listed = Dir::from_fd(folder.try_clone()?).map_err(failed)?;
        for entry in listed.iter() {
            let entry = entry.map_err(failed)?.file_name().to_owned();
            if entry.to_bytes() != b"." && entry.to_bytes() != b".." {
                names.push(entry);
            }
        }
        drop(listed);
        // The same files are the same bytes, whatever order the file system has.
        names.sort_unstable();
        for entry in names {
            let inner = name.join(OsStr::from_bytes(entry.to_bytes()));
            match fstatat(&folder, entry.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => self.entry(&folder, &entry, &stat, &inner, depth + 1)?,
                Err(e) => self.skip(&inner, e)?,
            }
        }
        Ok(())
    }

    fn file(&mut self, mut file: File, name: &Path) -> Result<()> {
        let stat = nix::sys::stat::fstat(file.as_fd()).map_err(io::Error::from)?;
        if kind(&stat) != SFlag::S_IFREG {
            return self.skip(name, "it changed while it was packed");
        }
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let stored = u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512);
        if stored < size {
            self.time(&stat)?;
            self.out.append_file(name, &mut file)?;
        } else {
            let mut header = self.header(EntryType::Regular, &stat)?;
            header.set_size(size);
            let mut content = Exactly { from: file, left: size };
            if size <= self.buffer.len() as u64 {
                // At once: most files are small, and each system call counts.
                let content_of = &mut self.buffer[..size as usize];
                content.read_exact(content_of)?;
                self.out.append_data(&mut header, name, &*content_of)?;
            } else {
                self.out.append_data(&mut header, name, io::BufReader::with_capacity(BUFFER, content))?;
            }
        }
        self.packed.entries += 1;
        self.packed.bytes += size.min(stored);
        Ok(())
    }

    fn link(&mut self, kind: EntryType, stat: &FileStat, name: &Path, target: &Path) -> Result<()> {
        let mut header = self.header(kind, stat)?;
        let bytes = target.as_os_str().as_bytes();
        // As it is: a path that is put together from its parts would lose what links may hold.
        if header.set_link_name_literal(bytes).is_ok() {
            self.out.append_data(&mut header, name, io::empty())?;
        } else {
            self.out.append_link(&mut header, name, target)?;
        }
        self.packed.entries += 1;
        Ok(())
    }

    fn header(&mut self, kind: EntryType, stat: &FileStat) -> Result<Header> {
        self.time(stat)?;
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
        header.set_size(0);
        Ok(header)
    }

    /// What a header has no place for: parts of a second, and times before 1970.
    fn time(&mut self, stat: &FileStat) -> Result<()> {
        if stat.st_mtime_nsec != 0 || stat.st_mtime < 0 {
            // Before 1970 the parts count back from zero, as decimals do.
            let total = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
            let sign = if total < 0 { "-" } else { "" };
            let (seconds, nanos) =
                (total.unsigned_abs() / 1_000_000_000, total.unsigned_abs() % 1_000_000_000);
            let text = format!("{sign}{seconds}.{nanos:09}");
            self.out.append_pax_extensions([("mtime", text.as_bytes())])?;
        }
        Ok(())
    }
}

/// So many bytes, whatever becomes of the file meanwhile: what it lost is zeros, what it gained is left out.
struct Exactly {
    from: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let mut read = self.from.read(&mut buffer[..wanted])?;
        if read == 0 {
            buffer[..wanted].fill(0);
            read = wanted;
        }
        self.left -= read as u64;
        Ok(read)
    }
}
