//! The local adapter against the contract, and what is special about it.

use async_trait::async_trait;
use contracts::{Actor, Envelope, Event, NewEvent};
use eventstore::{Key, NO_MIGRATIONS, Position, Store, Tx};
use gantry_bus::{Behind, Bus, Fault, Group, Subscription, contract};
use serde::{Deserialize, Serialize};
use spans::{Kind, Recorder, Span};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use testkit::until;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// An id of an aggregate that nobody has heard of.
fn fresh() -> Uuid {
    ids::MessageId::new().uuid()
}

#[tokio::test]
async fn local_requests_keep_the_contract() {
    contract::requests(&Bus::local(testkit::postgres().await.pool)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_groups_keep_the_contract() {
    let pool = testkit::postgres().await.pool;
    contract::groups(&Bus::local(pool.clone()), &pool).await;
}

#[derive(Serialize, Deserialize)]
struct Passed {
    left: u32,
}
impl Event for Passed {
    const TYPE: &'static str = "ball.passed";
    const SCHEMA: u32 = 1;
}

/// Two services that pass a ball: each effect is an event of its own service.
struct Player {
    name: &'static str,
    kind: &'static str,
    ends: Arc<AtomicUsize>,
}

#[async_trait]
impl Group for Player {
    fn name(&self) -> &'static str {
        self.name
    }
    fn wants(&self) -> &'static [&'static str] {
        &[Passed::TYPE]
    }
    fn locks(&self, msg: &Envelope) -> Vec<Key> {
        vec![Key::new(self.kind, msg.aggregate.id)]
    }
    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for msg in batch {
            let ball: Passed = msg.body_as()?;
            if ball.left > 0 {
                let pass = Passed { left: ball.left - 1 };
                tx.append(&[NewEvent::new(self.kind, msg.aggregate.id, Actor::service(self.name), &pass)
                    .caused_by(msg.id)])
                    .await?;
            }
        }
        Ok(())
    }
    async fn after_commit(&self, batch: &[Envelope]) {
        let ended =
            batch.iter().filter(|msg| msg.body_as::<Passed>().is_ok_and(|ball| ball.left == 0)).count();
        self.ends.fetch_add(ended, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_answer_each_other_and_nothing_gets_lost() {
    let pool = testkit::postgres().await.pool;
    let bus = Bus::local(pool.clone());
    let left = Store::open(pool.clone(), "west", &NO_MIGRATIONS).await.unwrap();
    let right = Store::open(pool, "east", &NO_MIGRATIONS).await.unwrap();
    let (ends, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let player = |name, kind| Arc::new(Player { name, kind, ends: Arc::clone(&ends) });
    // The consumer is there before its source has a schema or registered.
    let runs = [
        bus.consume(&left, &["east"], player("west.balls", "lball"), stop.clone()),
        bus.consume(&right, &["west"], player("east.balls", "rball"), stop.clone()),
    ];
    let started = Instant::now();
    let balls: Vec<Uuid> = (0..20).map(|_| fresh()).collect();
    for ball in &balls {
        let mut tx = left.begin(&[]).await.unwrap();
        tx.append(&[NewEvent::new("lball", *ball, Actor::service("test"), &Passed { left: 10 })])
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
    until("all balls have come to rest", Duration::from_secs(60), async || ends.load(Ordering::SeqCst) >= 20)
        .await;
    eprintln!("220 messages in {:?}", started.elapsed());
    // One ball alone: a hop's latency.
    let ball = fresh();
    let started = Instant::now();
    let mut tx = left.begin(&[]).await.unwrap();
    tx.append(&[NewEvent::new("lball", ball, Actor::service("test"), &Passed { left: 50 })]).await.unwrap();
    tx.commit().await.unwrap();
    until("it has come to rest", Duration::from_secs(60), async || ends.load(Ordering::SeqCst) >= 21).await;
    eprintln!("one hop: {:?}", started.elapsed() / 51);
    let rests = left.history("lball", ball, 0).await.unwrap().len()
        + right.history("rball", ball, 0).await.unwrap().len();
    assert_eq!(rests, 51);
    stop.cancel();
    for run in runs {
        run.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_known_who_reads_whom_and_how_far_behind_a_group_is() {
    let pool = testkit::postgres().await.pool;
    let bus = Bus::local(pool.clone());
    let west = Store::open(pool.clone(), "west", &NO_MIGRATIONS).await.unwrap();
    let ends = Arc::new(AtomicUsize::new(0));
    let player = Arc::new(Player { name: "west.shown", kind: "lball", ends });
    let stop = CancellationToken::new();
    let run = bus.consume(&west, &["west"], player, stop.clone());
    let kinds = ["ball.lost".to_owned(), "ball.passed".to_owned()];
    let wanted = vec!["ball.passed".to_owned()];
    let shown = Subscription {
        service: "west".into(),
        group: "west.shown".into(),
        source: "west".into(),
        events: wanted.clone(),
    };
    assert_eq!(bus.subscriptions(&kinds), [shown]);
    stop.cancel();
    run.await.unwrap();
    assert_eq!(bus.subscriptions(&kinds), [], "who ended is not shown");

    let balls: Vec<Uuid> = (0..12).map(|_| fresh()).collect();
    for ball in &balls {
        let mut tx = west.begin(&[]).await.unwrap();
        let passed = NewEvent::new("lball", *ball, Actor::service("test"), &Passed { left: 0 });
        tx.append(&[passed]).await.unwrap();
        tx.commit().await.unwrap();
    }
    let read = async || west.read_after(Position::default(), 100).await.unwrap().events;
    // Any transaction of the server holds the log's readable end back, those of other tests too.
    until("all can be read", Duration::from_secs(60), async || read().await.len() == balls.len()).await;
    let log = read().await;
    let behind = async |lanes: &[Position], wanted: Option<&[String]>| {
        gantry_bus::behind(&pool, "west", lanes, wanted).await.unwrap()
    };
    let start = [Position::default(); 4];
    let all = behind(&start, None).await;
    assert_eq!((all.events, all.at_least), (12, false));
    assert!(all.oldest_seconds.is_some_and(|age| (0.0..60.0).contains(&age)), "{all:?}");
    assert_eq!(behind(&start, Some(&wanted)).await.events, 12);
    assert_eq!(behind(&start, Some(&kinds[..1])).await, Behind::default(), "others do not count");
    assert_eq!(behind(&[log[9].0], None).await.events, 2, "one lane has all");
    // The lanes that are at the end have nothing left, and each event is of one lane.
    let end = log[11].0;
    let mut of_one_lane = 0;
    for lane in 0..4 {
        let mut lanes = [end; 4];
        lanes[lane] = Position::default();
        of_one_lane += behind(&lanes, None).await.events;
    }
    assert_eq!(of_one_lane, 12);
    assert_eq!(behind(&[end; 4], None).await, Behind::default());
}

static TOLD: Mutex<Vec<Span>> = Mutex::new(Vec::new());

struct Tell;

impl Recorder for Tell {
    fn record(&self, span: Span) {
        TOLD.lock().unwrap().push(span);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_from_service_to_service_is_one_trace() {
    spans::install(Tell);
    let pool = testkit::postgres().await.pool;
    let bus = Bus::local(pool.clone());
    let left = Store::open(pool.clone(), "west", &NO_MIGRATIONS).await.unwrap();
    let right = Store::open(pool, "east", &NO_MIGRATIONS).await.unwrap();
    let (ends, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let player = |name, kind| Arc::new(Player { name, kind, ends: Arc::clone(&ends) });
    let runs = [
        bus.consume(&left, &["east"], player("west.balls", "lball"), stop.clone()),
        bus.consume(&right, &["west"], player("east.balls", "rball"), stop.clone()),
    ];
    let root = Span::begin(None, "test", Kind::Server, "serve").unwrap();
    let context = root.context;
    root.ending().record();
    eventstore::trace::within(Some(context), async {
        let mut tx = left.begin(&[]).await.unwrap();
        tx.append(&[NewEvent::new("lball", fresh(), Actor::service("test"), &Passed { left: 3 })])
            .await
            .unwrap();
        tx.commit().await.unwrap();
    })
    .await;
    // Four events, each handled once.
    let told = || {
        let all = TOLD.lock().unwrap();
        all.iter().filter(|span| span.context.trace == context.trace).cloned().collect::<Vec<_>>()
    };
    until("all is told of", Duration::from_secs(60), async || told().len() == 9).await;
    let mut above = told().into_iter().find(|span| span.name.as_str() == "serve").unwrap();
    for (service, name) in [
        ("west", "ball.passed"),
        ("east", "consume east.balls"),
        ("east", "ball.passed"),
        ("west", "consume west.balls"),
        ("west", "ball.passed"),
        ("east", "consume east.balls"),
        ("east", "ball.passed"),
        ("west", "consume west.balls"),
    ] {
        let below: Vec<Span> =
            told().into_iter().filter(|span| span.parent == Some(above.context.span)).collect();
        let [span] = &below[..] else { panic!("one span is below {above:?}: {below:?}") };
        assert_eq!((span.service, span.name.as_str(), span.failed), (service, name, false));
        above = span.clone();
    }
    stop.cancel();
    for run in runs {
        run.await.unwrap();
    }
}

/// Two processes, each with a bus and pools of its own: a commit in one wakes the readers in the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_wake_readers_in_other_processes() {
    let db = testkit::postgres().await;
    let other = eventstore::open_pool(&db.url, 5).await.unwrap();
    let (here, there) = (Bus::local(db.pool.clone()), Bus::local(other.clone()));
    let west = Store::open(db.pool, "west", &NO_MIGRATIONS).await.unwrap();
    let east = Store::open(other, "east", &NO_MIGRATIONS).await.unwrap();
    let (ends, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let mut runs = vec![here.across_processes(stop.clone()), there.across_processes(stop.clone())];
    here.register_source(&west);
    let player = Player { name: "east.balls", kind: "rball", ends: Arc::clone(&ends) };
    runs.push(there.consume(&east, &["west"], Arc::new(player), stop.clone()));
    let started = Instant::now();
    for n in 1..=20 {
        let mut tx = west.begin(&[]).await.unwrap();
        tx.append(&[NewEvent::new("lball", fresh(), Actor::service("test"), &Passed { left: 0 })])
            .await
            .unwrap();
        tx.commit().await.unwrap();
        until("the other process has it", Duration::from_secs(30), async || ends.load(Ordering::SeqCst) >= n)
            .await;
    }
    eprintln!("twenty, one after the other, across processes: {:?}", started.elapsed());
    stop.cancel();
    for run in runs {
        run.await.unwrap();
    }
}

/// Notes how many messages it was given at once.
#[derive(Default)]
struct Gatherer(Mutex<Vec<usize>>);

const GATHER: Duration = Duration::from_millis(300);

#[async_trait]
impl Group for Gatherer {
    fn name(&self) -> &'static str {
        "east.gatherer"
    }
    fn wants(&self) -> &'static [&'static str] {
        &[Passed::TYPE]
    }
    fn batch(&self) -> usize {
        256
    }
    fn gather(&self, _: &str, _: &str) -> Duration {
        GATHER
    }
    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }
    async fn handle(&self, _: &mut Tx, _: &[Envelope]) -> Result<(), Fault> {
        Ok(())
    }
    async fn after_commit(&self, batch: &[Envelope]) {
        self.0.lock().unwrap().push(batch.len());
    }
}

/// A group that gathers gets what comes meanwhile together: never two batches within that time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_while_a_group_gathers_is_handled_together() {
    let pool = testkit::postgres().await.pool;
    let bus = Bus::local(pool.clone());
    let west = Store::open(pool.clone(), "west", &NO_MIGRATIONS).await.unwrap();
    let east = Store::open(pool, "east", &NO_MIGRATIONS).await.unwrap();
    bus.register_source(&west);
    let (group, stop) = (Arc::new(Gatherer::default()), CancellationToken::new());
    let begun = Instant::now();
    let run = bus.consume(&east, &["west"], Arc::clone(&group) as Arc<dyn Group>, stop.clone());
    for _ in 0..100 {
        let mut tx = west.begin(&[]).await.unwrap();
        tx.append(&[NewEvent::new("lball", fresh(), Actor::service("test"), &Passed { left: 0 })])
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
    let sum = || group.0.lock().unwrap().iter().sum::<usize>();
    until("all were handled", Duration::from_secs(60), async || sum() >= 100).await;
    let most = 1 + usize::try_from(begun.elapsed().as_millis() / GATHER.as_millis()).unwrap();
    let batches = group.0.lock().unwrap().clone();
    assert!(batches.len() <= most, "{} batches in {most} times of gathering: {batches:?}", batches.len());
    assert_eq!(batches.iter().sum::<usize>(), 100);
    stop.cancel();
    run.await.unwrap();
}
