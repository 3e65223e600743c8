//! A teller, a listener, and a network that can be cut.

use async_trait::async_trait;
use bus::{
    Broker, Fault, Group,
    broker::{Answer, BrokerError, Deliveries, Depth, LaneQueue, Outgoing, Watched},
};
use contracts::{Actor, Envelope, Event, NewEvent};
use eventstore::{Key, NO_MIGRATIONS, Store, Tx};
use futures::StreamExt;
use gantry_bus_amqp::{Amqp, SigningKey};
use serde::{Deserialize, Serialize};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub fn adapter(url: &str) -> Arc<Amqp> {
    Arc::new(Amqp::new(url, SigningKey::new(&["a key of this test"])))
}

/// Two services of a fresh database.
pub async fn teller_and_listener() -> (Store, Store) {
    let pool = testkit::postgres().await.pool;
    // Queues are named after groups: a fresh log must not meet another test's messages, so groups differ.
    let teller = Store::open(pool.clone(), "teller", &NO_MIGRATIONS).await.expect("opens");
    let listener = Store::open(pool.clone(), "listener", &NO_MIGRATIONS).await.expect("opens");
    sqlx::query("CREATE TABLE listener.heard (n bigint GENERATED ALWAYS AS IDENTITY, who text, by text, tale uuid, round int)")
        .execute(&pool)
        .await
        .expect("makes the table");
    (teller, listener)
}

#[derive(Serialize, Deserialize)]
struct Told {
    round: i32,
}
impl Event for Told {
    const TYPE: &'static str = "tale.told";
    const SCHEMA: u32 = 1;
}

pub async fn tell(store: &Store, tale: Uuid, round: i32) {
    tell_all(store, tale, round..round + 1).await;
}

/// Some rounds in one transaction.
pub async fn tell_all(store: &Store, tale: Uuid, rounds: Range<i32>) {
    let mut tx = store.begin(&[Key::new("tale", tale)]).await.expect("begins");
    let told = |round| NewEvent::new("tale", tale, Actor::service("teller"), &Told { round });
    tx.append(&rounds.map(told).collect::<Vec<_>>()).await.expect("appends");
    tx.commit().await.expect("commits");
}

/// Who handled what: (process, tale, round) in the order of effects.
pub async fn heard(listener: &Store, group: &str) -> Vec<(String, Uuid, i32)> {
    sqlx::query_as("SELECT by, tale, round FROM listener.heard WHERE who = $1 ORDER BY n")
        .bind(group)
        .fetch_all(listener.pool())
        .await
        .expect("reads")
}

/// Writes down what it hears.
pub struct Ear {
    name: &'static str,
    process: &'static str,
}

impl Ear {
    pub fn group(name: &'static str, process: &'static str) -> Arc<dyn Group> {
        Arc::new(Self { name, process })
    }
}

#[async_trait]
impl Group for Ear {
    fn name(&self) -> &'static str {
        self.name
    }

    fn wants(&self) -> &'static [&'static str] {
        &[Told::TYPE]
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        let (mut tales, mut rounds) = (Vec::new(), Vec::new());
        for msg in batch {
            tales.push(msg.aggregate.id);
            rounds.push(msg.body_as::<Told>()?.round);
        }
        sqlx::query(
            "INSERT INTO listener.heard (who, by, tale, round)
             SELECT $1, $2, tale, round FROM unnest($3::uuid[], $4::int[]) WITH ORDINALITY AS told (tale, round, n)
             ORDER BY n",
        )
        .bind(self.name)
        .bind(self.process)
        .bind(tales)
        .bind(rounds)
        .execute(tx.conn())
        .await?;
        Ok(())
    }
}

/// Counts what goes through the broker.
#[derive(Debug)]
pub struct Counting {
    inner: Arc<Amqp>,
    pub queues: AtomicUsize,
    pub delivered: Arc<AtomicUsize>,
}

impl Counting {
    pub fn new(inner: Arc<Amqp>) -> Self {
        Self { inner, queues: AtomicUsize::new(0), delivered: Arc::default() }
    }
}

#[async_trait]
impl Broker for Counting {
    async fn request(
        &self,
        service: &str,
        request: &[u8],
        until: tokio::time::Instant,
    ) -> Result<Vec<u8>, BrokerError> {
        self.inner.request(service, request, until).await
    }

    async fn serve(&self, service: &str, answer: Answer, stop: CancellationToken) -> Result<(), BrokerError> {
        self.inner.serve(service, answer, stop).await
    }

    async fn publish(&self, messages: &[Outgoing]) -> Result<(), BrokerError> {
        self.inner.publish(messages).await
    }

    async fn receive(&self, queue: &LaneQueue) -> Result<Deliveries, BrokerError> {
        let deliveries = self.inner.receive(queue).await?;
        self.queues.fetch_add(1, Ordering::SeqCst);
        let delivered = Arc::clone(&self.delivered);
        Ok(deliveries
            .inspect(move |_| {
                delivered.fetch_add(1, Ordering::SeqCst);
            })
            .boxed())
    }

    async fn depths(&self, queues: &[Watched]) -> Result<Vec<Option<Depth>>, BrokerError> {
        self.inner.depths(queues).await
    }
}

/// A way to the broker that can be cut.
pub struct Cut {
    pub url: String,
    generation: watch::Sender<u32>,
    how: watch::Sender<How>,
}

/// What becomes of a new connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It reaches the broker.
    Through,
    /// It ends at once.
    Refused,
    /// It stands, and nothing comes.
    Silent,
}

impl Cut {
    pub async fn before(url: &str) -> Self {
        let (head, rest) = url.split_once("@127.0.0.1:").expect("a URL of the test kit");
        let (port, tail) = rest.split_once('/').expect("a virtual host");
        let target: u16 = port.parse().expect("a port");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let here = listener.local_addr().expect("an address").port();
        let generation = watch::Sender::new(0);
        let how = watch::Sender::new(How::Through);
        let (cuts, what) = (generation.clone(), how.subscribe());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cuts.subscribe();
                let how = *what.borrow();
                tokio::spawn(async move {
                    match how {
                        How::Through => {}
                        How::Refused => return,
                        How::Silent => {
                            let _ = cut.changed().await;
                            return;
                        }
                    }
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { url: format!("{head}@127.0.0.1:{here}/{tail}"), generation, how }
    }

    /// Ends every connection, and has the next ones fare so.
    pub fn henceforth(&self, how: How) {
        self.how.send_replace(how);
        self.generation.send_modify(|n| *n += 1);
    }

    /// Ends every connection.
    pub async fn cut(&self) {
        self.generation.send_modify(|n| *n += 1);
    }
}
