//! The spool of a step on its way to the suite.

use super::{Budget, Shared};
use crate::control::{Control, Gone, Stop, backoff, encode};
use agent_api::{CHUNK_CRC, ChunkAck, Seal};
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use hyper::Method;
use ids::StepId;
use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc, time::Duration};
use tokio::time::Instant;

const CHUNK: u64 = 256 * 1024;
/// Longer silence than this, and the next bytes go at once.
const QUIET: Duration = Duration::from_millis(50);
/// Else they are gathered for so long.
const GATHER: Duration = Duration::from_millis(100);
const SEND: Duration = Duration::from_secs(30);
/// The way of one stream to the suite.
pub(super) struct Upload {
    pub(super) control: Arc<Control>,
    pub(super) shared: Arc<Shared>,
    pub(super) budget: Arc<Budget>,
    pub(super) spool: File,
    pub(super) step: StepId,
    /// The suite has all bytes below.
    pub(super) offset: u64,
    pub(super) mismatches: u32,
}

/// Seals that may be refused before the stream is given up: more does not help, and would not end.
const MAX_MISMATCHES: u32 = 3;

enum Next {
    Go,
    Wait,
    Done,
}

impl Upload {
    /// Sends and seals, until all of it has arrived or nobody wants it any more.
    pub(super) async fn run(mut self) {
        let mut sent_at: Option<Instant> = None;
        let mut pauses = backoff(&self.control.client);
        loop {
            let ended = self.wait(sent_at).await;
            sent_at = Some(Instant::now());
            let next = match ended {
                Some(digest) => self.seal(digest).await,
                None => self.send().await,
            };
            match next {
                Ok(Next::Go) => pauses = backoff(&self.control.client),
                Ok(Next::Wait) => {
                    let pause = pauses.next().unwrap_or(GATHER);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.control.until_fenced() => break,
                    }
                }
                Ok(Next::Done) => break,
                Err(e) => {
                    tracing::error!(step = %self.step, error = format!("{e:#}"), "the output is given up");
                    break;
                }
            }
        }
        // Whoever still writes must not wait for a reader that is gone.
        let mut progress = self.shared.lock();
        if !progress.limited {
            self.budget.free(progress.written - self.offset);
            progress.limited = true;
        }
    }

    /// Waits until bytes are to be sent; answers the digest when only the seal is left.
    async fn wait(&self, sent_at: Option<Instant>) -> Option<String> {
        let mut until: Option<Instant> = None;
        loop {
            let changed = self.shared.changed.notified();
            {
                let progress = self.shared.lock();
                let pending = progress.written.saturating_sub(self.offset);
                if let Some(digest) = &progress.ended
                    && (pending == 0 || progress.limited)
                {
                    return Some(digest.clone());
                }
                if !progress.limited && pending > 0 {
                    if pending >= CHUNK || progress.ended.is_some() {
                        return None;
                    }
                    match (sent_at, until) {
                        (_, Some(_)) => {}
                        (Some(at), None) if at.elapsed() < QUIET => until = Some(at + GATHER),
                        _ => return None,
                    }
                }
            }
            match until {
                Some(until) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(until) => return None,
                    }
                }
                None => changed.await,
            }
        }
    }

    fn move_to(&mut self, offset: u64) -> anyhow::Result<()> {
        let written = self.shared.lock().written;
        anyhow::ensure!(offset <= written, "the suite has {offset} bytes of {written}");
        if offset >= self.offset {
            self.budget.free(offset - self.offset);
        } else {
            self.budget.add(self.offset - offset);
        }
        self.offset = offset;
        Ok(())
    }

    async fn send(&mut self) -> anyhow::Result<Next> {
        let len = CHUNK.min(self.shared.lock().written - self.offset) as usize;
        let mut chunk = vec![0u8; len];
        self.spool.read_exact_at(&mut chunk, self.offset)?;
        let crc = format!("{:08x}", crc32c::crc32c(&chunk));
        let path = format!("streams/{}/chunks?offset={}", self.step, self.offset);
        let sent = self.control.once(Method::PUT, &path, Some((CHUNK_CRC, crc)), Bytes::from(chunk), SEND);
        let sent = tokio::select! {
            sent = sent => sent,
            () = self.control.until_fenced() => return Ok(Next::Done),
        };
        match sent {
            Ok(answer) => {
                let ack: ChunkAck = serde_json::from_slice(&answer)?;
                self.move_to(ack.next_offset)?;
                if ack.limit_reached {
                    let mut progress = self.shared.lock();
                    self.budget.free(progress.written - self.offset);
                    progress.limited = true;
                }
                Ok(Next::Go)
            }
            Err(_) if self.control.stopped().is_some_and(Stop::is_fenced) => Ok(Next::Done),
            Err(failure) => match failure.code() {
                "offset_gap" => {
                    let next = failure.next_offset().unwrap_or(0);
                    let moved = next != self.offset;
                    self.move_to(next)?;
                    Ok(if moved { Next::Go } else { Next::Wait })
                }
                "checksum_mismatch" => Ok(Next::Wait),
                "stream_sealed" => Ok(Next::Done),
                _ if failure.is_temporary() => Ok(Next::Wait),
                _ => Err(failure.into()),
            },
        }
    }

    async fn seal(&mut self, digest: String) -> anyhow::Result<Next> {
        let (limited, produced) = {
            let progress = self.shared.lock();
            (progress.limited, progress.produced)
        };
        let sha256 = if limited { self.digest_of_stored()? } else { digest };
        let seal = Seal { total_bytes: self.offset, sha256, produced_bytes: produced };
        match self
            .control
            .insist(Method::POST, &format!("streams/{}/seal", self.step), None, encode(&seal))
            .await
        {
            Ok(_) | Err(Gone::Fenced) => Ok(Next::Done),
            Err(Gone::Refused(failure)) => match (failure.code(), failure.next_offset()) {
                ("seal_mismatch", Some(next)) if next != self.offset && self.mismatches < MAX_MISMATCHES => {
                    self.mismatches += 1;
                    self.move_to(next)?;
                    Ok(Next::Go)
                }
                _ => Err(failure.into()),
            },
        }
    }

    /// The spool may have more than the suite took.
    fn digest_of_stored(&self) -> io::Result<String> {
        digest(&self.spool, self.offset)
    }
}

/// SHA-256 of the first bytes of a file, in hex.
pub(super) fn digest(file: &File, length: u64) -> io::Result<String> {
    let mut hasher = Context::new(&SHA256);
    let mut buffer = vec![0u8; CHUNK as usize];
    let mut at = 0;
    while at < length {
        let len = (length - at).min(CHUNK) as usize;
        file.read_exact_at(&mut buffer[..len], at)?;
        hasher.update(&buffer[..len]);
        at += len as u64;
    }
    Ok(hex::encode(hasher.finish()))
}
