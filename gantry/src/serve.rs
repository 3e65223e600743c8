//! `gantry serve`: one or several services on the stores that the configuration names.
//!
//! A role starts from a configuration file with listeners of its own: the public one (where the edge is among the
//! roles), the agents' one (where a service that agents call is), and one for probes and operators. Requests
//! between services need a bus between processes; on the local bus all roles must run in this process.

use crate::{
    adapters::{self, Stored, Traces},
    config::{BusKind, ComputeKind, Config, DatabaseKind, Loaded},
    databases,
    isolation::Isolation,
    layout::Layout,
    listen,
    operator::{
        health,
        routes::{self, Operator},
    },
    suite::{Place, Suite},
    tls, up, upkeep,
};
use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Balancers take a process out of service within this.
const BALANCERS: Duration = Duration::from_secs(5);
/// After it, services have so long to finish what they hold.
const FINISH: Duration = Duration::from_secs(25);

/// Roles, each a service of its own.
pub const ROLES: [&str; 11] = [
    "api",
    "projector",
    "domain",
    "permissions",
    "contexts",
    "pipelines",
    "conductor",
    "dispatcher",
    "scheduler",
    "output-processor",
    "test-results",
];
/// Roles that agents call.
pub const CALLED_BY_AGENTS: [&str; 5] =
    ["dispatcher", "contexts", "output-processor", "test-results", "scheduler"];

/// Arguments of `gantry serve`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  gantry serve --list\n  gantry serve all --config gantry.toml\n  gantry serve --print-config --config gantry.toml\n\nThe database must be at the version of this build: run `gantry admin migrate` first.\nExits 0 after SIGTERM, 78 when the configuration is wrong, 1 otherwise."
)]
pub struct Arguments {
    /// Services to run, or `all`
    roles: Vec<String>,
    /// Print the roles
    #[arg(long)]
    list: bool,
    /// Print every value and where it came from
    #[arg(long)]
    print_config: bool,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listen beyond this machine without TLS: tokens and output travel in clear
    #[arg(long)]
    insecure: bool,
}

/// Runs the roles until a signal.
///
/// # Errors
/// An unknown role, a configuration that does not fit, a database that refuses us or is older than this build.
pub async fn run(arguments: Arguments, data: Option<PathBuf>, as_json: bool) -> anyhow::Result<ExitCode> {
    let loaded = Loaded::read(arguments.config.as_deref())?;
    if arguments.list {
        if as_json {
            println!("{}", json!(ROLES));
        } else {
            println!("{}", ROLES.join("\n"));
        }
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.print_config {
        print!("{}", loaded.print());
        return Ok(ExitCode::SUCCESS);
    }
    let config = Arc::new(loaded.config);
    let roles = chosen(&arguments.roles)?;
    check(&config, &roles)?;
    up::talk(&config);
    eventstore::never_migrate();
    let traces = Traces::start(&config)?;
    let ended = serve(&config, roles, data.as_deref(), arguments.insecure, as_json).await;
    traces.end().await;
    ended
}

fn chosen(wanted: &[String]) -> anyhow::Result<Vec<&'static str>> {
    if wanted.is_empty() {
        bail!("say which roles to serve, or `all`; `gantry serve --list` prints them");
    }
    if wanted == ["all"] {
        return Ok(ROLES.to_vec());
    }
    let mut roles = Vec::new();
    for name in wanted {
        let Some(role) = ROLES.iter().find(|role| *role == name) else {
            bail!("there is no role {name}; `gantry serve --list` prints them");
        };
        if !roles.contains(role) {
            roles.push(*role);
        }
    }
    Ok(roles)
}

/// What cannot work is refused before anything starts.
fn check(config: &Config, roles: &[&str]) -> anyhow::Result<()> {
    if config.database.kind == DatabaseKind::Embedded {
        bail!(
            "`gantry serve` starts no database of its own: set [database] kind = \"url\" and url, or use `gantry up`"
        );
    }
    let missing: Vec<_> = ROLES.iter().filter(|role| !roles.contains(role)).copied().collect();
    match config.bus.kind {
        BusKind::Local if !missing.is_empty() => bail!(
            "[bus] kind = \"local\" lives in one process, and nobody would answer for {}; serve `all` in one process, or name a bus between processes",
            missing.join(", ")
        ),
        BusKind::Local => Ok(()),
        BusKind::Amqp if config.bus.url.is_empty() => {
            bail!("[bus] kind = \"amqp\" needs url = \"amqp://user:password@host:5672/\"")
        }
        BusKind::Amqp if !roles.contains(&"api") && config.server.public_url.is_empty() => {
            bail!("links need an address: set [server] public_url to where the role api is reached")
        }
        BusKind::Amqp
            if roles.contains(&"scheduler") && !missing.is_empty() && config.agents.url.is_empty() =>
        {
            bail!(
                "agents call {}: set [agents] url to where all of them are reached",
                CALLED_BY_AGENTS.join(", ")
            )
        }
        BusKind::Amqp => Ok(()),
    }
}

/// A listener of this process, as the ready line names it.
struct Open {
    name: &'static str,
    url: String,
    task: JoinHandle<()>,
}

async fn serve(
    config: &Arc<Config>,
    roles: Vec<&'static str>,
    data: Option<&Path>,
    insecure: bool,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let layout = Layout::open(data.unwrap_or(Path::new("gantry-data")))?;
    // Before anything is waited for: a key that is not there does not come by itself.
    let keys = adapters::keys(config, &layout)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, draining) = (CancellationToken::new(), CancellationToken::new());
    let (phase, waiting) = watch::channel("the database".to_owned());
    let starting = health::starting(waiting);

    let (internal_routes, router) = watch::channel(starting.clone());
    let internal = bind(&config.server.internal).await?;
    let mut open = vec![opened("internal", internal, None, router, &stop)?];
    let public = if roles.contains(&"api") {
        let listener = bind(&config.server.listen).await?;
        let ip = listener.local_addr()?.ip();
        let identity = tls::identity(&config.tls, &layout, ip)?;
        up::check_listen(ip, identity.is_some(), insecure)?;
        let (routes, router) = watch::channel(starting.clone());
        let acceptor = identity.map(|identity| identity.config);
        open.push(opened("public", listener, acceptor, router, &stop)?);
        Some(routes)
    } else {
        None
    };

    let called = roles.iter().any(|role| CALLED_BY_AGENTS.contains(role));
    // Bound before the services start, which tell each other where they are.
    let for_agents = if called { Some(bind(&config.server.agents).await?) } else { None };
    let peer_url = match &for_agents {
        Some(listener) => Some(peer_url(&config.server.peer_url, listener.local_addr()?)?),
        None => None,
    };

    let opening =
        databases::open(&config.database, config.database.connections.0, databases::Needed::Of(&roles));
    // Whatever is away is waited for, and whoever is told to end meanwhile ends (reliability R-38).
    let Some(databases) = unless_told(&mut terminate, &mut interrupt, opening).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    let bus = adapters::bus(config, &databases, &keys);
    let wakes = bus.across_processes(stop.clone());
    // A service in a container has no means to keep jobs apart, and needs none where no agent of its own runs.
    let starts_agents = config.compute.kind == ComputeKind::Local && roles.contains(&"scheduler");
    let isolation = starts_agents.then(|| Isolation::choose(config.executors.host_isolation)).transpose()?;
    let place = Place {
        url: address(&config.server.public_url, &open, "public"),
        git_url: address(&config.server.public_url, &open, "public"),
        isolation,
        layout: layout.clone(),
        peer_url,
        phase,
    };
    let starting = Suite::start(config, &place, &keys, &databases, bus.clone(), &roles, stop.clone());
    let Some(suite) = unless_told(&mut terminate, &mut interrupt, starting).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    if roles.contains(&"domain") {
        suite.bootstrap(&up::admin_token(&layout.join("admin-token"))?).await?;
    }
    upkeep::start(config, &layout, &databases, &roles, &bus, &stop)?;
    let health = health::Health {
        bus: bus.clone(),
        databases: databases.clone(),
        roles: roles.clone(),
        draining: draining.clone(),
    };
    let stored = Stored::for_audit(config, &layout)?;
    let operator = Operator {
        bus: bus.clone(),
        databases,
        roles: roles.clone(),
        blobs: stored,
        config: Arc::clone(config),
    };
    let probes = health::router(health).merge(routes::router(operator));
    drop(internal_routes.send_replace(probes.clone()));
    if let Some(public) = &public {
        drop(public.send_replace(suite.public().merge(probes)));
    }
    let mut unix = None;
    if let Some(listener) = for_agents {
        let (routes, router) = watch::channel(suite.agents());
        open.push(opened("agents", listener, None, router, &stop)?);
        // The receiver keeps the value; agents of this machine come over the socket.
        drop(routes);
        if config.agents.url.is_empty() {
            unix = Some(listen::agents(&layout.agent_socket(), suite.agents(), stop.clone())?);
        }
    }
    let instance = ids::InstanceId::new();
    let listeners: serde_json::Map<_, _> =
        open.iter().map(|open| (open.name.to_owned(), open.url.clone().into())).collect();
    let ready = json!({
        "ready": true, "version": env!("CARGO_PKG_VERSION"), "service": roles.join(","), "instance": instance,
        "pid": std::process::id(), "listeners": listeners,
    });
    if as_json {
        println!("{ready}");
    } else {
        eprintln!("Serving {}.", roles.join(", "));
        open.iter().for_each(|open| eprintln!("  {:<10} {}", open.name, open.url));
    }

    told(&mut terminate, &mut interrupt).await;
    draining.cancel();
    tracing::info!("draining: unready now, ending in {BALANCERS:?}");
    let second = async {
        told(&mut terminate, &mut interrupt).await;
        tokio::time::sleep(BALANCERS).await;
    };
    let orderly = async {
        tokio::time::sleep(BALANCERS).await;
        stop.cancel();
        let all = async {
            // Requests under way are answered, over HTTP and over the bus; streams and long polls end by the same token.
            let listeners = async {
                for open in open {
                    let _ = open.task.await;
                }
                if let Some(unix) = unix {
                    let _ = unix.await;
                }
            };
            tokio::join!(suite.join(), bus.leave(), listeners);
            let _ = wakes.await;
        };
        if tokio::time::timeout(FINISH, all).await.is_err() {
            tracing::warn!(
                "some services did not finish within {FINISH:?}; another process takes up what they held"
            );
        }
    };
    tokio::select! { () = second => {}, () = orderly => {} }
    Ok(ExitCode::SUCCESS)
}

/// Waits for a signal to end.
async fn told(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
}

/// Does it, unless a signal comes first.
async fn unless_told<T>(
    terminate: &mut Signal,
    interrupt: &mut Signal,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Option<T>> {
    tokio::select! {
        done = work => done.map(Some),
        () = told(terminate, interrupt) => Ok(None),
    }
}

async fn bind(address: &str) -> anyhow::Result<TcpListener> {
    let wanted: SocketAddr = address
        .parse()
        .with_context(|| format!("\"{address}\" is no address to listen on; write it as 127.0.0.1:8080"))?;
    TcpListener::bind(wanted).await.with_context(|| format!("{wanted} cannot be listened on"))
}

fn opened(
    name: &'static str,
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    router: watch::Receiver<axum::Router>,
    stop: &CancellationToken,
) -> anyhow::Result<Open> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", up::near(listener.local_addr()?));
    Ok(Open { name, url, task: listen::public(listener, tls, router, stop.clone()) })
}

/// Where other processes of the same service reach this one.
fn peer_url(configured: &str, listens: SocketAddr) -> anyhow::Result<String> {
    let configured = configured.trim_end_matches('/');
    if !configured.is_empty() {
        return Ok(configured.to_owned());
    }
    if !listens.ip().is_unspecified() {
        return Ok(format!("http://{listens}"));
    }
    let name = nix::unistd::gethostname().context("the machine has no name; set [server] peer_url")?;
    Ok(format!("http://{}:{}", name.to_string_lossy(), listens.port()))
}

/// The configured address, else that of a listener.
fn address(configured: &str, open: &[Open], name: &str) -> String {
    let configured = configured.trim_end_matches('/');
    if !configured.is_empty() {
        return configured.to_owned();
    }
    open.iter().find(|open| open.name == name).map(|open| open.url.clone()).unwrap_or_default()
}
