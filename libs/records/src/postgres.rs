//! The Postgres adapter: JSONB documents in a schema of their own.

use crate::{Document, NewDocument, Records, Result};
use async_trait::async_trait;
use ids::Timestamp;
use serde_json::Value;
use sqlx::{PgPool, Postgres, Transaction};
use std::collections::HashSet;
use uuid::Uuid;

type Row = (Uuid, Uuid, i64, Timestamp, Value);

/// Records in Postgres. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PostgresRecords {
    pool: PgPool,
}

impl PostgresRecords {
    /// Opens the store and makes its tables if they are missing.
    ///
    /// # Errors
    /// The database cannot be reached or refuses.
    pub async fn open(pool: PgPool) -> Result<Self> {
        let records = Self { pool };
        records.prepare().await?;
        Ok(records)
    }
}

/// Begins a transaction in a task of its own: a BEGIN whose caller goes away before it is answered would leave the
/// connection to the pool with a transaction open, into which the next user's writes would vanish.
async fn begin(pool: &PgPool, how: &'static str) -> Result<Transaction<'static, Postgres>> {
    let pool = pool.clone();
    let begun = tokio::spawn(async move { pool.begin_with(how).await });
    Ok(begun.await.map_err(|_| sqlx::Error::WorkerCrashed)??)
}

fn document((id, group, version, updated_at, body): Row) -> Document {
    Document { id, group, version, updated_at, body }
}

#[async_trait]
impl Records for PostgresRecords {
    async fn prepare(&self) -> Result<()> {
        let mut tx = begin(&self.pool, "BEGIN").await?;
        // `CREATE … IF NOT EXISTS` of two sessions at once can still collide: one after the other.
        for statement in [
            "SELECT pg_advisory_xact_lock(hashtextextended('gantry records', 0))",
            "CREATE SCHEMA IF NOT EXISTS records",
            "CREATE TABLE IF NOT EXISTS records.documents (
                kind text NOT NULL,
                id uuid NOT NULL,
                group_id uuid NOT NULL,
                version bigint NOT NULL,
                updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
                body jsonb NOT NULL,
                PRIMARY KEY (kind, id))",
            "CREATE INDEX IF NOT EXISTS documents_by_group ON records.documents (kind, group_id)",
            "CREATE TABLE IF NOT EXISTS records.flushes (one bool PRIMARY KEY CHECK (one), count bigint NOT NULL)",
        ] {
            sqlx::query(statement).execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn put(&self, documents: &[NewDocument]) -> Result<Vec<bool>> {
        if documents.is_empty() {
            return Ok(Vec::new());
        }
        // In one statement a row can be written once: of several versions the newest goes in. Sorted, so that
        // two writers take their row locks in one order.
        let mut newest: Vec<&NewDocument> = documents.iter().collect();
        newest.sort_by_key(|document| (document.kind, document.id, std::cmp::Reverse(document.version)));
        newest.dedup_by_key(|document| (document.kind, document.id));
        let kinds: Vec<&str> = newest.iter().map(|document| document.kind).collect();
        let ids: Vec<Uuid> = newest.iter().map(|document| document.id).collect();
        let groups: Vec<Uuid> = newest.iter().map(|document| document.group).collect();
        let versions: Vec<i64> = newest.iter().map(|document| document.version).collect();
        let bodies: Vec<&Value> = newest.iter().map(|document| &document.body).collect();
        // What a crash loses is made again from the journal.
        let mut tx = begin(&self.pool, "BEGIN; SET LOCAL synchronous_commit = off").await?;
        let written: Vec<(String, Uuid, i64)> = sqlx::query_as(
            "INSERT INTO records.documents AS d (kind, id, group_id, version, body)
             SELECT * FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::bigint[], $5::jsonb[])
             ON CONFLICT (kind, id) DO UPDATE
             SET group_id = excluded.group_id, version = excluded.version, body = excluded.body,
                 updated_at = clock_timestamp()
             WHERE d.version < excluded.version
             RETURNING d.kind, d.id, d.version",
        )
        .bind(kinds)
        .bind(ids)
        .bind(groups)
        .bind(versions)
        .bind(bodies)
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        let written: HashSet<(String, Uuid, i64)> = written.into_iter().collect();
        let was = |d: &NewDocument| written.contains(&(d.kind.to_owned(), d.id, d.version));
        Ok(documents.iter().map(was).collect())
    }

    async fn get(&self, kind: &str, id: Uuid) -> Result<Option<Document>> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT id, group_id, version, updated_at, body FROM records.documents WHERE kind = $1 AND id = $2",
        )
        .bind(kind)
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(document))
    }

    async fn list_by(&self, kind: &str, group: Uuid) -> Result<Vec<Document>> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, group_id, version, updated_at, body FROM records.documents
             WHERE kind = $1 AND group_id = $2 ORDER BY id",
        )
        .bind(kind)
        .bind(group)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(document).collect())
    }

    async fn remove(&self, kind: &str, ids: &[Uuid]) -> Result<()> {
        sqlx::query("DELETE FROM records.documents WHERE kind = $1 AND id = ANY($2)")
            .bind(kind)
            .bind(ids)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        // A synchronous commit that wrote something flushes the log up to itself, and with it all earlier commits.
        sqlx::query(
            "INSERT INTO records.flushes AS f VALUES (true, 1) ON CONFLICT (one) DO UPDATE SET count = f.count + 1",
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_postgres_adapter_keeps_the_contract() {
        let database = testkit::postgres().await;
        let open = || PostgresRecords::open(database.pool.clone());
        let (first, second) = tokio::join!(open(), open());
        second.expect("opens beside another");
        crate::contract::suite(&first.expect("opens"), async || {
            sqlx::query("DROP SCHEMA records CASCADE").execute(&database.pool).await.expect("drops");
        })
        .await;
    }
}
