//! The adapter against the bus contract and a real RabbitMQ, and what is special about a network.

mod support;

use bus::{Bus, Responder, broker::Watched, contract};
use contracts::{Actor, Refusal, Request, RequestError, request::Ask};
use gantry_bus_amqp::{Amqp, SigningKey};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use support::{Counting, Cut, Ear, How, adapter, heard, tell, tell_all, teller_and_listener};
use testkit::until;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_keep_the_contract_within_a_process() {
    let Some(url) = testkit::rabbitmq().await else { return };
    contract::requests(&Bus::networked(testkit::postgres().await.pool, adapter(&url))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_keep_the_contract() {
    let Some(url) = testkit::rabbitmq().await else { return };
    let pool = testkit::postgres().await.pool;
    contract::groups(&Bus::networked(pool.clone(), adapter(&url)), &pool).await;
}

#[derive(Clone, Serialize, Deserialize)]
struct Double(u32);
impl Ask for Double {
    const SERVICE: &'static str = "doubler";
    const NAME: &'static str = "number.double";
    type Reply = u32;
}

#[derive(Clone, Serialize, Deserialize)]
struct Again(u32);
impl Ask for Again {
    const SERVICE: &'static str = "again";
    const NAME: &'static str = "number.double_again";
    type Reply = u32;
}

struct Doubler;
#[async_trait::async_trait]
impl Responder for Doubler {
    async fn respond(&self, req: Request) -> Result<serde_json::Value, RequestError> {
        let twice = |number: u32| {
            number.checked_mul(2).ok_or_else(|| RequestError::from(Refusal::new("invalid", "too large")))
        };
        if req.name == Again::NAME {
            return bus::route::<Again, _, _>(&req, |ask, _| async move { twice(ask.0) }).await;
        }
        bus::route::<Double, _, _>(&req, |ask, _| async move { twice(ask.0) }).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_reaches_another_process_and_its_refusal_comes_back() {
    let Some(url) = testkit::rabbitmq().await else { return };
    let pool = testkit::postgres().await.pool;
    let (asker, owner) =
        (Bus::networked(pool.clone(), adapter(&url)), Bus::networked(pool.clone(), adapter(&url)));
    let me = Actor::service("test");
    assert_eq!(
        asker.ask(&me, &Double(1)).await,
        Err(RequestError::NoResponder { service: "doubler".into() }),
        "nobody answers yet, and that is known at once"
    );
    owner.respond("doubler", Arc::new(Doubler));
    until("it is answered", LIMIT, async || asker.ask(&me, &Double(21)).await == Ok(42)).await;
    let many = futures::future::join_all((0..200).map(|n| {
        let (asker, me) = (asker.clone(), me.clone());
        async move { asker.ask(&me, &Double(n)).await }
    }));
    for (n, answer) in (0..).zip(many.await) {
        assert_eq!(answer, Ok(n * 2), "each asker gets its own answer");
    }
    assert_eq!(
        asker.ask(&me, &Double(u32::MAX)).await,
        Err(RequestError::Refused(Refusal::new("invalid", "too large")))
    );
    let stranger = Bus::networked(pool.clone(), Arc::new(Amqp::new(&url, SigningKey::new(&["another key"]))));
    assert!(stranger.ask(&me, &Double(1)).await.is_err(), "a request without our signature is not executed");

    // While a key is replaced: both are believed on either side, the first one signs.
    let with = |keys: &[&str]| Bus::networked(pool.clone(), Arc::new(Amqp::new(&url, SigningKey::new(keys))));
    let (ours, new) = ("a key of this test", "a new key");
    assert_eq!(with(&[ours, new]).ask(&me, &Double(4)).await, Ok(8));
    let first = with(&[new, ours]);
    assert!(first.ask(&me, &Double(5)).await.is_err(), "its owner does not know the new key yet");
    let second = with(&[ours, new]);
    second.respond("again", Arc::new(Doubler));
    until("it is answered", LIMIT, async || first.ask(&me, &Again(21)).await == Ok(42)).await;
}

#[derive(Clone, Serialize, Deserialize)]
struct Halve(u32);
impl Ask for Halve {
    const SERVICE: &'static str = "halver";
    const NAME: &'static str = "number.halve";
    const IDEMPOTENT: bool = true;
    type Reply = u32;
}

#[derive(Clone, Serialize, Deserialize)]
struct Keep(u32);
impl Ask for Keep {
    const SERVICE: &'static str = "halver";
    const NAME: &'static str = "number.keep";
    type Reply = ();
}

#[derive(Default)]
struct Halver(std::sync::atomic::AtomicUsize);
#[async_trait::async_trait]
impl Responder for Halver {
    async fn respond(&self, req: Request) -> Result<serde_json::Value, RequestError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        match req.name.as_str() {
            Halve::NAME => {
                bus::route::<Halve, _, _>(&req, |ask, _| async move {
                    if ask.0 % 2 == 0 { Ok(ask.0 / 2) } else { Err(Refusal::new("invalid", "odd").into()) }
                })
                .await
            }
            _ => bus::route::<Keep, _, _>(&req, |_, _| async move { Ok(()) }).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_go_on_while_the_broker_is_away_and_commands_are_refused_soon() {
    let Some(url) = testkit::rabbitmq().await else { return };
    let pool = testkit::postgres().await.pool;
    Bus::prepare(&pool).await.expect("prepares");
    Bus::prepare(&pool).await.expect("and again");
    let cut = Cut::before(&url).await;
    let (asker, owner) =
        (Bus::networked(pool.clone(), adapter(&cut.url)), Bus::networked(pool.clone(), adapter(&cut.url)));
    let stop = CancellationToken::new();
    let runs = [asker.across_processes(stop.clone()), owner.across_processes(stop.clone())];
    let halver = Arc::new(Halver::default());
    owner.respond("halver", Arc::clone(&halver) as Arc<dyn Responder>);
    let me = Actor::service("test");
    until("the broker carries requests", LIMIT, async || asker.ask(&me, &Keep(1)).await == Ok(())).await;

    for how in [How::Refused, How::Silent] {
        cut.henceforth(how);
        until("a query is answered", LIMIT, async || asker.ask(&me, &Halve(8)).await == Ok(4)).await;
        let many = futures::future::join_all((0..200).map(|n| {
            let (asker, me) = (asker.clone(), me.clone());
            async move { asker.ask(&me, &Halve(2 * n)).await }
        }));
        for (n, answer) in (0..).zip(many.await) {
            assert_eq!(answer, Ok(n), "each asker gets its own answer");
        }
        let odd = asker.ask(&me, &Halve(7)).await;
        assert_eq!(
            odd,
            Err(RequestError::Refused(Refusal::new("invalid", "odd"))),
            "a refusal comes back too"
        );
        let before = halver.0.load(Ordering::SeqCst);
        let kept = asker.ask(&me, &Keep(2)).await;
        assert_eq!(kept, Err(RequestError::Unsent { service: "halver".into() }), "a command is not carried");
        assert_eq!(halver.0.load(Ordering::SeqCst), before, "nor executed");
    }
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM bus.queries").fetch_one(&pool).await.expect("counts");
    assert_eq!(left, 0, "whoever has an answer takes it away");

    cut.henceforth(How::Through);
    until("commands go again", LIMIT, async || asker.ask(&me, &Keep(3)).await == Ok(())).await;
    stop.cancel();
    for run in runs {
        run.await.expect("it ends");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_through_the_queues() {
    let Some(url) = testkit::rabbitmq().await else { return };
    let (teller, listener) = teller_and_listener().await;
    let counting = Arc::new(Counting::new(adapter(&url)));
    let bus = Bus::networked(teller.pool().clone(), Arc::clone(&counting) as Arc<dyn bus::Broker>);
    bus.register_source(&teller);
    let stop = CancellationToken::new();
    let run = bus.consume(&listener, &["teller"], Ear::group("listener.queued", "one"), stop.clone());
    until("its queues are there", LIMIT, async || counting.queues.load(Ordering::SeqCst) == 4).await;
    let tales: Vec<_> = (0..40).map(|_| ids::MessageId::new().uuid()).collect();
    for round in 0..5 {
        for tale in &tales {
            tell(&teller, *tale, round).await;
        }
    }
    until("all is heard", LIMIT, async || heard(&listener, "listener.queued").await.len() == 200).await;
    let delivered = counting.delivered.load(Ordering::SeqCst);
    assert!(delivered >= 150, "{delivered} of 200 events came through the broker");
    stop.cancel();
    run.await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_says_what_lies_in_queues() {
    let Some(url) = testkit::rabbitmq().await else { return };
    let (teller, listener) = teller_and_listener().await;
    let counting = Arc::new(Counting::new(adapter(&url)));
    let bus = Bus::networked(teller.pool().clone(), Arc::clone(&counting) as Arc<dyn bus::Broker>);
    bus.register_source(&teller);
    bus.respond("counted", Arc::new(Doubler));
    let stop = CancellationToken::new();
    let run = bus.consume(&listener, &["teller"], Ear::group("listener.counted", "one"), stop.clone());
    let lane =
        |lane| Watched::Group { group: "listener.counted".into(), source: "teller".into(), lane: Some(lane) };
    // One that is missing closes the channel that asks, and the others are answered all the same.
    let watched: Vec<_> = [lane(0), lane(7), lane(1), lane(2), lane(3)]
        .into_iter()
        .chain([Watched::Requests { service: "counted".into() }])
        .collect();
    let depths = async || bus.depths(&watched).await.expect("there is a broker").expect("it answers");
    let consumers = async || -> Vec<Option<u32>> {
        depths().await.into_iter().map(|depth| depth.map(|depth| depth.consumers)).collect()
    };
    let one = Some(1);
    until("all consume", LIMIT, async || consumers().await == [one, None, one, one, one, one]).await;
    stop.cancel();
    run.await.expect("it ends");
    until("nobody consumes", LIMIT, async || consumers().await[..3] == [Some(0), None, Some(0)]).await;
    let tales: Vec<_> = (0..20).map(|_| ids::MessageId::new().uuid()).collect();
    for tale in &tales {
        tell(&teller, *tale, 1).await;
    }
    let lie = async || depths().await.into_iter().take(5).flatten().map(|depth| depth.messages).sum::<u32>();
    until("what nobody takes lies there", LIMIT, async || lie().await == 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_when_the_network_is_cut() {
    let Some(url) = testkit::rabbitmq().await else { return };
    let (teller, listener) = teller_and_listener().await;
    let cut = Cut::before(&url).await;
    let bus = Bus::networked(teller.pool().clone(), adapter(&cut.url));
    bus.register_source(&teller);
    let stop = CancellationToken::new();
    let run = bus.consume(&listener, &["teller"], Ear::group("listener.cut", "one"), stop.clone());
    let tales: Vec<_> = (0..10).map(|_| ids::MessageId::new().uuid()).collect();
    for round in 0..30 {
        for tale in &tales {
            tell(&teller, *tale, round).await;
        }
        if round % 10 == 5 {
            cut.cut().await;
        }
    }
    until("all is heard", LIMIT, async || heard(&listener, "listener.cut").await.len() >= 300).await;
    let mut all = heard(&listener, "listener.cut").await;
    for tale in &tales {
        let rounds: Vec<i32> =
            all.iter().filter(|(_, id, _)| id == tale).map(|(_, _, round)| *round).collect();
        assert_eq!(rounds, (0..30).collect::<Vec<_>>(), "each once, in order");
    }
    all.dedup();
    assert_eq!(all.len(), 300);
    stop.cancel();
    run.await.expect("it ends");
}

/// A view, say, whose service is away while a great deal happens: who else listens is not held up by what piles up for it,
/// and it misses nothing when it comes back, whether that lies in its queues or is read from history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_is_away_holds_nobody_up_and_misses_nothing() {
    /// In one transaction.
    const TOLD: i32 = 250;
    let events = if std::env::var_os("GANTRY_FULL").is_some() { 60_000 } else { 6_000 };
    let Some(url) = testkit::rabbitmq().await else { return };
    let (teller, listener) = teller_and_listener().await;
    let counting = Arc::new(Counting::new(adapter(&url)));
    let bus = Bus::networked(teller.pool().clone(), Arc::clone(&counting) as Arc<dyn bus::Broker>);
    bus.register_source(&teller);
    let (stop, away) = (CancellationToken::new(), CancellationToken::new());
    let stays = bus.consume(&listener, &["teller"], Ear::group("listener.stays", "one"), stop.clone());
    let goes = bus.consume(&listener, &["teller"], Ear::group("listener.goes", "one"), away.clone());
    until("its queues are there", LIMIT, async || counting.queues.load(Ordering::SeqCst) == 8).await;
    let heard_by = async |group: &'static str| -> usize {
        let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM listener.heard WHERE who = $1");
        let count = count.bind(group).fetch_one(listener.pool()).await.expect("counts");
        usize::try_from(count).expect("counts")
    };
    let tales: Vec<_> = (0..24).map(|_| ids::MessageId::new().uuid()).collect();
    let rounds = i32::try_from(events / tales.len()).expect("few");
    let patience = LIMIT * 5;
    // The first of each, so that both have begun.
    for tale in &tales {
        tell(&teller, *tale, 0).await;
    }
    until("both hear", LIMIT, async || {
        heard_by("listener.stays").await == tales.len() && heard_by("listener.goes").await == tales.len()
    })
    .await;
    away.cancel();
    goes.await.expect("it ends");
    let begun = std::time::Instant::now();
    let mut from = 1;
    while from < rounds {
        let to = (from + TOLD).min(rounds);
        for tale in &tales {
            tell_all(&teller, *tale, from..to).await;
        }
        from = to;
    }
    until("who stays hears all", patience, async || heard_by("listener.stays").await >= events).await;
    let stayed = begun.elapsed();
    assert_eq!(heard_by("listener.goes").await, tales.len(), "it was away");
    let back = std::time::Instant::now();
    let goes = bus.consume(&listener, &["teller"], Ear::group("listener.goes", "one"), stop.clone());
    until("who was away has caught up", patience, async || heard_by("listener.goes").await >= events).await;
    println!("{events} events: heard within {stayed:.1?}; caught up within {:.1?}", back.elapsed());
    for group in ["listener.stays", "listener.goes"] {
        let all = heard(&listener, group).await;
        assert_eq!(all.len(), events, "{group}: each once");
        for tale in &tales {
            let heard = all.iter().filter(|(_, id, _)| id == tale).map(|(.., round)| *round);
            assert!(heard.eq(0..rounds), "{group} heard {tale} out of order");
        }
    }
    stop.cancel();
    for run in [stays, goes] {
        run.await.expect("it ends");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_share_the_work_and_one_takes_over_from_another() {
    let Some(url) = testkit::rabbitmq().await else { return };
    let (teller, listener) = teller_and_listener().await;
    let source = Bus::networked(teller.pool().clone(), adapter(&url));
    source.register_source(&teller);
    let buses: Vec<Bus> = (0..2).map(|_| Bus::networked(listener.pool().clone(), adapter(&url))).collect();
    let stops: Vec<CancellationToken> = (0..2).map(|_| CancellationToken::new()).collect();
    let mut runs = Vec::new();
    // Eight groups of four lanes: that both get none of them is as good as impossible.
    const GROUPS: [&str; 8] = [
        "listener.a",
        "listener.b",
        "listener.c",
        "listener.d",
        "listener.e",
        "listener.f",
        "listener.g",
        "listener.h",
    ];
    for (name, (bus, stop)) in ["one", "two"].into_iter().zip(buses.iter().zip(&stops)) {
        for group in GROUPS {
            runs.push(bus.consume(&listener, &["teller"], Ear::group(group, name), stop.clone()));
        }
    }
    let by = async |name: &str| {
        let mut count = 0;
        for group in GROUPS {
            count += heard(&listener, group).await.iter().filter(|(by, ..)| by == name).count();
        }
        count
    };
    let told = std::sync::atomic::AtomicUsize::new(0);
    until("both do some of it", LIMIT, async || {
        tell(&teller, ids::MessageId::new().uuid(), 0).await;
        told.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
        by("one").await > 20 && by("two").await > 20
    })
    .await;
    // One process goes, without a word.
    stops[1].cancel();
    drop(runs.split_off(GROUPS.len()));
    drop(buses);
    for _ in 0..40 {
        tell(&teller, ids::MessageId::new().uuid(), 1).await;
        told.fetch_add(1, Ordering::SeqCst);
    }
    let told = told.into_inner();
    for group in GROUPS {
        until(group, LIMIT, async || heard(&listener, group).await.len() >= told).await;
        assert_eq!(heard(&listener, group).await.len(), told, "{group}: each once");
    }
    stops[0].cancel();
    for run in runs {
        run.await.expect("it ends");
    }
}
