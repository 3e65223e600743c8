//! Where the time of one job goes: its events, span by span, from the one trace that they share.

use crate::database::Database;
use anyhow::Context;
use serde_json::{Value, json};

/// Events of the newest pipeline in the order of their commits, with milliseconds since the first.
const SPANS: &str = "WITH newest AS (SELECT correlation_id AS id, trace FROM pipelines.events WHERE kind = 'pipeline.created' \
        ORDER BY xid DESC LIMIT 1), \
    said AS ( \
        SELECT 'pipelines' AS service, kind, occurred_at, trace FROM pipelines.events UNION ALL \
        SELECT 'conductor', kind, occurred_at, trace FROM conductor.events UNION ALL \
        SELECT 'dispatcher', kind, occurred_at, trace FROM dispatcher.events) \
    SELECT s.service, s.kind, round((extract(epoch FROM s.occurred_at - min(s.occurred_at) OVER ()) * 1000)::numeric, 2) \
    FROM said s, newest n WHERE split_part(s.trace, '-', 2) = split_part(n.trace, '-', 2) ORDER BY s.occurred_at";

/// The spans of the newest pipeline's job.
pub fn one_job(database: &Database) -> anyhow::Result<Value> {
    let rows = database.run(SPANS)?;
    let mut spans = Vec::new();
    let mut before = 0.0;
    for row in rows.lines() {
        let mut columns = row.split('|');
        let (service, kind) = (columns.next().context("no service")?, columns.next().context("no event")?);
        let at: f64 = columns.next().context("no time")?.parse()?;
        spans.push(json!({ "service": service, "event": kind, "at_ms": at, "after_ms": crate::numbers::round(at - before) }));
        before = at;
    }
    Ok(Value::Array(spans))
}
