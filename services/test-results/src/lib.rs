//! Test results: reads the reports that tasks uploaded, lists them, and knows how long tests take (execution §18, §19).
//!
//! Consumes `reports.stored` (a report is to be read) and `workflow.job_ready` (whose tasks will split their tests).
//! Answers the requests of [`contracts::test_results`], and agents at `GET /v1/tasks/{task}/timings` and `…/failed-tests`.

mod answers;
mod config;
mod failed;
mod follow;
mod read;
mod sweep;
mod timings;

pub use config::Config;

use anyhow::Context;
use axum::{Router, routing::get};
use blobs::Blobs;
use bus::Bus;
use eventstore::Store;
use ids::Timestamp;
use kit::keys::Keys;
use sqlx::PgPool;
use std::sync::Arc;
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Name of the service.
pub const NAME: &str = "test-results";

/// The service's own tables.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/test-results");

/// What the service needs.
pub struct Deps {
    /// The database.
    pub pool: PgPool,
    /// The bus.
    pub bus: Bus,
    /// Fence tokens are checked with them.
    pub keys: Keys,
    /// Where the reports lie.
    pub blobs: Arc<dyn Blobs>,
    /// Settings.
    pub config: Config,
}

pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) keys: Keys,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) config: Config,
    /// There is something to read.
    pub(crate) waiting: Notify,
}

/// The running service.
pub struct Service {
    state: Arc<State>,
    workers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("test_results::Service")
    }
}

/// Migrates the schema, begins to answer, to follow and to read; all of it ends with `stop`.
///
/// # Errors
/// The schema cannot be migrated.
pub async fn start(deps: Deps, stop: CancellationToken) -> anyhow::Result<Service> {
    let Deps { pool, bus, keys, blobs, config } = deps;
    let store = Store::open(pool, NAME, &MIGRATOR).await.context("opening the store")?;
    bus.register_source(&store);
    let state = Arc::new(State { store: store.clone(), keys, blobs, config, waiting: Notify::new() });
    bus.respond(NAME, Arc::new(answers::Answers(Arc::clone(&state))));
    let workers = vec![
        tokio::spawn(read::run(Arc::clone(&state), stop.clone())),
        tokio::spawn(sweep::run(Arc::clone(&state), stop.clone())),
        bus.consume(&store, &["conductor"], Arc::new(follow::Jobs), stop.clone()),
        bus.consume(&store, &["conductor"], Arc::new(follow::expired()), stop.clone()),
        bus.consume(&store, &["output-processor"], Arc::new(follow::Reports(Arc::clone(&state))), stop),
    ];
    Ok(Service { state, workers })
}

impl Service {
    /// Routes that agents call.
    pub fn agent_router(&self) -> Router {
        Router::new()
            .route("/v1/tasks/{task}/timings", get(timings::timings))
            .route("/v1/tasks/{task}/failed-tests", get(failed::failed_tests))
            .with_state(Arc::clone(&self.state))
    }

    /// Forgets what is past its retention at `now`; how many reports. Runs by itself every `sweep_seconds`.
    ///
    /// # Errors
    /// The database is away.
    pub async fn sweep(&self, now: Timestamp) -> sqlx::Result<u64> {
        sweep::sweep(&self.state, now).await
    }

    /// Waits until the background work has ended, after `stop`.
    pub async fn join(self) {
        for worker in self.workers {
            if let Err(error) = worker.await {
                tracing::error!(%error, "a worker of the test results ended badly");
            }
        }
    }
}
