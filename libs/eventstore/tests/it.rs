//! The store against a real PostgreSQL.

use contracts::{Actor, Event, NewEvent, trace::Trace};
use gantry_eventstore::{
    self as eventstore, Act, Error, Key, Leader, NO_MIGRATIONS, Position, Store, digest, trace,
};
use ids::MessageId;
use serde::{Deserialize, Serialize};
use serde_json::json;
use spans::{Kind, Recorder, Span};
use sqlx::Executor;
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use testkit::until;
use uuid::Uuid;

#[derive(Serialize, Deserialize)]
struct Happened {
    n: u64,
}
impl Event for Happened {
    const TYPE: &'static str = "thing.happened";
    const SCHEMA: u32 = 1;
}

fn event(id: Uuid, n: u64) -> NewEvent {
    NewEvent::new("thing", id, Actor::service("test"), &Happened { n })
}

/// An id of an aggregate that nobody has heard of.
fn fresh() -> Uuid {
    ids::MessageId::new().uuid()
}

async fn store() -> Store {
    Store::open(testkit::postgres().await.pool, "things", &NO_MIGRATIONS).await.unwrap()
}

/// As a balancer does that is up before the server behind it.
#[tokio::test]
async fn the_time_is_the_databases() {
    let pool = testkit::postgres().await.pool;
    let store = Store::open(pool.clone(), "clock", &NO_MIGRATIONS).await.unwrap();
    let before = store.now();
    let said: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&pool).await.unwrap();
    let after = store.now();
    let apart = chrono::TimeDelta::milliseconds(500);
    assert!(before - apart < said && said < after + apart, "{before} {said} {after}");
}

#[tokio::test]
async fn a_server_that_hangs_up_at_first_is_waited_for() {
    let url = testkit::postgres().await.url;
    let (before, folder) = url.split_once("?host=").unwrap();
    let real = std::path::Path::new(folder).join(".s.PGSQL.5432");
    let place = tempfile::tempdir().unwrap();
    let listener = tokio::net::UnixListener::bind(place.path().join(".s.PGSQL.5432")).unwrap();
    let hung_up = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hung_up);
    tokio::spawn(async move {
        while let Ok((mut ours, _)) = listener.accept().await {
            if counted.fetch_add(1, Ordering::Relaxed) < 3 {
                continue;
            }
            let mut theirs = tokio::net::UnixStream::connect(&real).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut ours, &mut theirs).await });
        }
    });
    let pool = eventstore::open_pool(&format!("{before}?host={}", place.path().display()), 1).await.unwrap();
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&pool).await.unwrap();
    assert_eq!(one, 1);
    assert!(hung_up.load(Ordering::Relaxed) > 3);
}

#[tokio::test]
async fn events_get_versions_and_come_back_as_they_were() {
    let store = store().await;
    let (a, b) = (fresh(), fresh());
    let ticks = store.committed();
    let mut tx = store.begin(&[Key::new("thing", a)]).await.unwrap();
    let first = tx
        .append(&[event(a, 1), event(b, 2), event(a, 3).with_personal(json!({ "name": "Ada \u{0} x" }))])
        .await
        .unwrap();
    let more = tx.append(&[event(b, 4)]).await.unwrap();
    tx.commit().await.unwrap();
    assert!(ticks.has_changed().unwrap());
    assert_eq!(first.iter().map(|e| e.aggregate.version).collect::<Vec<_>>(), [1, 1, 2]);
    assert_eq!(more[0].aggregate.version, 2);
    assert_eq!(store.history("thing", a, 0).await.unwrap(), [first[0].clone(), first[2].clone()]);
    assert_eq!(store.history("thing", b, 1).await.unwrap(), more);
    // Transactions of other tests, in other databases of this server, hold back the horizon too.
    let all = [first, more].concat();
    until("the log has all", Duration::from_secs(10), async || {
        let page = store.read_after(Position::default(), 10).await.unwrap();
        page.events.into_iter().map(|(_, e)| e).collect::<Vec<_>>() == all
    })
    .await;
}

#[tokio::test]
async fn a_dropped_transaction_leaves_nothing() {
    let store = store().await;
    let id = fresh();
    let mut tx = store.begin(&[]).await.unwrap();
    tx.append(&[event(id, 1)]).await.unwrap();
    drop(tx);
    assert!(store.history("thing", id, 0).await.unwrap().is_empty());
    assert!(!store.committed().has_changed().unwrap());
}

static TOLD: Mutex<Vec<Span>> = Mutex::new(Vec::new());

struct Tell;

impl Recorder for Tell {
    fn record(&self, span: Span) {
        TOLD.lock().unwrap().push(span);
    }
}

fn told(trace: Trace) -> Vec<Span> {
    TOLD.lock().unwrap().iter().filter(|span| span.context.trace == trace.trace).cloned().collect()
}

#[tokio::test]
async fn what_was_committed_is_told_of_and_nothing_else() {
    spans::install(Tell);
    let store = store().await;
    let (here, elsewhere) = (Trace::root(MessageId::new()), Trace::root(MessageId::new()));
    let lasted = || Span::begin(Some(here), "things", Kind::Internal, "lasted");
    trace::within(Some(here), async {
        let mut tx = store.begin(&[]).await.unwrap();
        tx.append(&[event(fresh(), 1)]).await.unwrap();
        tx.tell(lasted());
        drop(tx);
        assert!(told(here).is_empty(), "it never happened");

        let mut tx = store.begin(&[]).await.unwrap();
        let moved = event(fresh(), 2).traced(Some(elsewhere.to_string()));
        let events = tx.append(&[event(fresh(), 1), moved]).await.unwrap();
        tx.tell(lasted());
        assert!(told(here).is_empty(), "it may still not happen");
        tx.commit().await.unwrap();

        let [of_event, of_span] = &told(here)[..] else { panic!("two spans: {:?}", told(here)) };
        assert_eq!(of_event.name.as_str(), "thing.happened");
        assert_eq!((of_event.service, of_event.parent), ("things", Some(here.span)));
        assert_eq!(of_event.context.span, trace::after(&events[0]).unwrap().span);
        assert_eq!(of_span.name.as_str(), "lasted");
        // What belongs to another trace says where it came from.
        let [moved] = &told(elsewhere)[..] else { panic!("one span: {:?}", told(elsewhere)) };
        assert_eq!((moved.parent, &moved.links[..]), (Some(elsewhere.span), &[here][..]));

        let mut handling = trace::handling("others", "others.things", &events);
        handling.sort_by_key(|span| span.context.trace);
        let parents: HashSet<_> = handling.iter().map(|span| span.parent.unwrap()).collect();
        assert_eq!(parents, events.iter().map(|event| trace::after(event).unwrap().span).collect());
    })
    .await;

    // What nothing has caused begins a trace, and has nobody above it.
    let mut tx = store.begin(&[]).await.unwrap();
    let events = tx.append(&[event(fresh(), 3)]).await.unwrap();
    tx.commit().await.unwrap();
    let own: Trace = events[0].trace.as_deref().unwrap().parse().unwrap();
    assert_eq!(told(own).iter().map(|span| span.parent).collect::<Vec<_>>(), [None]);
}

#[tokio::test]
async fn appending_without_the_lock_is_refused() {
    let store = store().await;
    let id = fresh();
    let mut tx = store.begin(&[]).await.unwrap();
    tx.append(&[event(id, 1)]).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = store.begin(&[]).await.unwrap();
    assert!(matches!(tx.append(&[event(id, 2)]).await, Err(Error::NotLocked { .. })));
}

#[tokio::test]
async fn too_large_a_body_is_refused_before_it_is_written() {
    let store = store().await;
    let mut big = event(fresh(), 1);
    big.body = json!({ "n": "x".repeat(eventstore::MESSAGE_LIMIT) });
    let mut tx = store.begin(&[]).await.unwrap();
    assert!(matches!(tx.append(&[big]).await, Err(Error::Oversize { .. })));
}

#[tokio::test]
async fn events_are_never_changed_but_for_what_people_may_have_erased() {
    let store = store().await;
    let mut tx = store.begin(&[]).await.unwrap();
    tx.append(&[event(fresh(), 1).with_personal(json!("Ada"))]).await.unwrap();
    tx.commit().await.unwrap();
    assert!(store.pool().execute("UPDATE things.events SET version = 9").await.is_err());
    assert!(store.pool().execute("UPDATE things.events SET body = '{}'").await.is_err());
    store.pool().execute("UPDATE things.events SET personal = NULL").await.unwrap();
}

#[tokio::test]
async fn opening_at_once_and_again_is_harmless_and_leaves_the_pool_as_it_was() {
    let db = testkit::postgres().await;
    let opens = (0..8).map(|_| Store::open(db.pool.clone(), "output-processor", &NO_MIGRATIONS));
    for store in futures::future::join_all(opens).await {
        assert_eq!(store.unwrap().schema(), "output_processor");
    }
    let path: String = sqlx::query_scalar("SHOW search_path").fetch_one(&db.pool).await.unwrap();
    assert_eq!(path, "\"$user\", public");
    assert!(matches!(Store::open(db.pool, "no; good", &NO_MIGRATIONS).await, Err(Error::BadService(_))));
}

/// of 200 copies of one command, one has an effect; the others get its answer or are told to wait.
#[tokio::test]
async fn r5_two_hundred_copies_have_one_effect() {
    let store = store().await;
    let id = fresh();
    let effects = Arc::new(AtomicUsize::new(0));
    let copy = |store: Store, effects: Arc<AtomicUsize>| async move {
        loop {
            let mut tx = store.begin(&[Key::new("thing", id)]).await.unwrap();
            let actor = Actor::service("client");
            match tx.answered("key", &actor, "digest").await {
                Ok(Some(answer)) => return answer,
                Ok(None) => {
                    effects.fetch_add(1, Ordering::SeqCst);
                    let done = tx.append(&[event(id, 1)]).await.unwrap();
                    let answer = json!({ "version": done[0].aggregate.version });
                    tx.record_answer("key", &actor, "digest", &answer).await.unwrap();
                    tx.commit().await.unwrap();
                    return answer;
                }
                Err(Error::InProgress) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let copies: Vec<_> = (0..200).map(|_| tokio::spawn(copy(store.clone(), Arc::clone(&effects)))).collect();
    for copy in copies {
        assert_eq!(copy.await.unwrap(), json!({ "version": 1 }));
    }
    assert_eq!(effects.load(Ordering::SeqCst), 1);
    assert_eq!(store.history("thing", id, 0).await.unwrap().len(), 1);
}

#[tokio::test]
async fn r5_keys_belong_to_an_actor_and_a_body_and_last_a_day() {
    let store = store().await;
    let (me, you) = (Actor::service("me"), Actor::service("you"));
    let (one, two) = (digest(&json!({ "a": 1 })), digest(&json!({ "a": 2 })));
    let mut tx = store.begin(&[]).await.unwrap();
    assert_eq!(tx.answered("k", &me, &one).await.unwrap(), None);
    tx.record_answer("k", &me, &one, &json!(7)).await.unwrap();

    let mut other = store.begin(&[]).await.unwrap();
    assert!(matches!(other.answered("k", &me, &one).await, Err(Error::InProgress)));
    assert_eq!(other.answered("k", &you, &two).await.unwrap(), None);
    drop(other);
    tx.commit().await.unwrap();

    let mut tx = store.begin(&[]).await.unwrap();
    assert_eq!(tx.answered("k", &me, &one).await.unwrap(), Some(json!(7)));
    assert!(matches!(tx.answered("k", &me, &two).await, Err(Error::KeyReused)));
    assert!(matches!(tx.record_answer("k", &me, &two, &json!(8)).await, Err(Error::Conflict)));
    drop(tx);

    store
        .pool()
        .execute("UPDATE things.idempotency SET recorded = now() - interval '25 hours'")
        .await
        .unwrap();
    // The transaction above gives its lock back a moment after it was dropped.
    let mut tx = loop {
        let mut tx = store.begin(&[]).await.unwrap();
        match tx.answered("k", &me, &two).await {
            Err(Error::InProgress) => tokio::task::yield_now().await,
            answer => {
                assert_eq!(answer.unwrap(), None);
                break tx;
            }
        }
    };
    tx.record_answer("k", &me, &two, &json!(8)).await.unwrap();
    drop(tx);
    assert_eq!(store.sweep().await.unwrap(), 1);
}

#[tokio::test]
async fn acts_are_recorded() {
    let store = store().await;
    let mut tx = store.begin(&[]).await.unwrap();
    tx.act(Act::new("login.refused", Actor::service("x"), json!({ "why": 1 })).on("user", fresh()))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let n: i64 =
        sqlx::query_scalar("SELECT count(*) FROM things.acts").fetch_one(store.pool()).await.unwrap();
    assert_eq!(n, 1);
}

#[tokio::test]
async fn waiting_for_a_lock_takes_no_transaction_id() {
    let store = store().await;
    let key = [Key::new("thing", fresh())];
    let mut holder = store.begin(&key).await.unwrap();
    let waiter = tokio::spawn({
        let store = store.clone();
        async move {
            let mut tx = store.begin(&key).await.unwrap();
            sqlx::query_scalar::<_, String>("SELECT pg_current_xact_id()::text")
                .fetch_one(tx.conn())
                .await
                .unwrap()
        }
    });
    until("the second waits", Duration::from_secs(10), async || {
        sqlx::query_scalar("SELECT exists(SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory' AND backend_xid IS NULL)")
            .fetch_one(store.pool())
            .await
            .unwrap()
    })
    .await;
    let mine: String =
        sqlx::query_scalar("SELECT pg_current_xact_id()::text").fetch_one(holder.conn()).await.unwrap();
    holder.commit().await.unwrap();
    assert!(waiter.await.unwrap().parse::<u64>().unwrap() > mine.parse::<u64>().unwrap());
}

/// A begin that fails or whose caller goes away must not leave its transaction in the pool: the next user's writes
/// would be lost in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn begins_that_come_to_nothing_leave_the_pool_clean() {
    let store = store().await;
    store.pool().execute("CREATE TABLE things.rows (n bigint)").await.unwrap();
    let key = [Key::new("thing", fresh())];
    let holder = store.begin(&key).await.unwrap();
    for n in 0..100u64 {
        let waited = tokio::time::timeout(Duration::from_micros(n * 20), store.begin(&key)).await;
        assert!(waited.is_err(), "the lock is held");
        if n % 4 == 0 {
            let free = tokio::time::timeout(Duration::from_micros(n * 5), store.begin(&[])).await;
            drop(free);
        }
    }
    drop(holder);
    let writes = (0..50i64).map(|n| {
        let pool = store.pool().clone();
        async move {
            let insert = sqlx::query("INSERT INTO things.rows VALUES ($1)").bind(n).execute(&pool).await;
            insert.unwrap();
        }
    });
    futures::future::join_all(writes).await;
    let mut outside = store.pool().acquire().await.unwrap().detach();
    let n: i64 =
        sqlx::query_scalar("SELECT count(*) FROM things.rows").fetch_one(&mut outside).await.unwrap();
    assert_eq!(n, 50);
    until("no transaction is left open", Duration::from_secs(4), async || {
        sqlx::query_scalar("SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'")
            .fetch_one(store.pool())
            .await
            .unwrap()
    })
    .await;
}

/// An open write transaction holds back every reader: Postgres ends an idle one.
#[tokio::test]
async fn an_idle_transaction_dies_and_readers_go_on() {
    let store = store().await;
    let mut idle = store.begin(&[]).await.unwrap();
    idle.conn().execute("SET LOCAL idle_in_transaction_session_timeout = '200ms'").await.unwrap();
    idle.append(&[event(fresh(), 1)]).await.unwrap();
    let mut tx = store.begin(&[]).await.unwrap();
    tx.append(&[event(fresh(), 2)]).await.unwrap();
    let limit: String =
        sqlx::query_scalar("SHOW idle_in_transaction_session_timeout").fetch_one(tx.conn()).await.unwrap();
    assert_eq!(limit, "5s");
    tx.commit().await.unwrap();
    let held = store.read_after(Position::default(), 10).await.unwrap();
    assert!(held.events.is_empty() && held.unsettled);
    until("the horizon moves", Duration::from_secs(10), async || {
        store.read_after(Position::default(), 10).await.unwrap().events.len() == 1
    })
    .await;
    assert!(idle.commit().await.is_err());
}

#[tokio::test]
async fn one_leader_at_a_time_and_an_overtaken_one_is_fenced() {
    let store = store().await;
    let (a, b) = (Leader::new(&store, "sweeper"), Leader::new(&store, "sweeper"));
    assert!(a.hold().await.unwrap());
    assert!(!b.hold().await.unwrap());
    assert!(a.hold().await.unwrap());
    assert_eq!(a.epoch(), Some(1));
    let mut tx = store.begin(&[]).await.unwrap();
    a.fence(&mut tx).await.unwrap();
    drop(tx);
    store.pool().execute("UPDATE things.leaders SET deadline = now() - interval '1 s'").await.unwrap();
    assert!(b.hold().await.unwrap());
    assert_eq!(b.epoch(), Some(2));
    let mut tx = store.begin(&[]).await.unwrap();
    assert!(matches!(a.fence(&mut tx).await, Err(Error::Fenced { .. })));
    b.fence(&mut tx).await.unwrap();
    drop(tx);
    assert!(!a.hold().await.unwrap());
    b.release().await.unwrap();
    assert!(a.hold().await.unwrap());
    assert_eq!(a.epoch(), Some(3));
}

/// A small generator: tests need no more than that the histories differ.
struct Dice(u64);
impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Writers commit to several aggregates in transactions held open for random times, some of them rolled back;
/// a reader that only ever goes forward sees every committed event, each aggregate's in order.
async fn nothing_is_skipped(cache: u32, seed: u64) {
    let store = store().await;
    let alter = format!("ALTER SEQUENCE things.events_seq_seq CACHE {cache}");
    store.pool().execute(sqlx::AssertSqlSafe(alter)).await.unwrap();
    let things: Vec<Uuid> = (0..24).map(|_| fresh()).collect();
    let done = Arc::new(AtomicBool::new(false));

    let reader = tokio::spawn({
        let (store, done) = (store.clone(), Arc::clone(&done));
        async move {
            let (mut at, mut read) = (Position::default(), Vec::new());
            loop {
                let last = done.load(Ordering::SeqCst);
                let page = store.read_after(at, 7).await.unwrap();
                for (position, envelope) in page.events {
                    assert!(position > at);
                    at = position;
                    read.push(envelope);
                }
                if last && !page.more && !page.unsettled {
                    return read;
                }
                if !page.more {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });

    let writers: Vec<_> = (0..16u64)
        .map(|writer| {
            let (store, things) = (store.clone(), things.clone());
            tokio::spawn(async move {
                let mut dice = Dice(seed.wrapping_mul(31).wrapping_add(writer));
                let mut committed = Vec::new();
                for round in 0..25u64 {
                    let chosen: Vec<Uuid> =
                        (0..=dice.roll(3)).map(|_| things[usize::try_from(dice.roll(24)).unwrap()]).collect();
                    let keys: Vec<Key> = chosen.iter().map(|id| Key::new("thing", *id)).collect();
                    let mut tx = store.begin(&keys).await.unwrap();
                    let mut events = Vec::new();
                    for id in &chosen {
                        events.extend(tx.append(&[event(*id, round)]).await.unwrap());
                        tokio::time::sleep(Duration::from_micros(dice.roll(4000))).await;
                    }
                    if dice.roll(8) > 0 {
                        tx.commit().await.unwrap();
                        committed.extend(events);
                    }
                }
                committed
            })
        })
        .collect();
    let mut written = HashSet::new();
    for writer in writers {
        written.extend(writer.await.unwrap().into_iter().map(|e| (e.id, e.aggregate.version)));
    }
    done.store(true, Ordering::SeqCst);
    let read = reader.await.unwrap();
    assert_eq!(read.iter().map(|e| (e.id, e.aggregate.version)).collect::<HashSet<_>>(), written);
    assert_eq!(read.len(), written.len(), "nothing twice");
    let mut versions: HashMap<Uuid, i64> = HashMap::new();
    for envelope in read {
        let version = versions.entry(envelope.aggregate.id).or_default();
        *version += 1;
        assert_eq!(envelope.aggregate.version, *version, "in order and without gaps");
    }
}

#[tokio::test]
async fn r28_nothing_is_skipped_with_plain_sequences() {
    nothing_is_skipped(1, 1).await;
}

#[tokio::test]
async fn r28_nothing_is_skipped_with_cached_sequences() {
    nothing_is_skipped(32, 2).await;
}
