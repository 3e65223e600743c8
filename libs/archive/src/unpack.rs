//! An archive into files, whoever made it.

mod writers;

use crate::{Error, Result, tree::Tree};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{
            FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, mkdirat,
            utimensat,
        },
        time::TimeSpec,
    },
    unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat},
};
use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};
use tar::{Archive, Entry, EntryType};
use writers::{Attributes, SMALL, Whole, Writers};

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// What an archive may hold (security §5.2).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of all files, holes included.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 1_000_000, bytes: 20 << 30 }
    }
}

/// Where entries go.
#[derive(Clone, Debug)]
pub enum Roots {
    /// Below this folder.
    Below(PathBuf),
    /// The first part of a name is a number in this list; what the list says is the file or folder itself.
    Listed(Vec<PathBuf>),
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Unpacks an archive. Files that exist are replaced. Refused are: absolute names and names with `..`; devices, pipes
/// and sockets; entries below a link of the same archive; places that a link on disk leads out of the root to; hard
/// links to what this archive has not unpacked; a name twice as different things; more than the limits. Set-user,
/// set-group and sticky bits are left out, the owner is who unpacks. A symbolic link may point anywhere: it is
/// content, and nothing is ever written through it.
///
/// # Errors
/// After an error nothing is left of what did not exist before.
pub fn unpack<R: Read>(from: R, roots: &Roots, limits: Limits) -> Result<Unpacked> {
    unpack_with(from, roots, limits, &mut |_| Ok(()))
}

/// Like [`unpack`]; `claim` hears of every file and link before it is written, and may refuse it.
///
/// # Errors
/// As [`unpack`], and what `claim` says.
pub fn unpack_with<R: Read>(
    from: R,
    roots: &Roots,
    limits: Limits,
    claim: &mut dyn FnMut(&Path) -> Result<(), String>,
) -> Result<Unpacked> {
    let mut unpacker = Unpacker {
        roots,
        claim,
        limits,
        trees: HashMap::new(),
        seen: HashMap::new(),
        links: HashSet::new(),
        folders: Vec::new(),
        fresh: Vec::new(),
        fresh_set: HashSet::new(),
        done: Unpacked::default(),
        buffer: vec![0; PIECE],
        writers: Writers::default(),
        umask: writers::umask(),
    };
    let result = unpacker.run(from);
    if result.is_err() {
        // What failed is known.
        let _ = unpacker.writers.settle();
        let made = unpacker.writers.take_fresh();
        unpacker.fresh.extend(made);
        unpacker.remove_fresh();
    }
    result.map(|()| unpacker.done)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Folder,
    Link,
}

/// A place: which root, and the path below it; empty: the root itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Spot {
    root: usize,
    path: PathBuf,
}

/// Attributes that are set once all is unpacked, because unpacking changes them.
struct Folder {
    spot: Spot,
    mode: u32,
    time: TimeSpec,
}

struct Unpacker<'a> {
    roots: &'a Roots,
    claim: &'a mut dyn FnMut(&Path) -> Result<(), String>,
    limits: Limits,
    trees: HashMap<usize, Tree>,
    /// Hashes of all names: a million names would not fit.
    seen: HashMap<u64, Kind>,
    links: HashSet<Spot>,
    folders: Vec<Folder>,
    /// What did not exist before, without what is below it.
    fresh: Vec<Spot>,
    fresh_set: HashSet<Spot>,
    done: Unpacked,
    buffer: Vec<u8>,
    writers: Writers,
    umask: u32,
}

fn unsafe_entry(name: &[u8], why: impl Into<String>) -> Error {
    let entry = String::from_utf8_lossy(&name[..name.len().min(300)]).into_owned();
    Error::Unsafe { entry, why: why.into() }
}

impl Unpacker<'_> {
    fn run<R: Read>(&mut self, from: R) -> Result<()> {
        let mut archive = Archive::new(BufReader::with_capacity(PIECE, from));
        for entry in archive.entries()? {
            self.entry(&mut entry?)?;
        }
        self.settle()?;
        for Folder { spot, mode, time } in std::mem::take(&mut self.folders).iter().rev() {
            let folder = self.folder(spot).map_err(|e| self.failed(spot, e))?;
            fchmod(&*folder, Mode::from_bits_truncate(*mode)).map_err(|e| self.failed(spot, e))?;
            futimens(&*folder, &TimeSpec::UTIME_OMIT, time).map_err(|e| self.failed(spot, e))?;
        }
        Ok(())
    }

    /// Waits for files that are under way.
    fn settle(&mut self) -> Result<()> {
        self.writers.settle().map_err(|(spot, e)| self.failed(&spot, e))
    }

    fn failed(&self, spot: &Spot, e: Errno) -> Error {
        let root = match self.roots {
            Roots::Below(root) => Some(root),
            Roots::Listed(roots) => roots.get(spot.root),
        };
        let path = root.map(|root| root.join(&spot.path)).unwrap_or_default().display().to_string();
        if e == Errno::EXDEV || e == Errno::ELOOP {
            return Error::Unsafe { entry: path, why: "a link leads out of the folder".into() };
        }
        Error::File { path, source: e.into() }
    }

    /// Where an entry belongs.
    fn spot(&self, name: &[u8]) -> Result<Spot> {
        let path = Path::new(OsStr::from_bytes(name));
        let mut parts = PathBuf::new();
        for part in path.components() {
            match part {
                Component::Normal(part) => parts.push(part),
                Component::CurDir => {}
                _ => return Err(unsafe_entry(name, "the name is not a relative one without `..`")),
            }
        }
        let Roots::Listed(roots) = self.roots else { return Ok(Spot { root: 0, path: parts }) };
        let mut rest = parts.components();
        let first = rest.next().and_then(|part| part.as_os_str().to_str()?.parse::<usize>().ok());
        match first.filter(|first| *first < roots.len()) {
            Some(root) => Ok(Spot { root, path: rest.as_path().to_owned() }),
            None => Err(unsafe_entry(name, "the name belongs to no path of the cache")),
        }
    }

    fn root_path(&self, root: usize) -> &Path {
        match self.roots {
            Roots::Below(path) => path,
            Roots::Listed(paths) => &paths[root],
        }
    }

    fn is_below_fresh(&self, spot: &Spot) -> bool {
        let mut above = spot.path.ancestors();
        above.any(|above| self.fresh_set.contains(&Spot { root: spot.root, path: above.to_owned() }))
    }

    fn note_fresh(&mut self, spot: Spot) {
        if !self.is_below_fresh(&spot) {
            self.fresh_set.insert(spot.clone());
            self.fresh.push(spot);
        }
    }

    /// The folder at a spot, made when it is missing.
    fn folder(&mut self, spot: &Spot) -> Result<Arc<OwnedFd>, Errno> {
        if !self.trees.contains_key(&spot.root) {
            let opened = Tree::open(self.root_path(spot.root));
            let (tree, made) = opened.map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
            self.trees.insert(spot.root, tree);
            if made {
                self.note_fresh(Spot { root: spot.root, path: PathBuf::new() });
            }
        }
        let mut made = Vec::new();
        let Some(tree) = self.trees.get_mut(&spot.root) else { return Err(Errno::EIO) };
        let folder = tree.folder(&spot.path, &mut |path| made.push(path.to_owned()));
        for path in made {
            self.note_fresh(Spot { root: spot.root, path });
        }
        folder
    }

    /// The folder in which an entry lies, and its name there.
    fn place(&mut self, spot: &Spot) -> Result<(Arc<OwnedFd>, PathBuf), Errno> {
        match spot.path.file_name() {
            Some(name) => {
                let above = spot.path.parent().unwrap_or(Path::new("")).to_owned();
                Ok((self.folder(&Spot { root: spot.root, path: above })?, name.into()))
            }
            // The root itself is a file or a link: its folder is the author's choice.
            None => {
                let path = self.root_path(spot.root);
                let name = path.file_name().ok_or(Errno::EISDIR)?.into();
                let above = path.parent().unwrap_or(Path::new("/"));
                let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
                let (tree, _) =
                    Tree::open(above).map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
                Ok((tree.root(), name))
            }
        }
    }

    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<()> {
        let name = entry.path_bytes().into_owned();
        let spot = self.spot(&name)?;
        self.done.entries += 1;
        if self.done.entries > self.limits.entries {
            return Err(unsafe_entry(&name, format!("more than {} entries", self.limits.entries)));
        }
        let kind = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse | EntryType::Link => Kind::File,
            EntryType::Directory => Kind::Folder,
            EntryType::Symlink => Kind::Link,
            other => return Err(unsafe_entry(&name, format!("{other:?} is neither file, folder nor link"))),
        };
        if !self.links.is_empty() {
            for above in spot.path.ancestors().skip(1) {
                if self.links.contains(&Spot { root: spot.root, path: above.to_owned() }) {
                    return Err(unsafe_entry(&name, "it lies behind a link of the same archive"));
                }
            }
        }
        match self.seen.insert(hash(&spot), kind) {
            Some(before) if before != kind => {
                return Err(unsafe_entry(&name, "it is there twice, as different things"));
            }
            // The later one is to win.
            Some(Kind::File) => self.settle()?,
            _ => {}
        }
        if kind != Kind::Folder {
            (self.claim)(&spot.path).map_err(Error::Refused)?;
        }
        let time = time_of(entry)?;
        let mode = entry.header().mode()? & 0o777;
        match entry.header().entry_type() {
            EntryType::Directory => self.make_folder(spot, mode, time),
            EntryType::Symlink => self.make_symlink(entry, spot, time, &name),
            EntryType::Link => self.make_hard_link(entry, spot, &name),
            _ => self.make_file(entry, spot, mode, time, &name),
        }
    }

    fn make_folder(&mut self, spot: Spot, mode: u32, time: TimeSpec) -> Result<()> {
        if !spot.path.as_os_str().is_empty() {
            let (parent, name) = self.place(&spot).map_err(|e| self.failed(&spot, e))?;
            let failed = |e| self.failed(&spot, e);
            match mkdirat(&*parent, &name, Mode::S_IRWXU) {
                Ok(()) => self.note_fresh(spot.clone()),
                Err(Errno::EEXIST) => {
                    let found = fstatat(&*parent, &name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
                    let kind = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits());
                    if kind != SFlag::S_IFDIR && kind != SFlag::S_IFLNK {
                        unlinkat(&*parent, &name, UnlinkatFlags::NoRemoveDir).map_err(failed)?;
                        mkdirat(&*parent, &name, Mode::S_IRWXU).map_err(failed)?;
                    } else if kind == SFlag::S_IFDIR && found.st_mode & 0o700 != 0o700 {
                        // Its own mode comes back at the end, with the entry's.
                        let open = FchmodatFlags::FollowSymlink;
                        fchmodat(&*parent, &name, Mode::S_IRWXU, open).map_err(failed)?;
                    }
                }
                Err(e) => return Err(failed(e)),
            }
        }
        self.folder(&spot).map_err(|e| self.failed(&spot, e))?;
        self.folders.push(Folder { spot, mode, time });
        Ok(())
    }

    /// Runs `make` where nothing has the name; what had it is removed.
    fn replace<T>(
        &mut self,
        spot: &Spot,
        make: impl Fn(&OwnedFd, &Path) -> Result<T, Errno>,
    ) -> Result<(T, Arc<OwnedFd>, PathBuf)> {
        let (parent, name) = self.place(spot).map_err(|e| self.failed(spot, e))?;
        let (made, new) = writers::replace(&parent, &name, make).map_err(|e| self.failed(spot, e))?;
        if new {
            self.note_fresh(spot.clone());
        }
        Ok((made, parent, name))
    }

    fn make_file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        spot: Spot,
        mode: u32,
        time: TimeSpec,
        name: &[u8],
    ) -> Result<()> {
        self.done.bytes = self.done.bytes.saturating_add(entry.size());
        if self.done.bytes > self.limits.bytes {
            return Err(unsafe_entry(name, format!("more than {} bytes", self.limits.bytes)));
        }
        let attributes = Attributes { mode, time, umask: self.umask };
        let holes = entry.header().entry_type().is_gnu_sparse();
        let (parent, file) = self.place(&spot).map_err(|e| self.failed(&spot, e))?;
        if !holes && entry.size() <= SMALL {
            let mut content = Vec::with_capacity(entry.size() as usize);
            entry.read_to_end(&mut content)?;
            if content.len() as u64 != entry.size() {
                return Err(Error::Stream(io::ErrorKind::UnexpectedEof.into()));
            }
            let below_fresh = self.is_below_fresh(&spot);
            let whole = Whole { parent, name: file, spot, attributes, content, below_fresh };
            return self.writers.make(whole).map_err(|(spot, e)| self.failed(&spot, e));
        }
        let (mut made, new) =
            writers::create(&parent, &file, attributes).map_err(|e| self.failed(&spot, e))?;
        if new {
            self.note_fresh(spot.clone());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let copied = copy(entry, &mut made, &mut buffer, holes);
        self.buffer = buffer;
        copied?;
        writers::finish(&made, attributes).map_err(|e| self.failed(&spot, e))
    }

    fn make_symlink<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        spot: Spot,
        time: TimeSpec,
        name: &[u8],
    ) -> Result<()> {
        let target = entry.link_name_bytes().ok_or_else(|| unsafe_entry(name, "a link to nothing"))?;
        let target = PathBuf::from(OsStr::from_bytes(&target));
        let (_, parent, file) =
            self.replace(&spot, |parent, file| symlinkat(target.as_path(), parent, file))?;
        // Not every file system has times of links.
        let _ = utimensat(&*parent, &file, &TimeSpec::UTIME_OMIT, &time, UtimensatFlags::NoFollowSymlink);
        self.links.insert(spot);
        Ok(())
    }

    fn make_hard_link<R: Read>(&mut self, entry: &mut Entry<'_, R>, spot: Spot, name: &[u8]) -> Result<()> {
        let target = entry.link_name_bytes().ok_or_else(|| unsafe_entry(name, "a link to nothing"))?;
        let target = self.spot(&target)?;
        if self.seen.get(&hash(&target)) != Some(&Kind::File) {
            return Err(unsafe_entry(name, "a hard link to what the archive has not unpacked"));
        }
        self.settle()?;
        let (folder, file) = self.place(&target).map_err(|e| self.failed(&target, e))?;
        self.replace(&spot, |parent, link| linkat(&*folder, &file, parent, link, AtFlags::empty()))?;
        Ok(())
    }

    /// After a failure: nothing stays that was not there before.
    fn remove_fresh(&mut self) {
        for spot in std::mem::take(&mut self.fresh).into_iter().rev() {
            let Ok((parent, name)) = self.place(&spot) else { continue };
            let _ = remove(&parent, &name);
        }
    }
}

/// Removes a tree without following a link.
fn remove(parent: &OwnedFd, name: &Path) -> Result<(), Errno> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR | Errno::EPERM) => {}
        removed => return removed,
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = openat(parent, name, flags, Mode::empty())?;
    let _ = fchmod(&folder, Mode::S_IRWXU);
    let listed = folder.try_clone().map_err(|_| Errno::EMFILE)?;
    let names: Vec<PathBuf> = Dir::from_fd(listed)?
        .iter()
        .flatten()
        .map(|entry| PathBuf::from(OsStr::from_bytes(entry.file_name().to_bytes())))
        .filter(|name| name.as_os_str() != "." && name.as_os_str() != "..")
        .collect();
    for inner in names {
        remove(&folder, &inner)?;
    }
    unlinkat(parent, name, UnlinkatFlags::RemoveDir)
}

fn hash(spot: &Spot) -> u64 {
    let mut hasher = DefaultHasher::new();
    spot.hash(&mut hasher);
    hasher.finish()
}

/// The entry's time: of the extension, or of the header.
fn time_of<R: Read>(entry: &mut Entry<'_, R>) -> Result<TimeSpec> {
    let mut exact = None;
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if extension.key_bytes() == b"mtime" {
                exact = extension.value().ok().and_then(parse_time);
            }
        }
    }
    let whole = i64::try_from(entry.header().mtime()?).unwrap_or_default();
    Ok(exact.unwrap_or(TimeSpec::new(whole, 0)))
}

/// Seconds with up to nine decimals, perhaps negative.
fn parse_time(text: &str) -> Option<TimeSpec> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (seconds, parts) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    let parts: String = parts.chars().chain("000000000".chars()).take(9).collect();
    let nanos: i64 = parts.parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) => TimeSpec::new(seconds, nanos),
        (true, 0) => TimeSpec::new(-seconds, 0),
        (true, _) => TimeSpec::new(-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// Copies contents; where the archive knows of holes, blocks of zeros become holes again.
fn copy(from: &mut impl Read, file: &mut File, buffer: &mut [u8], holes: bool) -> io::Result<()> {
    let mut length = 0u64;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match from.read(&mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        let piece = &buffer[..filled];
        if piece.is_empty() {
            break;
        }
        length += filled as u64;
        if holes {
            for block in piece.chunks(4096) {
                if block.iter().all(|byte| *byte == 0) {
                    file.seek(SeekFrom::Current(i64::try_from(block.len()).map_err(io::Error::other)?))?;
                } else {
                    file.write_all(block)?;
                }
            }
        } else {
            file.write_all(piece)?;
        }
    }
    if holes {
        file.set_len(length)?;
    }
    Ok(())
}
