//! Where the time of a job goes: its events, span by span, from the one trace that they share.

use crate::database::Database;
use anyhow::Context;
use serde_json::{Value, json};

/// Events of the newest pipelines in the order of their commits: milliseconds since the first of their trace, medians.
const SPANS: &str = "WITH newest AS (SELECT split_part(trace, '-', 2) AS trace FROM pipelines.events \
        WHERE kind = 'pipeline.created' ORDER BY xid DESC LIMIT 40), \
    said AS ( \
        SELECT 'pipelines' AS service, kind, occurred_at, split_part(trace, '-', 2) AS trace FROM pipelines.events UNION ALL \
        SELECT 'conductor', kind, occurred_at, split_part(trace, '-', 2) FROM conductor.events UNION ALL \
        SELECT 'dispatcher', kind, occurred_at, split_part(trace, '-', 2) FROM dispatcher.events), \
    since AS ( \
        SELECT service, kind, extract(epoch FROM occurred_at - min(occurred_at) OVER (PARTITION BY trace)) * 1000 AS at \
        FROM said JOIN newest USING (trace)) \
    SELECT service, kind, round((percentile_cont(0.5) WITHIN GROUP (ORDER BY at))::numeric, 2) AS median FROM since \
    GROUP BY service, kind ORDER BY median";

/// The spans of the newest forty pipelines' jobs, their medians.
pub fn spans(database: &Database) -> anyhow::Result<Value> {
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
