//! A suite's database, through its own `psql`: the product's counters are not enough to judge it by.

use anyhow::{Context, ensure};
use std::{
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A suite's database.
pub struct Database {
    psql: PathBuf,
    /// Where it listens and who we are, as arguments.
    place: Vec<OsString>,
}

impl Database {
    /// The database of a data folder.
    pub fn of(data: &Path) -> anyhow::Result<Self> {
        let folder = fs::canonicalize(data.join("run"))?;
        let place = ["-U".into(), "gantry".into(), "-h".into(), folder.into()];
        Ok(Self { psql: gantry_e2e::postgres("psql"), place: place.to_vec() })
    }

    /// The database that listens at a port of this machine.
    pub fn at(port: u16) -> Self {
        let place = ["-U".into(), "postgres".into(), "-h".into(), "127.0.0.1".into(), "-p".into()];
        let place = place.into_iter().chain([port.to_string().into()]).collect();
        Self { psql: gantry_e2e::postgres("psql"), place }
    }

    /// Runs a script; what it printed, a row a line, columns divided by `|`.
    pub fn run(&self, script: &str) -> anyhow::Result<String> {
        let mut child = Command::new(&self.psql)
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", "postgres"])
            .args(&self.place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("no standard input")?.write_all(script.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "psql: {said}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// One row of numbers.
    pub fn numbers<const N: usize>(&self, query: &str) -> anyhow::Result<[i64; N]> {
        let row = self.run(query)?;
        let numbers: Vec<i64> =
            row.split('|').map(str::parse).collect::<Result<_, _>>().context(row.clone())?;
        numbers.try_into().map_err(|_| anyhow::anyhow!("{row} has not {N} columns"))
    }

    /// What the database has done so far.
    pub fn work(&self) -> anyhow::Result<Work> {
        let [commits, rows, wal_bytes, syncs, messages] = self.numbers(
            "SELECT pg_stat_clear_snapshot(); SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()), \
                 (SELECT tup_inserted + tup_updated + tup_deleted FROM pg_stat_database WHERE datname = current_database()), \
                 (SELECT wal_bytes::bigint FROM pg_stat_wal), (SELECT wal_sync FROM pg_stat_wal), \
                 (SELECT count(*) FROM conductor.events) + (SELECT count(*) FROM dispatcher.events) \
                     + (SELECT count(*) FROM output_processor.events) + (SELECT count(*) FROM pipelines.events);",
        )?;
        let transactions = self.numbers::<1>("SELECT pg_current_xact_id()::text::bigint")?[0];
        Ok(Work { commits, rows, wal_bytes, syncs, messages, transactions })
    }
}

/// Counts of work since the cluster was made.
#[derive(Clone, Copy)]
pub struct Work {
    /// Transactions that ended, those that only read included.
    pub commits: i64,
    /// Transactions that wrote: each has an id.
    pub transactions: i64,
    /// Rows written.
    pub rows: i64,
    /// Bytes of write-ahead log.
    pub wal_bytes: i64,
    /// Times that the log was forced to disk.
    pub syncs: i64,
    /// Events.
    pub messages: i64,
}
