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

mod admission;
pub mod broker;
pub mod contract;
mod dead;
mod detour;
mod feed;
mod group;
mod hint;
mod lane;
mod members;
pub mod once;
mod relay;
mod request;
mod shape;
mod tail;

pub use admission::Admission;
pub use broker::Broker;
pub use contracts::request::Ask;
pub use dead::{DeadLetter, Filter, ParkedMessage};
pub use group::{Fault, Group, LANES, handled};
pub use hint::{Hint, Hints};
pub use request::{AskOptions, Responder, body, failed, route, unknown};
pub use shape::{Behind, Subscription, behind};

use eventstore::{Databases, Store};
use sqlx::{PgPool, postgres::PgListener};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, broadcast, watch},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A message, encoded, has at most so many bytes, in both directions.
pub const MESSAGE_LIMIT: usize = eventstore::MESSAGE_LIMIT;

/// Channel on which processes tell each other who committed; the payload is the teller, the services, and hints.
const COMMITTED: &str = "gantry_committed";

struct Source {
    wake: watch::Sender<u64>,
    /// Where its events are read, once it registered.
    store: Option<Store>,
    /// What all groups of this process read of its log.
    tail: Arc<tail::Tail>,
}

pub(crate) struct Inner {
    databases: Databases,
    /// What carries messages to and from other processes; `None`: there are none.
    broker: Option<Arc<dyn Broker>>,
    /// Per service, which processes run its groups.
    members: Mutex<HashMap<&'static str, members::Members>>,
    responders: watch::Sender<HashMap<&'static str, request::Slot>>,
    sources: Mutex<HashMap<String, Source>>,
    /// Groups that were started here.
    groups: Mutex<Vec<shape::Started>>,
    /// Services that committed here, and hints, that other processes have not been told of.
    own: Mutex<BTreeSet<String>>,
    own_changed: Notify,
    hints: broadcast::Sender<hint::Hint>,
    /// Whether other processes are told anything.
    crosses: AtomicBool,
    /// Who waits for an answer that does not come over the broker.
    waiting: detour::Waiting,
    /// Messages that all groups together handle at a time.
    turns: Arc<Semaphore>,
    admission: Admission,
    /// This process is about to end: it takes no more requests, and leaves lanes and leaderships to others.
    leaving: CancellationToken,
    /// What ends in good order then.
    parting: TaskTracker,
}

/// The bus of one process; cheap to clone.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.broker {
            None => f.write_str("Bus(local)"),
            Some(broker) => write!(f, "Bus({broker:?})"),
        }
    }
}

impl Bus {
    /// The local adapter: requests stay in this process, consumers tail the event tables.
    pub fn local(databases: impl Into<Databases>) -> Self {
        Self::new(databases.into(), None)
    }

    /// Over a message broker: requests reach services of other processes, consumers are fed from queues, and the
    /// events of this process's services are published. History is read where `databases` or a registered store says.
    pub fn networked(databases: impl Into<Databases>, broker: Arc<dyn Broker>) -> Self {
        Self::new(databases.into(), Some(broker))
    }

    fn new(databases: Databases, broker: Option<Arc<dyn Broker>>) -> Self {
        let turns = databases.common().options().get_max_connections() / 2;
        let turns = Arc::new(Semaphore::new(usize::try_from(turns).unwrap_or(1).max(1)));
        Self(Arc::new(Inner {
            turns,
            databases,
            broker,
            members: Mutex::default(),
            responders: watch::Sender::new(HashMap::new()),
            sources: Mutex::new(HashMap::new()),
            groups: Mutex::default(),
            own: Mutex::default(),
            own_changed: Notify::new(),
            hints: broadcast::Sender::new(hint::BEHIND),
            crosses: AtomicBool::new(false),
            waiting: detour::Waiting::default(),
            admission: Admission::default(),
            leaving: CancellationToken::new(),
            parting: TaskTracker::new(),
        }))
    }

    /// Hands over to other processes: requests that were taken are answered and no more are taken, lanes and leaderships go to
    /// whoever is there. Returns when that is done. Groups end by their own token.
    pub async fn leave(&self) {
        self.0.leaving.cancel();
        self.0.parting.close();
        self.0.parting.wait().await;
    }

    /// Whether new work is taken; requests that begin some are refused here while it is not.
    pub fn admission(&self) -> &Admission {
        &self.0.admission
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
        if let Some(broker) = &self.0.broker {
            let relay = relay::run(Arc::downgrade(&self.0), Arc::clone(broker), store.clone());
            self.0.parting.spawn(relay);
        }
        let (bus, service) = (Arc::downgrade(&self.0), store.service());
        let swept = store.clone();
        tokio::spawn(async move {
            let mut hourly = tokio::time::interval(Duration::from_secs(3600));
            loop {
                tokio::select! {
                    changed = committed.changed() => {
                        let (Ok(()), Some(inner)) = (changed, Weak::upgrade(&bus)) else { return };
                        let bus = Self(inner);
                        bus.wake(service);
                        let mut own = bus.0.own.lock().unwrap_or_else(PoisonError::into_inner);
                        own.insert(service.to_owned());
                        drop(own);
                        bus.0.own_changed.notify_one();
                    }
                    _ = hourly.tick() => {
                        if Weak::strong_count(&bus) == 0 {
                            return;
                        }
                        if let Err(error) = swept.sweep().await {
                            tracing::debug!(service, %error, "old answers were not removed");
                        }
                    }
                }
            }
        });
    }

    /// Makes the table through which queries go while the broker is away, where it is missing.
    ///
    /// # Errors
    /// The database is away or refuses.
    pub async fn prepare(pool: &PgPool) -> Result<(), sqlx::Error> {
        detour::prepare(pool).await
    }

    /// Wakes the readers in other processes that use the common database after commits here, and the other way round;
    /// carries queries while the broker is away. Takes one connection for good. Without it other processes notice
    /// commits by timer, within 10 s.
    pub fn across_processes(&self, stop: CancellationToken) -> JoinHandle<()> {
        self.0.crosses.store(true, Ordering::Relaxed);
        let bus = self.clone();
        tokio::spawn(async move {
            while !stop.is_cancelled() {
                let ended = tokio::select! {
                    () = stop.cancelled() => return,
                    ended = bus.exchange_wakes() => ended,
                };
                if let Err(error) = ended {
                    tracing::warn!(%error, "wake-ups of other processes are interrupted");
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
            }
        })
    }

    async fn exchange_wakes(&self) -> Result<(), sqlx::Error> {
        let me = ids::InstanceId::new().to_string();
        let tell = async {
            loop {
                self.0.own_changed.notified().await;
                let words = std::mem::take(&mut *self.0.own.lock().unwrap_or_else(PoisonError::into_inner));
                // Never inside the appending transaction: all commits of the cluster would wait for each other.
                for notice in hint::notices(&me, words) {
                    sqlx::query("SELECT pg_notify($1, $2)")
                        .bind(COMMITTED)
                        .bind(notice)
                        .execute(self.0.databases.common())
                        .await?;
                }
                // What is committed meanwhile goes with the next one.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let listen = async {
            let mut listener = PgListener::connect_with(self.0.databases.common()).await?;
            listener.listen_all([COMMITTED, detour::ASKED, detour::ANSWERED]).await?;
            loop {
                match listener.try_recv().await? {
                    Some(news) if news.channel() == detour::ASKED => self.queries_wait(news.payload()),
                    Some(news) if news.channel() == detour::ANSWERED => self.0.waiting.wake(news.payload()),
                    Some(news) => {
                        let mut words = news.payload().split(' ');
                        if words.next() != Some(me.as_str()) {
                            words.filter(|word| !self.heard(word)).for_each(|service| self.wake(service));
                        }
                    }
                    // The connection broke: something may have been missed. Who asks, asks again.
                    None => {
                        self.wake_all();
                        self.missed_hints();
                    }
                }
            }
        };
        tokio::select! {
            ended = tell => ended,
            ended = listen => ended,
        }
    }

    /// Has the responder of a service look for queries in the database, if it is in this process.
    fn queries_wait(&self, service: &str) {
        if let Some(slot) = self.0.responders.borrow().get(service) {
            slot.asked.notify_one();
        }
    }

    fn wake_all(&self) {
        let sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        for source in sources.values() {
            source.wake.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    pub(crate) fn broker(&self) -> Option<Arc<dyn Broker>> {
        self.0.broker.clone()
    }

    /// The processes that run the groups of a service; `None` without a broker: this one alone.
    pub(crate) fn members(&self, store: &Store) -> Option<members::Members> {
        self.0.broker.as_ref()?;
        let mut members = self.0.members.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = members
            .entry(store.service())
            .or_insert_with(|| members::Members::join(Arc::downgrade(&self.0), store.clone()));
        Some(joined.clone())
    }

    pub(crate) fn turns(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.turns)
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
            .map_or_else(|| self.0.databases.of(service).clone(), |store| store.pool().clone())
    }

    /// What this process has read of a source's log, and where the rest is read.
    pub(crate) fn tail_of(&self, service: &str) -> (Arc<tail::Tail>, PgPool) {
        let pool = self.pool_of(service);
        let mut sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let source = sources.entry(channel(service)).or_insert_with(Source::new);
        (Arc::clone(&source.tail), pool)
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
        let mut groups = self.0.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|started| started.group.strong_count() > 0);
        groups.extend(sources.iter().map(|source| shape::Started {
            service: store.service(),
            source,
            group: Arc::downgrade(&group),
        }));
        drop(groups);
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
        Self { wake: watch::Sender::new(0), store: None, tail: Arc::default() }
    }
}
