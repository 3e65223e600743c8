//! Lanes: the messages of one group and source, split by aggregate, each part handled one after the other.
//!
//! A lane has a cursor row of its own. It commits the cursor with the effect, guarded by the row's revision, so
//! that two processes that handle the same lane by accident never commit the same effect twice.

use crate::{Fault, Group};
use contracts::{Envelope, trace::Trace};
use eventstore::{Error, Position, Store, Tx, failpoint, trace};
use futures::FutureExt;
use sqlx::AssertSqlSafe;
use std::{
    any::Any,
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Aggregates with a failed message: later ones wait behind it.
pub(crate) type Blocked = HashSet<(String, Uuid)>;

/// A handler's time limit (reliability §5.4).
const HANDLER_LIMIT: Duration = Duration::from_secs(30);
/// Seconds to wait after the nth failed attempt.
const WAITS: [u64; 7] = [1, 5, 15, 30, 60, 60, 120];
/// Attempts after which a message is a dead letter.
const ATTEMPTS: i32 = 8;
/// Attempts that count while something is away that a message needs: so it is tried every half minute.
const WHILE_AWAY: i32 = 4;
/// Times that a conflict with another writer is tried again at once.
const CONFLICTS: u32 = 3;
/// Bytes of an error's text that are kept.
const ERROR_BYTES: usize = 4096;

/// What the reader hands to a lane.
pub(crate) enum Item {
    /// A message.
    Message(Position, Box<Envelope>),
    /// Everything up to here was read: the cursor may move there.
    Mark(Position),
}

/// Why a lane ended.
#[derive(Debug)]
pub(crate) enum LaneError {
    /// The lane's row was changed by another process or an operator: load it again.
    Overtaken,
    /// The store failed.
    Store(Error),
}

impl From<Error> for LaneError {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<sqlx::Error> for LaneError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<serde_json::Error> for LaneError {
    fn from(error: serde_json::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The lane of an aggregate; the same for ever.
pub(crate) fn lane_of(kind: &str, id: Uuid, lanes: i32) -> i32 {
    // FNV-1a with a last mix: no more is needed than that similar ids spread.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in kind.bytes().chain(id.into_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    i32::try_from(hash % u64::from(lanes.unsigned_abs().max(1))).unwrap_or(0)
}

/// Where a message comes from.
#[derive(Clone, Copy)]
enum Origin {
    /// From the reader; the cursor moves to its position.
    Log(Position),
    /// From the table of parked messages, with the attempts that failed.
    Parked(i32),
}

impl Origin {
    /// Attempts that failed before.
    fn failed(self) -> i32 {
        match self {
            Self::Log(_) => 0,
            Self::Parked(attempts) => attempts,
        }
    }
}

struct Head {
    message_id: Uuid,
    kind: String,
    id: Uuid,
    attempt: i32,
    seconds: f64,
}

pub(crate) struct Lane {
    store: Store,
    source: &'static str,
    group: Arc<dyn Group>,
    /// Taken while a transaction is open: groups that catch up leave connections to requests and agents.
    turns: Arc<Semaphore>,
    number: i32,
    lanes: i32,
    pub(crate) position: Position,
    /// Tells the reader how far it came.
    committed: watch::Sender<Position>,
    revision: i64,
    blocked: Blocked,
    next_due: Option<Instant>,
}

impl Lane {
    #[expect(clippy::too_many_arguments, reason = "made in one place, from one row")]
    pub(crate) fn new(
        store: Store,
        source: &'static str,
        group: Arc<dyn Group>,
        turns: Arc<Semaphore>,
        (number, lanes): (i32, i32),
        position: Position,
        revision: i64,
        blocked: Blocked,
    ) -> Self {
        let next_due = (!blocked.is_empty()).then(Instant::now);
        let committed = watch::Sender::new(position);
        Self { store, source, group, turns, number, lanes, position, committed, revision, blocked, next_due }
    }

    pub(crate) fn number(&self) -> i32 {
        self.number
    }

    /// How far the lane has committed, as it goes on.
    pub(crate) fn committed(&self) -> watch::Receiver<Position> {
        self.committed.subscribe()
    }

    pub(crate) async fn run(
        mut self,
        mut queue: mpsc::Receiver<Item>,
        stop: CancellationToken,
    ) -> Result<(), LaneError> {
        let batch = self.group.batch().max(1);
        let mut items = Vec::new();
        loop {
            if stop.is_cancelled() {
                return Ok(());
            }
            if self.next_due.is_some_and(|due| due <= Instant::now()) {
                self.handle_due(&stop).await?;
            }
            let due = self.next_due;
            let received = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = async { match due { Some(due) => sleep_until(due).await, None => std::future::pending().await } } => continue,
                received = queue.recv_many(&mut items, batch) => received,
            };
            if received == 0 {
                return Ok(());
            }
            self.gather(&mut items, batch, &mut queue).await;
            self.take(&mut items).await?;
        }
    }

    /// Waits for others as long as each of the messages may wait.
    async fn gather(&self, items: &mut Vec<Item>, batch: usize, queue: &mut mpsc::Receiver<Item>) {
        let patience = |item: &Item| match item {
            Item::Message(_, message) => Some(self.group.gather(self.source, &message.kind)),
            Item::Mark(_) => None,
        };
        let shortest = items.iter().filter_map(patience).min().unwrap_or_default();
        let mut end = Instant::now() + shortest;
        while items.len() < batch
            && end > Instant::now()
            && let Ok(Some(item)) = timeout_at(end, queue.recv()).await
        {
            if let Some(patience) = patience(&item) {
                end = end.min(Instant::now() + patience);
            }
            items.push(item);
        }
    }

    async fn take(&mut self, items: &mut Vec<Item>) -> Result<(), LaneError> {
        let (mut messages, mut end, mut mark) = (Vec::with_capacity(items.len()), self.position, None);
        for item in items.drain(..) {
            match item {
                // Handled before a restart.
                Item::Message(at, _) if at <= self.position => {}
                Item::Message(at, envelope) => {
                    end = at;
                    messages.push((at, *envelope));
                }
                Item::Mark(at) => mark = Some(at),
            }
        }
        let free = |(_, m): &(Position, Envelope)| {
            !self.blocked.contains(&(m.aggregate.kind.clone(), m.aggregate.id))
        };
        if messages.len() > 1 && messages.iter().all(free) {
            let batch: Vec<Envelope> = messages.iter().map(|(_, envelope)| envelope.clone()).collect();
            if self.attempt(&batch, Origin::Log(end)).await?.is_ok() {
                messages.clear();
            }
            // Otherwise one by one: that finds the one that fails.
        }
        for (at, envelope) in messages {
            let from = Origin::Log(at);
            if self.blocked.contains(&(envelope.aggregate.kind.clone(), envelope.aggregate.id)) {
                self.wait_behind(at, &envelope).await?;
            } else if let Err(fault) = self.attempt(std::slice::from_ref(&envelope), from).await? {
                self.record(&envelope, from, fault).await?;
            }
        }
        if let Some(at) = mark.filter(|at| *at > self.position) {
            let mut tx = self.store.begin_relaxed(&[]).await?;
            self.advance(&mut tx, at).await?;
            tx.commit().await?;
            self.advanced(at);
        }
        Ok(())
    }

    /// Moves the cursor in the transaction of the effect. The first statement of it: a second process that
    /// handles the same message waits here, and then finds that it came too late.
    async fn advance(&self, tx: &mut Tx, to: Position) -> Result<(), LaneError> {
        let sql = format!(
            "UPDATE {}.cursors SET xid = $6::text::xid8, seq = $7, revision = revision + 1, updated = clock_timestamp() \
             WHERE group_name = $1 AND source = $2 AND lanes = $3 AND lane = $4 AND revision = $5",
            self.store.schema()
        );
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(self.group.name())
            .bind(self.source)
            .bind(self.lanes)
            .bind(self.number)
            .bind(self.revision)
            .bind(to.xid.to_string())
            .bind(to.seq)
            .execute(tx.conn())
            .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(LaneError::Overtaken) }
    }

    fn advanced(&mut self, to: Position) {
        self.position = to;
        self.revision += 1;
        self.committed.send_replace(to);
    }

    /// Handles messages in one transaction; again at once when another writer was in the way.
    async fn attempt(&mut self, batch: &[Envelope], from: Origin) -> Result<Result<(), Fault>, LaneError> {
        let started = Instant::now();
        let mut conflicts = 0;
        loop {
            let spans = trace::handling(self.store.service(), self.group.name(), batch);
            let result = self.attempt_once(batch, from, spans.first().map(|span| span.context)).await;
            for span in spans {
                let attempt = i64::from(from.failed()) + i64::from(conflicts) + 1;
                let failed = !matches!(result, Ok(Ok(())));
                span.with("gantry.attempt", attempt).failing(failed).ending().record();
            }
            let result = result?;
            if let Err(Fault::Retry(error)) = &result
                && conflicts < CONFLICTS
                && error.downcast_ref::<Error>().is_some_and(Error::is_conflict)
            {
                conflicts += 1;
                continue;
            }
            // Those that come many at a time have one type for all.
            let kind = if let [message] = batch { message.kind.clone() } else { "batch".to_owned() };
            let success = if result.is_ok() { "true" } else { "false" };
            metrics::histogram!(
                "gantry.bus.handle_seconds", "group" => self.group.name(), "message_type" => kind, "success" => success
            )
            .record(started.elapsed().as_secs_f64());
            if let Some(last) = batch.last() {
                let lag = chrono::Utc::now().signed_duration_since(last.occurred_at).as_seconds_f64();
                metrics::histogram!("gantry.bus.lag_seconds", "group" => self.group.name())
                    .record(lag.max(0.0));
            }
            let outcome = if result.is_ok() { "done" } else { "fault" };
            metrics::counter!("gantry.bus.handled", "group" => self.group.name(), "outcome" => outcome)
                .increment(batch.len() as u64);
            return Ok(result);
        }
    }

    async fn attempt_once(
        &mut self,
        batch: &[Envelope],
        from: Origin,
        within: Option<Trace>,
    ) -> Result<Result<(), Fault>, LaneError> {
        let group = Arc::clone(&self.group);
        let locks = catch_unwind(AssertUnwindSafe(|| {
            batch.iter().flat_map(|msg| group.locks(msg)).collect::<Vec<_>>()
        }));
        let locks = match locks {
            Ok(locks) => locks,
            Err(panic) => return Ok(Err(panicked(&*panic))),
        };
        let turns = Arc::clone(&self.turns);
        let turn = turns.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        let begun = if group.relaxed() {
            self.store.begin_relaxed(&locks).await
        } else {
            self.store.begin(&locks).await
        };
        let mut tx = match begun {
            Ok(tx) => tx,
            Err(error) if !error.is_away() => return Ok(Err(error.into())),
            Err(error) => return Err(error.into()),
        };
        let to = match from {
            Origin::Log(at) => at,
            Origin::Parked(_) => self.position,
        };
        self.advance(&mut tx, to).await?;
        // Groups that take batches say themselves which message an event follows from.
        let trace = if let [message] = batch { within.or_else(|| trace::after(message)) } else { None };
        let work = trace::within(trace, group.handle(&mut tx, batch));
        let handled = AssertUnwindSafe(timeout(HANDLER_LIMIT, work)).catch_unwind().await;
        match handled {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(fault))) => return Ok(Err(fault)),
            Ok(Err(_)) => {
                return Ok(Err(Fault::Retry(anyhow::anyhow!("it took longer than {HANDLER_LIMIT:?}"))));
            }
            Err(panic) => return Ok(Err(panicked(&*panic))),
        }
        let mut more_wait = true;
        if let (Origin::Parked(_), [msg]) = (from, batch) {
            match self.unpark(&mut tx, msg).await {
                Ok(more) => more_wait = more,
                // The handler left the transaction broken without saying so.
                Err(LaneError::Store(error)) => return Ok(Err(error.into())),
                Err(overtaken) => return Err(overtaken),
            }
        }
        match tx.commit().await {
            Ok(()) => {}
            Err(error) if !error.is_away() => return Ok(Err(error.into())),
            // Perhaps committed, perhaps not: the cursor row tells.
            Err(error) => return Err(error.into()),
        }
        drop(turn);
        self.advanced(to);
        if let (false, [msg]) = (more_wait, batch) {
            self.blocked.remove(&(msg.aggregate.kind.clone(), msg.aggregate.id));
        }
        failpoint(&format!("{}.ack", group.name())).await?;
        if let Err(panic) = AssertUnwindSafe(group.after_commit(batch)).catch_unwind().await {
            tracing::error!(group = group.name(), panic = panic_text(&*panic), "after_commit panicked");
        }
        Ok(Ok(()))
    }

    /// Removes a handled message from the parked ones and lets the next of its aggregate come. Says whether one did.
    async fn unpark(&self, tx: &mut Tx, msg: &Envelope) -> Result<bool, LaneError> {
        let schema = self.store.schema();
        let delete =
            format!("DELETE FROM {schema}.parked WHERE group_name = $1 AND source = $2 AND message_id = $3");
        sqlx::query(AssertSqlSafe(delete))
            .bind(self.group.name())
            .bind(self.source)
            .bind(msg.id.uuid())
            .execute(tx.conn())
            .await?;
        let next = format!(
            "UPDATE {schema}.parked SET due = clock_timestamp() WHERE group_name = $1 AND source = $2 AND message_id = \
             (SELECT message_id FROM {schema}.parked WHERE group_name = $1 AND source = $2 \
              AND aggregate_kind = $3 AND aggregate_id = $4 ORDER BY version LIMIT 1)"
        );
        let next = sqlx::query(AssertSqlSafe(next))
            .bind(self.group.name())
            .bind(self.source)
            .bind(&msg.aggregate.kind)
            .bind(msg.aggregate.id)
            .execute(tx.conn())
            .await?;
        Ok(next.rows_affected() > 0)
    }

    /// Parks a message behind a failed one of its aggregate.
    async fn wait_behind(&mut self, at: Position, msg: &Envelope) -> Result<(), LaneError> {
        let mut tx = self.store.begin(&[]).await?;
        if self.group.relaxed() {
            tx.relaxed().await?;
        }
        self.advance(&mut tx, at).await?;
        self.insert_parked(&mut tx, msg, 0, None, "").await?;
        tx.commit().await?;
        self.advanced(at);
        Ok(())
    }

    async fn insert_parked(
        &self,
        tx: &mut Tx,
        msg: &Envelope,
        attempt: i32,
        wait: Option<Duration>,
        error: &str,
    ) -> Result<(), LaneError> {
        let sql = format!(
            "INSERT INTO {}.parked (group_name, source, message_id, aggregate_kind, aggregate_id, version, envelope, attempt, due, error) \
             VALUES ($1, $2, $3, $4, $5, $6, $7::text::json, $8, clock_timestamp() + make_interval(secs => $9), $10) \
             ON CONFLICT (group_name, source, message_id) DO UPDATE \
             SET attempt = EXCLUDED.attempt, due = EXCLUDED.due, error = EXCLUDED.error",
            self.store.schema()
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(self.group.name())
            .bind(self.source)
            .bind(msg.id.uuid())
            .bind(&msg.aggregate.kind)
            .bind(msg.aggregate.id)
            .bind(msg.aggregate.version)
            .bind(serde_json::to_string(msg)?)
            .bind(attempt)
            .bind(wait.map(|wait| wait.as_secs_f64()))
            .bind(error)
            .execute(tx.conn())
            .await?;
        Ok(())
    }

    /// Records that a message failed: parks it, or gives it up.
    async fn record(&mut self, msg: &Envelope, from: Origin, fault: Fault) -> Result<(), LaneError> {
        let (to, failed) = match from {
            Origin::Log(at) => (at, 1),
            Origin::Parked(attempt) => (self.position, attempt + 1),
        };
        let (failed, reason) = verdict(&fault, failed);
        let (Fault::Retry(error) | Fault::Away(error) | Fault::Dead(error)) = fault;
        let mut text = format!("{error:#}");
        if text.len() > ERROR_BYTES {
            let end = (0..=ERROR_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            text.truncate(end);
        }
        // Text in Postgres has no NUL.
        let text = text.replace('\0', "\u{fffd}");
        let mut tx = self.store.begin(&[]).await?;
        self.advance(&mut tx, to).await?;
        let mut due = None;
        if let Some(reason) = reason {
            let schema = self.store.schema();
            let sql = format!(
                "WITH p AS (DELETE FROM {schema}.parked WHERE group_name = $1 AND source = $2 AND message_id = $3 RETURNING first_at) \
                 INSERT INTO {schema}.dead_letters (group_name, source, message_id, kind, aggregate_kind, aggregate_id, version, \
                     envelope, reason, error, attempts, first_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::json, $9, $10, $11, \
                     coalesce((SELECT first_at FROM p), clock_timestamp())) ON CONFLICT DO NOTHING"
            );
            sqlx::query(AssertSqlSafe(sql))
                .bind(self.group.name())
                .bind(self.source)
                .bind(msg.id.uuid())
                .bind(&msg.kind)
                .bind(&msg.aggregate.kind)
                .bind(msg.aggregate.id)
                .bind(msg.aggregate.version)
                .bind(serde_json::to_string(msg)?)
                .bind(reason)
                .bind(&text)
                .bind(failed)
                .execute(tx.conn())
                .await?;
        } else {
            let wait = wait_after(failed, msg.id.uuid());
            due = Some(Instant::now() + wait);
            self.insert_parked(&mut tx, msg, failed, Some(wait), &text).await?;
        }
        tx.commit().await?;
        self.advanced(to);
        self.blocked.insert((msg.aggregate.kind.clone(), msg.aggregate.id));
        if let Some(due) = due {
            self.next_due = Some(self.next_due.map_or(due, |known| known.min(due)));
        }
        let (group, source, id, kind) = (self.group.name(), self.source, msg.id, &msg.kind);
        if let Some(reason) = reason {
            metrics::counter!("gantry.bus.dead_letters", "group" => group).increment(1);
            tracing::error!(group, source, %id, kind, reason, error = text, "a message became a dead letter");
        } else {
            metrics::counter!("gantry.bus.parked", "group" => group).increment(1);
            tracing::warn!(group, source, %id, kind, attempt = failed, error = text, "a message failed and is tried again");
        }
        Ok(())
    }

    /// Handles parked messages whose time has come.
    async fn handle_due(&mut self, stop: &CancellationToken) -> Result<(), LaneError> {
        loop {
            let mut heads = self.heads().await?;
            heads.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
            self.next_due = heads
                .first()
                .map(|head| Instant::now() + Duration::from_secs_f64(head.seconds.clamp(0.0, 3600.0)));
            let mut handled = false;
            for head in heads {
                if head.seconds > 0.0 || stop.is_cancelled() {
                    break;
                }
                handled = true;
                let sql = format!(
                    "SELECT envelope FROM {}.parked WHERE group_name = $1 AND source = $2 AND message_id = $3",
                    self.store.schema()
                );
                let envelope: Option<serde_json::Value> = sqlx::query_scalar(AssertSqlSafe(sql))
                    .bind(self.group.name())
                    .bind(self.source)
                    .bind(head.message_id)
                    .fetch_optional(self.store.pool())
                    .await?;
                let Some(envelope) = envelope else { return Err(LaneError::Overtaken) };
                let msg: Envelope = serde_json::from_value(envelope)?;
                self.blocked.insert((head.kind, head.id));
                let from = Origin::Parked(head.attempt);
                if let Err(fault) = self.attempt(std::slice::from_ref(&msg), from).await? {
                    self.record(&msg, from, fault).await?;
                }
            }
            if !handled {
                return Ok(());
            }
        }
    }

    /// The first parked message of each aggregate of this lane.
    async fn heads(&self) -> Result<Vec<Head>, LaneError> {
        let sql = format!(
            "SELECT message_id, aggregate_kind, aggregate_id, attempt, \
                    extract(epoch FROM due - clock_timestamp())::float8 \
             FROM {}.parked WHERE group_name = $1 AND source = $2 AND due IS NOT NULL",
            self.store.schema()
        );
        let rows: Vec<(Uuid, String, Uuid, i32, f64)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(self.group.name())
            .bind(self.source)
            .fetch_all(self.store.pool())
            .await?;
        Ok(rows
            .into_iter()
            .map(|(message_id, kind, id, attempt, seconds)| Head { message_id, kind, id, attempt, seconds })
            .filter(|head| lane_of(&head.kind, head.id, self.lanes) == self.number)
            .collect())
    }
}

/// What becomes of a message that has failed so often: the attempts that count, and why it is given up, if it is.
fn verdict(fault: &Fault, failed: i32) -> (i32, Option<&'static str>) {
    match fault {
        Fault::Retry(_) => (failed, (failed >= ATTEMPTS).then_some("retries_exhausted")),
        Fault::Away(_) => (failed.min(WHILE_AWAY), None),
        Fault::Dead(error) if error.to_string() == "unsupported_version" => {
            (failed, Some("unsupported_version"))
        }
        Fault::Dead(_) => (failed, Some("rejected")),
    }
}

/// How long to wait after the nth failed attempt: ±20 %, the same for each repeat of one message.
fn wait_after(failed: i32, id: Uuid) -> Duration {
    let n = usize::try_from(failed - 1).unwrap_or(0).min(WAITS.len() - 1);
    let spread = f64::from(id.as_bytes()[15]) / 255.0;
    Duration::from_secs(WAITS[n]).mul_f64(0.8 + 0.4 * spread)
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without text")
}

fn panicked(panic: &(dyn Any + Send)) -> Fault {
    Fault::Retry(anyhow::anyhow!("panicked: {}", panic_text(panic)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use contracts::RequestError;

    #[test]
    fn waits_are_spread_by_a_fifth() {
        for failed in 1..10 {
            let wait = wait_after(failed, Uuid::from_u128(0xff)).as_secs_f64();
            let base = [1., 5., 15., 30., 60., 60., 120., 120., 120.][usize::try_from(failed).unwrap() - 1];
            assert!((wait - base * 1.2).abs() < 1e-6);
            assert!(wait_after(failed, Uuid::from_u128(0)).as_secs_f64() >= base * 0.8 - 1e-6);
        }
    }

    #[test]
    fn a_message_is_not_given_up_for_what_is_away() {
        let asked =
            |error: RequestError| Fault::from(anyhow::Error::from(error).context("while it was handled"));
        let away = asked(RequestError::Deadline { service: "git".into() });
        assert_eq!(verdict(&away, 1), (1, None));
        assert_eq!(verdict(&away, 1000), (WHILE_AWAY, None));
        let refused = asked(RequestError::Oversize { service: "git".into(), size: 2, limit: 1 });
        assert_eq!(verdict(&refused, ATTEMPTS - 1), (ATTEMPTS - 1, None));
        assert_eq!(verdict(&refused, ATTEMPTS), (ATTEMPTS, Some("retries_exhausted")));
        assert_eq!(verdict(&Fault::Dead(anyhow::anyhow!("no")), 1), (1, Some("rejected")));
    }

    #[test]
    fn aggregates_keep_their_lane_and_spread() {
        let mut counts = [0; 4];
        for n in 0..4000_u128 {
            counts[usize::try_from(lane_of("task", Uuid::from_u128(n), 4)).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| *count > 700), "{counts:?}");
        // Kept in databases: a change would break the order of aggregates across an upgrade.
        assert_eq!(lane_of("workflow", Uuid::from_u128(1), 4), lane_of("workflow", Uuid::from_u128(1), 4));
        assert_eq!(lane_of("workflow", Uuid::from_u128(7), 1), 0);
    }
}
