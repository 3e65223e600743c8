//! Caches: written once per key, found by prefix (execution §15).

use super::{Caller, chunks, objects, refuse};
use crate::http::Refused;
use agent_api::stores::{
    ArchiveRef, CacheCheck, CacheChecked, CacheCommit, CacheFind, CacheFound, CacheHit, Committed, MAX_KEY,
};
use eventstore::Act;
use ids::{OrgId, Timestamp};
use serde_json::json;
use uuid::Uuid;

/// Key, archive, number of the job that wrote it, paths, time, chunks, bytes.
type Found = (String, Uuid, i64, Vec<String>, Timestamp, i32, i64);

/// Most keys of one search, and paths of one cache.
const MAX_LIST: usize = 100;

fn valid(key: &str) -> Result<(), Refused> {
    if key.is_empty() || key.chars().count() > MAX_KEY || key.contains('\0') {
        return Err(refuse("cache_key_invalid", format!("a cache key has 1 to {MAX_KEY} characters")));
    }
    Ok(())
}

async fn taken(caller: &Caller, key: &str) -> sqlx::Result<Option<Timestamp>> {
    sqlx::query_scalar(
        "SELECT created_at FROM output_processor.caches WHERE scope = $1 AND key = $2 AND due > clock_timestamp()",
    )
    .bind(caller.scope())
    .bind(key)
    .fetch_optional(caller.hub.store.pool())
    .await
}

pub(super) async fn check(caller: Caller, ask: CacheCheck) -> Result<CacheChecked, Refused> {
    valid(&ask.key)?;
    Ok(CacheChecked { created_at: taken(&caller, &ask.key).await? })
}

pub(super) async fn find(caller: Caller, ask: CacheFind) -> Result<CacheFound, Refused> {
    if ask.keys.len() > MAX_LIST {
        return Err(refuse("too_many", format!("at most {MAX_LIST} keys")));
    }
    for (candidate, key) in ask.keys.iter().enumerate() {
        valid(key)?;
        let row: Option<Found> = sqlx::query_as(
            "SELECT c.key, c.archive_id, c.job_number, c.paths, c.created_at, length(a.chunks) / 32, a.bytes \
             FROM output_processor.caches c JOIN output_processor.archives a ON a.archive_id = c.archive_id \
             WHERE c.scope = $1 AND starts_with(c.key, $2) AND c.due > clock_timestamp() \
             ORDER BY c.created_at DESC LIMIT 1",
        )
        .bind(caller.scope())
        .bind(key)
        .fetch_optional(caller.hub.store.pool())
        .await?;
        let Some((key, id, job_number, paths, created_at, chunks, bytes)) = row else { continue };
        // Who wrote what a later release restored is a question that is asked (security §9.3).
        let detail =
            json!({ "job_id": caller.job_id(), "key": key, "archive": id, "written_by": job_number });
        audit(&caller, "cache.restored", detail).await?;
        let archive = ArchiveRef {
            id,
            chunks: u32::try_from(chunks).unwrap_or_default(),
            bytes: u64::try_from(bytes).unwrap_or_default(),
        };
        return Ok(CacheFound {
            hit: Some(CacheHit { candidate, key, job_number, created_at, paths, archive }),
        });
    }
    Ok(CacheFound { hit: None })
}

async fn audit(caller: &Caller, kind: &'static str, detail: serde_json::Value) -> Result<(), Refused> {
    let mut tx = caller.hub.store.begin(&[]).await.map_err(objects::unavailable)?;
    tx.relaxed().await.map_err(objects::unavailable)?;
    tx.act(act(caller, kind, detail)).await.map_err(objects::unavailable)?;
    tx.commit().await.map_err(objects::unavailable)
}

fn act(caller: &Caller, kind: &'static str, detail: serde_json::Value) -> Act {
    let mut act = Act::new(kind, caller.actor(), detail).on("job", caller.job_id());
    act.org_id = Some(OrgId(caller.job.org_id));
    act
}

pub(super) async fn commit(caller: Caller, ask: CacheCommit) -> Result<Committed, Refused> {
    valid(&ask.key)?;
    if ask.paths.len() > MAX_LIST || ask.paths.iter().any(|path| path.len() > 4096 || path.contains('\0')) {
        return Err(refuse("paths_invalid", format!("at most {MAX_LIST} paths of at most 4096 bytes")));
    }
    if let Some(created_at) = taken(&caller, &ask.key).await? {
        return Ok(Committed::AlreadyExists { created_at });
    }
    let checked = match chunks::check(&caller, &ask.archive).await? {
        Ok(checked) => checked,
        Err(chunks) => return Ok(Committed::Missing { chunks }),
    };
    let _open = caller.in_time().await?;
    // The server's own days are the most that there are (config-language §10.1).
    let server = objects::end_of(objects::config(&caller.hub).cache_days);
    let wanted = caller.job.cache_days.map(|days| objects::end_of(days.cast_unsigned()));
    let (archive, due) = (ids::ArchiveId::new().uuid(), wanted.map_or(server, |wanted| wanted.min(server)));
    let mut tx = caller.hub.store.begin(&[]).await.map_err(objects::unavailable)?;
    let first = sqlx::query(
        "INSERT INTO output_processor.caches AS c (scope, key, archive_id, job_id, job_number, paths, due) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (scope, key) DO UPDATE \
             SET archive_id = $3, job_id = $4, job_number = $5, paths = $6, due = $7, created_at = clock_timestamp() \
             WHERE c.due <= clock_timestamp()",
    )
    .bind(caller.scope())
    .bind(&ask.key)
    .bind(archive)
    .bind(caller.job_id().uuid())
    .bind(caller.job.number)
    .bind(&ask.paths)
    .bind(due)
    .execute(tx.conn())
    .await?;
    if first.rows_affected() == 0 {
        drop(tx);
        let created_at = taken(&caller, &ask.key).await?.unwrap_or_default();
        return Ok(Committed::AlreadyExists { created_at });
    }
    if !chunks::write(&mut tx, &caller, &checked, archive, due).await? {
        return Err(objects::unavailable("a chunk was removed while it was to be kept"));
    }
    let detail = json!({ "key": ask.key, "archive": archive, "bytes": ask.archive.bytes });
    tx.act(act(&caller, "cache.saved", detail)).await.map_err(objects::unavailable)?;
    tx.commit().await.map_err(objects::unavailable)?;
    Ok(Committed::Stored)
}
