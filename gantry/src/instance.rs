//! `instance.json`: who runs on a data folder, and where it listens.

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// An instance that was told to stop has ended within this (outside §1: 10 s).
const PATIENCE: Duration = Duration::from_secs(12);

/// What a running instance says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Instance {
    /// Process id.
    pub pid: u32,
    /// Public address.
    pub url: String,
    /// Address that agents of this machine use.
    pub agents: String,
    /// Address in clear for programs of this machine, where the public one speaks TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal: Option<String>,
    /// Certificate that clients of this machine must trust besides the usual authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
}

impl Instance {
    /// Reads the file; a torn or missing one is nobody.
    pub fn read(data: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(data.join("instance.json")).ok()?).ok()
    }

    /// The instance that runs on a data folder: one holds the folder, and its file can be read. A file that a
    /// crash left behind speaks of nobody.
    pub fn running(data: &Path) -> Option<Self> {
        let file = fs::File::open(data.join("lock")).ok()?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => None,
            Err(_) => Self::read(data),
        }
    }

    /// Writes the file in one move.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, data: &Path) -> anyhow::Result<()> {
        replace(&data.join("instance.json"), &serde_json::to_vec(self)?)
    }
}

/// Held while an instance runs; the kernel lets go of it when the process dies in any way.
pub struct Hold(#[expect(dead_code, reason = "held for its drop")] Flock<fs::File>);

/// Takes the data folder for this process. One that is just starting or ending is given the time to.
///
/// # Errors
/// Another instance holds it; the text says which.
pub async fn hold(data: &Path) -> anyhow::Result<Hold> {
    let begun = Instant::now();
    loop {
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(data.join("lock"))
            .with_context(|| {
                format!("{} cannot be written; Gantry must be able to write there", data.display())
            })?;
        if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            return Ok(Hold(lock));
        }
        match Instance::read(data) {
            Some(other) => bail!(
                "{} is held by the instance with process id {} at {}; stop it with `gantry down`, or use another --data folder",
                data.display(),
                other.pid,
                other.url
            ),
            None if begun.elapsed() > PATIENCE => bail!(
                "{} is held by another instance, which is neither ready nor gone after {PATIENCE:?}; use another --data folder",
                data.display()
            ),
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Makes a private file, whole or not at all, unless there is one: of several processes that start together one is first, and what
/// it wrote counts. Answers what lies there.
///
/// # Errors
/// The folder cannot be written, or the file not be read.
pub fn create(path: &Path, content: &str) -> anyhow::Result<String> {
    let draft = path.with_extension(format!("{}.new", ids::InstanceId::new()));
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&draft)?;
    let written = file.write_all(content.as_bytes()).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    fs::remove_file(&draft)?;
    linked.with_context(|| format!("{} cannot be made", path.display()))?;
    fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// Replaces a private file in one move: a reader sees the old or the new one, never a part.
///
/// # Errors
/// The folder cannot be written.
pub fn replace(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let draft = path.with_extension("new");
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    failpoints::failpoint_blocking("instance.rename.before")?;
    fs::rename(&draft, path).with_context(|| format!("{} cannot be replaced", path.display()))?;
    failpoints::failpoint_blocking("instance.rename.after")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_first_counts_for_all_that_start_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let make = |n: u32| create(&path, &n.to_string()).unwrap();
        let made: Vec<String> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..16).map(|n| scope.spawn(move || make(n))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(made.iter().all(|one| *one == made[0]), "{made:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    }
}
