//! A service's schema and the way to it.

use crate::{
    Error, Page, Position, Result, Tx,
    clock::{self, Clock},
    is_away, schema,
    tail::{COLUMNS, envelope_from_row, read_after},
};
use backon::{ConstantBuilder, Retryable};
use chrono::{DateTime, Utc};
use contracts::Envelope;
use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgPool, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use tokio::sync::watch;
use uuid::Uuid;

/// For services without tables of their own.
pub static NO_MIGRATIONS: Migrator = Migrator::DEFAULT;

/// An aggregate, as its lock names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Kind of the aggregate.
    pub kind: &'static str,
    /// Its id.
    pub id: Uuid,
}

impl Key {
    /// The key of an aggregate.
    pub fn new(kind: &'static str, id: impl Into<Uuid>) -> Self {
        Self { kind, id: id.into() }
    }
}

/// A 64-bit advisory lock key that is the same in every process.
pub(crate) fn lock_number(parts: &[&[u8]]) -> i64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let mut first = [0u8; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_le_bytes(first)
}

/// Name of a service's schema.
pub fn schema_of(service: &str) -> String {
    service.replace('-', "_")
}

/// How long a server that is away at the start is waited for.
const APPEARS: Duration = Duration::from_secs(30);
/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(250);

/// Opens a pool the way the suite needs it: one for all services of a process that are in this database.
///
/// # Errors
/// The URL is not one of Postgres, or the server does not answer.
pub async fn open_pool(url: &str, max_connections: u32) -> Result<PgPool> {
    open_pool_with(PgConnectOptions::from_str(url)?, max_connections).await
}

/// The same, for a server whose address is known already. One that is away, that starts or whose balancer has nobody
/// behind it yet, is waited for: everything may be started in any order (reliability F39).
///
/// # Errors
/// The server has not answered within half a minute, or refuses us.
pub async fn open_pool_with(options: PgConnectOptions, max_connections: u32) -> Result<PgPool> {
    let pauses = ConstantBuilder::default().with_delay(LOOK).without_max_times();
    let begun = Instant::now();
    let waits = |error: &sqlx::Error| begun.elapsed() < APPEARS && is_not_there_yet(error);
    Ok((|| connect(&options, max_connections)).retry(pauses).when(waits).await?)
}

/// The same, however long it takes: no service ends because its database is away (reliability R-38).
///
/// # Errors
/// The server refuses us.
pub async fn wait_for_pool(options: PgConnectOptions, max_connections: u32) -> Result<PgPool> {
    let pauses = ConstantBuilder::default().with_delay(LOOK).without_max_times();
    let mut said = None::<Instant>;
    let say = |error: &sqlx::Error, _| {
        if said.is_none_or(|at| at.elapsed() >= APPEARS) {
            said = Some(Instant::now());
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "the database is not there yet; it is waited for"
            );
        }
    };
    Ok((|| connect(&options, max_connections)).retry(pauses).when(is_not_there_yet).notify(say).await?)
}

/// A connection that is closed at once looks like an answer that makes no sense.
fn is_not_there_yet(error: &sqlx::Error) -> bool {
    is_away(error) || matches!(error, sqlx::Error::Protocol(_))
}

/// A pool that connects when it is first used: of a server without which this process still has its use.
pub fn lazy_pool(options: &PgConnectOptions, max_connections: u32) -> PgPool {
    let (pool, options) = settings(options, max_connections);
    pool.connect_lazy_with(options)
}

async fn connect(options: &PgConnectOptions, max_connections: u32) -> sqlx::Result<PgPool> {
    let (pool, options) = settings(options, max_connections);
    pool.connect_with(options).await
}

fn settings(options: &PgConnectOptions, max_connections: u32) -> (PgPoolOptions, PgConnectOptions) {
    // Each service has statements of its own text, all on the same connections. An open transaction holds back every
    // reader of the log: it may neither idle nor wait for a lock for long.
    let options = options
        .clone()
        .statement_cache_capacity(1024)
        .options([("jit", "off"), ("idle_in_transaction_session_timeout", "5000"), ("lock_timeout", "10000")])
        .log_slow_statements(tracing::log::LevelFilter::Warn, Duration::from_secs(1));
    let pool = PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(APPEARS)
        .test_before_acquire(false);
    (pool, options)
}

struct Inner {
    pool: PgPool,
    service: &'static str,
    schema: String,
    wake: watch::Sender<u64>,
    clock: Clock,
}

/// Asks for the time now and then, as long as somebody has the store.
async fn keep_time(store: Weak<Inner>) {
    loop {
        tokio::time::sleep(clock::PERIOD).await;
        let Some(inner) = store.upgrade() else { return };
        if let Err(error) = inner.clock.ask(&inner.pool).await {
            tracing::debug!(service = inner.service, %error, "the database did not say what time it is");
        }
    }
}

/// A service's schema; cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.0.service)
    }
}

impl Store {
    /// Makes or upgrades the schema of a service, and opens it. A `-` of the name is a `_` in the schema's.
    ///
    /// # Errors
    /// The database is away or a migration fails.
    pub async fn open(pool: PgPool, service: &'static str, migrations: &'static Migrator) -> Result<Self> {
        let schema = schema_of(service);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if service.is_empty() || service.len() > 48 || !schema.chars().all(plain) {
            return Err(Error::BadService(service.to_owned()));
        }
        // A connection of its own: search_path must not leak into the pool.
        let mut conn = pool.acquire().await?.detach();
        // Another process may be migrating, for as long as it takes.
        conn.execute("SET lock_timeout = 0").await?;
        let lock = lock_number(&[b"migrate", service.as_bytes()]);
        if !schema::is_fixed() {
            conn.execute(AssertSqlSafe(format!(
                "SELECT pg_advisory_lock({lock}); SET client_min_messages = warning; \
                 CREATE SCHEMA IF NOT EXISTS {schema}; SET search_path = {schema}"
            )))
            .await?;
        }
        let step = |version, name: &'static str, sql: &'static str| {
            Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
        };
        let mut common = Migrator::with_migrations(vec![
            step(1, "tables that every service has", include_str!("common.sql")),
            step(2, "processes of a service", include_str!("instances.sql")),
            step(3, "archives of histories", include_str!("archives.sql")),
        ]);
        common.dangerous_set_table_name("_common_migrations");
        if schema::is_fixed() {
            schema::check(&mut conn, service, &schema, "_common_migrations", &common).await?;
            schema::check(&mut conn, service, &schema, "_sqlx_migrations", migrations).await?;
        } else {
            common.run(&mut conn).await?;
            migrations.run(&mut conn).await?;
        }
        let clock = Clock::of(&mut conn).await?;
        conn.close().await?;
        let inner = Arc::new(Inner { pool, service, schema, wake: watch::Sender::new(0), clock });
        tokio::spawn(keep_time(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// A service's schema as it is, for an operator's look at it. Whoever appends through it wakes nobody.
    pub fn attach(pool: PgPool, service: &'static str) -> Self {
        let schema = schema_of(service);
        Self(Arc::new(Inner { pool, service, schema, wake: watch::Sender::new(0), clock: Clock::unset() }))
    }

    /// The pool; it serves all services of the process that are in this database.
    pub fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    /// The database's time, without a question: what several processes decide by must not be one machine's (reliability §14).
    pub fn now(&self) -> DateTime<Utc> {
        self.0.clock.now()
    }

    /// Name of the service.
    pub fn service(&self) -> &'static str {
        self.0.service
    }

    /// Name of its schema: that of the service, with `_` for `-`.
    pub fn schema(&self) -> &str {
        &self.0.schema
    }

    /// Begins a transaction and takes the locks of the aggregates that it will append to. Give all of them: only
    /// so is the order of positions the order of versions. New aggregates need no lock.
    ///
    /// # Errors
    /// The database is away, or a lock was not free within 10 s.
    pub async fn begin(&self, locks: &[Key]) -> Result<Tx> {
        Tx::begin(self, locks, false).await
    }

    /// The same for what can be made again from events: its commit returns before it is on disk.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub async fn begin_relaxed(&self, locks: &[Key]) -> Result<Tx> {
        Tx::begin(self, locks, true).await
    }

    /// Events of one aggregate after a version, oldest first.
    ///
    /// # Errors
    /// The database is away.
    pub async fn history(&self, aggregate_kind: &str, id: Uuid, after_version: i64) -> Result<Vec<Envelope>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM {}.events e WHERE e.aggregate_kind = $1 AND e.aggregate_id = $2 AND e.version > $3 \
             ORDER BY e.version",
            self.schema()
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(aggregate_kind)
            .bind(id)
            .bind(after_version)
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(|row| envelope_from_row(row).map(|(_, envelope)| envelope)).collect()
    }

    /// All events of these aggregates, each aggregate's oldest first, one after the other to `each`: they may be more
    /// than fit in memory.
    ///
    /// # Errors
    /// The database is away, or `each` fails.
    pub async fn histories<E: From<Error>>(
        &self,
        aggregates: &[Key],
        mut each: impl FnMut(Envelope) -> Result<(), E> + Send,
    ) -> Result<(), E> {
        let sql = format!(
            "SELECT {COLUMNS} FROM unnest($1::text[], $2::uuid[]) AS a(kind, id) \
             JOIN {}.events e ON e.aggregate_kind = a.kind AND e.aggregate_id = a.id \
             ORDER BY e.aggregate_kind, e.aggregate_id, e.version",
            self.schema()
        );
        let (kinds, ids): (Vec<&str>, Vec<Uuid>) = aggregates.iter().map(|key| (key.kind, key.id)).unzip();
        let mut rows = sqlx::query(AssertSqlSafe(sql)).bind(&kinds).bind(&ids).fetch(self.pool());
        while let Some(row) = rows.try_next().await.map_err(Error::from)? {
            each(envelope_from_row(&row)?.1)?;
        }
        Ok(())
    }

    /// Events of all aggregates in position order; what verification and rebuilding read.
    ///
    /// # Errors
    /// The database is away.
    pub async fn read_after(&self, after: Position, limit: u32) -> Result<Page> {
        read_after(self.pool(), self.service(), after, limit).await
    }

    /// Ticks after each commit of this process that appended events.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.0.wake.subscribe()
    }

    /// Whether this is a clone of the other.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn woke(&self) {
        self.0.wake.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Removes recorded answers older than a day.
    ///
    /// # Errors
    /// The database is away.
    pub async fn sweep(&self) -> Result<u64> {
        let sql = format!(
            "DELETE FROM {}.idempotency WHERE recorded < clock_timestamp() - interval '24 hours'",
            self.schema()
        );
        Ok(sqlx::query(AssertSqlSafe(sql)).execute(self.pool()).await?.rows_affected())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_numbers_depend_on_where_parts_end() {
        assert_ne!(lock_number(&[b"ab", b"c"]), lock_number(&[b"a", b"bc"]));
        assert_eq!(lock_number(&[b"a", b"bc"]), lock_number(&[b"a", b"bc"]));
    }
}
