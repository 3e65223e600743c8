//! One cgroup (v2) per placement, where the machine lets us make one: `cgroup.kill` ends a whole tree without
//! a race, whatever its processes did to their sessions and parents.

use crate::FOLDER;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// After how long an empty group is nobody's.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The folder below which placements get their cgroups.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// Finds a v2 hierarchy that we may write, alone or beside v1.
    pub fn find() -> Option<Self> {
        ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].iter().map(Path::new).find_map(|root| {
            if !root.join("cgroup.controllers").exists() {
                return None;
            }
            let ours = root.join(FOLDER);
            match fs::create_dir(&ours) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
                _ => {}
            }
            // Without `cgroup.kill` (kernel below 5.14) the group would only be a name.
            let usable = ours.join("cgroup.kill").exists() && writable(&ours.join("cgroup.procs"));
            usable.then_some(Self(ours))
        })
    }

    /// Removes groups that servers which came to a sudden end, with their data folders, have left. A young one may be
    /// another server's, made and not filled yet; one with processes is somebody's.
    pub fn sweep(&self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let data = entry.metadata();
            let old = data.as_ref().is_ok_and(|data| {
                data.is_dir() && data.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ABANDONED))
            });
            if old && empty(&entry.path()).unwrap_or(false) {
                remove(&entry.path());
            }
        }
    }

    /// The cgroup of a placement; it need not exist.
    pub fn of(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

fn writable(path: &Path) -> bool {
    fs::OpenOptions::new().write(true).open(path).is_ok()
}

/// Makes the group. The agent will write itself to its list of processes, which must be possible.
///
/// # Errors
/// It cannot be made, or not be entered.
pub fn create(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::OpenOptions::new().write(true).open(group.join("cgroup.procs")).map(drop)
}

/// Kills everything in the group and below; returns whether it is empty before the limit.
///
/// # Errors
/// The kernel refused.
pub async fn kill(group: &Path, limit: Duration) -> io::Result<bool> {
    let asked = Instant::now();
    loop {
        match fs::write(group.join("cgroup.kill"), "1") {
            Err(error) if gone(&error) => return Ok(true),
            result => result?,
        }
        if empty(group)? {
            return Ok(true);
        }
        if asked.elapsed() > limit {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn empty(group: &Path) -> io::Result<bool> {
    match fs::read_to_string(group.join("cgroup.events")) {
        Err(error) if gone(&error) => Ok(true),
        result => Ok(result?.lines().any(|line| line == "populated 0")),
    }
}

/// Removes the empty group with what an agent made below it.
pub fn remove(group: &Path) {
    if let Ok(entries) = fs::read_dir(group) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
    }
    // A group that is not empty yet is removed by a later sweep.
    let _ = fs::remove_dir(group);
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}
