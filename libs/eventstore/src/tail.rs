//! Reading a log in position order without losing rows.
//!
//! A position is the pair (xid, seq): the id of the transaction that appended the row, and a sequence. A row may
//! be read once every transaction with a smaller or equal id has ended (`xid < pg_snapshot_xmin(…)`): from then
//! on no row can appear before it. A cursor on `seq` alone would lose the rows of transactions that took their
//! number early and committed late.

use crate::{Result, store::schema_of};
use contracts::{Aggregate, Envelope};
use ids::{MessageId, OrgId, PipelineId, ProjectId, Timestamp};
use sqlx::{AssertSqlSafe, PgPool, Row, postgres::PgRow};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// A place in a service's log; [`Position::default`] is before its first event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Transaction that appended the row.
    pub xid: u64,
    /// Number of the row.
    pub seq: i64,
}

/// As messages carry it: `XID.SEQ`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.xid, self.seq)
    }
}

/// A text is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a position is XID.SEQ, two numbers")]
pub struct ParsePositionError;

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (xid, seq) = text.split_once('.').ok_or(ParsePositionError)?;
        let xid = xid.parse().map_err(|_| ParsePositionError)?;
        Ok(Self { xid, seq: seq.parse().map_err(|_| ParsePositionError)? })
    }
}

/// What [`read_after`] found.
#[derive(Debug, Default)]
pub struct Page {
    /// Events in position order.
    pub events: Vec<(Position, Envelope)>,
    /// More settled events follow.
    pub more: bool,
    /// Committed events follow that may be read as soon as older transactions end.
    pub unsettled: bool,
}

/// What [`read_wanted`] found.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Events in position order.
    pub events: Vec<(Position, Envelope)>,
    /// None of the wanted ones follows up to here but those.
    pub end: Position,
    /// More settled ones follow.
    pub more: bool,
    /// Committed ones follow that may be read as soon as older transactions end.
    pub unsettled: bool,
}

pub(crate) const COLUMNS: &str = "e.xid::text AS xid, e.seq, e.id, e.kind, e.schema, e.occurred_at, e.producer, e.trace, \
     e.aggregate_kind, e.aggregate_id, e.version, e.org_id, e.project_id, e.causation_id, e.correlation_id, \
     e.actor, e.body, e.personal";

/// The envelope in a row of an `events` table.
///
/// # Errors
/// A column is missing or unreadable.
pub fn envelope_from_row(row: &PgRow) -> Result<(Position, Envelope)> {
    let xid: String = row.try_get("xid")?;
    let position = Position {
        xid: xid.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        seq: row.try_get("seq")?,
    };
    let envelope = Envelope {
        id: MessageId(row.try_get("id")?),
        kind: row.try_get("kind")?,
        schema: row.try_get::<i32, _>("schema")?.unsigned_abs(),
        occurred_at: row.try_get::<Timestamp, _>("occurred_at")?,
        producer: row.try_get("producer")?,
        trace: row.try_get("trace")?,
        aggregate: Aggregate {
            kind: row.try_get("aggregate_kind")?,
            id: row.try_get("aggregate_id")?,
            version: row.try_get("version")?,
        },
        org_id: row.try_get::<Option<Uuid>, _>("org_id")?.map(OrgId),
        project_id: row.try_get::<Option<Uuid>, _>("project_id")?.map(ProjectId),
        causation_id: row.try_get::<Option<Uuid>, _>("causation_id")?.map(MessageId),
        correlation_id: row.try_get::<Option<Uuid>, _>("correlation_id")?.map(PipelineId),
        actor: serde_json::from_value(row.try_get("actor")?)?,
        body: row.try_get("body")?,
        personal: row.try_get("personal")?,
    };
    Ok((position, envelope))
}

/// Up to `limit` events of `service` after a position, in position order.
///
/// # Errors
/// The database is away, or the service's schema does not exist.
pub async fn read_after(pool: &PgPool, service: &str, after: Position, limit: u32) -> Result<Page> {
    let schema = schema_of(service);
    let sql = format!(
        "SELECT {COLUMNS}, e.xid < pg_snapshot_xmin(pg_current_snapshot()) AS settled \
         FROM {schema}.events e WHERE (e.xid, e.seq) > ($1::text::xid8, $2) ORDER BY e.xid, e.seq LIMIT $3"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(after.xid.to_string())
        .bind(after.seq)
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?;
    let mut page = Page { more: rows.len() as u64 >= u64::from(limit), ..Page::default() };
    for row in &rows {
        if !row.try_get::<bool, _>("settled")? {
            page.unsettled = true;
            page.more = false;
            break;
        }
        page.events.push(envelope_from_row(row)?);
    }
    Ok(page)
}

/// Up to `limit` events of `service` after a position that have one of these types, in position order. The others are not
/// read, but it is known how far there are none.
///
/// # Errors
/// The database is away, or the service's schema does not exist.
pub async fn read_wanted(
    pool: &PgPool,
    service: &str,
    kinds: &[&str],
    after: Position,
    limit: u32,
) -> Result<Wanted> {
    let schema = schema_of(service);
    // The end first: what is settled then is settled for the second look too.
    let sql = format!(
        "SELECT (SELECT e.xid::text || '.' || e.seq FROM {schema}.events e \
                 WHERE (e.xid, e.seq) > ($1::text::xid8, $2) AND e.xid < pg_snapshot_xmin(pg_current_snapshot()) \
                 ORDER BY e.xid DESC, e.seq DESC LIMIT 1), \
                EXISTS (SELECT 1 FROM {schema}.events e \
                        WHERE (e.xid, e.seq) > ($1::text::xid8, $2) AND e.xid >= pg_snapshot_xmin(pg_current_snapshot()) \
                          AND e.kind = ANY($3))"
    );
    let (settled, unsettled): (Option<String>, bool) = sqlx::query_as(AssertSqlSafe(sql))
        .bind(after.xid.to_string())
        .bind(after.seq)
        .bind(kinds)
        .fetch_one(pool)
        .await?;
    let Some(settled) = settled else { return Ok(Wanted { end: after, unsettled, ..Wanted::default() }) };
    let settled: Position = settled.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    let sql = format!(
        "SELECT {COLUMNS} FROM {schema}.events e \
         WHERE (e.xid, e.seq) > ($1::text::xid8, $2) AND (e.xid, e.seq) <= ($3::text::xid8, $4) AND e.kind = ANY($5) \
         ORDER BY e.xid, e.seq LIMIT $6"
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(after.xid.to_string())
        .bind(after.seq)
        .bind(settled.xid.to_string())
        .bind(settled.seq)
        .bind(kinds)
        .bind(i64::from(limit))
        .fetch_all(pool)
        .await?;
    let events = rows.iter().map(envelope_from_row).collect::<Result<Vec<_>>>()?;
    let more = events.len() as u64 >= u64::from(limit);
    let end = events.last().filter(|_| more).map_or(settled, |(at, _)| *at);
    Ok(Wanted { events, end, more, unsettled })
}
