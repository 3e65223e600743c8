//! `store_artifacts` and `store_test_results` (execution §17, §18).

use super::transfer::{AT_A_TIME, SENT_FOR, Tries, call, patience, put};
use crate::{
    client::{Body, Failure},
    files::{Artifact, Ask, Report},
    helper::{Ends, Failed, pieces},
    output::Stream,
    steps::Runner,
};
use agent_api::stores::{
    ArtifactUpload, ArtifactUploads, Committed, MAX_BATCH, ObjectsCommit, PART, PartsWanted, TestsUpload,
    Upload, Uploads,
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use std::io::{self, Write};
use tokio::sync::mpsc;
use uuid::Uuid;

/// Files up to this size are sent side by side; larger ones go through without being held.
const SMALL: u64 = 1 << 20;
/// Places of parts that are asked for at once: all are used long before their end.
const PLACES: u32 = 16;
/// Parts that are held, and sent side by side.
const PARTS_HELD: usize = 2;
/// Most bytes of reports, compressed, that are held before they are sent; the suite has the same limit.
const MAX_REPORTS: u64 = 100 << 20;

impl Runner {
    pub(super) async fn store_artifacts(
        &self,
        path: &str,
        destination: Option<&str>,
        stream: &mut Stream,
    ) -> Result<(), Failed> {
        let place = self.located(path);
        let ask = Ask::ListArtifacts {
            path: place.clone(),
            written: path.to_owned(),
            destination: destination.map(str::to_owned),
            home: self.places.home.clone(),
        };
        let artifacts: Vec<Artifact> = self.ask_helper(&ask, stream).await?;
        if artifacts.is_empty() {
            return Ok(stream.note(&format!("No artifact files found at {}", place.display()))?);
        }
        stream.note(&format!("Uploading {} to {}", place.display(), destination.unwrap_or(path)))?;
        for batch in artifacts.chunks(MAX_BATCH) {
            let (small, large): (Vec<_>, Vec<_>) = batch.iter().partition(|artifact| artifact.size <= SMALL);
            if !small.is_empty() {
                let places = self.places_of(&small).await?;
                let objects = places.iter().map(|place| place.object).collect();
                let files = small.iter().map(|small| (small.source.clone(), small.size)).collect();
                let small: Vec<_> = small.into_iter().zip(places).collect();
                self.helper(&Ask::Send { files }, stream, |ends| self.send_small(&small, ends)).await?;
                self.commit(objects).await?;
            }
            for artifact in large {
                let object = self.send_large(artifact, stream).await?;
                // Before the next is asked for: what the job has stored is what its limits are about.
                self.commit(vec![object]).await?;
            }
            for artifact in batch {
                stream.note(&format!(
                    "  Uploading {} to {}: DONE",
                    artifact.source.display(),
                    artifact.name
                ))?;
            }
        }
        Ok(())
    }

    /// Makes what was uploaded visible.
    async fn commit(&self, objects: Vec<Uuid>) -> Result<(), Failed> {
        let _: Committed = call(&self.control, "artifacts/commit", &ObjectsCommit { objects }).await?;
        Ok(())
    }

    /// Where these are to be put.
    async fn places_of(&self, artifacts: &[&Artifact]) -> Result<Vec<Upload>, Failed> {
        let files = artifacts.iter().map(|artifact| ArtifactUpload {
            // Names are shown to everybody who may see the job (security §4.5).
            path: self.output.mask(&artifact.name),
            size: artifact.size,
            sha256: artifact.sha256.clone(),
            parts: artifact.parts.clone(),
        });
        let ask = ArtifactUploads { files: files.collect() };
        let Uploads { uploads } = call(&self.control, "artifacts/uploads", &ask).await?;
        Ok(uploads)
    }

    /// Sends files one after another out of one stream, several at once.
    async fn send_small(&self, files: &[(&Artifact, Upload)], ends: Ends) -> Result<(), Failed> {
        let (from, reading) = pieces(ends);
        let mut from = Pieces { from, rest: Bytes::new() };
        for some in files.chunks(2 * AT_A_TIME) {
            let mut puts = Vec::with_capacity(some.len());
            for (artifact, place) in some {
                puts.push(put(&self.control, place, from.whole(artifact.size).await?));
            }
            all(puts).await?;
        }
        reading.await.map_err(io::Error::other)??;
        Ok(())
    }

    /// Sends a file that is not held as a whole. What it is called in the end.
    async fn send_large(&self, artifact: &Artifact, stream: &mut Stream) -> Result<Uuid, Failed> {
        let ask = Ask::Send { files: vec![(artifact.source.clone(), artifact.size)] };
        let mut tries = Tries::new(&self.control, SENT_FOR);
        loop {
            let place = self.places_of(&[artifact]).await?.into_iter().next().ok_or_else(no_place)?;
            if place.in_parts {
                self.helper(&ask, stream, |ends| self.send_parts(artifact, place.object, ends)).await?;
                return Ok(place.object);
            }
            // In one request: a try that fails begins anew, at a new place.
            let sent = self.helper(&ask, stream, |ends| async {
                let (from, reading) = pieces(ends);
                let mut from = Pieces { from, rest: Bytes::new() };
                let sent = from.through(&self.control.client, &place, artifact.size).await?;
                // A helper that nobody listens to would complain.
                while from.from.recv().await.is_some() {}
                reading.await.map_err(io::Error::other)??;
                Ok(sent)
            });
            match sent.await? {
                Ok(()) => {
                    tries.succeeded();
                    return Ok(place.object);
                }
                Err(failure) => {
                    let told = |failure| Failed::Told(format!("{}: {failure}", artifact.source.display()));
                    tries.again(failure).await.map_err(told)?;
                }
            }
        }
    }

    /// Sends a file part by part: of what breaks off, the part alone goes again (reliability §8.4).
    async fn send_parts(&self, artifact: &Artifact, object: Uuid, ends: Ends) -> Result<(), Failed> {
        let (from, reading) = pieces(ends);
        let mut from = Pieces { from, rest: Bytes::new() };
        let (mut left, mut at) = (artifact.size, 0);
        let mut sending = stream::FuturesUnordered::new();
        while left > 0 {
            let ask = PartsWanted { object, from: at, count: PLACES };
            let Uploads { uploads } = call(&self.control, "artifacts/parts", &ask).await?;
            at += PLACES;
            if uploads.is_empty() {
                return Err(no_place());
            }
            for place in uploads {
                let part = from.whole(left.min(PART)).await?;
                left -= part.len() as u64;
                sending.push(async move { put(&self.control, &place, part).await });
                if sending.len() == PARTS_HELD {
                    sending.next().await.transpose()?;
                }
            }
        }
        while let Some(sent) = sending.next().await {
            sent?;
        }
        reading.await.map_err(io::Error::other)??;
        Ok(())
    }

    pub(super) async fn store_test_results(&self, path: &str, stream: &mut Stream) -> Result<(), Failed> {
        let ask = Ask::PackReports { path: self.located(path) };
        let secrets = self.output.secrets();
        let (reports, packed) = self.helper(&ask, stream, |ends| packed_reports(ends, secrets)).await?;
        if reports.is_empty() {
            return Ok(stream.note(&format!("No test results found at {}", self.located(path).display()))?);
        }
        stream.note("Archiving the following test results")?;
        for report in &reports {
            stream.note(&format!("  * {}", report.path.display()))?;
        }
        for report in &reports {
            if let Some(problem) = &report.problem {
                let file = report.path.display();
                stream.note(&format!("File: {file} had the following problems:\n  * {problem}"))?;
            }
        }
        if reports.iter().all(|report| report.problem.is_some()) {
            return Err(Failed::Told("no file could be read".into()));
        }
        let bytes = Bytes::from(packed);
        let sha256 = hex::encode(archive::sha256(&bytes));
        let ask = TestsUpload { size: bytes.len() as u64, sha256 };
        let Uploads { uploads } = call(&self.control, "tests/upload", &ask).await?;
        let place = uploads.into_iter().next().ok_or_else(no_place)?;
        put(&self.control, &place, bytes).await?;
        let _: Committed =
            call(&self.control, "tests/commit", &ObjectsCommit { objects: vec![place.object] }).await?;
        Ok(stream.note("Uploaded")?)
    }
}

/// All of these, several at once.
async fn all(work: Vec<impl Future<Output = Result<(), Failed>>>) -> Result<(), Failed> {
    let done: Vec<Result<(), Failed>> = stream::iter(work).buffer_unordered(AT_A_TIME).collect().await;
    done.into_iter().collect()
}

/// A compressed archive of reports in memory, without secrets (security §4.5), and what was found.
async fn packed_reports(ends: Ends, secrets: masking::Secrets) -> Result<(Vec<Report>, Vec<u8>), Failed> {
    drop(ends.input);
    let output = tokio_util::io::SyncIoBridge::new(ends.output);
    let read = move || {
        let mut reader = archive::frames::Reader::new(io::BufReader::new(output));
        let packed = zstd::Encoder::new(Limited(Vec::new()), 3)?;
        let packed = archive::change_files(&mut reader, packed, |bytes| secrets.mask(bytes))
            .map_err(io::Error::other)?;
        // What follows the last file only fills a block.
        io::copy(&mut reader, &mut io::sink())?;
        let Limited(packed) = packed.finish()?;
        Ok((serde_json::from_slice(&reader.finish(crate::files::MAX_ANSWER)?)?, packed))
    };
    let read = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?;
    read.map_err(|e: io::Error| Failed::Told(e.to_string()))
}

/// Takes no more than [`MAX_REPORTS`].
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.0.len() + bytes.len()) as u64 > MAX_REPORTS {
            return Err(io::Error::other(format!("they have more than {MAX_REPORTS} bytes, compressed")));
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Files out of one stream.
struct Pieces {
    from: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

fn no_place() -> Failed {
    Failed::Told("the suite named no place for it".into())
}

fn broken() -> Failed {
    Failed::Told("the files could not be read".into())
}

impl Pieces {
    /// So many bytes in one.
    async fn whole(&mut self, size: u64) -> Result<Bytes, Failed> {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let mut whole = BytesMut::with_capacity(size);
        while whole.len() < size {
            if self.rest.is_empty() {
                self.rest = self.from.recv().await.ok_or_else(broken)?;
            }
            let wanted = (size - whole.len()).min(self.rest.len());
            whole.extend_from_slice(&self.rest.split_to(wanted));
        }
        Ok(whole.freeze())
    }

    /// Sends so many bytes as they come; what the store had against it is told beside.
    async fn through(
        &mut self,
        client: &crate::client::Client,
        place: &Upload,
        size: u64,
    ) -> Result<Result<(), Failure>, Failed> {
        let (to, body) = mpsc::channel::<Bytes>(2);
        let frames = stream::unfold(body, |mut body| async move {
            let piece = body.recv().await?;
            Some((Ok::<_, io::Error>(Frame::data(piece)), body))
        });
        let body: Body = BodyExt::boxed_unsync(StreamBody::new(frames));
        let sending = client.put(place, size, body, patience(size));
        let moving = async {
            let mut left = size;
            while left > 0 {
                if self.rest.is_empty() {
                    self.rest = self.from.recv().await.ok_or_else(broken)?;
                }
                let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(self.rest.len());
                let piece = self.rest.split_to(wanted);
                left -= piece.len() as u64;
                // The store says itself why it takes no more.
                if to.send(piece).await.is_err() {
                    break;
                }
            }
            drop(to);
            Ok::<(), Failed>(())
        };
        let (sent, moved) = tokio::join!(sending, moving);
        moved?;
        Ok(sent)
    }
}
