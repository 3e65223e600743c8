//! The way of requests that may be executed twice ([`Ask::IDEMPOTENT`](crate::Ask::IDEMPOTENT), nearly all of them
//! queries) while the broker is away: through the database that all processes share (architecture §4, "without
//! RabbitMQ … queries answer").
//!
//! A query lies in a row until a process of its owner takes it; the answer goes into the row, and the asker takes
//! both away. Other commands never come here: whether one was executed must have one answer, the broker's or the
//! owner's record. The rows are not logged: a crash of the database ends the wait of everybody who asked anyway.

use crate::{Bus, Inner, request::Slot};
use contracts::RequestError;
use sqlx::PgPool;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use uuid::Uuid;

/// Channel on which owners are told that a query waits; the payload is the service.
pub(crate) const ASKED: &str = "gantry_asked";
/// Channel on which askers are told of their answer; the payload is the row's id.
pub(crate) const ANSWERED: &str = "gantry_answered";
/// A notification may be lost, or come before the owner listens: askers repeat it.
const AGAIN: Duration = Duration::from_secs(1);
/// Queries that one process takes at a time.
const BATCH: i64 = 64;

/// Askers of this process that wait, by row.
#[derive(Default)]
pub(crate) struct Waiting(Mutex<HashMap<Uuid, Arc<Notify>>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the asker that this payload names, if it is one of ours.
    pub(crate) fn wake(&self, payload: &str) {
        if let Some(asker) = payload.parse().ok().and_then(|id: Uuid| self.lock().get(&id).cloned()) {
            asker.notify_one();
        }
    }
}

/// Takes an asker out when it stops waiting, however that comes about.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: Uuid,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.id);
    }
}

/// Makes the table, where it is missing.
pub(crate) async fn prepare(pool: &PgPool) -> Result<(), sqlx::Error> {
    let pool = pool.clone();
    // A task of its own: a BEGIN whose caller goes away would leave an open transaction to the pool.
    let made = tokio::spawn(async move {
        let mut tx = pool.begin().await?;
        for statement in [
            // `CREATE … IF NOT EXISTS` of two sessions at once can still collide: one after the other.
            "SELECT pg_advisory_xact_lock(hashtextextended('gantry bus', 0))",
            "CREATE SCHEMA IF NOT EXISTS bus",
            "CREATE UNLOGGED TABLE IF NOT EXISTS bus.queries (
                id uuid PRIMARY KEY,
                service text NOT NULL,
                request bytea NOT NULL,
                until timestamptz NOT NULL,
                taken bool NOT NULL DEFAULT false,
                answer bytea)",
            "CREATE INDEX IF NOT EXISTS queries_waiting ON bus.queries (service, until) WHERE NOT taken",
        ] {
            sqlx::query(statement).execute(&mut *tx).await?;
        }
        tx.commit().await
    });
    made.await.map_err(|_| sqlx::Error::WorkerCrashed)?
}

/// Asks through the database.
pub(crate) async fn ask(
    bus: &Bus,
    service: &'static str,
    request: &[u8],
    until: Instant,
) -> Result<Vec<u8>, RequestError> {
    let (pool, id) = (bus.0.databases.common(), ids::MessageId::new().uuid());
    let answered = Arc::new(Notify::new());
    bus.0.waiting.lock().insert(id, Arc::clone(&answered));
    let _forget = Forget { waiting: &bus.0.waiting, id };
    let exchange = async {
        let left = until.saturating_duration_since(Instant::now()).as_secs_f64();
        sqlx::query(
            "WITH asked AS (INSERT INTO bus.queries (id, service, request, until) \
                            VALUES ($1, $2, $3, clock_timestamp() + make_interval(secs => $4))) \
             SELECT pg_notify($5, $2)",
        )
        .bind(id)
        .bind(service)
        .bind(request)
        .bind(left)
        .bind(ASKED)
        .execute(pool)
        .await?;
        loop {
            let told = tokio::time::timeout(AGAIN, answered.notified()).await.is_ok();
            let take = "DELETE FROM bus.queries WHERE id = $1 AND answer IS NOT NULL RETURNING answer";
            if let Some(answer) = sqlx::query_scalar(take).bind(id).fetch_optional(pool).await? {
                return Ok(answer);
            }
            if !told {
                sqlx::query("SELECT pg_notify($1, $2)").bind(ASKED).bind(service).execute(pool).await?;
            }
        }
    };
    match timeout_at(until, exchange).await {
        Ok(result) => result.map_err(|error: sqlx::Error| {
            tracing::warn!(service, %error, "a query found neither the message broker nor the database");
            RequestError::Unsent { service: service.to_owned() }
        }),
        Err(_) => Err(RequestError::Deadline { service: service.to_owned() }),
    }
}

/// Answers the queries to a service that come this way, for as long as the bus lives.
pub(crate) async fn serve(bus: Weak<Inner>, service: &'static str, slot: Slot) {
    loop {
        slot.asked.notified().await;
        let Some(inner) = Weak::upgrade(&bus) else { return };
        let pool = inner.databases.common().clone();
        drop(inner);
        if let Err(error) = take(&pool, service, &slot).await {
            tracing::warn!(service, %error, "queries in the database are not taken");
        }
    }
}

async fn take(pool: &PgPool, service: &'static str, slot: &Slot) -> Result<(), sqlx::Error> {
    loop {
        // Whoever asked and is gone took nothing away.
        let taken: Vec<(Uuid, Vec<u8>, f64)> = sqlx::query_as(
            "WITH old AS (DELETE FROM bus.queries WHERE until < clock_timestamp() - interval '1 minute') \
             UPDATE bus.queries SET taken = true WHERE id IN \
             (SELECT id FROM bus.queries WHERE service = $1 AND NOT taken AND until > clock_timestamp() \
              ORDER BY until LIMIT $2 FOR UPDATE SKIP LOCKED) \
             RETURNING id, request, extract(epoch FROM until - clock_timestamp())::float8",
        )
        .bind(service)
        .bind(BATCH)
        .fetch_all(pool)
        .await?;
        let all = taken.len();
        metrics::counter!("gantry.bus.detours", "service" => service).increment(all as u64);
        for (id, request, left) in taken {
            let left = Duration::try_from_secs_f64(left).unwrap_or_default();
            let (pool, slot) = (pool.clone(), slot.clone());
            tokio::spawn(async move {
                let answer = slot.answer(service, request, left).await;
                let told = sqlx::query(
                    "WITH answered AS (UPDATE bus.queries SET answer = $2 WHERE id = $1) \
                     SELECT pg_notify($3, $1::text)",
                );
                if let Err(error) = told.bind(id).bind(answer).bind(ANSWERED).execute(&pool).await {
                    tracing::warn!(service, %error, "the answer to a query was not stored");
                }
            });
        }
        if (all as i64) < BATCH {
            return Ok(());
        }
    }
}
