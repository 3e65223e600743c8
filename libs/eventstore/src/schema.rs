//! Which version a schema has, and whether this process may change it (reliability §12).

use crate::{Error, Result};
use sqlx::{AssertSqlSafe, PgConnection, migrate::Migrator};
use std::sync::atomic::{AtomicBool, Ordering};

static FIXED: AtomicBool = AtomicBool::new(false);

/// From now on [`crate::Store::open`] changes no schema of this process's databases: one that is older than the
/// code needs is an error, and a newer one is used as it is. For processes that run beside others.
pub fn never_migrate() {
    FIXED.store(true, Ordering::Release);
}

pub(crate) fn is_fixed() -> bool {
    FIXED.load(Ordering::Acquire)
}

/// Checks that everything that `migrations` brings was applied to the schema of the connection's search path.
pub(crate) async fn check(
    conn: &mut PgConnection,
    service: &str,
    schema: &str,
    table: &str,
    migrations: &Migrator,
) -> Result<()> {
    let wanted = migrations.iter().map(|step| step.version).max().unwrap_or(0);
    if wanted == 0 {
        return Ok(());
    }
    let known: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(format!("{schema}.{table}"))
        .fetch_one(&mut *conn)
        .await?;
    let found: i64 = if known {
        let sql = format!("SELECT coalesce(max(version), 0) FROM {schema}.{table} WHERE success");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(conn).await?
    } else {
        0
    };
    if found < wanted {
        return Err(Error::OldSchema { service: service.to_owned(), found, wanted });
    }
    Ok(())
}
