//! Workspaces: layers of a workflow's jobs, applied in the order of its graph (execution §16).

use super::{Caller, chunks, objects};
use crate::http::Refused;
use agent_api::stores::{ArchiveRef, Committed, Layer, LayerCommit, Layers};
use contracts::conductor::{Ancestor, JobAncestry};
use ids::{JobId, Timestamp};
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

#[derive(Deserialize)]
pub(super) struct Nothing {}

#[derive(sqlx::FromRow)]
struct Row {
    job_id: Uuid,
    job_name: String,
    index: i32,
    step: i32,
    archive_id: Uuid,
    chunks: i32,
    bytes: i64,
    created_at: Timestamp,
}

pub(super) async fn layers(caller: Caller, _: Nothing) -> Result<Layers, Refused> {
    let ask = JobAncestry { job_id: caller.job_id() };
    let upstream = caller.hub.bus.ask(&caller.actor(), &ask).await.map_err(objects::unavailable)?;
    let names: Vec<&str> = upstream.iter().map(|job| job.name.as_str()).collect();
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT l.job_id, l.job_name, l.index, l.step, l.archive_id, length(a.chunks) / 32 AS chunks, a.bytes, \
                l.created_at \
         FROM output_processor.layers l JOIN output_processor.archives a ON a.archive_id = l.archive_id \
         WHERE l.workspace_id = $1 AND l.job_name = ANY($2) AND l.due > clock_timestamp()",
    )
    .bind(caller.job.workspace_id)
    .bind(&names)
    .fetch_all(caller.hub.store.pool())
    .await?;
    Ok(Layers { layers: ordered(&upstream, rows) })
}

/// The names of all jobs upstream of each.
fn closure(upstream: &[Ancestor]) -> HashMap<&str, HashSet<&str>> {
    let direct: HashMap<&str, &[String]> =
        upstream.iter().map(|job| (job.name.as_str(), job.requires.as_slice())).collect();
    let all = direct.keys().map(|job| {
        let mut above = HashSet::new();
        let mut todo = vec![*job];
        while let Some(at) = todo.pop() {
            for name in direct.get(at).copied().unwrap_or_default() {
                if above.insert(name.as_str()) {
                    todo.push(name);
                }
            }
        }
        (*job, above)
    });
    all.collect()
}

/// Layers in the order of the graph: those of a job after those of all jobs upstream of it.
fn ordered(upstream: &[Ancestor], mut rows: Vec<Row>) -> Vec<Layer> {
    let above = closure(upstream);
    // Other instances of the workflow write into the same workspace, earlier ones, later ones and at the same time: of
    // a job counts what was left by the run that this instance has, its own or the one it took over.
    let ran: HashMap<&str, Uuid> =
        upstream.iter().filter_map(|job| Some((job.name.as_str(), job.job_id?.uuid()))).collect();
    rows.retain(|row| ran.get(row.job_name.as_str()).is_none_or(|job| *job == row.job_id));
    // Where an older conductor does not say which, the last that left something.
    let mut last: HashMap<String, (Timestamp, Uuid)> = HashMap::new();
    for row in &rows {
        let newest = last.entry(row.job_name.clone()).or_insert((row.created_at, row.job_id));
        if row.created_at > newest.0 {
            *newest = (row.created_at, row.job_id);
        }
    }
    rows.retain(|row| last.get(&row.job_name).is_some_and(|(_, job)| *job == row.job_id));
    // A job has more jobs upstream than each of those.
    let depth = |name: &str| above.get(name).map_or(0, HashSet::len);
    rows.sort_by(|a, b| {
        let key = |row: &Row| (depth(&row.job_name), row.job_name.clone(), row.index, row.step);
        key(a).cmp(&key(b))
    });
    let follows = |later: &Row, earlier: &Row| {
        let same = later.job_id == earlier.job_id && later.index == earlier.index;
        same || above
            .get(later.job_name.as_str())
            .is_some_and(|above| above.contains(earlier.job_name.as_str()))
    };
    let layers = rows.iter().enumerate().map(|(at, row)| Layer {
        job_id: JobId(row.job_id),
        job_name: row.job_name.clone(),
        index: u32::try_from(row.index).unwrap_or_default(),
        after: (0..at).filter(|earlier| follows(row, &rows[*earlier])).collect(),
        archive: ArchiveRef {
            id: row.archive_id,
            chunks: u32::try_from(row.chunks).unwrap_or_default(),
            bytes: u64::try_from(row.bytes).unwrap_or_default(),
        },
    });
    layers.collect()
}

pub(super) async fn commit(caller: Caller, ask: LayerCommit) -> Result<Committed, Refused> {
    let checked = match chunks::check(&caller, &ask.archive).await? {
        Ok(checked) => checked,
        Err(chunks) => return Ok(Committed::Missing { chunks }),
    };
    let index = super::follow::index_of(&caller).await?;
    let _open = caller.in_time().await?;
    let (archive, due) =
        (ids::ArchiveId::new().uuid(), objects::end_of(objects::config(&caller.hub).workspace_days));
    let mut tx = caller.hub.store.begin(&[]).await.map_err(objects::unavailable)?;
    let first = sqlx::query(
        "INSERT INTO output_processor.layers (workspace_id, job_id, index, step, job_name, archive_id, due) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
    )
    .bind(caller.job.workspace_id)
    .bind(caller.job_id().uuid())
    .bind(index)
    .bind(i32::try_from(ask.step).unwrap_or(i32::MAX))
    .bind(&caller.job.name)
    .bind(archive)
    .bind(due)
    .execute(tx.conn())
    .await?;
    // A repeat of a commit whose answer was lost.
    if first.rows_affected() == 0 {
        return Ok(Committed::Stored);
    }
    if !chunks::write(&mut tx, &caller, &checked, archive, due).await? {
        return Err(objects::unavailable("a chunk was removed while it was to be kept"));
    }
    tx.commit().await.map_err(objects::unavailable)?;
    Ok(Committed::Stored)
}
