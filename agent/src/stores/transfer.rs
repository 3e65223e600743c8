//! Chunks up and down, several at once, each checked by its digest.

use crate::{
    client::{Body, Failure},
    control::{Control, backoff, decode},
    helper::{Ends, Failed, cut},
};
use agent_api::stores::{
    ArchiveMade, ArchiveRef, ChunkDownloads, ChunkUpload, ChunkUploads, ChunksMissing, ChunksWanted,
    Download, Downloads, MAX_BATCH, Upload, Uploads,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;

/// Bytes that wait for one answer about what is stored.
const WINDOW: usize = 8 << 20;
/// Windows at the same time: while one is asked about, another is compressed and a third is sent.
const WINDOWS: usize = 3;
/// Transfers at the same time.
pub(super) const AT_A_TIME: usize = 4;
/// Tries of one transfer at least (reliability §8.4).
const TRIES: usize = 10;
/// How long bytes are fetched again at least: a store that is away for two minutes costs no job.
const FETCHED_FOR: Duration = Duration::from_secs(150);
/// The same of what is to be stored: the work that made it is done (reliability F31).
pub(super) const SENT_FOR: Duration = Duration::from_secs(30 * 60);
/// A step waits for a store for so long before it says so.
const SILENT_FOR: Duration = Duration::from_secs(5);
/// A transfer takes this long at most, and so much longer for each MiB.
const PATIENCE: Duration = Duration::from_secs(30);
const PER_MIB: Duration = Duration::from_secs(2);

/// A call below `stores/`.
pub(super) async fn call<A: Serialize, R: DeserializeOwned>(
    control: &Control,
    route: &str,
    ask: &A,
) -> Result<R, Failed> {
    Ok(decode(&control.post(&format!("stores/{route}"), ask).await?)?)
}

pub(super) fn patience(size: u64) -> Duration {
    PATIENCE + PER_MIB * u32::try_from(size >> 20).unwrap_or(u32::MAX)
}

/// Pauses between the tries of one transfer, which is tried for so long at least.
fn pauses(control: &Control, least: Duration) -> impl Iterator<Item = Duration> + use<> {
    let end = Instant::now() + least;
    let going_on = move |(tried, _): &(usize, Duration)| *tried < TRIES || Instant::now() < end;
    backoff(&control.client).enumerate().take_while(going_on).map(|(_, pause)| pause)
}

/// Repeats a transfer that may succeed later.
async fn persist<T, F>(control: &Control, least: Duration, transfer: impl Fn() -> F) -> Result<T, Failed>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut tries = Tries::new(control, least);
    loop {
        match transfer().await {
            Ok(done) => {
                tries.succeeded();
                return Ok(done);
            }
            Err(failure) => {
                tries.again(failure).await.map_err(|failure| Failed::Told(failure.to_string()))?
            }
        }
    }
}

/// The tries of one transfer. A step that waits for a store for long says so.
pub(super) struct Tries<'a, P> {
    control: &'a Control,
    pauses: P,
    since: Option<Instant>,
}

impl<'a> Tries<'a, ()> {
    /// For so long at least.
    pub(super) fn new(
        control: &'a Control,
        least: Duration,
    ) -> Tries<'a, impl Iterator<Item = Duration> + use<>> {
        Tries { control, pauses: pauses(control, least), since: None }
    }
}

impl<P: Iterator<Item = Duration>> Tries<'_, P> {
    /// Waits before the next try after a failure; the failure comes back if there is to be none.
    pub(super) async fn again(&mut self, failure: Failure) -> Result<(), Failure> {
        let since = *self.since.get_or_insert_with(Instant::now);
        match self.pauses.next() {
            Some(pause) if failure.is_temporary() => {
                tracing::debug!(error = %failure, "a transfer is tried again");
                if since.elapsed() >= SILENT_FOR {
                    self.control.store_is_away(true);
                }
                tokio::time::sleep(pause).await;
                Ok(())
            }
            _ => Err(failure),
        }
    }

    /// It was done.
    pub(super) fn succeeded(&self) {
        if self.since.is_some() {
            self.control.store_is_away(false);
        }
    }
}

/// Puts bytes that are in memory.
pub(super) async fn put(control: &Control, place: &Upload, bytes: Bytes) -> Result<(), Failed> {
    let size = bytes.len() as u64;
    persist(control, SENT_FOR, || {
        let body: Body = Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync();
        control.client.put(place, size, body, patience(size))
    })
    .await
}

/// A chunk of an archive, named by its content.
struct Chunk {
    name: [u8; 32],
    bytes: Vec<u8>,
}

/// Names a chunk beside the runtime, and beside the thread that cuts.
async fn named(bytes: Vec<u8>) -> Result<Chunk, Failed> {
    let work = move || Chunk { name: archive::name(&bytes), bytes };
    Ok(tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?)
}

/// Compresses a chunk beside the runtime.
async fn stored_form(chunk: Arc<Chunk>) -> Result<(Arc<Chunk>, Bytes, String), Failed> {
    let work = move || {
        let stored = archive::compress(&chunk.bytes)?;
        let sha256 = hex::encode(archive::sha256(&stored));
        Ok::<_, std::io::Error>((chunk, Bytes::from(stored), sha256))
    };
    Ok(tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)??)
}

/// Uploads those chunks of a window that are not stored yet. How many bytes went.
async fn upload_window(control: &Control, window: Vec<Chunk>) -> Result<u64, Failed> {
    let ask = ChunksWanted { chunks: window.iter().map(|chunk| hex::encode(chunk.name)).collect() };
    let ChunksMissing { missing } = call(control, "chunks/missing", &ask).await?;
    let missing: Vec<Arc<Chunk>> = window
        .into_iter()
        .enumerate()
        .filter(|(place, _)| missing.contains(place))
        .map(|(_, chunk)| Arc::new(chunk))
        .collect();
    if missing.is_empty() {
        return Ok(0);
    }
    let stored: Vec<_> = stream::iter(missing).map(stored_form).buffered(AT_A_TIME).collect().await;
    let stored = stored.into_iter().collect::<Result<Vec<_>, _>>()?;
    let chunks = stored.iter().map(|(chunk, bytes, sha256)| ChunkUpload {
        content: hex::encode(chunk.name),
        content_size: u32::try_from(chunk.bytes.len()).unwrap_or(u32::MAX),
        sha256: sha256.clone(),
        size: bytes.len() as u64,
    });
    let ask = ChunkUploads { chunks: chunks.collect() };
    let Uploads { uploads } = call(control, "chunks/uploads", &ask).await?;
    let total = stored.iter().map(|(_, bytes, _)| bytes.len() as u64).sum();
    let puts = uploads.iter().zip(stored).map(|(place, (_, bytes, _))| put(control, place, bytes));
    let done: Vec<Result<(), Failed>> = stream::iter(puts).buffer_unordered(AT_A_TIME).collect().await;
    done.into_iter().collect::<Result<(), _>>()?;
    Ok(total)
}

/// What was uploaded of an archive.
pub(super) struct Uploaded<T> {
    pub(super) archive: ArchiveMade,
    /// Bytes that were sent.
    pub(super) sent: u64,
    /// The helper's last word.
    pub(super) word: T,
}

/// Takes an archive from a helper, and uploads what of it is not stored yet.
pub(super) async fn upload<T>(control: &Control, ends: Ends) -> Result<Uploaded<T>, Failed>
where
    T: DeserializeOwned + Send + 'static,
{
    let (chunks, cutting) = cut::<T>(ends);
    let chunks = stream::unfold(chunks, async |mut chunks| Some((chunks.recv().await?, chunks)));
    let mut chunks = std::pin::pin!(chunks.map(named).buffered(WINDOWS));
    let mut archive = ArchiveMade { chunks: Vec::new(), bytes: 0 };
    let mut sent = 0;
    let mut window: Vec<Chunk> = Vec::new();
    let mut gathered = 0;
    let mut sending = stream::FuturesUnordered::new();
    let mut ended = false;
    while !ended || !sending.is_empty() {
        tokio::select! {
            Some(done) = sending.next(), if !sending.is_empty() => sent += done?,
            chunk = chunks.next(), if !ended && sending.len() < WINDOWS => {
                match chunk.transpose()? {
                    Some(chunk) => {
                        archive.bytes += chunk.bytes.len() as u64;
                        archive.chunks.push(hex::encode(chunk.name));
                        gathered += chunk.bytes.len();
                        window.push(chunk);
                    }
                    None => ended = true,
                }
                if gathered >= WINDOW || window.len() == MAX_BATCH || (ended && !window.is_empty()) {
                    gathered = 0;
                    sending.push(upload_window(control, std::mem::take(&mut window)));
                }
            }
        }
    }
    let word = cutting.await.map_err(std::io::Error::other)??;
    Ok(Uploaded { archive, sent, word })
}

/// A chunk as it was before it was stored; anything else is refused.
async fn fetch(control: &Control, chunk: Download) -> Result<Bytes, Failed> {
    let stored =
        persist(control, FETCHED_FOR, || control.client.get(&chunk.url, patience(chunk.size))).await?;
    let open = move || {
        let bytes = archive::decompress(&stored, chunk.content_size as usize).ok()?;
        let mut name = [0; 32];
        hex::decode_to_slice(&chunk.content, &mut name).ok()?;
        archive::is_named(&bytes, &name).then(|| Bytes::from(bytes))
    };
    let opened = tokio::task::spawn_blocking(open).await.map_err(std::io::Error::other)?;
    opened.ok_or(Failed::Damaged)
}

/// Sends all of an archive to a helper, several chunks ahead. The stream is ended.
pub(super) async fn download(
    control: &Control,
    archive: &ArchiveRef,
    to: &mpsc::Sender<Bytes>,
) -> Result<(), Failed> {
    let mut from = 0;
    while from < archive.chunks {
        let count = u32::try_from(MAX_BATCH / 2).unwrap_or(1).min(archive.chunks - from);
        let ask = ChunkDownloads { archive: archive.id, from, count };
        let Downloads { chunks } = call(control, "chunks/downloads", &ask).await?;
        if chunks.is_empty() {
            return Err(Failed::Told("the archive is shorter than it was".into()));
        }
        from += u32::try_from(chunks.len()).unwrap_or(u32::MAX);
        let mut fetched = stream::iter(chunks).map(|chunk| fetch(control, chunk)).buffered(AT_A_TIME);
        while let Some(bytes) = fetched.next().await {
            // A helper that is gone says itself why.
            to.send(bytes?).await.map_err(|_| Failed::Told("the files could not be unpacked".into()))?;
        }
    }
    to.send(Bytes::new()).await.map_err(|_| Failed::Told("the files could not be unpacked".into()))
}
