//! Publish, consume, request (architecture §4).
//!
//! *Publish* is nothing to do here: the event table is the outbox. *Consume* is [`Bus::consume`]: a named
//! [`Group`] handles every event of its sources at least once, the versions of one aggregate in order; effects
//! and progress commit together. *Request* is [`Bus::ask`], answered by the [`Responder`] of the owner.
//!
//! ```ignore
//! #[async_trait]
//! impl Responder for Pipelines {
//!     async fn respond(&self, req: Request) -> Result<Value, RequestError> {
//!         match req.name.as_str() {
//!             GetPipeline::NAME => {
//!                 bus::route::<GetPipeline, _, _>(&req, |ask, req| async move { self.get(ask, &req.actor).await }).await
//!             }
//!             _ => Err(bus::unknown(&req)),
//!         }
//!     }
//! }
//! ```

pub mod contract;
mod dead;
mod group;
mod lane;
mod request;

pub use dead::{DeadLetter, Filter, ParkedMessage};
pub use group::{Fault, Group};
pub use request::{AskOptions, Responder, failed, route, unknown};

use eventstore::Store;
use sqlx::PgPool;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// A message, encoded, has at most so many bytes, in both directions.
pub const MESSAGE_LIMIT: usize = eventstore::MESSAGE_LIMIT;

struct Source {
    wake: watch::Sender<u64>,
    /// Where its events are read, once it registered.
    store: Option<Store>,
}

struct Inner {
    pool: PgPool,
    responders: watch::Sender<HashMap<&'static str, request::Slot>>,
    sources: Mutex<HashMap<String, Source>>,
}

/// The bus of one process; cheap to clone.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bus(local)")
    }
}

impl Bus {
    /// The local adapter: requests stay in this process, consumers tail the event tables of one database.
    pub fn local(pool: PgPool) -> Self {
        Self(Arc::new(Inner {
            pool,
            responders: watch::Sender::new(HashMap::new()),
            sources: Mutex::new(HashMap::new()),
        }))
    }

    /// Lets a service's events be read where its store is, and wakes their readers after each commit. Groups that
    /// tail a source which never registers still read it, by timer.
    pub fn register_source(&self, store: &Store) {
        let mut committed = store.committed();
        {
            let mut sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
            let source = sources.entry(channel(store.service())).or_insert_with(Source::new);
            // The same store again, for example by each group of a service.
            if source.store.as_ref().is_some_and(|known| known.same(store)) {
                return;
            }
            source.store = Some(store.clone());
            source.wake.send_modify(|n| *n = n.wrapping_add(1));
        }
        let (bus, service) = (Arc::downgrade(&self.0), store.service());
        tokio::spawn(async move {
            while committed.changed().await.is_ok() {
                let Some(inner) = Weak::upgrade(&bus) else { return };
                Self(inner).wake(service);
            }
        });
    }

    /// Makes the readers of a source look again.
    pub(crate) fn wake(&self, service: &str) {
        let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(&channel(service)) {
            source.wake.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    pub(crate) fn woken(&self, service: &str) -> watch::Receiver<u64> {
        let mut sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.entry(channel(service)).or_insert_with(Source::new).wake.subscribe()
    }

    /// Where a source's events are read.
    pub(crate) fn pool_of(&self, service: &str) -> PgPool {
        let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources
            .get(&channel(service))
            .and_then(|source| source.store.as_ref())
            .map_or_else(|| self.0.pool.clone(), |store| store.pool().clone())
    }

    /// Lets a group handle the events of services, until `stop`. `store` is the consumer's own: effects and
    /// progress go there. A new group reads each source from its first event.
    pub fn consume(
        &self,
        store: &Store,
        sources: &[&'static str],
        group: Arc<dyn Group>,
        stop: CancellationToken,
    ) -> JoinHandle<()> {
        self.register_source(store);
        let runs: Vec<_> = sources
            .iter()
            .map(|source| {
                let runner = group::Runner::new(self.clone(), store.clone(), source, Arc::clone(&group));
                tokio::spawn(runner.run(stop.clone()))
            })
            .collect();
        tokio::spawn(async move {
            for run in runs {
                if let Err(error) = run.await {
                    tracing::error!(%error, "a group's runner ended");
                }
            }
        })
    }
}

/// A source is found by its service's name or its schema's.
fn channel(service: &str) -> String {
    service.replace('-', "_")
}

impl Source {
    fn new() -> Self {
        Self { wake: watch::Sender::new(0), store: None }
    }
}
