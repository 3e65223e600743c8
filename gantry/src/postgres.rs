//! Supervises the private PostgreSQL of a data folder (architecture §7).
//!
//! It listens on a Unix socket in a private folder only. One that is found running is adopted; one that died is
//! started again. As root the server runs in a user namespace that maps root to another id, because PostgreSQL
//! refuses to run as root; files keep their owner.

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a start is tried again.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running private server.
pub struct Postgres {
    cluster: PathBuf,
    socket_folder: PathBuf,
    bin: PathBuf,
    child: Option<Child>,
}

impl Postgres {
    /// Starts the cluster in `data/postgres`, making it at first, or adopts the one that runs there.
    ///
    /// # Errors
    /// No PostgreSQL is installed, or it does not start within 60 s; the text says where its log is.
    pub async fn start(data: &Path, socket_folder: &Path) -> anyhow::Result<Self> {
        let bin = find_binaries()?;
        let cluster = data.join("postgres");
        let mut server = Self { cluster, socket_folder: socket_folder.to_owned(), bin, child: None };
        if !server.cluster.join("PG_VERSION").exists() {
            server.init().await?;
        }
        let begun = Instant::now();
        // Old backends of a server that was killed may still hold the shared memory: they end by themselves.
        while let Err(error) = server.bring_up().await {
            if begun.elapsed() > PATIENCE {
                return Err(error);
            }
            tracing::warn!("PostgreSQL does not start yet: {error:#}");
        }
        Ok(server)
    }

    /// How to connect.
    pub fn options(&self) -> PgConnectOptions {
        Self::options_in(&self.socket_folder)
    }

    /// How to connect to the server whose socket lies in a folder.
    pub fn options_in(socket_folder: &Path) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(socket_folder)
            .username("gantry")
            .database("postgres")
            .application_name("gantry")
            .disable_statement_logging()
    }

    /// Keeps the server up until `stop`, then stops it with a checkpoint.
    pub async fn supervise(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.died() => {}
            }
            tracing::warn!("the private PostgreSQL died; it is started again");
            while !stop.is_cancelled() {
                match self.bring_up().await {
                    Ok(()) => break,
                    // Old backends may still hold the shared memory: they end by themselves.
                    Err(error) => tracing::warn!("PostgreSQL does not start yet: {error:#}"),
                }
            }
        }
        self.shut_down().await;
    }

    /// Resolves when the postmaster is gone.
    async fn died(&mut self) {
        match &mut self.child {
            Some(child) => {
                let _ = child.wait().await;
                self.child = None;
            }
            // An adopted postmaster is no child of ours: the kernel tells us nothing, so it is asked.
            None => {
                let mut tick = tokio::time::interval(Duration::from_secs(1));
                while self.postmaster().is_some() {
                    tick.tick().await;
                }
            }
        }
    }

    async fn init(&self) -> anyhow::Result<()> {
        tracing::info!("making the database cluster in {}", self.cluster.display());
        let draft = self.cluster.with_extension("new");
        let _ = fs::remove_dir_all(&draft);
        fs::create_dir(&draft)?;
        let mut command = self.command("initdb");
        command.arg("-D").arg(&draft);
        command.args(["-U", "gantry", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-instructions"]);
        let output = command.stdin(Stdio::null()).output().await.context("initdb cannot be run")?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        // A cluster exists whole or not at all.
        fs::rename(&draft, &self.cluster)?;
        Ok(())
    }

    async fn bring_up(&mut self) -> anyhow::Result<()> {
        if self.postmaster().is_some() && self.answers().await {
            tracing::info!("adopted the PostgreSQL that runs in {}", self.cluster.display());
            return Ok(());
        }
        fs::create_dir_all(&self.socket_folder)?;
        let log_path = self.cluster.with_file_name("logs").join("postgres.log");
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path)?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(&self.cluster).arg("-k").arg(&self.socket_folder);
        for setting in [
            "listen_addresses=",
            "unix_socket_permissions=0700",
            "jit=off",
            "max_connections=40",
            "shared_buffers=64MB",
            "idle_in_transaction_session_timeout=5s",
            "wal_level=minimal",
            "max_wal_senders=0",
            "autovacuum_naptime=30s",
            "bgwriter_delay=1s",
            "wal_writer_delay=200ms",
            "max_wal_size=512MB",
            "checkpoint_timeout=15min",
            "log_min_messages=warning",
        ] {
            command.args(["-c", setting]);
        }
        // A group of its own: Ctrl+C at the terminal is for the suite, which stops the database last.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let mut child = command.spawn().context("postgres cannot be run")?;
        let begun = Instant::now();
        loop {
            if self.answers().await {
                self.child = Some(child);
                return Ok(());
            }
            if let Some(status) = child.try_wait()? {
                // Patience before the next attempt, for the old backends to end.
                tokio::time::sleep(Duration::from_millis(200)).await;
                bail!("PostgreSQL ended with {status}; its log is {}", log_path.display());
            }
            if begun.elapsed() > START_LIMIT {
                let _ = child.start_kill();
                bail!("PostgreSQL is not ready after {START_LIMIT:?}; its log is {}", log_path.display());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn answers(&self) -> bool {
        let options = self.options();
        let connect = PgConnection::connect_with(&options);
        match tokio::time::timeout(Duration::from_secs(2), connect).await {
            Ok(Ok(connection)) => connection.close().await.is_ok(),
            _ => false,
        }
    }

    /// Process id of the postmaster, if it runs on this very cluster.
    fn postmaster(&self) -> Option<Pid> {
        // Inside a user namespace the ids of processes are still the outer ones.
        let text = fs::read_to_string(self.cluster.join("postmaster.pid")).ok()?;
        let pid: i32 = text.lines().next()?.trim().parse().ok()?;
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let cluster = self.cluster.as_os_str().as_encoded_bytes();
        command_line.windows(cluster.len()).any(|part| part == cluster).then(|| Pid::from_raw(pid))
    }

    async fn shut_down(&mut self) {
        if let Some(postmaster) = self.postmaster() {
            // SIGINT: end sessions, write a checkpoint, go.
            let _ = kill(postmaster, Signal::SIGINT);
            let _ = tokio::time::timeout(Duration::from_secs(8), self.died()).await;
        }
    }

    /// A server program, in a user namespace when we are root.
    fn command(&self, program: &str) -> Command {
        let path = self.bin.join(program);
        if geteuid().is_root() {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-user=1000", "--map-group=1000", "--"]).arg(path);
            command
        } else {
            Command::new(path)
        }
    }
}

/// Folder with `initdb` and `postgres`: `GANTRY_POSTGRES_BIN`, `PATH`, or where distributions put them.
fn find_binaries() -> anyhow::Result<PathBuf> {
    let mut folders: Vec<PathBuf> =
        env::var_os("GANTRY_POSTGRES_BIN").map(PathBuf::from).into_iter().collect();
    if let Ok(found) = fs::read_dir("/usr/lib/postgresql") {
        let mut versions: Vec<PathBuf> = found.flatten().map(|entry| entry.path().join("bin")).collect();
        versions.sort();
        folders.extend(versions.into_iter().rev());
    }
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    folders
        .into_iter()
        .find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
        .context("no PostgreSQL server is installed; install it (Debian: apt-get install postgresql) or run scripts/up")
}
