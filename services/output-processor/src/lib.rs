//! Owner of streams and run records: takes output and step reports from agents, shows them live, keeps them.
//!
//! [`stores`] keeps what agents upload: caches, workspace layers, artifacts and test reports.
//!
//! An agent's bytes go to the journal ([`journal`]) under the rules of one place ([`task`]); the background moves
//! sealed streams to the blob store and completes the record of a task when its epoch is closed ([`keeper`]).

mod adopt;
mod answers;
mod config;
mod entry;
mod http;
mod hub;
mod journal;
mod keeper;
mod peers;
mod rebuild;
mod retention;
mod scribe;
mod sealed;
mod siblings;
mod slot;
mod steps;
mod store;
mod stores;
mod task;

pub use config::{Config, Stores};

use anyhow::Context;
use axum::Router;
use blobs::Blobs;
use bus::Bus;
use eventstore::Store;
use ids::Timestamp;
use kit::keys::Keys;
use live::Live;
use records::Records;
use sqlx::PgPool;
use std::{path::PathBuf, sync::Arc};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// The service's own tables.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/output-processor");

/// What the service needs.
pub struct Deps {
    /// The database.
    pub pool: PgPool,
    /// The bus.
    pub bus: Bus,
    /// Keys of the installation: fence tokens are checked with them.
    pub keys: Keys,
    /// Bytes.
    pub blobs: Arc<dyn Blobs>,
    /// Live messages.
    pub live: Arc<dyn Live>,
    /// Documents.
    pub records: Arc<dyn Records>,
    /// Folder of journals. Processes that share it have one each, and one that lives takes over that of one that ended.
    pub journal_dir: PathBuf,
    /// Where other processes of this service reach the routes for agents of this one, `http://host:port`; `None`: no other
    /// process serves on this database.
    pub peer_url: Option<String>,
    /// Settings.
    pub config: Config,
}

/// The running service.
pub struct Service {
    hub: Arc<hub::Hub>,
    workers: Vec<JoinHandle<()>>,
    journal: JoinHandle<()>,
    end_journal: CancellationToken,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("output_processor::Service")
    }
}

/// Reads the journal, registers the service on the bus and starts its background work, which ends with `stop`.
///
/// # Errors
/// The database or the journal cannot be opened.
pub async fn start(deps: Deps, stop: CancellationToken) -> anyhow::Result<Service> {
    let Deps { pool, bus, keys, blobs, live, records, journal_dir, peer_url, config } = deps;
    let store = Store::open(pool, "output-processor", &MIGRATOR).await.context("opening the store")?;
    bus.register_source(&store);
    let (work, todo) = mpsc::unbounded_channel();
    let (store_of, bus_of, stop_of) = (store.clone(), bus.clone(), stop.clone());
    let parts = hub::Parts {
        config,
        store: store_of,
        keys,
        bus: bus_of,
        blobs,
        live,
        records,
        peer_url,
        stop: stop_of,
    };
    let hub = hub::Hub::open(parts, &journal_dir, work)
        .await
        .with_context(|| format!("opening the journal in {}", journal_dir.display()))?;
    let hub = Arc::new(hub);

    // The journal ends last: what is accepted while the rest stops is still made durable.
    let end_journal = CancellationToken::new();
    let journal = tokio::spawn({
        let (hub, end) = (Arc::clone(&hub), end_journal.clone());
        async move { hub.journal.sync_loop(end).await }
    });
    let writing = Arc::new(tokio::sync::Mutex::new(()));
    let (expired, sweep) = (Arc::new(Notify::new()), hub.config.retention_sweep);
    let archiver =
        ::retention::Sweeper::new(Arc::new(retention::Jobs(Arc::clone(&hub))), Arc::clone(&hub.blobs));
    let workers = vec![
        tokio::spawn(scribe::run(Arc::clone(&hub), Arc::clone(&writing), stop.clone())),
        tokio::spawn(keeper::run(Arc::clone(&hub), writing, todo, stop.clone())),
        tokio::spawn(adopt::run(Arc::clone(&hub), journal_dir, stop.clone())),
        tokio::spawn(keeper::sweep_loop(Arc::clone(&hub), stop.clone())),
        tokio::spawn(stores::sweep_loop(Arc::clone(&hub), stop.clone())),
        bus.consume(&store, &["conductor"], Arc::new(stores::Jobs), stop.clone()),
        bus.consume(&store, &["dispatcher"], Arc::new(answers::Tasks(Arc::clone(&hub))), stop.clone()),
        bus.consume(&store, &["conductor"], Arc::new(retention::expired(Arc::clone(&expired))), stop.clone()),
        tokio::spawn(archiver.run(sweep, expired, stop)),
    ];
    bus.respond("output-processor", Arc::new(answers::Answers(Arc::clone(&hub))));
    Ok(Service { hub, workers, journal, end_journal })
}

impl Service {
    /// Routes that agents call.
    pub fn agent_router(&self) -> Router {
        http::router(Arc::clone(&self.hub))
    }

    /// Removes what is past its retention at `now`; how many tasks. Runs by itself every `logs.sweep_seconds`.
    ///
    /// # Errors
    /// A store is away; the next sweep goes on.
    pub async fn sweep(&self, now: Timestamp) -> anyhow::Result<usize> {
        keeper::sweep(&self.hub, now).await
    }

    /// Removes stored files that are due at `now`: marks them at first, and removes their bytes a day later. How
    /// many went. Runs by itself every `logs.sweep_seconds`.
    ///
    /// # Errors
    /// A store is away; the next sweep goes on.
    pub async fn sweep_stores(&self, now: Timestamp) -> anyhow::Result<usize> {
        stores::sweep(&self.hub, now).await
    }

    /// Waits until the background work has ended, after `stop`; the last appends are on disk then.
    pub async fn join(self) {
        for worker in self.workers {
            if let Err(error) = worker.await {
                tracing::error!(%error, "a worker of the output processor ended badly");
            }
        }
        self.end_journal.cancel();
        if let Err(error) = self.journal.await {
            tracing::error!(%error, "the journal ended badly");
        }
        // Another process of this folder goes on with what is in it.
        self.hub.journal.end();
        if let Err(error) = self.hub.slot.leave() {
            tracing::warn!(%error, "the journal's place stays taken until this process ends");
        }
    }
}
