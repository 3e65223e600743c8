//! `gantry up`: the whole suite in one process tree on embedded defaults.

use crate::{
    adapters::{self, Stored, Traces},
    config::{Config, DatabaseKind, Loaded, LogLines},
    databases,
    instance::{self, Instance},
    isolation::Isolation,
    layout::Layout,
    listen,
    operator::{
        health,
        routes::{self, Operator},
    },
    postgres::Postgres,
    serve::ROLES,
    suite::{Place, Suite},
    tls::{self, Identity},
    upkeep,
};
use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, ValueEnum};
use eventstore::Databases;
use kit::telemetry::{self, LogFormat};
use serde_json::json;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// Time for services to finish what they hold after the first signal (outside §1: 10 s in all).
const STOP_LIMIT: Duration = Duration::from_secs(6);

/// Arguments of `gantry up`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  gantry up                                       data in ./gantry-data, http://127.0.0.1:8080\n  gantry up --data /srv/gantry --listen 127.0.0.1:0 --json\n  gantry up --listen 0.0.0.0:8443 --tls self-signed\n\nExits 0 after SIGTERM or Ctrl+C, 78 when the configuration is wrong, 1 otherwise. Running jobs run on; `gantry up` again picks them up."
)]
pub struct Arguments {
    /// Address to listen on; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Certificate chain of the listener, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key", conflicts_with = "tls")]
    tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Make a certificate of our own
    #[arg(long, value_enum)]
    tls: Option<TlsChoice>,
    /// Listen beyond this machine without TLS: tokens and output travel in clear
    #[arg(long)]
    insecure: bool,
}

/// `--tls …`
#[derive(Clone, Copy, Debug, ValueEnum)]
enum TlsChoice {
    /// A certificate that we sign ourselves, kept in the data folder
    SelfSigned,
}

impl Arguments {
    /// Arguments go over the file and the environment.
    fn over(&self, config: &mut Config) {
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            config.tls.cert = cert.display().to_string();
            config.tls.key = key.display().to_string();
            config.tls.self_signed = false;
        }
        if let Some(TlsChoice::SelfSigned) = self.tls {
            config.tls = crate::config::Tls { self_signed: true, ..Default::default() };
        }
    }
}

/// Runs until a signal; a second signal exits at once.
///
/// # Errors
/// The configuration is wrong, the data folder is held or of a newer version, or the database does not start.
pub async fn run(arguments: Arguments, data: Option<PathBuf>, as_json: bool) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut config = Loaded::read(arguments.config.as_deref())?.config;
    arguments.over(&mut config);
    let config = Arc::new(config);
    talk(&config);
    let traces = Traces::start(&config)?;
    let layout = Layout::open(&data.unwrap_or_else(|| PathBuf::from("gantry-data")))?;
    let known = layout.join("postgres").exists();
    let _held = instance::hold(&layout.data).await?;
    let isolation = Isolation::choose(config.executors.host_isolation)?;
    let identity = tls::identity(&config.tls, &layout, arguments.listen.ip())?;
    check_listen(arguments.listen.ip(), identity.is_some(), arguments.insecure)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut with_jobs = signal(SignalKind::user_defined1())?;

    let last = Instance::read(&layout.data);
    let listener = listener(arguments.listen, last.as_ref().map(|last| last.url.as_str())).await?;
    let url = public_url(&config, listener.local_addr()?, identity.is_some());
    // Agents of this machine fetch sources in clear: they need no certificate of ours to be trusted.
    let internal = match &identity {
        None => None,
        Some(_) => {
            let last = last.as_ref().and_then(|last| last.internal.as_deref());
            Some(self::listener(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), last).await?)
        }
    };
    let git_url = match &internal {
        None => format!("http://{}", near(listener.local_addr()?)),
        Some(internal) => format!("http://{}", internal.local_addr()?),
    };

    let stop = CancellationToken::new();
    let (phase, waiting) = watch::channel("the database".to_owned());
    let (routes, router) = watch::channel(health::starting(waiting));
    let (acceptor, trust) = match identity {
        Some(Identity { config, trust }) => (Some(config), trust),
        None => (None, None),
    };
    let public = listen::public(listener, acceptor, router.clone(), stop.clone());
    let inside = internal.map(|listener| {
        let address = listener.local_addr();
        (listen::public(listener, None, router.clone(), stop.clone()), address)
    });

    let database_stop = CancellationToken::new();
    let connections = config.database.connections.0;
    let (databases, supervisor) = match config.database.kind {
        DatabaseKind::Embedded => {
            let server = Postgres::start(&layout.data, &layout.run).await?;
            let options = server.options();
            let supervisor = tokio::spawn(server.supervise(database_stop.clone()));
            let pool = eventstore::open_pool_with(options, connections).await;
            (Databases::from(pool.context("the database does not answer")?), Some(supervisor))
        }
        DatabaseKind::Url => {
            (databases::open(&config.database, connections, databases::Needed::All).await?, None)
        }
    };

    let token = admin_token(&layout.join("admin-token"))?;
    let keys = adapters::keys(&config, &layout)?;
    let bus = adapters::bus(&config, &databases, &keys);
    let place = Place {
        url: url.clone(),
        git_url,
        layout: layout.clone(),
        isolation: Some(isolation.clone()),
        peer_url: None,
        phase,
    };
    let suite = Suite::start(&config, &place, &keys, &databases, bus.clone(), &ROLES, stop.clone()).await?;
    let admin = suite.bootstrap(&token).await?;
    upkeep::start(&config, &layout, &databases, &ROLES, &bus, &stop)?;
    let agents = listen::agents(&layout.agent_socket(), suite.agents(), stop.clone())?;
    let health = health::Health {
        bus: bus.clone(),
        databases: databases.clone(),
        roles: ROLES.to_vec(),
        draining: stop.clone(),
    };
    let stored = Stored::for_audit(&config, &layout)?;
    let operator =
        Operator { bus, databases, roles: ROLES.to_vec(), blobs: stored, config: Arc::clone(&config) };
    drop(
        routes.send_replace(suite.everything().merge(health::router(health)).merge(routes::router(operator))),
    );
    Instance {
        pid: std::process::id(),
        url: url.clone(),
        agents: format!("unix:{}", layout.agent_socket().display()),
        internal: inside.as_ref().and_then(|(_, address)| Some(format!("http://{}", address.as_ref().ok()?))),
        certificate: trust,
    }
    .write(&layout.data)?;

    let ready_in_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    if as_json {
        println!(
            "{}",
            json!({
                "ready": true, "version": env!("CARGO_PKG_VERSION"), "url": url, "api": format!("{url}/api/v2"),
                "graphql": format!("{url}/graphql"), "git": format!("{url}/git"), "token": token, "data": layout.data,
                "pid": std::process::id(), "isolation": isolation.word(), "ready_in_ms": ready_in_ms,
            })
        );
    } else {
        greet(&url, suite.sign_in_code(&admin).as_deref(), &layout, &isolation, known, ready_in_ms);
    }

    let end_jobs = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        _ = with_jobs.recv() => true,
    };
    tracing::info!("stopping; running jobs run on");
    // Whoever starts again at once waits for this end, and is not told that somebody runs here.
    let _ = fs::remove_file(layout.join("instance.json"));
    let second = async {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    let orderly = async {
        if end_jobs {
            suite.end_jobs().await;
        }
        stop.cancel();
        let all = async {
            suite.join().await;
            let _ = agents.await;
            // Streams of browsers end with the process: nobody waits for them.
            public.abort();
            if let Some((inside, _)) = inside {
                inside.abort();
            }
        };
        if tokio::time::timeout(STOP_LIMIT, all).await.is_err() {
            tracing::warn!(
                "some services did not finish within {STOP_LIMIT:?}; what they held is taken up at the next start"
            );
        }
        database_stop.cancel();
        if let Some(supervisor) = supervisor {
            let _ = supervisor.await;
        }
    };
    tokio::select! { () = second => {}, () = orderly => traces.end().await }
    Ok(ExitCode::SUCCESS)
}

/// Log lines as configured.
pub fn talk(config: &Config) {
    telemetry::logs(match config.telemetry.log {
        LogLines::Text => LogFormat::Text,
        LogLines::Json => LogFormat::Json,
    });
}

/// What a person needs next (user-experience §1.2).
fn greet(url: &str, code: Option<&str>, layout: &Layout, isolation: &Isolation, known: bool, ms: u64) {
    let data = layout.data.display();
    eprintln!(
        "Gantry {} ({} {data})\n",
        env!("CARGO_PKG_VERSION"),
        if known { "data of before in" } else { "new data in" }
    );
    eprintln!("  web        {url}/");
    if let Some(code) = code.filter(|code| !code.is_empty()) {
        eprintln!("  sign in    {url}/setup?code={code}   (one use, 30 minutes)");
    }
    eprintln!("  api        {url}/graphql   {url}/api/v2");
    eprintln!("  git        {url}/git/local/NAME.git   push here to try it");
    eprintln!("  jobs       kept apart from Gantry's own files by: {}", isolation.word());
    eprintln!("\nNext:  gantry try --data {data}     push a sample project and watch it");
    eprintln!(
        "Ready in {:.1} s. Press Ctrl+C to stop; state is kept and running jobs run on.",
        ms as f64 / 1000.0
    );
}

/// Refuses to listen beyond this machine in clear, unless that was asked for.
///
/// # Errors
/// The address is open to others, without TLS and without `--insecure`.
pub fn check_listen(ip: IpAddr, tls: bool, insecure: bool) -> anyhow::Result<()> {
    if ip.is_loopback() {
        return Ok(());
    }
    if tls {
        tracing::warn!("listening on {ip}: the web app, the API and git are open to the network, over TLS");
        return Ok(());
    }
    if insecure {
        tracing::warn!(
            "listening on {ip} without TLS: the web app, the API and git are open to the network, tokens travel in clear"
        );
        return Ok(());
    }
    bail!(
        "listening on {ip} exposes the web app, the API and git to the network: use --tls self-signed or --tls-cert and --tls-key, \
         put TLS before it and say --insecure, or listen on 127.0.0.1"
    )
}

/// What links begin with: the configured address, else the listener's.
fn public_url(config: &Config, address: SocketAddr, tls: bool) -> String {
    let configured = config.server.public_url.trim_end_matches('/');
    if !configured.is_empty() {
        return configured.to_owned();
    }
    format!("{}://{}", if tls { "https" } else { "http" }, near(address))
}

/// An address that a client can connect to: "everywhere" is none.
pub fn near(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The port of the last run is taken again where it was picked freely, so that links stay good.
async fn listener(wanted: SocketAddr, last: Option<&str>) -> anyhow::Result<TcpListener> {
    let last = last.and_then(|url| url.split_once("://")?.1.parse::<SocketAddr>().ok());
    if wanted.port() == 0
        && let Some(last) = last
        && last.ip() == wanted.ip()
        && let Ok(listener) = TcpListener::bind(last).await
    {
        return Ok(listener);
    }
    match TcpListener::bind(wanted).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let holder = crate::port::holder(wanted).map(|who| format!(" by {who}")).unwrap_or_default();
            let next = crate::port::next_free(wanted).map(|port| format!("{}:{port}", wanted.ip()));
            let next = next.unwrap_or_else(|| format!("{}:0", wanted.ip()));
            bail!("{wanted} is in use{holder}; try --listen {next}, or port 0, which picks a free one")
        }
        Err(error) => Err(error)
            .with_context(|| format!("{wanted} cannot be listened on; choose another address with --listen")),
    }
}

/// The administrator's token: kept in a file of mode 0600, made at the first start by whichever process of the folder is first.
pub fn admin_token(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) => {
            let token = new_admin_token()?;
            instance::replace(path, token.as_bytes())?;
            Ok(token)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(instance::create(path, &new_admin_token()?)?.trim().to_owned())
        }
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
}

/// A fresh token for the administrator.
///
/// # Errors
/// The machine has no randomness.
pub fn new_admin_token() -> anyhow::Result<String> {
    let mut random = [0u8; 32];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("the machine has no randomness"))?;
    Ok(format!("gtp_{}", URL_SAFE_NO_PAD.encode(random)))
}
