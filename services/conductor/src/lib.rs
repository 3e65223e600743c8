//! Workflows and their jobs: owner of the aggregate `workflow`.
//!
//! Consumes pipelines and what the dispatcher says of jobs; answers the requests of [`contracts::conductor`].
//! What may happen is decided in [`model::workflow`]; here are its rows, its messages and its timers.

mod ancestry;
mod commands;
mod consume;
mod create;
mod error;
mod explain;
mod locks;
mod redundant;
mod retention;
mod serial;
mod step;
mod store;
mod sweep;

use blobs::Blobs;
use bus::Bus;
use chrono::SubsecRound;
use contracts::Actor;
use eventstore::{Key, Store};
use ids::{Timestamp, WorkflowId};
use sqlx::PgPool;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Name of the service and of its schema.
pub const NAME: &str = "conductor";

/// The service's own tables.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/conductor");

/// What the service needs.
pub struct Deps {
    /// Its database.
    pub pool: PgPool,
    /// The bus.
    pub bus: Bus,
    /// Where plans lie that are too large for a message, and archives of what is past its retention.
    pub blobs: Arc<dyn Blobs>,
    /// Durations.
    pub config: Config,
}

/// Durations of the conductor.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long after its creation a workflow can be rerun; at most 90 days (execution §9).
    pub reruns: Duration,
    /// Between two looks for workflows whose pipeline is past its retention, if none is announced.
    pub sweep: Duration,
    /// Whether jobs can be rerun with SSH.
    pub ssh: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { reruns: Duration::from_secs(90 * 86_400), sweep: Duration::from_secs(3600), ssh: true }
    }
}

/// The running service.
pub struct Service {
    tasks: Vec<JoinHandle<()>>,
}

/// Migrates the schema, begins to answer, to consume and to sweep.
///
/// # Errors
/// The schema cannot be migrated.
pub async fn start(deps: Deps, stop: CancellationToken) -> anyhow::Result<Service> {
    let store = Store::open(deps.pool, NAME, &MIGRATOR).await?;
    deps.bus.register_source(&store);
    let config = deps.config;
    let state = State {
        store: store.clone(),
        bus: deps.bus.clone(),
        due: Arc::default(),
        reruns: config.reruns,
        ssh: config.ssh,
    };
    let (expired, archives) = (Arc::new(Notify::new()), Arc::clone(&deps.blobs));
    let sweeper = ::retention::Sweeper::new(Arc::new(retention::Workflows(store.clone())), archives);
    deps.bus.respond(NAME, Arc::new(state.clone()));
    let tasks = vec![
        deps.bus.consume(
            &store,
            &["pipelines"],
            Arc::new(consume::Pipelines { blobs: deps.blobs, due: Arc::clone(&state.due) }),
            stop.clone(),
        ),
        deps.bus.consume(&store, &["domain"], Arc::new(redundant::Settings), stop.clone()),
        deps.bus.consume(
            &store,
            &["pipelines"],
            Arc::new(retention::Expired(Arc::clone(&expired))),
            stop.clone(),
        ),
        tokio::spawn(sweeper.run(config.sweep, expired, stop.clone())),
        // What it says of serial groups comes back to it: their locks and those of workflows are never held together.
        deps.bus.consume(&store, &[NAME], Arc::new(serial::Groups), stop.clone()),
        deps.bus.consume(&store, &[NAME], Arc::new(serial::Turns), stop.clone()),
        deps.bus.consume(&store, &["dispatcher"], Arc::new(consume::Jobs), stop.clone()),
        tokio::spawn(sweep::run(state, stop)),
    ];
    Ok(Service { tasks })
}

impl Service {
    /// Returns when the service was stopped and its loops have ended.
    ///
    /// # Errors
    /// A loop panicked.
    pub async fn join(self) -> anyhow::Result<()> {
        for task in self.tasks {
            task.await?;
        }
        Ok(())
    }
}

/// The handles of the service; cheap to clone.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) bus: Bus,
    /// Wakes the sweeper: there is something to look after now.
    pub(crate) due: Arc<Notify>,
    /// How long a workflow can be rerun.
    pub(crate) reruns: Duration,
    /// Whether jobs can be rerun with SSH.
    pub(crate) ssh: bool,
}

/// The service as the cause of events.
pub(crate) fn me() -> Actor {
    Actor::service(NAME)
}

/// The lock of a workflow.
pub(crate) fn key(id: WorkflowId) -> Key {
    Key::new("workflow", id.uuid())
}

/// The time, as exact as the database keeps it: what is read back equals what was written.
pub(crate) fn now() -> Timestamp {
    chrono::Utc::now().trunc_subsecs(6)
}
