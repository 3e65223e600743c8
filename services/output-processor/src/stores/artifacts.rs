//! Artifacts: files of a job for people (execution §17).

use super::{
    Caller, bounded,
    objects::{self, Wanted},
    refuse,
};
use crate::{http::Refused, hub::Hub};
use agent_api::stores::{ArtifactUploads, Committed, ObjectsCommit, PartsWanted, Uploads};
use chrono::{TimeDelta, Utc};
use contracts::{
    Refusal, RequestError,
    stores::{ArtifactPage, ArtifactPlace, ArtifactRecord, ListArtifacts, OpenArtifact},
};
use uuid::Uuid;

/// Most artifacts of one answer.
const MAX_PAGE: u32 = 500;
/// Bytes of paths in one answer: a message has at most 256 KiB.
const PAGE_BYTES: usize = 160 * 1024;
const MAX_PATH: usize = 1024;
const MAX_SEGMENTS: usize = 64;
/// How long people have to begin a download.
const OPEN: TimeDelta = TimeDelta::minutes(5);

fn valid(path: &str) -> Result<(), Refused> {
    let plain = |segment: &str| !matches!(segment, "" | "." | "..");
    let fits = path.len() <= MAX_PATH && path.split('/').count() <= MAX_SEGMENTS;
    if fits && path.split('/').all(plain) && !path.contains(['\0', '\n', '\r']) {
        return Ok(());
    }
    let message = format!(
        "{path:.200} is not the path of an artifact: at most {MAX_PATH} bytes and {MAX_SEGMENTS} parts, \
         none of them empty, `.` or `..`"
    );
    Err(refuse("artifact_path_invalid", message))
}

pub(super) async fn uploads(caller: Caller, ask: ArtifactUploads) -> Result<Uploads, Refused> {
    bounded(ask.files.len())?;
    let config = objects::config(&caller.hub);
    let (count, bytes): (i64, i64) = sqlx::query_as(
        "SELECT count(*), COALESCE(sum(size), 0)::bigint FROM output_processor.artifacts WHERE job_id = $1",
    )
    .bind(caller.job_id().uuid())
    .fetch_one(caller.hub.store.pool())
    .await?;
    let mut total = u64::try_from(bytes).unwrap_or_default();
    if u64::try_from(count).unwrap_or_default() + ask.files.len() as u64 > config.max_artifacts {
        let message =
            format!("a job stores at most {} artifacts (stores.max_artifacts)", config.max_artifacts);
        return Err(refuse("too_many_artifacts", message));
    }
    let mut wanted = Vec::with_capacity(ask.files.len());
    for file in ask.files {
        valid(&file.path)?;
        total = total.saturating_add(file.size);
        if file.size > config.max_artifact_bytes || total > config.max_job_artifact_bytes {
            let message = format!(
                "{:.200} is too large: an artifact has at most {} bytes, all of a job {} \
                 (stores.max_artifact_mib, stores.max_job_artifact_mib)",
                file.path, config.max_artifact_bytes, config.max_job_artifact_bytes
            );
            return Err(refuse("artifact_too_large", message));
        }
        let sha256 = super::digest(&file.sha256)?;
        wanted.push(Wanted {
            kind: "artifact",
            size: file.size,
            sha256,
            content: None,
            path: Some(file.path),
            parts: objects::announced(file.size, &file.parts)?,
        });
    }
    Ok(Uploads { uploads: objects::promise(&caller, wanted).await? })
}

/// Places for some parts of one that goes in parts. They may be asked for again: a URL is good for an hour.
pub(super) async fn parts(caller: Caller, ask: PartsWanted) -> Result<Uploads, Refused> {
    bounded(ask.count as usize)?;
    let found = objects::own(&caller, "artifact", &[ask.object]).await?;
    let uploads = found.iter().map(|object| objects::part_places(&caller.hub, object, ask.from, ask.count));
    Ok(Uploads { uploads: uploads.collect::<Result<Vec<_>, _>>()?.concat() })
}

pub(super) async fn commit(caller: Caller, ask: ObjectsCommit) -> Result<Committed, Refused> {
    bounded(ask.objects.len())?;
    let promised = objects::own(&caller, "artifact", &ask.objects).await?;
    objects::put_together(&caller.hub, &promised).await?;
    objects::verify(&caller.hub, &promised).await?;
    let index = super::follow::index_of(&caller).await?;
    let _open = caller.in_time().await?;
    let due = objects::end_of(objects::config(&caller.hub).artifact_days);
    let mut tx = caller.hub.store.begin(&[]).await.map_err(objects::unavailable)?;
    // The same path twice in a task: the last upload counts.
    sqlx::query(
        "WITH kept AS (UPDATE output_processor.objects SET state = 'live', due = $4 \
                       WHERE object_id = ANY($3) AND state = 'promised' RETURNING object_id, path, size, sha256), \
              latest AS (SELECT DISTINCT ON (path) * FROM kept ORDER BY path, object_id DESC), \
              replaced AS (UPDATE output_processor.objects o SET state = 'deleted', due = $5 \
                           FROM output_processor.artifacts a JOIN latest k ON k.path = a.path \
                           WHERE a.job_id = $1 AND a.index = $2 AND o.object_id = a.object_id) \
         INSERT INTO output_processor.artifacts (job_id, index, path, object_id, size, sha256) \
         SELECT $1, $2, path, object_id, size, sha256 FROM latest \
         ON CONFLICT (job_id, index, path) DO UPDATE \
             SET object_id = excluded.object_id, size = excluded.size, sha256 = excluded.sha256",
    )
    .bind(caller.job_id().uuid())
    .bind(index)
    .bind(&ask.objects)
    .bind(due)
    .bind(Utc::now() + objects::GRACE)
    .execute(tx.conn())
    .await?;
    tx.commit().await.map_err(objects::unavailable)?;
    Ok(Committed::Stored)
}

/// A page of a job's artifacts.
pub(crate) async fn list(hub: &Hub, ask: ListArtifacts) -> Result<ArtifactPage, RequestError> {
    let limit = ask.limit.clamp(1, MAX_PAGE);
    let (index, path) = ask.after.unwrap_or((0, String::new()));
    let rows: Vec<(i32, String, i64, Vec<u8>)> = sqlx::query_as(
        "SELECT index, path, size, sha256 FROM output_processor.artifacts \
         WHERE job_id = $1 AND (index, path) > ($2, $3) ORDER BY index, path LIMIT $4",
    )
    .bind(ask.job_id.uuid())
    .bind(i32::try_from(index).unwrap_or(i32::MAX))
    .bind(path)
    .bind(i64::from(limit) + 1)
    .fetch_all(hub.store.pool())
    .await
    .map_err(bus::failed("output-processor"))?;
    let (mut items, mut bytes, mut more) = (Vec::new(), 0, false);
    for (index, path, size, sha256) in rows {
        bytes += path.len() + 160;
        if items.len() == limit as usize || bytes > PAGE_BYTES {
            more = true;
            break;
        }
        items.push(ArtifactRecord {
            index: u32::try_from(index).unwrap_or_default(),
            path,
            size: u64::try_from(size).unwrap_or_default(),
            sha256: hex::encode(sha256),
        });
    }
    Ok(ArtifactPage { items, more })
}

/// Where one artifact's bytes are.
pub(crate) async fn open(hub: &Hub, ask: OpenArtifact) -> Result<ArtifactPlace, RequestError> {
    let object: Option<Uuid> = sqlx::query_scalar(
        "SELECT object_id FROM output_processor.artifacts WHERE job_id = $1 AND index = $2 AND path = $3",
    )
    .bind(ask.job_id.uuid())
    .bind(i32::try_from(ask.index).unwrap_or(i32::MAX))
    .bind(&ask.path)
    .fetch_optional(hub.store.pool())
    .await
    .map_err(bus::failed("output-processor"))?;
    let object = object.ok_or_else(|| Refusal::not_found("artifact"))?;
    let key = objects::key(object).map_err(bus::failed("output-processor"))?;
    let name = ask.path.rsplit('/').next().unwrap_or_default();
    let url = hub.blobs.sign_download(&key, Utc::now() + OPEN, name);
    Ok(ArtifactPlace { url })
}
