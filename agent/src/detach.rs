//! The first thing that an agent does: it leaves whoever started it.

use agent_api::{LAUNCH_FILE, LaunchFile, PID_FILE};
use anyhow::{Context, bail};
use std::{
    fs::{self, File, TryLockError},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Leaves the session of whoever started the agent, so that signals to a server's terminal do not reach it; enters the
/// cgroup that ends it with all that it starts; and writes down who it is (the line of `/proc/self/stat`). As long as
/// the returned file is open, nobody else is the agent of this folder: a server that died right after it had started
/// this one may start another.
///
/// Here and not between fork and exec: a server would have to copy its own page tables for each agent.
///
/// # Errors
/// Another agent works in the folder, or the cgroup cannot be entered.
pub(crate) fn detach(dir: &Path) -> anyhow::Result<File> {
    // Refused to the leader of a group, which a container's first process is: it has left already.
    let _ = nix::unistd::setsid();
    let path = dir.join(PID_FILE);
    let mut pid = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    match pid.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("another agent works in {}", dir.display()),
        Err(TryLockError::Error(e)) => return Err(e).with_context(|| path.display().to_string()),
    }
    // A launch file that cannot be read is the next one's to tell.
    let group = crate::state::kept::<LaunchFile>(dir, LAUNCH_FILE).and_then(|launch| launch.cgroup);
    if let Some(group) = group {
        let procs = Path::new(&group).join("cgroup.procs");
        fs::write(&procs, "0").with_context(|| format!("{} cannot be entered", procs.display()))?;
    }
    pid.write_all(&fs::read("/proc/self/stat")?).with_context(|| path.display().to_string())?;
    Ok(pid)
}
