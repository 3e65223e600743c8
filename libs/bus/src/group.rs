//! Groups: what a consumer is, and the reader that feeds its lanes.

use crate::{
    Bus,
    feed::LaneEnd,
    lane::{Item, Lane, LaneError, lane_of},
    tail::{PAGE, Shared},
};
use async_trait::async_trait;
use contracts::{Envelope, RequestError};
use eventstore::{Key, Position, Store, Tx, Wanted, read_wanted};
use futures::future::try_join_all;
use sqlx::{AssertSqlSafe, Row};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Why a message was not handled.
#[derive(Debug)]
pub enum Fault {
    /// May succeed later: the message is parked and tried again, eight times in all.
    Retry(anyhow::Error),
    /// A service or store that the message needs does not answer. The message is not at fault: it is parked and tried again
    /// until that is back, however long it takes (reliability §5.4).
    Away(anyhow::Error),
    /// Can never succeed: the message becomes a dead letter at once.
    Dead(anyhow::Error),
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Retry(eventstore::Error::from(error).into())
    }
}

impl From<eventstore::Error> for Fault {
    fn from(error: eventstore::Error) -> Self {
        Self::Retry(error.into())
    }
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        if error.downcast_ref().is_some_and(is_away) { Self::Away(error) } else { Self::Retry(error) }
    }
}

impl From<RequestError> for Fault {
    fn from(error: RequestError) -> Self {
        anyhow::Error::new(error).into()
    }
}

/// Whether a service was asked in vain.
fn is_away(error: &RequestError) -> bool {
    matches!(
        error,
        RequestError::NoResponder { .. } | RequestError::Unsent { .. } | RequestError::Deadline { .. }
    )
}

/// A body that cannot be read today cannot be read tomorrow.
impl From<serde_json::Error> for Fault {
    fn from(error: serde_json::Error) -> Self {
        Self::Dead(anyhow::Error::new(error).context("unsupported_version"))
    }
}

/// A named consumer. Each message reaches it at least once, the versions of one aggregate in order; messages of
/// different aggregates may be handled at the same time, unless the group takes batches.
#[async_trait]
pub trait Group: Send + Sync {
    /// For example `conductor.pipelines`. Progress is kept under this name: never change it.
    fn name(&self) -> &'static str;

    /// Types of the events that are handed over.
    fn wants(&self) -> &'static [&'static str];

    /// More than 1: so many messages may be handed over at once, in position order, one batch at a time.
    fn batch(&self) -> usize {
        1
    }

    /// How long a message of this source and type waits for others, to be handled together with them: for what nobody
    /// waits for. A job is told of to several groups at once, and on a busy machine those that it waits for come first.
    fn gather(&self, _source: &str, _kind: &str) -> Duration {
        Duration::ZERO
    }

    /// Effects can be rebuilt: commits need not wait for the disk.
    fn relaxed(&self) -> bool {
        false
    }

    /// Aggregates of this service that the effect of a message will append to.
    fn locks(&self, msg: &Envelope) -> Vec<Key>;

    /// The effect. It goes into `tx` and calls nothing outside Postgres.
    ///
    /// # Errors
    /// A [`Fault`] rolls `tx` back.
    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault>;

    /// After the commit: what may safely be repeated or lost. It may run again for the same message, or, after a
    /// crash, not at all.
    async fn after_commit(&self, _batch: &[Envelope]) {}
}

/// Of these aggregates of a source, given with a position, those of which a group of `store`'s service that takes one message
/// at a time has handled every event up to there: its cursor is past it, and nothing of them is parked or a dead letter.
///
/// # Errors
/// The database is away.
pub async fn handled(
    store: &Store,
    (group, source): (&str, &str),
    kind: &str,
    events: &[(Uuid, Position)],
) -> eventstore::Result<HashSet<Uuid>> {
    let sql = format!(
        "SELECT e.id FROM unnest($3::uuid[], $4::int4[], $5::text[], $6::int8[]) AS e(id, lane, xid, seq) \
         JOIN {s}.cursors c ON c.group_name = $1 AND c.source = $2 AND c.lanes = $7 AND c.lane = e.lane \
              AND (c.xid, c.seq) >= (e.xid::xid8, e.seq) \
         WHERE NOT EXISTS (SELECT 1 FROM {s}.parked p WHERE p.group_name = $1 AND p.source = $2 \
                             AND p.aggregate_kind = $8 AND p.aggregate_id = e.id) \
           AND NOT EXISTS (SELECT 1 FROM {s}.dead_letters d WHERE d.group_name = $1 AND d.source = $2 \
                             AND d.aggregate_kind = $8 AND d.aggregate_id = e.id)",
        s = store.schema()
    );
    let ids: Vec<Uuid> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(group)
        .bind(source)
        .bind(events.iter().map(|(id, _)| *id).collect::<Vec<_>>())
        .bind(events.iter().map(|(id, _)| lane_of(kind, *id, LANES)).collect::<Vec<_>>())
        .bind(events.iter().map(|(_, at)| at.xid.to_string()).collect::<Vec<_>>())
        .bind(events.iter().map(|(_, at)| at.seq).collect::<Vec<_>>())
        .bind(LANES)
        .bind(kind)
        .fetch_all(store.pool())
        .await?;
    Ok(ids.into_iter().collect())
}

/// Lanes of a group that takes one message at a time.
pub const LANES: i32 = 4;
/// Messages that wait in a lane before the reader waits.
const QUEUE: usize = 256;
/// Unwanted events after which the cursors are moved without an effect.
const MARK_EVENTS: u64 = 2048;
/// Quiet time after which they are moved too.
const MARK_QUIET: Duration = Duration::from_secs(10);

/// Handles one source for one group.
pub(crate) struct Runner {
    pub(crate) bus: Bus,
    pub(crate) store: Store,
    pub(crate) source: &'static str,
    pub(crate) group: Arc<dyn Group>,
    pub(crate) lanes: i32,
}

impl Runner {
    pub(crate) fn new(bus: Bus, store: Store, source: &'static str, group: Arc<dyn Group>) -> Self {
        let lanes = if group.batch() > 1 { 1 } else { LANES };
        Self { bus, store, source, group, lanes }
    }

    /// Runs until `stop`; starts again, with patience, after whatever ends it.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut pause = Duration::from_millis(20);
        while !stop.is_cancelled() {
            let started = Instant::now();
            match self.run_once(&stop).await {
                Ok(()) => return,
                Err(LaneError::Overtaken) => {
                    tracing::debug!(
                        group = self.group.name(),
                        source = self.source,
                        "progress changed elsewhere"
                    );
                    pause = Duration::from_millis(20);
                }
                Err(LaneError::Store(error)) => {
                    if started.elapsed() > Duration::from_secs(10) {
                        pause = Duration::from_millis(20);
                    }
                    tracing::warn!(
                        group = self.group.name(),
                        source = self.source,
                        error = &error as &dyn std::error::Error,
                        "a group stopped and starts again"
                    );
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(pause) => pause = (pause * 2).min(Duration::from_secs(5)),
            }
        }
    }

    async fn run_once(&self, stop: &CancellationToken) -> Result<(), LaneError> {
        let (lanes, ops) = self.load().await?;
        let mut ends = BTreeMap::new();
        let mut lane_runs = Vec::with_capacity(lanes.len());
        for lane in lanes {
            let (items, receiver) = mpsc::channel(QUEUE);
            ends.insert(lane.number(), LaneEnd { items, committed: lane.committed(), given: lane.position });
            lane_runs.push(lane.run(receiver, stop.clone()));
        }
        let none = lane_runs.is_empty();
        let lanes_done = async {
            if none {
                // Other processes have them all.
                std::future::pending::<()>().await;
            }
            try_join_all(lane_runs).await
        };
        tokio::pin!(lanes_done);
        let read = async {
            match self.bus.broker() {
                Some(broker) => self.feed(broker.as_ref(), ends, ops, stop).await,
                None => self.read(ends, ops, stop).await,
            }
        };
        // An error of one ends all: open transactions are dropped and roll back.
        tokio::select! {
            read = read => {
                // Without error only when it is stopped: the lanes finish the message at hand.
                read?;
                if !none {
                    lanes_done.await?;
                }
            }
            done = &mut lanes_done => {
                done?;
            }
        }
        Ok(())
    }

    /// Lanes as they stand in the database, and the count of operators' acts.
    async fn load(&self) -> Result<(Vec<Lane>, i64), LaneError> {
        let schema = self.store.schema();
        // A group whose number of lanes changed (its `batch` became 1, or more) begins where the slowest of the old
        // lanes stood: what faster ones had handled after that comes again.
        let insert = format!(
            "INSERT INTO {schema}.cursors AS c (group_name, source, lane, lanes, xid, seq) \
             SELECT $1, $2, n, $3, coalesce(o.xid, '0'), coalesce(o.seq, 0) FROM generate_series(0, $3 - 1) n \
             LEFT JOIN LATERAL (SELECT xid, seq FROM {schema}.cursors WHERE group_name = $1 AND source = $2 AND lanes <> $3 \
                                ORDER BY xid, seq LIMIT 1) o ON true \
             WHERE NOT EXISTS (SELECT 1 FROM {schema}.cursors WHERE group_name = $1 AND source = $2 AND lanes = $3) \
             ON CONFLICT DO NOTHING"
        );
        sqlx::query(AssertSqlSafe(insert))
            .bind(self.group.name())
            .bind(self.source)
            .bind(self.lanes)
            .execute(self.store.pool())
            .await?;
        let delete =
            format!("DELETE FROM {schema}.cursors WHERE group_name = $1 AND source = $2 AND lanes <> $3");
        sqlx::query(AssertSqlSafe(delete))
            .bind(self.group.name())
            .bind(self.source)
            .bind(self.lanes)
            .execute(self.store.pool())
            .await?;
        let select = format!(
            "SELECT lane, xid::text AS xid, seq, revision, ops FROM {schema}.cursors \
             WHERE group_name = $1 AND source = $2 AND lanes = $3 ORDER BY lane"
        );
        let rows = sqlx::query(AssertSqlSafe(select))
            .bind(self.group.name())
            .bind(self.source)
            .bind(self.lanes)
            .fetch_all(self.store.pool())
            .await?;
        let mut blocked = self.blocked().await?;
        let taken = self
            .bus
            .members(&self.store)
            .map(|members| members.lanes(self.group.name(), self.source, self.lanes));
        let mut lanes = Vec::with_capacity(rows.len());
        let mut ops = 0;
        for row in rows {
            let number: i32 = row.try_get("lane")?;
            ops += row.try_get::<i64, _>("ops")?;
            if taken.as_ref().is_some_and(|taken| !taken.contains(&number)) {
                continue;
            }
            let xid: String = row.try_get("xid")?;
            let position = Position { xid: xid.parse().unwrap_or(0), seq: row.try_get("seq")? };
            lanes.push(Lane::new(
                self.store.clone(),
                self.source,
                Arc::clone(&self.group),
                self.bus.turns(),
                (number, self.lanes),
                position,
                row.try_get("revision")?,
                blocked.remove(&number).unwrap_or_default(),
            ));
        }
        Ok((lanes, ops))
    }

    /// Aggregates with a failed message, per lane.
    async fn blocked(&self) -> Result<HashMap<i32, crate::lane::Blocked>, LaneError> {
        let schema = self.store.schema();
        let sql = format!(
            "SELECT aggregate_kind, aggregate_id FROM {schema}.parked WHERE group_name = $1 AND source = $2 \
             UNION SELECT aggregate_kind, aggregate_id FROM {schema}.dead_letters WHERE group_name = $1 AND source = $2"
        );
        let rows: Vec<(String, uuid::Uuid)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(self.group.name())
            .bind(self.source)
            .fetch_all(self.store.pool())
            .await?;
        let mut lanes: HashMap<i32, crate::lane::Blocked> = HashMap::new();
        for (kind, id) in rows {
            lanes.entry(lane_of(&kind, id, self.lanes)).or_default().insert((kind, id));
        }
        Ok(lanes)
    }

    /// Whether the lanes' rows are still what this reader goes by: no operator moved them, and none stands before
    /// what its lane committed. A database that crashed alone forgets relaxed commits, and nothing else would tell.
    pub(crate) async fn confirm(&self, lanes: &BTreeMap<i32, LaneEnd>, ops: i64) -> Result<(), LaneError> {
        // Before the rows are read: they may be further by then, never less far.
        let committed: Vec<(i32, Position)> =
            lanes.iter().map(|(lane, end)| (*lane, *end.committed.borrow())).collect();
        let sql = format!(
            "SELECT lane, xid::text, seq, ops FROM {}.cursors WHERE group_name = $1 AND source = $2 AND lanes = $3",
            self.store.schema()
        );
        let rows: Vec<(i32, String, i64, i64)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(self.group.name())
            .bind(self.source)
            .bind(self.lanes)
            .fetch_all(self.store.pool())
            .await?;
        let stands = |lane: i32| {
            let (_, xid, seq, _) = rows.iter().find(|(number, ..)| *number == lane)?;
            Some(Position { xid: xid.parse().unwrap_or(0), seq: *seq })
        };
        let kept = committed.iter().all(|(lane, at)| stands(*lane).is_some_and(|stands| stands >= *at));
        if kept && rows.iter().map(|(.., ops)| ops).sum::<i64>() == ops {
            Ok(())
        } else {
            Err(LaneError::Overtaken)
        }
    }

    pub(crate) fn wants(&self, message: &Envelope) -> bool {
        self.group.wants().contains(&message.kind.as_str())
    }

    /// The next events of the source's log that the group wants; none while the service has not made its schema yet.
    pub(crate) async fn page(&self, after: Position) -> Result<Wanted, LaneError> {
        let pool = self.bus.pool_of(self.source);
        match read_wanted(&pool, self.source, self.group.wants(), after, PAGE).await {
            Ok(page) => Ok(page),
            Err(eventstore::Error::Db(sqlx::Error::Database(error)))
                if error.code().as_deref() == Some("42P01") =>
            {
                Ok(Wanted { end: after, ..Wanted::default() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The same, shared with the other groups of this process.
    async fn shared(&self, after: Position, tick: u64, anew: bool) -> Result<Shared, LaneError> {
        let (tail, pool) = self.bus.tail_of(self.source);
        match tail.after(&pool, self.source, after, tick, anew).await {
            Ok(page) => Ok(page),
            Err(eventstore::Error::Db(sqlx::Error::Database(error)))
                if error.code().as_deref() == Some("42P01") =>
            {
                Ok(Shared::default())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the source's log and hands what the group wants to its lanes.
    async fn read(
        &self,
        lanes: BTreeMap<i32, LaneEnd>,
        ops: i64,
        stop: &CancellationToken,
    ) -> Result<(), LaneError> {
        let mut woken = self.bus.woken(self.source);
        let mut operated = self.bus.woken(&ops_channel(self.group.name(), self.source));
        let mut position = lanes.values().map(|end| end.given).min().unwrap_or_default();
        let (mut marked, mut since_mark, mut mark_at) = (position, 0u64, Instant::now());
        let mut settle = Duration::from_millis(1);
        let mut held_since: Option<Instant> = None;
        let mut idle = Duration::from_secs(1);
        let mut anew = true;
        loop {
            if stop.is_cancelled() {
                return Ok(());
            }
            let tick = *woken.borrow_and_update();
            let page = self.shared(position, tick, std::mem::take(&mut anew)).await?;
            let found = !page.events.is_empty();
            for (at, envelope) in page.events {
                position = at;
                since_mark += 1;
                if self.wants(&envelope) {
                    let lane = lane_of(&envelope.aggregate.kind, envelope.aggregate.id, self.lanes);
                    let Some(end) = lanes.get(&lane) else { continue };
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        // A lane that ended says why itself.
                        sent = end.items.send(Item::Message(at, Box::new(Envelope::clone(&envelope)))) => if sent.is_err() {
                            return std::future::pending().await;
                        },
                    }
                }
            }
            if found {
                idle = Duration::from_secs(1);
            }
            if position > marked && (since_mark >= MARK_EVENTS || mark_at.elapsed() >= MARK_QUIET) {
                for end in lanes.values() {
                    // A full lane has work of its own that will move its cursor.
                    let _ = end.items.try_send(Item::Mark(position));
                }
                (marked, since_mark, mark_at) = (position, 0, Instant::now());
            }
            if page.more {
                continue;
            }
            if page.unsettled {
                // An older transaction is open; it may be another service's, whose end nobody tells us.
                let held = held_since.get_or_insert_with(Instant::now).elapsed();
                metrics::gauge!("gantry.bus.horizon_lag_seconds", "source" => self.source)
                    .set(held.as_secs_f64());
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    _ = woken.changed() => {}
                    () = sleep(settle) => {}
                }
                settle = (settle * 2).min(Duration::from_millis(25));
                continue;
            }
            settle = Duration::from_millis(1);
            if held_since.take().is_some() {
                metrics::gauge!("gantry.bus.horizon_lag_seconds", "source" => self.source).set(0.0);
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = woken.changed() => if changed.is_err() {
                    sleep(Duration::from_secs(1)).await;
                },
                _ = operated.changed() => return Err(LaneError::Overtaken),
                () = sleep(idle) => {
                    // Other processes commit without telling this one.
                    anew = true;
                    idle = (idle * 2).min(Duration::from_secs(10));
                    self.confirm(&lanes, ops).await?;
                }
            }
        }
    }
}

/// Channel on which operators' acts in this process are told.
pub(crate) fn ops_channel(group: &str, source: &str) -> String {
    format!("ops {group} {source}")
}
