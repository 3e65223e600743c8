//! Other real servers, one per test process, on loopback. Like [`crate::postgres`]: private, in a short folder, and
//! gone with the test process. A machine that lacks one says so loudly, and the test is skipped.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    env, fs,
    hash::{BuildHasher, Hasher, RandomState},
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

struct Running {
    url: String,
    folder: PathBuf,
    /// Its standard input is the life line.
    _watcher: Child,
}

/// Virtual hosts of a RabbitMQ: as many tests of a process may ask for one.
const VIRTUAL_HOSTS: u32 = 32;

/// The URL of an unused virtual host of this process's RabbitMQ, or `None` where it is not installed. One for each test:
/// queues are named by groups, and what one test publishes would reach the groups of another.
///
/// # Panics
/// It is installed and does not start, or a process asks for too many.
pub async fn rabbitmq() -> Option<String> {
    static SERVER: OnceLock<Option<Running>> = OnceLock::new();
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let program = "/usr/lib/rabbitmq/bin/rabbitmq-server".into();
    let server = shared(&SERVER, "RabbitMQ", program, start_rabbitmq).await?;
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    assert!(number < VIRTUAL_HOSTS, "a process has {VIRTUAL_HOSTS} virtual hosts");
    Some(format!("{}/test-{number}", server.url))
}

/// The URL of this process's Redis, or `None` where it is not installed.
///
/// # Panics
/// It is installed and does not start.
pub async fn redis() -> Option<String> {
    static SERVER: OnceLock<Option<Running>> = OnceLock::new();
    Some(shared(&SERVER, "Redis", "/usr/bin/redis-server".into(), start_redis).await?.url.clone())
}

/// A bucket of an S3 store, and what opens it.
#[derive(Clone, Debug)]
pub struct S3Bucket {
    /// Address of the store.
    pub endpoint: String,
    /// Name of the access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// The bucket, which is empty.
    pub bucket: String,
    /// Where the store keeps the bucket's bytes: a file per object, by its name.
    pub folder: PathBuf,
}

/// A fresh bucket on this process's versitygw, or `None` where that is not built.
///
/// # Panics
/// It is there and does not start.
pub async fn s3() -> Option<S3Bucket> {
    static SERVER: OnceLock<Option<Running>> = OnceLock::new();
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let server = shared(&SERVER, "an S3 store", tool("versitygw"), start_versitygw).await?;
    let bucket = format!("bucket-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = server.folder.join("data").join(&bucket);
    fs::create_dir(&folder).expect("the store's folder takes a bucket");
    Some(S3Bucket {
        endpoint: server.url.clone(),
        access_key: S3_KEY.0.to_owned(),
        secret_key: S3_KEY.1.to_owned(),
        bucket,
        folder,
    })
}

/// A Vault.
#[derive(Clone, Debug)]
pub struct Vault {
    /// Where it is.
    pub address: String,
    /// May do everything; of a Vault in dev mode.
    pub root_token: String,
}

/// This process's Vault in dev mode (in memory, never sealed), or `None` where Vault is not built.
///
/// # Panics
/// It is there and does not start.
pub async fn vault() -> Option<Vault> {
    static SERVER: OnceLock<Option<Running>> = OnceLock::new();
    let server = shared(&SERVER, "Vault", tool("vault"), start_vault).await?;
    Some(Vault { address: server.url.clone(), root_token: VAULT_ROOT.to_owned() })
}

/// Address of a Vault that keeps its data in a folder and has yet to be initialised, so that it can be sealed; for one
/// test of a process. `None` where Vault is not built.
///
/// # Panics
/// It is there and does not start.
pub async fn sealable_vault() -> Option<String> {
    static SERVER: OnceLock<Option<Running>> = OnceLock::new();
    Some(shared(&SERVER, "Vault", tool("vault"), start_raft_vault).await?.url.clone())
}

/// URL of a fresh database on this process's server of MongoDB's protocol (FerretDB before DocumentDB), or `None` where
/// that is not built.
///
/// # Panics
/// It is there and does not start.
pub async fn mongo() -> Option<String> {
    static SERVER: OnceLock<Option<Running>> = OnceLock::new();
    static COUNT: AtomicU32 = AtomicU32::new(0);
    // Its engine is a folder, which takes root to run.
    let engine = tools().join("documentdb-18/ready");
    let program =
        if engine.is_file() && nix::unistd::geteuid().is_root() { tool("ferretdb") } else { engine };
    let server = shared(&SERVER, "a server of MongoDB's protocol", program, start_mongo).await?;
    Some(format!("{}/test{}", server.url, COUNT.fetch_add(1, Ordering::Relaxed)))
}

const S3_KEY: (&str, &str) = ("gantry-tests", "a-secret-of-these-tests");
const VAULT_ROOT: &str = "root-of-these-tests";

/// Where `scripts/tools/get` puts what it builds.
fn tools() -> PathBuf {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache/gantry"));
    env::var_os("GANTRY_TOOLS").map(PathBuf::from).or_else(home).unwrap_or_default()
}

pub(crate) fn tool(name: &str) -> PathBuf {
    tools().join("bin").join(name)
}

async fn shared(
    server: &'static OnceLock<Option<Running>>,
    name: &'static str,
    program: PathBuf,
    start: fn(&Path) -> Result<Running>,
) -> Option<&'static Running> {
    let started = tokio::task::spawn_blocking(move || {
        server.get_or_init(|| {
            let found = find(&program);
            if found.is_none() {
                eprintln!("SKIPPED: {name} is not installed here ({}); see scripts/setup", program.display());
                assert!(
                    env::var_os("GANTRY_REAL_SERVERS").is_none(),
                    "{name} is not installed, and GANTRY_REAL_SERVERS asks for every server"
                );
            }
            found.map(|program| match start(&program) {
                Ok(running) => running,
                Err(error) => panic!("{name} does not start: {error:#}"),
            })
        })
    });
    started.await.expect("starting it does not panic").as_ref()
}

pub(crate) fn find(program: &Path) -> Option<PathBuf> {
    let name = program.file_name()?;
    let on_path =
        env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    std::iter::once(program.to_owned())
        .chain(on_path.map(|folder| folder.join(name)))
        .find(|file| file.is_file())
}

fn start_rabbitmq(program: &Path) -> Result<Running> {
    let folder = folder()?;
    let [port, epmd, dist] = free_ports()?;
    let conf = folder.join("rabbitmq.conf");
    let definitions = folder.join("definitions.json");
    fs::write(&definitions, virtual_hosts().to_string())?;
    let settings = [
        format!("listeners.tcp.1 = 127.0.0.1:{port}"),
        "loopback_users = none".into(),
        format!("load_definitions = {}", definitions.display()),
    ];
    fs::write(&conf, settings.join("\n") + "\n")?;
    fs::write(folder.join("plugins"), "[].\n")?;
    let text = |path: &Path| path.display().to_string();
    let envs = [
        ("HOME", text(&folder)),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        ("ERL_EPMD_PORT", epmd.to_string()),
        ("RABBITMQ_DIST_PORT", dist.to_string()),
        ("RABBITMQ_NODENAME", format!("t{port}@localhost")),
        ("RABBITMQ_MNESIA_BASE", text(&folder.join("mnesia"))),
        ("RABBITMQ_LOG_BASE", text(&folder.join("log"))),
        ("RABBITMQ_CONFIG_FILE", text(&conf)),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", text(&folder.join("plugins"))),
        ("RABBITMQ_CONF_ENV_FILE", "/dev/null".into()),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}".into()),
    ];
    // The script starts the machine as its child, and a port mapper that outlives it.
    let end = "pkill -TERM -P $server 2>/dev/null; kill -TERM $server 2>/dev/null; wait $server; \
               epmd -port $ERL_EPMD_PORT -kill >/dev/null 2>&1";
    let watcher = watched(&folder, &[text(program)], &envs, end)?;
    wait_for_port(port, &folder)?;
    Ok(Running { url: format!("amqp://guest:guest@127.0.0.1:{port}"), folder, _watcher: watcher })
}

/// Definitions with everything that a broker without any would have made itself.
fn virtual_hosts() -> Value {
    let names: Vec<String> = (0..VIRTUAL_HOSTS).map(|number| format!("test-{number}")).collect();
    let may_all = |name: &String| json!({ "user": "guest", "vhost": name, "configure": ".*", "write": ".*", "read": ".*" });
    json!({
        "users": [{ "name": "guest", "password": "guest", "tags": "administrator" }],
        "vhosts": names.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>(),
        "permissions": names.iter().map(may_all).collect::<Vec<_>>(),
    })
}

fn start_redis(program: &Path) -> Result<Running> {
    let folder = folder()?;
    let [port] = free_ports()?;
    let words = [
        program.display().to_string(),
        "--port".into(),
        port.to_string(),
        "--bind".into(),
        "127.0.0.1".into(),
        "--dir".into(),
        folder.display().to_string(),
        "--save".into(),
        String::new(),
        "--appendonly".into(),
        "no".into(),
    ];
    let watcher = watched(&folder, &words, &[], TERM)?;
    wait_for_port(port, &folder)?;
    Ok(Running { url: format!("redis://127.0.0.1:{port}"), folder, _watcher: watcher })
}

fn start_versitygw(program: &Path) -> Result<Running> {
    let folder = folder()?;
    let [port] = free_ports()?;
    for name in ["data", "iam"] {
        fs::create_dir(folder.join(name))?;
    }
    let text = |path: &Path| path.display().to_string();
    let words = [
        text(program),
        "--port".into(),
        format!("127.0.0.1:{port}"),
        "--quiet".into(),
        "--iam-dir".into(),
        text(&folder.join("iam")),
        "posix".into(),
        text(&folder.join("data")),
    ];
    let envs = [("ROOT_ACCESS_KEY", S3_KEY.0.to_owned()), ("ROOT_SECRET_KEY", S3_KEY.1.to_owned())];
    let watcher = watched(&folder, &words, &envs, TERM)?;
    wait_for_port(port, &folder)?;
    Ok(Running { url: format!("http://127.0.0.1:{port}"), folder, _watcher: watcher })
}

fn start_vault(program: &Path) -> Result<Running> {
    let folder = folder()?;
    let [port] = free_ports()?;
    let words = [
        program.display().to_string(),
        "server".into(),
        "-dev".into(),
        "-dev-no-store-token".into(),
        format!("-dev-listen-address=127.0.0.1:{port}"),
        format!("-dev-root-token-id={VAULT_ROOT}"),
    ];
    let watcher = watched(&folder, &words, &[("HOME", folder.display().to_string())], TERM)?;
    wait_for_port(port, &folder)?;
    Ok(Running { url: format!("http://127.0.0.1:{port}"), folder, _watcher: watcher })
}

fn start_raft_vault(program: &Path) -> Result<Running> {
    let folder = folder()?;
    let [port, cluster] = free_ports()?;
    fs::create_dir(folder.join("data"))?;
    let (data, conf) = (folder.join("data"), folder.join("vault.hcl"));
    fs::write(
        &conf,
        format!(
            "storage \"raft\" {{\n  path = \"{}\"\n  node_id = \"one\"\n}}\n\
             listener \"tcp\" {{\n  address = \"127.0.0.1:{port}\"\n  tls_disable = true\n}}\n\
             api_addr = \"http://127.0.0.1:{port}\"\ncluster_addr = \"http://127.0.0.1:{cluster}\"\ndisable_mlock = true\n",
            data.display()
        ),
    )?;
    let words = [program.display().to_string(), "server".into(), format!("-config={}", conf.display())];
    let watcher = watched(&folder, &words, &[("HOME", folder.display().to_string())], TERM)?;
    wait_for_port(port, &folder)?;
    Ok(Running { url: format!("http://127.0.0.1:{port}"), folder, _watcher: watcher })
}

fn start_mongo(_: &Path) -> Result<Running> {
    let folder = folder()?;
    let [port, inner] = free_ports()?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/tools/mongo");
    let words =
        [script.to_owned(), port.to_string(), folder.join("data").display().to_string(), inner.to_string()];
    let watcher = watched(&folder, &words, &[], TERM)?;
    wait_for_port(port, &folder)?;
    Ok(Running { url: format!("mongodb://127.0.0.1:{port}"), folder, _watcher: watcher })
}

/// How most servers are ended.
const TERM: &str = "kill -TERM $server 2>/dev/null; wait $server";

pub(crate) fn folder() -> Result<PathBuf> {
    Ok(tempfile::Builder::new().prefix("gtk-").tempdir_in("/tmp")?.keep())
}

/// Ports that are free now. All are held until all are known, so that they differ. Not of those that the kernel gives to
/// outgoing connections: it could give one away before the server has it, and servers that find it taken just end.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    const LOWEST: u16 = 10_000;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let end: u16 = range.split_whitespace().next().context("no range of ports")?.parse()?;
    let end = if end > LOWEST + 1_000 { end } else { u16::MAX };
    let mut held = Vec::with_capacity(N);
    let mut ports = [0; N];
    while let Some(port) = ports.get_mut(held.len()) {
        // Each of these has a seed of its own.
        let random = RandomState::new().build_hasher().finish();
        *port = LOWEST + u16::try_from(random % u64::from(end - LOWEST))?;
        held.extend(TcpListener::bind(("127.0.0.1", *port)));
    }
    Ok(ports)
}

/// Starts a server that `end` ends when this process is gone, however it went.
pub(crate) fn watched(folder: &Path, words: &[String], envs: &[(&str, String)], end: &str) -> Result<Child> {
    // What a shell is told to ignore, scripts below it could not hear again.
    let script = format!(
        "trap '' INT TERM HUP; (trap - INT TERM HUP; exec \"$@\") >\"$DIR/out\" 2>&1 </dev/null & server=$!; cat >/dev/null; {end}; rm -rf \"$DIR\""
    );
    Ok(Command::new("sh")
        .args(["-c", &script, "sh"])
        .args(words)
        .envs(envs.iter().map(|(name, value)| (name, value)))
        .env("DIR", folder)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?)
}

#[expect(clippy::disallowed_methods, reason = "waits on a condition with a limit, outside of any runtime")]
pub(crate) fn wait_for_port(port: u16, folder: &Path) -> Result<()> {
    let started = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if started.elapsed() > Duration::from_secs(120) {
            let out = fs::read_to_string(folder.join("out")).context("its output cannot be read")?;
            bail!("it does not listen: {out}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
