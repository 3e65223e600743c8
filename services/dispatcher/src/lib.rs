//! Jobs become tasks: queue, slots, claims, leases, permits and outcomes.
//!
//! The dispatcher is the only writer of tasks. It takes ready jobs from the conductor, announces the tasks that
//! have a slot, hands each to the one agent that claims it first, and folds what the tasks' agents report, or what
//! becomes of those that stay silent, into the job's end. Where an agent runs is none of its business.

pub mod classes;
mod config;
mod explain;
mod http;
mod lease;
mod line;
mod permit;
mod placements;
mod ready;
mod requests;
mod retention;
pub mod rules;
mod runner_claim;
mod runner_unclaim;
pub mod runners;
mod ssh;
mod state;
mod store;
mod sweeper;

pub use config::{Config, Docker};

use blobs::Blobs;
use bus::Bus;
use eventstore::Store;
use kit::keys::Keys;
use sqlx::PgPool;
use state::State;
use std::sync::Arc;
use tokio::{
    sync::{Notify, broadcast},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// The service's own tables.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/dispatcher");

/// What the dispatcher needs.
pub struct Deps {
    /// The database.
    pub pool: PgPool,
    /// The bus.
    pub bus: Bus,
    /// Keys of the installation, for claims, fences and sources.
    pub keys: Keys,
    /// Where archives of what is past its retention lie.
    pub blobs: Arc<dyn Blobs>,
    /// Limits and durations.
    pub config: Config,
    /// What people see: `http://host:port`, without a slash at the end. May change with a restart.
    pub public_url: String,
    /// Where agents reach the git server: `<git_url>/git/<org>/<repo>.git`.
    pub git_url: String,
}

/// The running dispatcher.
pub struct Service {
    state: Arc<State>,
    tasks: Vec<JoinHandle<()>>,
}

/// Installs the tables, answers requests, consumes ready jobs and sweeps, until `stop`.
///
/// # Errors
/// The configuration contradicts itself or the database is away.
pub async fn start(deps: Deps, stop: CancellationToken) -> anyhow::Result<Service> {
    let Deps { pool, bus, keys, blobs, config, public_url, git_url } = deps;
    config.validate()?;
    let store = Store::open(pool, store::SERVICE, &MIGRATOR).await?;
    bus.register_source(&store);
    let commands = broadcast::Sender::new(1024);
    let state = Arc::new(State {
        store: store.clone(),
        bus: bus.clone(),
        keys,
        config,
        public_url: public_url.trim_end_matches('/').to_owned(),
        git_url: git_url.trim_end_matches('/').to_owned(),
        commands,
        stop: stop.clone(),
        due: Notify::new(),
        for_runners: Notify::new(),
    });
    let (heeding, hints) = (Arc::clone(&state), bus.hints());
    bus.respond(store::SERVICE, Arc::new(requests::Requests(Arc::clone(&state))));
    let group = bus.consume(&store, &["conductor"], Arc::new(ready::Ready(Arc::clone(&state))), stop.clone());
    let expired = Arc::new(Notify::new());
    let archiver = ::retention::Sweeper::new(Arc::new(retention::Runs(store.clone())), blobs);
    let tasks = vec![
        group,
        bus.consume(&store, &["conductor"], Arc::new(retention::expired(Arc::clone(&expired))), stop.clone()),
        tokio::spawn(archiver.run(state.config.retention_sweep, expired, stop.clone())),
        tokio::spawn(sweeper::run(Arc::clone(&state), stop)),
        tokio::spawn(async move { heeding.heed(hints).await }),
    ];
    Ok(Service { state, tasks })
}

impl Service {
    /// What agents call: `/v1/claim` and its siblings (see `agent_api`).
    pub fn agent_router(&self) -> axum::Router {
        http::router(Arc::clone(&self.state))
    }

    /// Waits until everything has stopped.
    ///
    /// # Errors
    /// A part ended by a panic.
    pub async fn join(self) -> anyhow::Result<()> {
        for task in self.tasks {
            task.await?;
        }
        Ok(())
    }
}
