//! What every adapter of the bus must do. An adapter's test calls [`requests`] and [`groups`] with a bus of its
//! kind and an empty database; they panic where the adapter does not keep the contract.

use crate::{AskOptions, Bus, Fault, Filter, Group, Responder, route, unknown};
use async_trait::async_trait;
use contracts::{Actor, Envelope, Event, NewEvent, Refusal, Request, RequestError, request::Ask};
use eventstore::{Key, NO_MIGRATIONS, Store, Tx};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(20);
const OK: &str = "the contract's own database must work";

/// An id of an aggregate that nobody has heard of.
fn fresh() -> Uuid {
    ids::MessageId::new().uuid()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[derive(Serialize, Deserialize)]
struct Echo {
    how: String,
    text: String,
}
impl Ask for Echo {
    const SERVICE: &'static str = "echo";
    const NAME: &'static str = "echo.say";
    type Reply = String;
}

#[derive(Serialize, Deserialize)]
struct Strange {}
impl Ask for Strange {
    const SERVICE: &'static str = "echo";
    const NAME: &'static str = "echo.unheard_of";
    type Reply = ();
}

#[derive(Serialize, Deserialize)]
struct Nobody {}
impl Ask for Nobody {
    const SERVICE: &'static str = "nobody";
    const NAME: &'static str = "nobody.home";
    type Reply = ();
}

#[derive(Default)]
struct Echoing(AtomicU32);

#[async_trait]
impl Responder for Echoing {
    async fn respond(&self, req: Request) -> Result<Value, RequestError> {
        if req.name != Echo::NAME {
            return Err(unknown(&req));
        }
        route::<Echo, _, _>(&req, |ask, req| async move {
            self.0.fetch_add(1, Ordering::SeqCst);
            match ask.how.as_str() {
                "refuse" => Err(Refusal::new("no", "not today").into()),
                "panic" => panic!("on purpose"),
                "hang" => std::future::pending().await,
                "big" => Ok("x".repeat(crate::MESSAGE_LIMIT)),
                "who" => Ok(format!("{:?} {:?}", req.actor, req.idempotency_key)),
                _ => Ok(ask.text),
            }
        })
        .await
    }
}

/// Requests: encoded, limited, in time, and never a panic of the asker.
///
/// # Panics
/// The adapter does not keep the contract.
pub async fn requests(bus: &Bus) {
    let actor = Actor::service("contract");
    let echo = |how: &str, text: &str| Echo { how: how.to_owned(), text: text.to_owned() };
    let responder = Arc::new(Echoing::default());
    bus.respond("echo", Arc::clone(&responder) as Arc<dyn Responder>);

    assert_eq!(bus.ask(&actor, &echo("", "hello")).await, Ok("hello".to_owned()));
    let refused = bus.ask(&actor, &echo("refuse", "")).await;
    assert_eq!(refused, Err(Refusal::new("no", "not today").into()));
    assert_eq!(
        bus.ask(&actor, &echo("panic", "")).await,
        Err(RequestError::Failed { service: "echo".into() })
    );
    assert_eq!(bus.ask(&actor, &echo("", "still there")).await, Ok("still there".to_owned()));
    let nobody = bus.ask(&actor, &Nobody {}).await;
    assert_eq!(nobody, Err(RequestError::NoResponder { service: "nobody".into() }));
    let Err(RequestError::Refused(strange)) = bus.ask(&actor, &Strange {}).await else {
        panic!("an unknown request must be refused");
    };
    assert_eq!(strange.code, "unsupported");

    let opts = AskOptions { idempotency_key: Some("k".into()), ..AskOptions::default() };
    let who = bus.ask_with(opts, &actor, &echo("who", "")).await;
    assert_eq!(who, Ok(format!("{actor:?} {:?}", Some("k"))));

    // Too large, either way: refused, with its size.
    let large = "x".repeat(crate::MESSAGE_LIMIT);
    assert!(
        matches!(bus.ask(&actor, &echo("", &large)).await, Err(RequestError::Oversize { size, .. }) if size > large.len())
    );
    assert!(matches!(bus.ask(&actor, &echo("big", "")).await, Err(RequestError::Oversize { .. })));

    // Late: not executed at all, or not waited for.
    let late = |ms| AskOptions { deadline: Duration::from_millis(ms), ..AskOptions::default() };
    let before = responder.0.load(Ordering::SeqCst);
    let gone = bus.ask_with(late(0), &actor, &echo("", "")).await;
    assert!(matches!(gone, Err(RequestError::Deadline { .. } | RequestError::NoResponder { .. })));
    sleep(Duration::from_millis(20)).await;
    assert_eq!(responder.0.load(Ordering::SeqCst), before, "a late request is not executed");
    let hung = bus.ask_with(late(100), &actor, &echo("hang", "")).await;
    assert_eq!(hung, Err(RequestError::Deadline { service: "echo".into() }));
}

#[derive(Clone, Serialize, Deserialize)]
struct Told {
    word: String,
}
impl Event for Told {
    const TYPE: &'static str = "tale.told";
    const SCHEMA: u32 = 1;
}

#[derive(Serialize, Deserialize)]
struct Noise {}
impl Event for Noise {
    const TYPE: &'static str = "tale.noise";
    const SCHEMA: u32 = 1;
}

/// Writes what it hears into its own table, in the transaction that it is given.
struct Listener {
    name: &'static str,
    batch: usize,
    /// Words that fail, and how: number of times, 0 for ever.
    faults: Mutex<HashMap<String, (Kind, u32)>>,
    after: Mutex<Vec<Uuid>>,
}

#[derive(Clone, Copy)]
enum Kind {
    Retry,
    Dead,
    Panic,
}

impl Listener {
    fn new(name: &'static str, batch: usize) -> Arc<Self> {
        Arc::new(Self { name, batch, faults: Mutex::default(), after: Mutex::default() })
    }

    fn fails(&self, word: &str, kind: Kind, times: u32) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).insert(word.to_owned(), (kind, times));
    }

    fn heals(&self, word: &str) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).remove(word);
    }

    fn fault(&self, word: &str) -> Option<Kind> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let (kind, times) = faults.get_mut(word)?;
        let kind = *kind;
        match *times {
            0 => {}
            1 => drop(faults.remove(word)),
            _ => *times -= 1,
        }
        Some(kind)
    }
}

#[async_trait]
impl Group for Listener {
    fn name(&self) -> &'static str {
        self.name
    }

    fn wants(&self) -> &'static [&'static str] {
        &[Told::TYPE]
    }

    fn batch(&self) -> usize {
        self.batch
    }

    fn relaxed(&self) -> bool {
        self.batch > 1
    }

    fn locks(&self, msg: &Envelope) -> Vec<Key> {
        vec![Key::new("ear", msg.aggregate.id)]
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for msg in batch {
            let told: Told = msg.body_as()?;
            sqlx::query("INSERT INTO listener.heard (who, tale, version, word) VALUES ($1, $2, $3, $4)")
                .bind(self.name)
                .bind(msg.aggregate.id)
                .bind(msg.aggregate.version)
                .bind(&told.word)
                .execute(tx.conn())
                .await?;
            match self.fault(&told.word) {
                Some(Kind::Retry) => return Err(Fault::Retry(anyhow::anyhow!("not now"))),
                Some(Kind::Dead) => return Err(Fault::Dead(anyhow::anyhow!("never"))),
                Some(Kind::Panic) => panic!("on purpose"),
                None => {}
            }
        }
        Ok(())
    }

    async fn after_commit(&self, batch: &[Envelope]) {
        self.after
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(batch.iter().map(|msg| msg.id.uuid()));
    }
}

async fn tell(store: &Store, tale: Uuid, words: &[&str]) {
    let mut tx = store.begin(&[Key::new("tale", tale)]).await.expect(OK);
    let me = Actor::service("teller");
    let mut events: Vec<_> = words
        .iter()
        .map(|word| NewEvent::new("tale", tale, me.clone(), &Told { word: (*word).to_owned() }))
        .collect();
    events.push(NewEvent::new("tale", tale, me, &Noise {}));
    tx.append(&events).await.expect(OK);
    tx.commit().await.expect(OK);
}

async fn heard(pool: &PgPool, who: &str, tale: Uuid) -> Vec<String> {
    sqlx::query_scalar("SELECT word FROM listener.heard WHERE who = $1 AND tale = $2 ORDER BY n")
        .bind(who)
        .bind(tale)
        .fetch_all(pool)
        .await
        .expect(OK)
}

/// Groups: everything once in its effect, each aggregate in order, and one bad message delays nobody else.
///
/// # Panics
/// The adapter does not keep the contract.
pub async fn groups(bus: &Bus, pool: &PgPool) {
    let teller = Store::open(pool.clone(), "teller", &NO_MIGRATIONS).await.expect(OK);
    let listener = Store::open(pool.clone(), "listener", &NO_MIGRATIONS).await.expect(OK);
    // No primary key: a second effect would show.
    sqlx::query("CREATE TABLE listener.heard (n bigint GENERATED ALWAYS AS IDENTITY, who text, tale uuid, version bigint, word text)")
        .execute(pool)
        .await
        .expect(OK);
    bus.register_source(&teller);
    history_then_news(bus, &teller, &listener, 1).await;
    history_then_news(bus, &teller, &listener, 64).await;
    failures_hold_up_their_own(bus, &teller, &listener).await;
    dead_letters_are_replayed_and_discarded(bus, &teller, &listener).await;
    rivals_do_it_once(bus, &teller, &listener).await;
    what_a_crashed_database_forgot_is_done_again(bus, &teller, &listener).await;
}

async fn history_then_news(bus: &Bus, teller: &Store, listener: &Store, batch: usize) {
    let name = if batch > 1 { "listener.batches" } else { "listener.singles" };
    let tales: Vec<Uuid> = (0..10).map(|_| fresh()).collect();
    for tale in &tales {
        tell(teller, *tale, &["a", "b"]).await;
    }
    let group = Listener::new(name, batch);
    let stop = CancellationToken::new();
    let run = bus.consume(listener, &["teller"], Arc::clone(&group) as Arc<dyn Group>, stop.clone());
    until("history is handled", async || heard(listener.pool(), name, tales[9]).await.len() == 2).await;
    for tale in &tales {
        tell(teller, *tale, &["c", "d"]).await;
    }
    for tale in &tales {
        until("news is handled", async || heard(listener.pool(), name, *tale).await.len() == 4).await;
        assert_eq!(heard(listener.pool(), name, *tale).await, ["a", "b", "c", "d"]);
    }
    until("after_commit ran", async || {
        group.after.lock().unwrap_or_else(PoisonError::into_inner).len() >= 40
    })
    .await;
    stop.cancel();
    run.await.expect("a stopped group ends");
    // Whoever starts again goes on where it stopped.
    tell(teller, tales[0], &["e"]).await;
    let stop = CancellationToken::new();
    let run = bus.consume(listener, &["teller"], Arc::clone(&group) as Arc<dyn Group>, stop.clone());
    until("it goes on", async || heard(listener.pool(), name, tales[0]).await.len() >= 5).await;
    assert_eq!(heard(listener.pool(), name, tales[0]).await, ["a", "b", "c", "d", "e"]);
    stop.cancel();
    run.await.expect("a stopped group ends");
}

async fn failures_hold_up_their_own(bus: &Bus, teller: &Store, listener: &Store) {
    for (name, batch) in [("listener.faults", 1), ("listener.batch_faults", 16)] {
        let group = Listener::new(name, batch);
        group.fails("bad", Kind::Retry, 1);
        group.fails("ugly", Kind::Panic, 2);
        let (bad, ugly, good) = (fresh(), fresh(), fresh());
        let stop = CancellationToken::new();
        // The two messages fail as part of a batch first, then alone: once more than they are told to.
        if batch > 1 {
            group.fails("bad", Kind::Retry, 3);
        }
        let run = bus.consume(listener, &["teller"], Arc::clone(&group) as Arc<dyn Group>, stop.clone());
        tell(teller, bad, &["bad", "2", "3"]).await;
        tell(teller, ugly, &["1", "ugly", "3"]).await;
        tell(teller, good, &["1", "2"]).await;
        tell(teller, bad, &["4"]).await;
        until("others go on", async || heard(listener.pool(), name, good).await.len() == 2).await;
        until("it heals", async || heard(listener.pool(), name, bad).await.len() == 4).await;
        assert_eq!(heard(listener.pool(), name, bad).await, ["bad", "2", "3", "4"]);
        until("a panic heals", async || heard(listener.pool(), name, ugly).await.len() == 3).await;
        assert_eq!(heard(listener.pool(), name, ugly).await, ["1", "ugly", "3"]);
        until("nothing is parked", async || bus.parked(listener).await.expect(OK).is_empty()).await;
        stop.cancel();
        run.await.expect("a stopped group ends");
    }
}

async fn dead_letters_are_replayed_and_discarded(bus: &Bus, teller: &Store, listener: &Store) {
    let name = "listener.dead";
    let group = Listener::new(name, 1);
    group.fails("poison", Kind::Dead, 0);
    group.fails("stubborn", Kind::Retry, 0);
    let stop = CancellationToken::new();
    let run = bus.consume(listener, &["teller"], Arc::clone(&group) as Arc<dyn Group>, stop.clone());
    let (first, second, third) = (fresh(), fresh(), fresh());
    tell(teller, first, &["poison", "2"]).await;
    tell(teller, second, &["poison", "2"]).await;
    let letters = async || {
        bus.dead_letters(listener, &Filter { group: Some(name.into()), ..Filter::default() }).await.expect(OK)
    };
    until("two dead letters", async || letters().await.len() == 2).await;
    for letter in letters().await {
        assert_eq!(
            (letter.reason.as_str(), letter.attempts, letter.error.as_str()),
            ("rejected", 1, "never")
        );
    }
    // Later ones of the same aggregate wait, the others do not.
    tell(teller, third, &["fine"]).await;
    until("others go on", async || heard(listener.pool(), name, third).await.len() == 1).await;
    assert!(heard(listener.pool(), name, first).await.is_empty());

    let operator = Actor::service("operator");
    let of = async |tale: Uuid| {
        let letter = letters().await.into_iter().find(|letter| letter.message.aggregate.id == tale);
        Filter { id: letter.map(|letter| letter.message.id), ..Filter::default() }
    };
    assert_eq!(bus.discard(listener, &of(second).await, &operator, "nobody needs it").await.expect(OK), 1);
    until("what waited goes on", async || heard(listener.pool(), name, second).await == ["2"]).await;
    group.heals("poison");
    assert_eq!(bus.replay(listener, &of(first).await, &operator).await.expect(OK), 1);
    until("the replayed one and what waited", async || heard(listener.pool(), name, first).await.len() == 2)
        .await;
    assert_eq!(heard(listener.pool(), name, first).await, ["poison", "2"]);
    assert!(letters().await.is_empty());
    let acts: i64 = sqlx::query_scalar("SELECT count(*) FROM listener.acts WHERE kind LIKE 'dead_letter.%'")
        .fetch_one(listener.pool())
        .await
        .expect(OK);
    assert_eq!(acts, 2, "operators' acts are recorded");

    // Eight attempts, then it is given up.
    tell(teller, third, &["stubborn"]).await;
    until("it is given up", async || {
        // Time is made to pass; the lane's own clock then needs to look again.
        let hurry = format!("UPDATE listener.parked SET due = clock_timestamp() WHERE group_name = '{name}' AND due IS NOT NULL");
        let moved = sqlx::query(AssertSqlSafe(hurry)).execute(listener.pool()).await.expect(OK).rows_affected();
        if moved > 0 {
            bus.wake(&crate::group::ops_channel(name, "teller"));
            sleep(Duration::from_millis(50)).await;
        }
        letters().await.len() == 1
    })
    .await;
    let letter = letters().await.remove(0);
    assert_eq!((letter.reason.as_str(), letter.attempts), ("retries_exhausted", 8));
    stop.cancel();
    run.await.expect("a stopped group ends");
}

/// Two processes that run the same group by accident: every effect still happens once.
async fn rivals_do_it_once(bus: &Bus, teller: &Store, listener: &Store) {
    let name = "listener.rivals";
    let stop = CancellationToken::new();
    let runs: Vec<_> = (0..2)
        .map(|_| bus.consume(listener, &["teller"], Listener::new(name, 1) as Arc<dyn Group>, stop.clone()))
        .collect();
    let tales: Vec<Uuid> = (0..8).map(|_| fresh()).collect();
    for word in ["1", "2", "3", "4", "5"] {
        for tale in &tales {
            tell(teller, *tale, &[word]).await;
        }
    }
    let mut seen = HashSet::new();
    for tale in &tales {
        until("all are handled", async || heard(listener.pool(), name, *tale).await.len() >= 5).await;
        assert_eq!(heard(listener.pool(), name, *tale).await, ["1", "2", "3", "4", "5"]);
        assert!(seen.insert(*tale));
    }
    stop.cancel();
    for run in runs {
        run.await.expect("a stopped group ends");
    }
}

/// A database that crashes alone forgets the last relaxed commits, while their consumer goes on.
async fn what_a_crashed_database_forgot_is_done_again(bus: &Bus, teller: &Store, listener: &Store) {
    let (name, tale) = ("listener.forgetful", fresh());
    let stop = CancellationToken::new();
    let run = bus.consume(listener, &["teller"], Listener::new(name, 16) as Arc<dyn Group>, stop.clone());
    tell(teller, tale, &["a", "b"]).await;
    until("two are handled", async || heard(listener.pool(), name, tale).await.len() == 2).await;
    let select =
        "SELECT lane, xid::text, seq, revision FROM listener.cursors WHERE group_name = $1 ORDER BY lane";
    let before: Vec<(i32, String, i64, i64)> =
        sqlx::query_as(select).bind(name).fetch_all(listener.pool()).await.expect(OK);
    tell(teller, tale, &["c"]).await;
    until("the third is handled", async || heard(listener.pool(), name, tale).await.len() == 3).await;
    let mut tx = listener.pool().begin().await.expect(OK);
    sqlx::query("DELETE FROM listener.heard WHERE who = $1 AND word = 'c'")
        .bind(name)
        .execute(&mut *tx)
        .await
        .expect(OK);
    for (lane, xid, seq, revision) in before {
        sqlx::query("UPDATE listener.cursors SET xid = $3::xid8, seq = $4, revision = $5 WHERE group_name = $1 AND lane = $2")
            .bind(name)
            .bind(lane)
            .bind(xid)
            .bind(seq)
            .bind(revision)
            .execute(&mut *tx)
            .await
            .expect(OK);
    }
    tx.commit().await.expect(OK);
    until("it is handled again", async || heard(listener.pool(), name, tale).await.len() == 3).await;
    assert_eq!(heard(listener.pool(), name, tale).await, ["a", "b", "c"]);
    stop.cancel();
    run.await.expect("a stopped group ends");
}
