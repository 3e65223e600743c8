//! What operators do with messages that failed (reliability §5.5).

use crate::{Bus, group::ops_channel};
use contracts::{Actor, Envelope};
use eventstore::{Act, Error, Result, Store, Tx};
use ids::{MessageId, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};
use std::collections::BTreeSet;
use uuid::Uuid;

/// Which dead letters; what is `None` does not restrict.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this group.
    pub group: Option<String>,
    /// This message.
    pub id: Option<MessageId>,
    /// Of this event type.
    pub kind: Option<String>,
    /// With this reason.
    pub reason: Option<String>,
    /// Dead since then.
    pub since: Option<Timestamp>,
}

/// A message that was given up. Later ones of its aggregate wait until it is replayed or discarded.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetter {
    /// Whose.
    pub group: String,
    /// Service that emitted it.
    pub source: String,
    /// The whole message.
    pub message: Envelope,
    /// `rejected`, `retries_exhausted` or `unsupported_version`.
    pub reason: String,
    /// The last error and its causes.
    pub error: String,
    /// How often it was tried.
    pub attempts: i32,
    /// When it failed first.
    pub first_at: Timestamp,
    /// When it was given up.
    pub died_at: Timestamp,
}

/// A message that waits for its next attempt, or behind one that does.
#[derive(Clone, Debug, Serialize)]
pub struct ParkedMessage {
    /// Whose.
    pub group: String,
    /// Service that emitted it.
    pub source: String,
    /// The whole message.
    pub message: Envelope,
    /// How often it failed; 0: it waits behind another.
    pub attempt: i32,
    /// When it is tried again; `None`: after the one before it.
    pub due: Option<Timestamp>,
    /// The last error.
    pub error: String,
}

const MATCHES: &str = "($1::text IS NULL OR group_name = $1) AND ($2::uuid IS NULL OR message_id = $2) \
     AND ($3::text IS NULL OR kind = $3) AND ($4::text IS NULL OR reason = $4) AND ($5::timestamptz IS NULL OR died_at >= $5)";

macro_rules! bind {
    ($query:expr, $filter:expr) => {
        $query
            .bind(&$filter.group)
            .bind($filter.id.map(|id| id.uuid()))
            .bind(&$filter.kind)
            .bind(&$filter.reason)
            .bind($filter.since)
    };
}

struct Found {
    group: String,
    source: String,
    id: Uuid,
    aggregate: (String, Uuid),
}

impl Bus {
    /// Dead letters of a service's groups, oldest first.
    ///
    /// # Errors
    /// The database is away.
    pub async fn dead_letters(&self, store: &Store, filter: &Filter) -> Result<Vec<DeadLetter>> {
        let sql = format!(
            "SELECT group_name, source, envelope, reason, error, attempts, first_at, died_at \
             FROM {}.dead_letters WHERE {MATCHES} ORDER BY died_at, message_id",
            store.schema()
        );
        let rows = bind!(sqlx::query(AssertSqlSafe(sql)), filter).fetch_all(store.pool()).await?;
        rows.iter()
            .map(|row| {
                Ok(DeadLetter {
                    group: row.try_get("group_name")?,
                    source: row.try_get("source")?,
                    message: serde_json::from_value(row.try_get("envelope")?)?,
                    reason: row.try_get("reason")?,
                    error: row.try_get("error")?,
                    attempts: row.try_get("attempts")?,
                    first_at: row.try_get("first_at")?,
                    died_at: row.try_get("died_at")?,
                })
            })
            .collect()
    }

    /// Parked messages of a service's groups, by aggregate and version.
    ///
    /// # Errors
    /// The database is away.
    pub async fn parked(&self, store: &Store) -> Result<Vec<ParkedMessage>> {
        let sql = format!(
            "SELECT group_name, source, envelope, attempt, due, error FROM {}.parked \
             ORDER BY group_name, source, aggregate_kind, aggregate_id, version",
            store.schema()
        );
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(store.pool()).await?;
        rows.iter()
            .map(|row| {
                Ok(ParkedMessage {
                    group: row.try_get("group_name")?,
                    source: row.try_get("source")?,
                    message: serde_json::from_value(row.try_get("envelope")?)?,
                    attempt: row.try_get("attempt")?,
                    due: row.try_get("due")?,
                    error: row.try_get("error")?,
                })
            })
            .collect()
    }

    /// Hands dead letters out again, under their ids; those that wait behind them follow. Says how many.
    ///
    /// # Errors
    /// The database is away.
    pub async fn replay(&self, store: &Store, filter: &Filter, by: &Actor) -> Result<u64> {
        let schema = store.schema();
        let mut tx = store.begin(&[]).await?;
        let found = self.claim(&mut tx, store, filter).await?;
        let sql = format!(
            "WITH d AS (DELETE FROM {schema}.dead_letters WHERE group_name = $1 AND source = $2 AND message_id = $3 RETURNING *) \
             INSERT INTO {schema}.parked (group_name, source, message_id, aggregate_kind, aggregate_id, version, envelope, \
                 attempt, due, error, first_at, replayed_by) \
             SELECT group_name, source, message_id, aggregate_kind, aggregate_id, version, envelope, \
                 0, clock_timestamp(), error, first_at, $4::text::json FROM d"
        );
        for letter in &found {
            sqlx::query(AssertSqlSafe(sql.as_str()))
                .bind(&letter.group)
                .bind(&letter.source)
                .bind(letter.id)
                .bind(serde_json::to_string(by)?)
                .execute(tx.conn())
                .await?;
            tx.act(act("dead_letter.replayed", by, letter, Value::Null)).await?;
        }
        tx.commit().await?;
        self.operated(&found);
        Ok(found.len() as u64)
    }

    /// Gives dead letters up for good; those that wait behind them go on. Says how many.
    ///
    /// # Errors
    /// The database is away.
    pub async fn discard(&self, store: &Store, filter: &Filter, by: &Actor, why: &str) -> Result<u64> {
        let schema = store.schema();
        let mut tx = store.begin(&[]).await?;
        let found = self.claim(&mut tx, store, filter).await?;
        let delete = format!(
            "DELETE FROM {schema}.dead_letters WHERE group_name = $1 AND source = $2 AND message_id = $3 RETURNING envelope"
        );
        let next = format!(
            "UPDATE {schema}.parked SET due = clock_timestamp() WHERE group_name = $1 AND source = $2 AND message_id = \
             (SELECT message_id FROM {schema}.parked WHERE group_name = $1 AND source = $2 \
              AND aggregate_kind = $3 AND aggregate_id = $4 ORDER BY version LIMIT 1)"
        );
        for letter in &found {
            let mut envelope: Value = sqlx::query_scalar(AssertSqlSafe(delete.as_str()))
                .bind(&letter.group)
                .bind(&letter.source)
                .bind(letter.id)
                .fetch_one(tx.conn())
                .await?;
            // What is kept for ever must not hold what a person may want erased.
            if let Some(fields) = envelope.as_object_mut() {
                fields.remove("personal");
            }
            sqlx::query(AssertSqlSafe(next.as_str()))
                .bind(&letter.group)
                .bind(&letter.source)
                .bind(&letter.aggregate.0)
                .bind(letter.aggregate.1)
                .execute(tx.conn())
                .await?;
            tx.act(act("dead_letter.discarded", by, letter, json!({ "why": why, "message": envelope })))
                .await?;
        }
        tx.commit().await?;
        self.operated(&found);
        Ok(found.len() as u64)
    }

    /// The dead letters that match. Takes the cursor rows of their groups first, as the lanes do, and raises
    /// their revision: a running lane notices and loads again.
    async fn claim(&self, tx: &mut Tx, store: &Store, filter: &Filter) -> Result<Vec<Found>> {
        let schema = store.schema();
        let sql = format!(
            "UPDATE {schema}.cursors SET revision = revision + 1, ops = ops + 1 WHERE (group_name, source) IN \
             (SELECT group_name, source FROM {schema}.dead_letters WHERE {MATCHES})"
        );
        bind!(sqlx::query(AssertSqlSafe(sql)), filter).execute(tx.conn()).await?;
        let sql = format!(
            "SELECT group_name, source, message_id, aggregate_kind, aggregate_id FROM {schema}.dead_letters \
             WHERE {MATCHES} ORDER BY died_at, message_id FOR UPDATE"
        );
        let rows: Vec<(String, String, Uuid, String, Uuid)> =
            bind!(sqlx::query_as(AssertSqlSafe(sql)), filter)
                .fetch_all(tx.conn())
                .await
                .map_err(Error::from)?;
        Ok(rows
            .into_iter()
            .map(|(group, source, id, kind, aggregate)| Found {
                group,
                source,
                id,
                aggregate: (kind, aggregate),
            })
            .collect())
    }

    fn operated(&self, found: &[Found]) {
        let lanes: BTreeSet<_> = found.iter().map(|letter| (&letter.group, &letter.source)).collect();
        for (group, source) in lanes {
            self.wake(&ops_channel(group, source));
        }
    }
}

fn act(kind: &'static str, by: &Actor, letter: &Found, more: Value) -> Act {
    let mut detail = json!({ "group": letter.group, "source": letter.source, "message_id": letter.id });
    if let (Some(detail), Value::Object(more)) = (detail.as_object_mut(), more) {
        detail.extend(more);
    }
    Act { causation_id: Some(MessageId(letter.id)), ..Act::new(kind, by.clone(), detail) }
}
