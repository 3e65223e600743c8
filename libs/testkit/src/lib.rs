//! Real servers for tests.
//!
//! [`postgres`] starts one private PostgreSQL per test process (Unix socket only, in a short folder under the
//! temporary directory) and gives each caller a fresh database. A watcher ends the server and removes its folder
//! when the test process is gone, however it went.

mod faketime;
mod nomad;
mod servers;

pub use faketime::faketime;
pub use nomad::{NomadCluster, nomad, nomad_with_engine};
pub use servers::{S3Bucket, Vault, mongo, rabbitmq, redis, s3, sealable_vault, vault};

pub mod docker;

use anyhow::{Context, Result, bail, ensure};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgPool, postgres::PgConnectOptions};
use std::{
    env, fs,
    future::Future,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// A fresh database.
#[derive(Clone, Debug)]
pub struct TestDb {
    /// Pool of at most 12 connections, as in `gantry up`.
    pub pool: PgPool,
    /// For connections of one's own.
    pub url: String,
}

struct Server {
    socket_dir: PathBuf,
    /// Its standard input is the life line: when this process ends, the watcher sees it close.
    _watcher: Child,
}

static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A fresh database on this process's own server.
///
/// # Panics
/// No PostgreSQL server binaries are found, or the server does not start: such a test cannot tell anything.
pub async fn postgres() -> TestDb {
    match try_postgres().await {
        Ok(db) => db,
        Err(error) => panic!("no PostgreSQL for this test: {error:#}"),
    }
}

async fn try_postgres() -> Result<TestDb> {
    let server =
        tokio::task::spawn_blocking(|| SERVER.get_or_init(|| start().map_err(|e| format!("{e:#}")))).await?;
    let server = server.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let url_of = |database: &str| {
        format!("postgres://postgres@localhost/{database}?host={}", server.socket_dir.display())
    };
    let name = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let mut admin = connect(&url_of("postgres")).await?;
    admin.execute(AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0"))).await?;
    admin.close().await?;
    let url = url_of(&name);
    let pool = eventstore::open_pool(&url, 12).await?;
    Ok(TestDb { pool, url })
}

/// Connects as soon as the server accepts connections.
async fn connect(url: &str) -> Result<sqlx::PgConnection> {
    let options = PgConnectOptions::from_str(url)?.disable_statement_logging();
    let started = Instant::now();
    loop {
        match options.connect().await {
            Ok(conn) => return Ok(conn),
            Err(error) if started.elapsed() > Duration::from_secs(60) => {
                return Err(error).context("the server does not accept connections");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A server program: from PATH, else the newest of Debian's folders.
fn program(name: &str) -> Result<PathBuf> {
    let on_path =
        env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    if let Some(found) = on_path.map(|dir| dir.join(name)).find(|file| file.is_file()) {
        return Ok(found);
    }
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin").join(name)))
        })
        .filter(|(_, file)| file.is_file())
        .collect();
    versions.sort();
    versions
        .pop()
        .map(|(_, file)| file)
        .with_context(|| format!("{name} is neither on PATH nor in /usr/lib/postgresql"))
}

/// Whom the server runs as: it refuses root.
fn other_user() -> Result<Option<nix::unistd::User>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = nix::unistd::User::from_name(name)? {
            return Ok(Some(user));
        }
    }
    bail!("run by root, but there is neither a user postgres nor nobody")
}

fn start() -> Result<Server> {
    let (initdb, postgres) = (program("initdb")?, program("postgres")?);
    let user = other_user()?;
    // A socket's path has at most 107 bytes: not below a deep TMPDIR.
    let dir = tempfile::Builder::new().prefix("gtk-").tempdir_in("/tmp")?.keep();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
    let as_user: Vec<String> = match &user {
        Some(user) => {
            std::os::unix::fs::chown(&dir, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            vec![
                "setpriv".into(),
                format!("--reuid={}", user.uid),
                format!("--regid={}", user.gid),
                "--clear-groups".into(),
                "--".into(),
            ]
        }
        None => Vec::new(),
    };
    let data = dir.join("data");
    let mut words = as_user.clone();
    words.push(initdb.display().to_string());
    words.extend(
        ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions", "-D"]
            .map(str::to_owned),
    );
    words.push(data.display().to_string());
    let made = Command::new(&words[0]).args(&words[1..]).current_dir(&dir).stdin(Stdio::null()).output()?;
    ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));

    let settings = [
        "listen_addresses=",
        "fsync=off",
        "full_page_writes=off",
        "max_connections=600",
        "shared_buffers=32MB",
        "max_wal_size=256MB",
        "jit=off",
        "autovacuum_naptime=10s",
    ];
    let mut words = as_user;
    words.push(postgres.display().to_string());
    words.extend(["-D".to_owned(), data.display().to_string(), "-k".to_owned(), dir.display().to_string()]);
    for setting in settings {
        words.extend(["-c".to_owned(), setting.to_owned()]);
    }
    // SIGQUIT: end at once. Nothing in the folder is worth a checkpoint.
    let script = "trap '' INT TERM HUP; \"$@\" >\"$DIR/log\" 2>&1 </dev/null & server=$!; \
                  cat >/dev/null; kill -QUIT $server 2>/dev/null; wait $server; rm -rf \"$DIR\"";
    let watcher = Command::new("sh")
        .args(["-c", script, "sh"])
        .args(&words)
        .env("DIR", &dir)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own, so that an interrupt of the test run leaves it to clean up.
        .process_group(0)
        .spawn()?;
    wait_for_socket(&dir)?;
    Ok(Server { socket_dir: dir, _watcher: watcher })
}

#[expect(clippy::disallowed_methods, reason = "waits on a condition with a limit, outside of any runtime")]
fn wait_for_socket(dir: &Path) -> Result<()> {
    let started = Instant::now();
    while !dir.join(".s.PGSQL.5432").exists() {
        if started.elapsed() > Duration::from_secs(60) {
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
            bail!("the server did not start: {log}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Waits until a condition holds.
///
/// # Panics
/// It does not hold within the limit; says `what` was waited for.
pub async fn until<F, Fut>(what: &str, limit: Duration, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
