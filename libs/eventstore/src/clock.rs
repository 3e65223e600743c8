//! The database's time. Leases, expiry and order are decided by it alone (reliability §14): processes whose machines disagree
//! about the time agree about that.

use chrono::{DateTime, Utc};
use sqlx::{Executor, PgConnection, Postgres};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two questions: this machine's steady clock goes on from the last answer.
pub(crate) const PERIOD: Duration = Duration::from_secs(60);

/// What the database said, and when.
pub(crate) struct Clock(Mutex<(DateTime<Utc>, Instant)>);

impl Clock {
    /// This machine's time, until the database is asked.
    pub(crate) fn unset() -> Self {
        Self(Mutex::new((Utc::now(), Instant::now())))
    }

    /// Asks the database.
    pub(crate) async fn of(conn: &mut PgConnection) -> sqlx::Result<Self> {
        let clock = Self::unset();
        clock.ask(conn).await?;
        Ok(clock)
    }

    pub(crate) async fn ask<'c>(&self, database: impl Executor<'c, Database = Postgres>) -> sqlx::Result<()> {
        let begun = Instant::now();
        let said = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(database).await?;
        // It was said at some moment between question and answer.
        *self.lock() = (said, begun + begun.elapsed() / 2);
        Ok(())
    }

    pub(crate) fn now(&self) -> DateTime<Utc> {
        let (said, at) = *self.lock();
        said + at.elapsed()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (DateTime<Utc>, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
