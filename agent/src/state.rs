//! What the agent must remember across its own death, in the task's folder.

use agent_api::FinalReport;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The lease, written before anything runs: an agent that finds it died while it held the task.
pub(crate) const LEASE: &str = "lease.json";
/// The final report, until it is acknowledged.
pub(crate) const REPORT: &str = "report.json";
/// A link to where the task's files are when they cannot be bound to a shared place, so that a sweep finds
/// them too.
pub(crate) const PLACE: &str = "place";

/// What another start needs to report for this lease.
#[derive(Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) lease: agent_api::Lease,
    /// On the clock of `CLOCK_BOOTTIME`.
    pub(crate) claimed_at: u64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) report: FinalReport,
}

/// Writes a file so that it is either there whole or not at all; on disk before this returns, if asked.
/// The lease need not be: after a failure of the machine nobody starts this agent again.
pub(crate) fn keep(dir: &Path, name: &str, value: &impl Serialize, durable: bool) -> io::Result<()> {
    let path = dir.join(name);
    let part = dir.join(format!("{name}.part"));
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&part, &path)?;
    if durable {
        fs::File::open(dir)?.sync_all()?;
    }
    Ok(())
}

pub(crate) fn kept<T: DeserializeOwned>(dir: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(dir.join(name)).ok()?).ok()
}

pub(crate) fn spool(dir: &Path) -> PathBuf {
    dir.join("spool")
}

/// Removes what only a living task needs.
pub(crate) fn clear(dir: &Path) {
    if let Ok(place) = fs::read_link(dir.join(PLACE)) {
        let _ = fs::remove_dir_all(place);
    }
    for name in [REPORT, LEASE, PLACE] {
        let _ = fs::remove_file(dir.join(name));
    }
    let _ = fs::remove_dir_all(spool(dir));
}
