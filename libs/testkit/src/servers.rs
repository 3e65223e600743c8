//! Other real servers, one per test process, on loopback. Like [`crate::postgres`]: private, in a short folder, and
//! gone with the test process. A machine that lacks one says so loudly, and the test is skipped.

use anyhow::{Context, Result, bail};
use std::{
    env, fs,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

struct Running {
    url: String,
    /// Its standard input is the life line.
    _watcher: Child,
}

/// The URL of this process's RabbitMQ, or `None` where it is not installed.
///
/// # Panics
/// It is installed and does not start.
pub async fn rabbitmq() -> Option<String> {
    static SERVER: OnceLock<Option<Running>> = OnceLock::new();
    shared(&SERVER, "RabbitMQ", "/usr/lib/rabbitmq/bin/rabbitmq-server", start_rabbitmq).await
}

/// The URL of this process's Redis, or `None` where it is not installed.
///
/// # Panics
/// It is installed and does not start.
pub async fn redis() -> Option<String> {
    static SERVER: OnceLock<Option<Running>> = OnceLock::new();
    shared(&SERVER, "Redis", "/usr/bin/redis-server", start_redis).await
}

async fn shared(
    server: &'static OnceLock<Option<Running>>,
    name: &'static str,
    program: &'static str,
    start: fn(&Path) -> Result<Running>,
) -> Option<String> {
    let started = tokio::task::spawn_blocking(move || {
        server.get_or_init(|| {
            let found = find(program);
            if found.is_none() {
                eprintln!("SKIPPED: {name} is not installed here ({program})");
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
    started.await.expect("starting it does not panic").as_ref().map(|running| running.url.clone())
}

fn find(program: &str) -> Option<PathBuf> {
    let name = Path::new(program).file_name()?;
    let on_path =
        env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    std::iter::once(PathBuf::from(program))
        .chain(on_path.map(|folder| folder.join(name)))
        .find(|file| file.is_file())
}

fn start_rabbitmq(program: &Path) -> Result<Running> {
    let folder = folder()?;
    let [port, epmd, dist] = free_ports()?;
    let conf = folder.join("rabbitmq.conf");
    fs::write(&conf, format!("listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users = none\n"))?;
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
    Ok(Running { url: format!("amqp://guest:guest@127.0.0.1:{port}/%2f"), _watcher: watcher })
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
    let watcher = watched(&folder, &words, &[], "kill -TERM $server 2>/dev/null; wait $server")?;
    wait_for_port(port, &folder)?;
    Ok(Running { url: format!("redis://127.0.0.1:{port}"), _watcher: watcher })
}

fn folder() -> Result<PathBuf> {
    Ok(tempfile::Builder::new().prefix("gtk-").tempdir_in("/tmp")?.keep())
}

/// Ports that are free now. All are held until all are known, so that they differ.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let held: Vec<TcpListener> =
        (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// Starts a server that `end` ends when this process is gone, however it went.
fn watched(folder: &Path, words: &[String], envs: &[(&str, String)], end: &str) -> Result<Child> {
    let script = format!(
        "trap '' INT TERM HUP; \"$@\" >\"$DIR/out\" 2>&1 </dev/null & server=$!; cat >/dev/null; {end}; rm -rf \"$DIR\""
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
fn wait_for_port(port: u16, folder: &Path) -> Result<()> {
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
