//! Keeps the data disk from filling up: below a limit no new work is taken, and above it work goes on by itself.
//!
//! The limit leaves room for what was accepted: running jobs finish, their output is kept, and the database can
//! always write its log (outside of it a full disk would stop everything, not only new work).

use bus::Admission;
use nix::sys::statvfs::statvfs;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Between two looks. A disk fills slower than the limit's room is used up.
const PERIOD: Duration = Duration::from_secs(2);
const MIB: u64 = 1 << 20;

/// Looks at the disk of `data` until `stop`; closes the gate while less than `min_free` MiB are free.
pub async fn watch(data: PathBuf, min_free: u64, gate: Admission, stop: CancellationToken) {
    let mut closed = false;
    loop {
        match free(&data) {
            Ok(free) => {
                metrics::gauge!("gantry.disk.free_bytes").set(free as f64);
                closed = judge(&data, free, min_free * MIB, closed, &gate);
            }
            Err(error) => tracing::warn!("{} cannot be measured: {error}", data.display()),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Opens again only with a fourth more than the limit, so that work does not start and stop at the edge.
fn judge(data: &Path, free: u64, limit: u64, closed: bool, gate: &Admission) -> bool {
    if free < limit {
        let message = format!(
            "the disk of {} is full: {} MiB are free and [disk] min_free_mib wants {}; free some space, running jobs go on",
            data.display(),
            free / MIB,
            limit / MIB
        );
        if !closed {
            tracing::error!("no new work is taken: {message}");
        }
        gate.close("disk_full", message);
        return true;
    }
    if closed && free >= limit + limit / 4 {
        gate.open();
        tracing::info!("{} MiB are free again: new work is taken", free / MIB);
        return false;
    }
    closed
}

/// Bytes that we may still write.
fn free(path: &Path) -> nix::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.blocks_available() * found.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_opens_again_with_room_to_spare() {
        let gate = Admission::default();
        let data = Path::new("/data");
        assert!(!judge(data, 100 * MIB, 100 * MIB, false, &gate));
        assert!(judge(data, 99 * MIB, 100 * MIB, false, &gate));
        let refusal = gate.check().unwrap_err();
        assert_eq!(refusal.code, "disk_full");
        assert!(refusal.message.contains("99 MiB"), "{refusal}");
        assert!(judge(data, 120 * MIB, 100 * MIB, true, &gate), "at the edge it stays closed");
        assert!(!judge(data, 125 * MIB, 100 * MIB, true, &gate));
        assert!(gate.check().is_ok());
    }
}
