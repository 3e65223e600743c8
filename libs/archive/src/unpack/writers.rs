//! Files are made by several threads: most are small, and what a small one costs is system calls.

use super::Spot;
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::{
        stat::{Mode, fchmod, futimens},
        time::TimeSpec,
    },
    unistd::{UnlinkatFlags, unlinkat},
};
use std::{
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

/// Largest content that is handed over: it waits in memory.
pub(super) const SMALL: u64 = 64 << 10;
/// Files that wait for one thread: more than a usual folder has, so that the other threads get some.
const LANE: usize = 256;
/// Threads at most; and how many files make it worth to start them.
const THREADS: usize = 4;
const MANY: usize = 64;

/// How a file is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) time: TimeSpec,
    /// What the process takes from the modes of its files; all of it when that is not known.
    pub(super) umask: u32,
}

/// A file with its content.
pub(super) struct Whole {
    pub(super) parent: Arc<OwnedFd>,
    pub(super) name: PathBuf,
    pub(super) spot: Spot,
    pub(super) attributes: Attributes,
    pub(super) content: Vec<u8>,
    /// Whether its folder did not exist before: then it goes with that.
    pub(super) below_fresh: bool,
}

impl Whole {
    /// Fills it and gives it its attributes.
    fn fill(&self, mut file: File) -> Result<(), Errno> {
        file.write_all(&self.content).map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        finish(&file, self.attributes)
    }
}

/// Runs `make` where nothing has the name; what had it is removed. Whether nothing had it.
pub(super) fn replace<T>(
    parent: &OwnedFd,
    name: &Path,
    make: impl Fn(&OwnedFd, &Path) -> Result<T, Errno>,
) -> Result<(T, bool), Errno> {
    match make(parent, name) {
        Err(Errno::EEXIST) => {
            unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
            Ok((make(parent, name)?, false))
        }
        made => Ok((made?, true)),
    }
}

/// An empty file to be filled, and whether nothing had its name.
pub(super) fn create(parent: &OwnedFd, name: &Path, attributes: Attributes) -> Result<(File, bool), Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = if attributes.born_with_mode() { attributes.mode } else { 0o600 };
    let mode = Mode::from_bits_truncate(mode);
    let (file, new) = replace(parent, name, |parent, name| openat(parent, name, flags, mode))?;
    Ok((File::from(file), new))
}

/// Gives a filled file what filling it would change.
pub(super) fn finish(file: &File, attributes: Attributes) -> Result<(), Errno> {
    if !attributes.born_with_mode() {
        fchmod(file.as_fd(), Mode::from_bits_truncate(attributes.mode))?;
    }
    futimens(file.as_fd(), &TimeSpec::UTIME_OMIT, &attributes.time)
}

impl Attributes {
    /// Whether the mode can be given at the making of the file, which saves a system call.
    fn born_with_mode(self) -> bool {
        self.mode & self.umask == 0
    }
}

/// What this process takes from the modes of its files; all of it when the system does not say.
pub(super) fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let said = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    said.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777)
}

enum Job {
    Make(Whole),
    /// Says that all before it is done.
    Mark(SyncSender<()>),
}

#[derive(Default)]
struct Shared {
    failed: AtomicBool,
    /// The first failure.
    failure: Mutex<Option<(Spot, Errno)>>,
    fresh: Mutex<Vec<Spot>>,
}

impl Shared {
    fn make(&self, file: Whole) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        let made = create(&file.parent, &file.name, file.attributes).and_then(|(made, new)| {
            if new && !file.below_fresh {
                lock(&self.fresh).push(file.spot.clone());
            }
            file.fill(made)
        });
        if let Err(e) = made {
            lock(&self.failure).get_or_insert((file.spot, e));
            self.failed.store(true, Ordering::Relaxed);
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads. Files of one folder are made in their order, by one thread.
#[derive(Default)]
pub(super) struct Writers {
    shared: Arc<Shared>,
    lanes: Vec<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    taken: usize,
    /// Whether something may be under way.
    busy: bool,
}

impl Writers {
    /// Has a file made, now or soon.
    ///
    /// # Errors
    /// An earlier one could not be made: which, and why.
    pub(super) fn make(&mut self, file: Whole) -> Result<(), (Spot, Errno)> {
        self.taken += 1;
        if self.taken == MANY {
            self.start();
        }
        if self.lanes.is_empty() {
            self.shared.make(file);
            return self.failure();
        }
        let mut hasher = DefaultHasher::new();
        (file.spot.root, file.spot.path.parent()).hash(&mut hasher);
        let lane = hasher.finish() as usize % self.lanes.len();
        self.busy = true;
        if self.lanes[lane].send(Job::Make(file)).is_err() {
            return Err((Spot::default(), Errno::EIO));
        }
        self.failure()
    }

    /// Waits until all files are made.
    ///
    /// # Errors
    /// One could not be made: which, and why.
    pub(super) fn settle(&mut self) -> Result<(), (Spot, Errno)> {
        if std::mem::take(&mut self.busy) {
            let (done, marks) = sync_channel(self.lanes.len());
            for lane in &self.lanes {
                // A thread that is gone has nothing under way.
                let _ = lane.send(Job::Mark(done.clone()));
            }
            drop(done);
            while marks.recv().is_ok() {}
        }
        self.failure()
    }

    /// What did not exist before, of all that was settled.
    pub(super) fn take_fresh(&self) -> Vec<Spot> {
        std::mem::take(&mut lock(&self.shared.fresh))
    }

    fn failure(&self) -> Result<(), (Spot, Errno)> {
        if !self.shared.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let first = lock(&self.shared.failure).clone();
        first.map_or(Ok(()), Err)
    }

    /// Where threads cannot be had, files are made as they come.
    fn start(&mut self) {
        let count = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
        for _ in 0..count {
            let (lane, jobs) = sync_channel(LANE);
            let shared = Arc::clone(&self.shared);
            let work = move || {
                for job in jobs {
                    match job {
                        Job::Make(file) => shared.make(file),
                        Job::Mark(done) => drop(done.send(())),
                    }
                }
            };
            let Ok(thread) = thread::Builder::new().name("unpack".into()).spawn(work) else { return };
            self.lanes.push(lane);
            self.threads.push(thread);
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.lanes.clear();
        for thread in self.threads.drain(..) {
            // One that panicked left what it had: the next settle said so.
            let _ = thread.join();
        }
    }
}
