//! From a source's log to the broker (reliability §5.2, §6). One relay per source, by fenced leadership; its cursor
//! moves after the broker's confirms, so a crash between the two repeats and never loses.

use crate::{
    Bus, Inner, LANES,
    broker::{Broker, Outgoing, Trail},
    lane::lane_of,
};
use eventstore::{Leader, Position, Store, failpoint};
use sqlx::{AssertSqlSafe, Row};
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Name under which the cursor lies in the source's own schema.
const CURSOR: &str = "relay";
/// At most so many events are unconfirmed.
const PAGE: u32 = 256;
/// The cursor is written so long after the first event that it lacks. Until then a successor publishes again what readers
/// know already; written after each page it would be a transaction for almost every commit of the source.
const UNWRITTEN: Duration = Duration::from_millis(250);
/// How often leadership is renewed.
const RENEW: Duration = Duration::from_secs(3);
/// A poll backs up the wake-ups.
const POLL: Duration = Duration::from_secs(1);
/// Between two looks while an older transaction holds back what is committed. Without a pause they would take the processor
/// from the one that they wait for.
const SETTLE: Duration = Duration::from_millis(2);
/// Longest wait after a failure.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far the log is published, and what was, so that readers see gaps.
struct Progress {
    begun: Position,
    at: Position,
    /// Since when the cursor is behind that.
    unwritten: Option<Instant>,
    all: Trail,
    lanes: HashMap<i32, Trail>,
}

/// Publishes the source's events for as long as the bus lives.
pub(crate) async fn run(bus: Weak<Inner>, broker: Arc<dyn Broker>, store: Store) {
    let leader = Leader::new(&store, CURSOR);
    let mut pause = Duration::from_millis(50);
    loop {
        let Some(inner) = Weak::upgrade(&bus) else { break };
        let (leaving, woken) = (inner.leaving.clone(), Bus(inner).woken(store.service()));
        match lead(&bus, broker.as_ref(), &store, &leader, woken, &leaving).await {
            Ok(()) => break,
            Err(error) => {
                metrics::counter!("gantry.bus.relay_failures", "source" => store.service()).increment(1);
                tracing::warn!(
                    source = store.service(),
                    error = format_args!("{error:#}"),
                    "events are not published"
                );
            }
        }
        if leaving.run_until_cancelled(sleep(pause)).await.is_none() {
            break;
        }
        pause = (pause * 2).min(PATIENCE);
    }
    if let Err(error) = leader.release().await {
        tracing::debug!(source = store.service(), %error, "leadership was not given up");
    }
}

/// Leads while it can; returns without error once the bus is gone or leaves.
async fn lead(
    bus: &Weak<Inner>,
    broker: &dyn Broker,
    store: &Store,
    leader: &Leader,
    mut woken: tokio::sync::watch::Receiver<u64>,
    leaving: &CancellationToken,
) -> anyhow::Result<()> {
    let (mut renewed, mut progress) = (None::<Instant>, None::<Progress>);
    let mut held = None::<Instant>;
    while Weak::strong_count(bus) > 0 {
        if renewed.is_none_or(|at| at.elapsed() >= RENEW) {
            let before = leader.epoch();
            if !leader.hold().await? {
                // Another process publishes.
                (renewed, progress) = (None, None);
                if leaving.run_until_cancelled(sleep(POLL)).await.is_none() {
                    return Ok(());
                }
                continue;
            }
            if before != leader.epoch() {
                progress = None;
            }
            renewed = Some(Instant::now());
        }
        let progress = match &mut progress {
            Some(progress) => progress,
            none => none.insert(Progress::since(cursor(store).await?)),
        };
        woken.borrow_and_update();
        let page = store.read_after(progress.at, PAGE).await?;
        if let Some((end, _)) = page.events.last() {
            let end = *end;
            let outgoing: Vec<_> =
                page.events.into_iter().map(|(at, message)| progress.outgoing(store, at, message)).collect();
            broker.publish(&outgoing).await?;
            failpoint("bus.relay.confirmed").await?;
            progress.at = end;
            progress.unwritten.get_or_insert_with(Instant::now);
            metrics::counter!("gantry.bus.published", "source" => store.service())
                .increment(outgoing.len() as u64);
        }
        let leaves = leaving.is_cancelled() && !page.more;
        if progress.unwritten.is_some_and(|since| leaves || since.elapsed() >= UNWRITTEN) {
            advance(store, leader, progress.at).await?;
            progress.unwritten = None;
        }
        if page.more {
            continue;
        }
        // What is committed from here on, the next leader publishes.
        if leaves {
            return Ok(());
        }
        // An older transaction is open, mostly one that ends at once; it may be another service's, whose end nobody tells us.
        let was_held = held.is_some();
        held = page.unsettled.then(|| held.unwrap_or_else(Instant::now));
        if was_held || held.is_some() {
            let seconds = held.map_or(0.0, |since| since.elapsed().as_secs_f64());
            metrics::gauge!("gantry.bus.horizon_lag_seconds", "source" => store.service()).set(seconds);
        }
        let wait = if held.is_some() { SETTLE } else { POLL };
        let unwritten = progress.unwritten.map_or(POLL, |since| UNWRITTEN.saturating_sub(since.elapsed()));
        tokio::select! {
            changed = woken.changed() => if changed.is_err() { return Ok(()) },
            () = leaving.cancelled() => {}
            () = sleep(wait.min(unwritten)) => {}
        }
    }
    Ok(())
}

impl Progress {
    fn since(at: Position) -> Self {
        Self { begun: at, at, unwritten: None, all: Trail::since(at), lanes: HashMap::new() }
    }

    fn outgoing(&mut self, store: &Store, at: Position, message: contracts::Envelope) -> Outgoing {
        let lane = lane_of(&message.aggregate.kind, message.aggregate.id, LANES);
        let begun = self.begun;
        let in_lane = self.lanes.entry(lane).or_insert_with(|| Trail::since(begun));
        Outgoing {
            source: store.service().to_owned(),
            at,
            lane,
            before: self.all.pass(&message.kind, at),
            before_in_lane: in_lane.pass(&message.kind, at),
            message,
        }
    }
}

async fn cursor(store: &Store) -> anyhow::Result<Position> {
    let sql = format!(
        "INSERT INTO {}.cursors AS c (group_name, source, lane, lanes) VALUES ($1, $2, 0, 1) \
         ON CONFLICT (group_name, source, lanes, lane) DO UPDATE SET group_name = c.group_name \
         RETURNING xid::text AS xid, seq",
        store.schema()
    );
    let row =
        sqlx::query(AssertSqlSafe(sql)).bind(CURSOR).bind(store.service()).fetch_one(store.pool()).await?;
    let xid: String = row.try_get("xid")?;
    Ok(Position { xid: xid.parse()?, seq: row.try_get("seq")? })
}

async fn advance(store: &Store, leader: &Leader, to: Position) -> anyhow::Result<()> {
    let mut tx = store.begin(&[]).await?;
    // A cursor that is lost repeats what was published, and that does no harm.
    tx.relaxed().await?;
    leader.fence(&mut tx).await?;
    let sql = format!(
        "UPDATE {}.cursors SET xid = $3::text::xid8, seq = $4, revision = revision + 1, updated = clock_timestamp() \
         WHERE group_name = $1 AND source = $2",
        store.schema()
    );
    sqlx::query(AssertSqlSafe(sql))
        .bind(CURSOR)
        .bind(store.service())
        .bind(to.xid.to_string())
        .bind(to.seq)
        .execute(tx.conn())
        .await?;
    tx.commit().await?;
    Ok(())
}
