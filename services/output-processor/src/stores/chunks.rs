//! Chunks of caches and workspace layers: stored once per scope.

use super::{
    Caller, bounded,
    objects::{self, Object, Wanted},
    refuse,
};
use crate::http::Refused;
use agent_api::stores::{
    ArchiveMade, ChunkDownloads, ChunkUploads, ChunksMissing, ChunksWanted, Download, Downloads, Uploads,
};
use axum::http::StatusCode;
use chrono::{TimeDelta, Utc};
use eventstore::Tx;
use ids::Timestamp;
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// A chunk that an agent was told of stays at least so long.
const HOLD: TimeDelta = TimeDelta::hours(24);
/// Largest chunk before compression, as `libs/archive` cuts them.
const MAX_CONTENT: u32 = 8 << 20;

pub(super) async fn missing(caller: Caller, ask: ChunksWanted) -> Result<ChunksMissing, Refused> {
    bounded(ask.chunks.len())?;
    let wanted = objects::digests(&ask.chunks)?;
    // What is there stays until the commit that will name it.
    let present: Vec<Vec<u8>> = sqlx::query_scalar(
        "UPDATE output_processor.objects o SET due = GREATEST(o.due, $3) FROM output_processor.chunks c \
         WHERE c.scope = $1 AND c.content_sha256 = ANY($2) AND o.object_id = c.object_id AND o.state = 'live' \
         RETURNING c.content_sha256",
    )
    .bind(caller.scope())
    .bind(wanted.iter().map(|sum| sum.to_vec()).collect::<Vec<_>>())
    .bind(Utc::now() + HOLD)
    .fetch_all(caller.hub.store.pool())
    .await?;
    let present: HashSet<Vec<u8>> = present.into_iter().collect();
    let missing = wanted.iter().enumerate().filter(|(_, sum)| !present.contains(&sum[..]));
    Ok(ChunksMissing { missing: missing.map(|(place, _)| place).collect() })
}

pub(super) async fn uploads(caller: Caller, ask: ChunkUploads) -> Result<Uploads, Refused> {
    bounded(ask.chunks.len())?;
    let wanted = ask.chunks.iter().map(|chunk| {
        // What does not compress is a little larger than it was.
        if chunk.content_size > MAX_CONTENT || chunk.size > u64::from(MAX_CONTENT) + 64 * 1024 {
            return Err(refuse("chunk_too_large", format!("a chunk has at most {MAX_CONTENT} bytes")));
        }
        Ok(Wanted {
            kind: "chunk",
            size: chunk.size,
            sha256: super::digest(&chunk.sha256)?,
            content: Some((super::digest(&chunk.content)?, chunk.content_size)),
            path: None,
            parts: None,
        })
    });
    let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
    Ok(Uploads { uploads: objects::promise(&caller, wanted).await? })
}

pub(super) async fn downloads(caller: Caller, ask: ChunkDownloads) -> Result<Downloads, Refused> {
    bounded(ask.count as usize)?;
    let digests: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT substring(chunks FROM $3 FOR $4) FROM output_processor.archives \
         WHERE archive_id = $1 AND scope = $2 AND due > clock_timestamp()",
    )
    .bind(ask.archive)
    .bind(caller.scope())
    .bind(i32::try_from(u64::from(ask.from) * 32 + 1).unwrap_or(i32::MAX))
    .bind(i32::try_from(ask.count * 32).unwrap_or(i32::MAX))
    .fetch_optional(caller.hub.store.pool())
    .await?;
    let digests = digests.ok_or_else(|| {
        Refused::new(StatusCode::NOT_FOUND, "archive_unknown", "the archive is not there any more")
    })?;
    let rows: Vec<(Vec<u8>, Uuid, i32, i64)> = sqlx::query_as(
        "SELECT c.content_sha256, o.object_id, o.content_size, o.size \
         FROM output_processor.chunks c JOIN output_processor.objects o ON o.object_id = c.object_id \
         WHERE c.scope = $1 AND c.content_sha256 = ANY($2) AND o.state = 'live'",
    )
    .bind(caller.scope())
    .bind(digests.chunks(32).map(<[u8]>::to_vec).collect::<Vec<_>>())
    .fetch_all(caller.hub.store.pool())
    .await?;
    let rows: HashMap<Vec<u8>, (Uuid, i32, i64)> =
        rows.into_iter().map(|(sum, object, content, size)| (sum, (object, content, size))).collect();
    let chunks = digests.chunks(32).map(|sum| {
        let Some((object, content_size, size)) = rows.get(sum) else {
            tracing::error!(archive = %ask.archive, "an archive names a chunk that is not stored");
            let message = "a chunk of the archive is not stored any more";
            return Err(Refused::new(StatusCode::NOT_FOUND, "archive_damaged", message));
        };
        Ok(Download {
            content: hex::encode(sum),
            content_size: u32::try_from(*content_size).unwrap_or_default(),
            size: u64::try_from(*size).unwrap_or_default(),
            url: objects::readable(&caller.hub, *object)?,
        })
    });
    Ok(Downloads { chunks: chunks.collect::<Result<_, _>>()? })
}

/// What an archive is made of, looked at before anything is written.
pub(super) struct Checked {
    digests: Vec<[u8; 32]>,
    bytes: i64,
    /// Objects of this task that become chunks.
    fresh: Vec<Uuid>,
}

/// Looks whether every chunk is there or was uploaded by this task; else the digests of those that are missing.
pub(super) async fn check(
    caller: &Caller,
    made: &ArchiveMade,
) -> Result<Result<Checked, Vec<String>>, Refused> {
    let limit = objects::config(&caller.hub).max_archive_bytes;
    if made.bytes > limit {
        let message = format!("an archive has at most {limit} bytes (stores.max_archive_mib)");
        return Err(refuse("archive_too_large", message));
    }
    let digests = objects::digests(&made.chunks)?;
    let sums: Vec<Vec<u8>> = digests.iter().map(|sum| sum.to_vec()).collect();
    let present: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT content_sha256 FROM output_processor.chunks WHERE scope = $1 AND content_sha256 = ANY($2)",
    )
    .bind(caller.scope())
    .bind(&sums)
    .fetch_all(caller.hub.store.pool())
    .await?;
    let present: HashSet<Vec<u8>> = present.into_iter().collect();
    let uploaded: Vec<(Vec<u8>, Uuid, i64, Vec<u8>)> = sqlx::query_as(
        "SELECT DISTINCT ON (content_sha256) content_sha256, object_id, size, sha256 \
         FROM output_processor.objects \
         WHERE task_id = $1 AND epoch = $2 AND scope = $3 AND kind = 'chunk' AND state = 'promised' \
             AND content_sha256 = ANY($4) ORDER BY content_sha256, object_id DESC",
    )
    .bind(caller.task.id.uuid())
    .bind(caller.lease.epoch)
    .bind(caller.scope())
    .bind(&sums)
    .fetch_all(caller.hub.store.pool())
    .await?;
    let mut fresh: HashMap<Vec<u8>, Object> = uploaded
        .into_iter()
        .filter(|(sum, ..)| !present.contains(sum))
        .map(|(sum, object_id, size, sha256)| {
            (sum, Object { object_id, size, sha256, state: "promised".into(), upload: None, parts: None })
        })
        .collect();
    let promised: Vec<Object> = fresh.values().cloned().collect();
    let unkept: HashSet<Uuid> = objects::unkept(&caller.hub, &promised).await?.into_iter().collect();
    fresh.retain(|_, object| !unkept.contains(&object.object_id));
    let missing: HashSet<&Vec<u8>> =
        sums.iter().filter(|sum| !present.contains(*sum) && !fresh.contains_key(*sum)).collect();
    if !missing.is_empty() {
        return Ok(Err(missing.into_iter().map(hex::encode).collect()));
    }
    let bytes = i64::try_from(made.bytes).unwrap_or(i64::MAX);
    let fresh = fresh.into_values().map(|object| object.object_id).collect();
    Ok(Ok(Checked { digests, bytes, fresh }))
}

/// Writes an archive with its chunks, in the caller's transaction. `false`: a chunk went meanwhile; look again.
pub(super) async fn write(
    tx: &mut Tx,
    caller: &Caller,
    checked: &Checked,
    archive: Uuid,
    due: Timestamp,
) -> Result<bool, Refused> {
    sqlx::query(
        "WITH kept AS (UPDATE output_processor.objects SET state = 'live', due = $3 \
                       WHERE object_id = ANY($2) AND state = 'promised' RETURNING object_id, content_sha256) \
         INSERT INTO output_processor.chunks (scope, content_sha256, object_id) \
         SELECT $1, content_sha256, object_id FROM kept ON CONFLICT DO NOTHING",
    )
    .bind(caller.scope())
    .bind(&checked.fresh)
    .bind(due)
    .execute(tx.conn())
    .await?;
    // One that another task wrote at the same time is not needed.
    sqlx::query(
        "UPDATE output_processor.objects o SET state = 'deleted', due = $2 WHERE object_id = ANY($1) \
         AND NOT EXISTS (SELECT 1 FROM output_processor.chunks c WHERE c.object_id = o.object_id)",
    )
    .bind(&checked.fresh)
    .bind(Utc::now() + objects::GRACE)
    .execute(tx.conn())
    .await?;
    let sums: HashSet<[u8; 32]> = checked.digests.iter().copied().collect();
    let named = sqlx::query(
        "UPDATE output_processor.objects o SET due = GREATEST(o.due, $3) FROM output_processor.chunks c \
         WHERE c.scope = $1 AND c.content_sha256 = ANY($2) AND o.object_id = c.object_id AND o.state = 'live'",
    )
    .bind(caller.scope())
    .bind(sums.iter().map(|sum| sum.to_vec()).collect::<Vec<_>>())
    .bind(due)
    .execute(tx.conn())
    .await?;
    if named.rows_affected() != sums.len() as u64 {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO output_processor.archives (archive_id, scope, chunks, bytes, due) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(archive)
    .bind(caller.scope())
    .bind(checked.digests.concat())
    .bind(checked.bytes)
    .bind(due)
    .execute(tx.conn())
    .await?;
    Ok(true)
}
