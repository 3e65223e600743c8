//! Reads uploads of reports, one at a time: whoever wrote them may have meant harm, and memory is everybody's.

use crate::State;
use blobs::Key;
use junit::Case;
use std::{io::Read, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A look without being told, and after a failure.
const LOOK: Duration = Duration::from_secs(10);
/// After so many failures an upload is given up.
const ATTEMPTS: i32 = 8;
/// Rows of one insert.
const ROWS: usize = 2_000;
/// Longest message that is kept.
const MAX_MESSAGE: usize = 64 << 10;

/// Reads until `stop`.
pub(crate) async fn run(state: Arc<State>, stop: CancellationToken) {
    loop {
        match next(&state).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(error = %format_args!("{error:#}"), "test reports cannot be read now");
            }
        }
        tokio::select! {
            () = state.waiting.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// What an upload holds.
struct Contents {
    cases: Vec<Case>,
    problems: Vec<String>,
}

/// Reads the next upload that waits; whether there was one.
async fn next(state: &State) -> anyhow::Result<bool> {
    let pool = state.store.pool();
    // Taken for a while: of several processes one reads it.
    let taken: Option<(Uuid, Uuid, i32, String, i32)> = sqlx::query_as(
        "UPDATE test_results.reports SET attempts = attempts + 1, due = clock_timestamp() + interval '5 minutes' \
         WHERE object_id = (SELECT object_id FROM test_results.reports \
                            WHERE state = 'waiting' AND due <= clock_timestamp() \
                            ORDER BY due LIMIT 1 FOR UPDATE SKIP LOCKED) \
         RETURNING object_id, job_id, index, blob, attempts",
    )
    .fetch_optional(pool)
    .await?;
    let Some((object, job, index, blob, attempts)) = taken else { return Ok(false) };
    let contents = match contents(state, &blob).await {
        Ok(contents) => contents,
        Err(error) if attempts < ATTEMPTS => {
            sqlx::query(
                "UPDATE test_results.reports SET due = clock_timestamp() + interval '5 seconds' \
                 WHERE object_id = $1",
            )
            .bind(object)
            .execute(pool)
            .await?;
            return Err(error.context(format!("reading {blob}")));
        }
        Err(error) => Contents { cases: Vec::new(), problems: vec![format!("{error:#}")] },
    };
    keep(state, object, job, index, contents).await?;
    Ok(true)
}

async fn contents(state: &State, blob: &str) -> anyhow::Result<Contents> {
    let packed = state.blobs.get(&Key::new(blob)?, None).await?.bytes().await?;
    let (limit, max_tests) = (state.config.max_expanded_bytes, state.config.max_tests);
    let read = tokio::task::spawn_blocking(move || unpack(&packed, limit, max_tests)).await?;
    // What is in it is nobody's fault but its author's: it is said, and not tried again.
    Ok(read.unwrap_or_else(|problem| Contents { cases: Vec::new(), problems: vec![problem] }))
}

fn unpack(packed: &[u8], limit: u64, max_tests: usize) -> Result<Contents, String> {
    let rejected = |e: std::io::Error| format!("test_report_rejected: {e}");
    let from = zstd::Decoder::new(packed).map_err(rejected)?.take(limit);
    let (mut cases, mut problems) = (Vec::new(), Vec::new());
    let read = archive::each_file(from, |name, text| {
        match junit::parse(text, max_tests.saturating_sub(cases.len())) {
            Ok(more) => cases.extend(more),
            Err(e) => problems.push(format!("{name}: {e}")),
        }
    });
    read.map_err(|e| format!("test_report_rejected: {e}"))?;
    Ok(Contents { cases, problems })
}

async fn keep(state: &State, object: Uuid, job: Uuid, index: i32, contents: Contents) -> anyhow::Result<()> {
    let Contents { cases, problems } = contents;
    let mut tx = state.store.begin(&[]).await?;
    let found = if cases.is_empty() && !problems.is_empty() { "refused" } else { "read" };
    let first = sqlx::query(
        "UPDATE test_results.reports SET state = $2, problems = $3 WHERE object_id = $1 AND state = 'waiting'",
    )
    .bind(object)
    .bind(found)
    .bind(&problems)
    .execute(tx.conn())
    .await?;
    if first.rows_affected() == 0 {
        return Ok(());
    }
    for rows in cases.chunks(ROWS) {
        let column = |of: fn(&Case) -> &str| rows.iter().map(|case| clean(of(case))).collect::<Vec<_>>();
        sqlx::query(
            "INSERT INTO test_results.tests \
                 (job_id, index, object_id, classname, file, name, result, run_time, message) \
             SELECT $1, $2, $3, t.* FROM unnest($4::text[], $5::text[], $6::text[], $7::text[], $8::float8[], $9::text[]) \
                 AS t (classname, file, name, result, run_time, message)",
        )
        .bind(job)
        .bind(index)
        .bind(object)
        .bind(column(|case| &case.classname))
        .bind(column(|case| &case.file))
        .bind(column(|case| &case.name))
        .bind(column(|case| case.result.as_str()))
        .bind(rows.iter().map(|case| case.run_time).collect::<Vec<_>>())
        .bind(column(|case| &case.message))
        .execute(tx.conn())
        .await?;
    }
    tx.commit().await?;
    metrics::counter!("gantry.test_results.tests").increment(cases.len() as u64);
    Ok(())
}

/// Text as Postgres takes it, at most so long.
fn clean(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_MESSAGE)].replace('\0', "\u{fffd}")
}
