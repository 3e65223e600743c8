//! Uploads: promised with a URL, verified, then visible.

use super::{Caller, digest, refuse};
use crate::{config::Stores, http::Refused, hub::Hub};
use agent_api::stores::Upload;
use axum::http::StatusCode;
use blobs::{Announced, Blobs, Key, Meta, Method, Signed};
use chrono::{TimeDelta, Utc};
use futures::{FutureExt, StreamExt, TryStreamExt};
use ids::Timestamp;
use sqlx::PgPool;
use std::sync::Arc;
use uuid::Uuid;

/// How long a URL for an upload or a download is good.
const URL_LIFE: TimeDelta = TimeDelta::hours(1);
/// How long an upload may take before it is given up.
const PROMISE: TimeDelta = TimeDelta::hours(24);
/// How long the bytes stay after nobody can see them any more.
pub(super) const GRACE: TimeDelta = TimeDelta::hours(24);
/// Agents cut as stores number.
const _: () = assert!(agent_api::stores::PART == blobs::PART);
/// Objects that are looked at in the store at the same time.
const AT_A_TIME: usize = 16;

/// Name of an object's blob.
pub(super) fn key(object: Uuid) -> blobs::Result<Key> {
    Key::new(format!("stores/{object}"))
}

/// Something that an agent wants to upload.
pub(super) struct Wanted {
    pub(super) kind: &'static str,
    pub(super) size: u64,
    pub(super) sha256: [u8; 32],
    /// Digest and size of a chunk before compression.
    pub(super) content: Option<([u8; 32], u32)>,
    /// Path of an artifact.
    pub(super) path: Option<String>,
    /// Of an artifact that can come in parts.
    pub(super) parts: Option<Announced>,
}

/// What an agent announced of the parts of something; without any it comes as a whole.
pub(super) fn announced(size: u64, parts: &[String]) -> Result<Option<Announced>, Refused> {
    if parts.is_empty() {
        return Ok(None);
    }
    let unfit = || refuse("invalid", format!("{} parts are not those of {size} bytes", parts.len()));
    Announced::new(size, digests(parts)?).map(Some).ok_or_else(unfit)
}

/// An object as its row says.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(super) struct Object {
    pub(super) object_id: Uuid,
    pub(super) size: i64,
    pub(super) sha256: Vec<u8>,
    pub(super) state: String,
    /// Of one that comes in parts: the store's name of the upload, and their digests.
    pub(super) upload: Option<String>,
    pub(super) parts: Option<Vec<u8>>,
}

impl Object {
    /// The upload of one that comes in parts.
    fn in_parts(&self) -> Option<(&str, Announced)> {
        let (digests, rest) = self.parts.as_ref()?.as_chunks::<32>();
        let announced = Announced::new(u64::try_from(self.size).ok()?, digests.to_vec())?;
        (rest.is_empty()).then_some((self.upload.as_deref()?, announced))
    }

    /// What the store knows its bytes by.
    fn identity(&self) -> Vec<u8> {
        self.in_parts().map_or_else(|| self.sha256.clone(), |(_, announced)| announced.sha256().to_vec())
    }
}

pub(super) fn unavailable(error: impl std::fmt::Display) -> Refused {
    Refused::unavailable(&error)
}

/// A URL to read an object.
pub(super) fn readable(hub: &Hub, object: Uuid) -> Result<String, Refused> {
    Ok(hub.blobs.sign(&key(object).map_err(unavailable)?, Method::Get, Utc::now() + URL_LIFE).url)
}

/// Promises places for uploads.
pub(super) async fn promise(caller: &Caller, wanted: Vec<Wanted>) -> Result<Vec<Upload>, Refused> {
    let ids: Vec<Uuid> = wanted.iter().map(|_| ids::ObjectId::new().uuid()).collect();
    let begun = ids.iter().zip(&wanted).map(|(object, wanted)| begin(caller, *object, wanted).boxed());
    let begun: Vec<Option<String>> =
        futures::stream::iter(begun.collect::<Vec<_>>()).buffered(AT_A_TIME).try_collect().await?;
    let parts = wanted.iter().zip(&begun).map(|(wanted, upload)| {
        let announced = wanted.parts.as_ref().filter(|_| upload.is_some());
        announced.map(|announced| announced.digests().to_vec())
    });
    sqlx::query(
        "INSERT INTO output_processor.objects \
             (object_id, scope, task_id, epoch, kind, size, sha256, content_sha256, content_size, path, due, upload, parts) \
         SELECT u.id, $2, $3, $4, u.kind, u.size, u.sha256, u.content, u.content_size, u.path, $11, u.upload, u.parts \
         FROM unnest($1::uuid[], $5::text[], $6::bigint[], $7::bytea[], $8::bytea[], $9::int[], $10::text[], $12::text[], \
                     $13::bytea[]) \
              AS u (id, kind, size, sha256, content, content_size, path, upload, parts)",
    )
    .bind(&ids)
    .bind(caller.scope())
    .bind(caller.task.id.uuid())
    .bind(caller.lease.epoch)
    .bind(wanted.iter().map(|w| w.kind).collect::<Vec<_>>())
    .bind(wanted.iter().map(|w| i64::try_from(w.size).unwrap_or(i64::MAX)).collect::<Vec<_>>())
    .bind(wanted.iter().map(|w| w.sha256.to_vec()).collect::<Vec<_>>())
    .bind(wanted.iter().map(|w| w.content.map(|(sum, _)| sum.to_vec())).collect::<Vec<_>>())
    .bind(wanted.iter().map(|w| w.content.and_then(|(_, size)| i32::try_from(size).ok())).collect::<Vec<_>>())
    .bind(wanted.iter().map(|w| w.path.clone()).collect::<Vec<_>>())
    .bind(Utc::now() + PROMISE)
    .bind(&begun)
    .bind(parts.collect::<Vec<_>>())
    .execute(caller.hub.store.pool())
    .await?;
    let expires = Utc::now() + URL_LIFE;
    let places = ids.into_iter().zip(&wanted).zip(&begun).map(|((object, wanted), begun)| {
        if begun.is_some() {
            return Ok(Upload { object, url: String::new(), headers: Vec::new(), in_parts: true });
        }
        let method = Method::Put { size: wanted.size, sha256: wanted.sha256 };
        let Signed { url, headers } =
            caller.hub.blobs.sign(&key(object).map_err(unavailable)?, method, expires);
        Ok(Upload { object, url, headers, in_parts: false })
    });
    places.collect()
}

/// Begins an upload in parts, where there are several and the store takes such. A crash before its row is written leaves an upload
/// that the store gives up by itself.
async fn begin(caller: &Caller, object: Uuid, wanted: &Wanted) -> Result<Option<String>, Refused> {
    let (Some(announced), Some(store)) = (&wanted.parts, caller.hub.blobs.in_parts()) else {
        return Ok(None);
    };
    let key = key(object).map_err(unavailable)?;
    store.begin(&key, announced).await.map(Some).map_err(unavailable)
}

/// Places for some parts of an object, counted from 0.
pub(super) fn part_places(hub: &Hub, object: &Object, from: u32, count: u32) -> Result<Vec<Upload>, Refused> {
    let (Some((upload, announced)), Some(store)) = (object.in_parts(), hub.blobs.in_parts()) else {
        return Err(refuse("invalid", "it does not come in parts"));
    };
    let (key, expires) = (key(object.object_id).map_err(unavailable)?, Utc::now() + URL_LIFE);
    let end = from.saturating_add(count).min(u32::try_from(announced.count()).unwrap_or(u32::MAX));
    let places = (from..end).filter_map(|at| {
        let Signed { url, headers } = store.sign_part(&key, upload, &announced, at as usize, expires)?;
        Some(Upload { object: object.object_id, url, headers, in_parts: false })
    });
    Ok(places.collect())
}

/// Makes blobs of those objects whose parts came. What is not whole is found by the look that follows.
pub(super) async fn put_together(hub: &Hub, objects: &[Object]) -> Result<(), Refused> {
    let Some(store) = hub.blobs.in_parts() else { return Ok(()) };
    for object in objects.iter().filter(|object| object.state == "promised") {
        let Some((upload, announced)) = object.in_parts() else { continue };
        match store.finish(&key(object.object_id).map_err(unavailable)?, upload, &announced).await {
            Ok(_) | Err(blobs::Error::Mismatch { .. }) => {}
            Err(error) => return Err(unavailable(error)),
        }
    }
    Ok(())
}

/// The objects of this task and epoch with these names, whatever their state.
pub(super) async fn own(caller: &Caller, kind: &str, objects: &[Uuid]) -> Result<Vec<Object>, Refused> {
    let found: Vec<Object> = sqlx::query_as(
        "SELECT object_id, size, sha256, state, upload, parts FROM output_processor.objects \
         WHERE object_id = ANY($1) AND task_id = $2 AND epoch = $3 AND kind = $4 AND state <> 'deleted'",
    )
    .bind(objects)
    .bind(caller.task.id.uuid())
    .bind(caller.lease.epoch)
    .bind(kind)
    .fetch_all(caller.hub.store.pool())
    .await?;
    let mut asked = objects.to_vec();
    asked.sort_unstable();
    asked.dedup();
    if found.len() < asked.len() {
        return Err(Refused::new(
            StatusCode::NOT_FOUND,
            "object_unknown",
            "not every object was promised to this task",
        ));
    }
    Ok(found)
}

/// Looks in the store whether these promises were kept. The names of those that were not.
pub(super) async fn unkept(hub: &Hub, objects: &[Object]) -> Result<Vec<Uuid>, Refused> {
    let promised = objects.iter().filter(|object| object.state == "promised").cloned();
    let looks: Vec<_> = promised.map(|object| look(Arc::clone(&hub.blobs), object).boxed()).collect();
    let found: Vec<Option<Uuid>> =
        futures::stream::iter(looks).buffer_unordered(AT_A_TIME).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// The object's name, unless the store has exactly its bytes.
async fn look(blobs: Arc<dyn Blobs>, object: Object) -> Result<Option<Uuid>, Refused> {
    let key = key(object.object_id).map_err(unavailable)?;
    let found: Option<Meta> = blobs.head(&key).await.map_err(unavailable)?;
    let kept = found.is_some_and(|meta| {
        i64::try_from(meta.size) == Ok(object.size) && meta.sha256[..] == object.identity()
    });
    Ok((!kept).then_some(object.object_id))
}

/// Refuses a commit of what was not uploaded.
pub(super) async fn verify(hub: &Hub, objects: &[Object]) -> Result<(), Refused> {
    if unkept(hub, objects).await?.is_empty() {
        return Ok(());
    }
    let message = "not every object is in the store with the announced size and digest: upload it first";
    Err(Refused::new(StatusCode::CONFLICT, "upload_incomplete", message))
}

/// The end of a retention that begins now.
pub(super) fn end_of(days: u32) -> Timestamp {
    let days = if days == 0 { 36_500 } else { days };
    Utc::now() + TimeDelta::days(i64::from(days))
}

/// Settings of this part.
pub(super) fn config(hub: &Hub) -> &Stores {
    &hub.config.stores
}

/// Whether all of these digests can be read.
pub(super) fn digests(texts: &[String]) -> Result<Vec<[u8; 32]>, Refused> {
    texts.iter().map(|text| digest(text)).collect()
}

/// Ends promises, retentions and graces that are due: marks first, removes the bytes a day later, then the row.
/// How many objects went.
pub(super) async fn sweep(hub: &Hub, pool: &PgPool, now: Timestamp) -> anyhow::Result<usize> {
    const PAGE: i64 = 200;
    // Invisible at once. A chunk that a commit is about to name again is locked by it, and left for next time.
    sqlx::query(
        "WITH due AS (SELECT object_id FROM output_processor.objects \
                      WHERE due <= $1 AND state <> 'deleted' FOR UPDATE SKIP LOCKED), \
              gone AS (DELETE FROM output_processor.chunks c USING due WHERE c.object_id = due.object_id), \
              unlisted AS (DELETE FROM output_processor.artifacts a USING due WHERE a.object_id = due.object_id) \
         UPDATE output_processor.objects o SET state = 'deleted', due = $2 FROM due WHERE o.object_id = due.object_id",
    )
    .bind(now)
    .bind(now + GRACE)
    .execute(pool)
    .await?;
    let mut removed = 0;
    loop {
        let due: Vec<Uuid> = sqlx::query_scalar(
            "SELECT object_id FROM output_processor.objects WHERE due <= $1 AND state = 'deleted' \
             ORDER BY due LIMIT $2",
        )
        .bind(now)
        .bind(PAGE)
        .fetch_all(pool)
        .await?;
        for object in &due {
            hub.blobs.delete(&key(*object)?).await?;
        }
        sqlx::query("DELETE FROM output_processor.objects WHERE object_id = ANY($1) AND state = 'deleted'")
            .bind(&due)
            .execute(pool)
            .await?;
        removed += due.len();
        if (due.len() as i64) < PAGE {
            return Ok(removed);
        }
    }
}
