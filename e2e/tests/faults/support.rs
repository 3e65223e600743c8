//! A data folder with a ledger, a workflow that writes it, and the judge of what became of it.

use anyhow::ensure;
pub use gantry_e2e::ledger::{Fan, LIMIT, processes};
use gantry_e2e::{SHORT_LEASES, Suite, binary, ledger::Ledger, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    net::TcpListener,
    ops::Deref,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;

const SLOTS: (&str, &str) = ("GANTRY_DISPATCHER_SLOTS", "6");

/// A data folder and what lies beside it.
pub struct Place {
    ledger: Ledger,
    pub data: PathBuf,
}

impl Deref for Place {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        &self.ledger
    }
}

impl Place {
    pub fn new() -> anyhow::Result<Self> {
        let ledger = Ledger::new()?;
        let data = ledger.work.path().join("data");
        Ok(Self { ledger, data })
    }

    /// Starts the suite with short leases, and with what is given besides.
    pub async fn up(&self, more: &[(&str, &str)]) -> anyhow::Result<Suite> {
        let all: Vec<_> = SHORT_LEASES.iter().chain([&SLOTS]).chain(more).copied().collect();
        Suite::up_with(&self.data, &[], &all).await
    }

    /// Starts it again, with its last port taken by somebody else.
    pub async fn up_elsewhere(&self, last: &str) -> anyhow::Result<Suite> {
        let address = last.trim_start_matches("http://").to_owned();
        let taken = until("the old port", LIMIT, || async { Ok(TcpListener::bind(&address).ok()) }).await?;
        let suite = self.up(&[]).await?;
        ensure!(suite.url != last, "it listens where somebody else does");
        drop(taken);
        Ok(suite)
    }

    /// The postmaster's process id.
    pub fn postmaster(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.data.join("postgres/postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok().map(Pid::from_raw)
    }

    /// What the server said since `from`.
    pub fn said(&self, from: u64) -> String {
        let log = fs::read(self.data.with_extension("log")).unwrap_or_default();
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(log.len());
        String::from_utf8_lossy(&log[from..]).into_owned()
    }

    /// Length of what it said.
    pub fn said_length(&self) -> u64 {
        fs::metadata(self.data.with_extension("log")).map_or(0, |meta| meta.len())
    }

    /// `gantry admin verify` and the invariants find nothing.
    pub async fn verify(&self) -> anyhow::Result<()> {
        for check in ["verify", "invariants"] {
            // The invariants count what waits for its time as overdue only after a while.
            until(check, Duration::from_secs(60), || async {
                let output =
                    Command::new(binary()).args(["admin", check, "--data"]).arg(&self.data).output().await?;
                let said = [output.stdout, output.stderr].concat();
                ensure!(output.status.success(), "gantry admin {check}: {}", String::from_utf8_lossy(&said));
                Ok(Some(()))
            })
            .await?;
        }
        Ok(())
    }
}

impl Drop for Place {
    /// A test that failed leaves nothing behind.
    fn drop(&mut self) {
        for pid in agents(&self.data).into_iter().chain(self.postmaster()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Agents of a data folder, by their command line.
pub fn agents(data: &Path) -> Vec<Pid> {
    let tasks = data.join("tasks").display().to_string();
    processes(|line| line.contains("--task-dir") && line.contains(&tasks))
}
