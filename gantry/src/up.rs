//! `gantry up`: the whole suite in one process tree on embedded defaults.

use crate::{
    config::{DatabaseKind, Loaded},
    instance::{self, Instance},
    isolation::Isolation,
    layout::Layout,
    listen,
    postgres::Postgres,
    suite::{Place, Suite},
};
use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::Args;
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// Time for services to finish what they hold after the first signal (outside §1: 10 s in all).
const STOP_LIMIT: Duration = Duration::from_secs(6);

/// Arguments of `gantry up`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Address to listen on; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listen beyond this machine without TLS: tokens and output travel in clear
    #[arg(long)]
    insecure: bool,
}

/// Runs until a signal; a second signal exits at once.
///
/// # Errors
/// The configuration is wrong, the data folder is held or of a newer version, or the database does not start.
pub async fn run(arguments: Arguments, data: Option<PathBuf>, as_json: bool) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let loaded = Loaded::read(arguments.config.as_deref())?;
    crate::serve::talk();
    check_listen(arguments.listen.ip(), arguments.insecure)?;
    let layout = Layout::open(&data.unwrap_or_else(|| PathBuf::from("gantry-data")))?;
    let _held = instance::hold(&layout.data)?;
    let isolation = Isolation::choose(loaded.config.executors.host_isolation)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut with_jobs = signal(SignalKind::user_defined1())?;

    let listener = listener(&arguments, &layout).await?;
    let address = listener.local_addr()?;
    let url = format!("http://{address}");

    let database_stop = CancellationToken::new();
    let (options, supervisor) = match loaded.config.database.kind {
        DatabaseKind::Embedded => {
            let server = Postgres::start(&layout.data, &layout.run).await?;
            let options = server.options();
            (options, Some(tokio::spawn(server.supervise(database_stop.clone()))))
        }
        DatabaseKind::Url => {
            let options =
                PgConnectOptions::from_str(&loaded.config.database.url).context("[database] url")?;
            (options, None)
        }
    };
    let pool = eventstore::open_pool_with(options, loaded.config.database.connections.0)
        .await
        .context("the database does not answer")?;

    let token = admin_token(&layout.join("admin-token"))?;
    let stop = CancellationToken::new();
    let place = Place { url: url.clone(), layout: layout.clone(), isolation: isolation.clone() };
    let suite = Suite::start(&loaded.config, &place, pool, stop.clone()).await?;
    suite.bootstrap(&token).await?;
    let agents = listen::agents(&layout.agent_socket(), suite.agents(), stop.clone())?;
    let public = listen::public(listener, suite.public(), stop.clone());
    Instance {
        pid: std::process::id(),
        url: url.clone(),
        agents: format!("unix:{}", layout.agent_socket().display()),
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
        eprintln!("Gantry is ready after {ready_in_ms} ms: {url}");
        eprintln!("  sign in with the token in {}", layout.join("admin-token").display());
        eprintln!("  host jobs are kept apart by: {}", isolation.word());
        eprintln!("  try it: gantry try --data {}", layout.data.display());
    }

    let end_jobs = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        _ = with_jobs.recv() => true,
    };
    tracing::info!("stopping; running jobs run on");
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
    tokio::select! { () = second => {}, () = orderly => {} }
    let _ = fs::remove_file(layout.join("instance.json"));
    Ok(ExitCode::SUCCESS)
}

fn check_listen(ip: IpAddr, insecure: bool) -> anyhow::Result<()> {
    if ip.is_loopback() || insecure {
        if !ip.is_loopback() {
            tracing::warn!(
                "listening on {ip} without TLS: the web app, the API and git are open to the network, tokens travel in clear"
            );
        }
        return Ok(());
    }
    bail!(
        "listening on {ip} exposes the web app, the API and git to the network; put TLS before it and say --insecure, or listen on 127.0.0.1"
    )
}

/// The port of the last run is taken again where it was picked freely, so that links stay good.
async fn listener(arguments: &Arguments, layout: &Layout) -> anyhow::Result<TcpListener> {
    let wanted = arguments.listen;
    if wanted.port() == 0
        && let Some(last) = Instance::read(&layout.data)
        && let Some(last) = last.url.strip_prefix("http://").and_then(|text| text.parse::<SocketAddr>().ok())
        && last.ip() == wanted.ip()
        && let Ok(listener) = TcpListener::bind(last).await
    {
        return Ok(listener);
    }
    TcpListener::bind(wanted).await.with_context(|| {
        format!("{wanted} cannot be listened on; choose another with --listen, port 0 picks a free one")
    })
}

/// The administrator's token: kept in a file of mode 0600, made at the first start.
fn admin_token(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
    let mut random = [0u8; 32];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("no randomness"))?;
    let token = format!("gtp_{}", URL_SAFE_NO_PAD.encode(random));
    instance::replace(path, token.as_bytes())?;
    Ok(token)
}
