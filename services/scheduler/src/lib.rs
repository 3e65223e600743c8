//! Queued tasks become agents.
//!
//! The scheduler knows placements, one agent per task and epoch, and the compute port. It never asks whether a
//! task went well: the agent's lease with the dispatcher is the truth, and `task.finished` says when an agent is
//! no longer wanted.

mod config;
mod http;
mod placements;
mod retention;
mod state;
mod tasks;

pub use config::Config;

use bus::Bus;
use compute::Compute;
use eventstore::Store;
use kit::keys::Keys;
use sqlx::PgPool;
use state::State;
use std::sync::Arc;
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// The service's own tables.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/scheduler");

/// What the scheduler needs.
pub struct Deps {
    /// The database.
    pub pool: PgPool,
    /// The bus.
    pub bus: Bus,
    /// Keys of the installation, for one-time tokens.
    pub keys: Keys,
    /// Where agents run.
    pub compute: Arc<dyn Compute>,
    /// Durations.
    pub config: Config,
}

/// The running scheduler.
pub struct Service {
    state: Arc<State>,
    tasks: Vec<JoinHandle<()>>,
}

/// Installs the tables, consumes tasks and runs the loops, until `stop`. Agents run on after it.
///
/// # Errors
/// The database is away.
pub async fn start(deps: Deps, stop: CancellationToken) -> anyhow::Result<Service> {
    let Deps { pool, bus, keys, compute, config } = deps;
    let store = Store::open(pool, placements::SERVICE, &MIGRATOR).await?;
    bus.register_source(&store);
    let state = Arc::new(State {
        bus: bus.clone(),
        store: store.clone(),
        keys,
        compute,
        config,
        wanted: Notify::new(),
        ending: Notify::new(),
    });
    let group = Arc::new(placements::Placements(Arc::clone(&state)));
    let tasks = vec![
        bus.consume(&store, &["dispatcher"], group, stop.clone()),
        bus.consume(&store, &["conductor"], Arc::new(retention::Expired), stop.clone()),
        tokio::spawn(tasks::starter(Arc::clone(&state), stop.clone())),
        tokio::spawn(tasks::ender(Arc::clone(&state), stop.clone())),
        tokio::spawn(tasks::watcher(Arc::clone(&state), stop)),
    ];
    Ok(Service { state, tasks })
}

impl Service {
    /// What agents call whose compute gave them an identity and no token: `/v1/placement`.
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
