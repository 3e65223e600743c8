//! Output on its way to the suite: masked, spooled on disk, sent in chunks that may be repeated, sealed.

use crate::control::{Control, Gone, Stop, backoff, encode};
use agent_api::{CHUNK_CRC, ChunkAck, Seal};
use bytes::Bytes;
use hyper::Method;
use ids::StepId;
use sha2::{Digest, Sha256};
use std::{
    fs::{File, Permissions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
    time::Instant,
};

/// What the log of a step ends with whose agent died.
const DIED: &[u8] = b"\nThe agent died here; nothing of the step was recorded after this.\n";
/// Mode of a spool whose step has ended.
const WHOLE: u32 = 0o400;
const CHUNK: u64 = 256 * 1024;
/// Longer silence than this, and the next bytes go at once.
const QUIET: Duration = Duration::from_millis(50);
/// Else they are gathered for so long.
const GATHER: Duration = Duration::from_millis(100);
const SEND: Duration = Duration::from_secs(30);

/// Bytes on disk that the suite does not have yet, of all streams of the task.
pub(crate) struct Budget {
    limit: u64,
    held: AtomicU64,
    freed: Notify,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit: limit.max(1), held: AtomicU64::new(0), freed: Notify::new() })
    }

    pub(crate) fn is_full(&self) -> bool {
        self.held.load(Ordering::Relaxed) >= self.limit
    }

    /// Waits until something may be written. Who waits here does not read the program's output, so that in the
    /// end the program waits: nothing is dropped, and memory does not grow.
    pub(crate) async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            if !self.is_full() {
                return;
            }
            freed.await;
        }
    }

    fn add(&self, bytes: u64) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
    }

    fn free(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.freed.notify_waiters();
    }
}

#[derive(Default)]
struct Progress {
    /// Bytes in the spool.
    written: u64,
    /// Masked bytes that the step produced.
    produced: u64,
    /// The suite takes no more.
    limited: bool,
    /// SHA-256 of the spool, once the step has ended.
    ended: Option<String>,
}

struct Shared {
    progress: Mutex<Progress>,
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What no stream of the task shows.
struct Hidden {
    secrets: Mutex<masking::Secrets>,
    /// Counts its changes, so that open streams notice.
    version: AtomicU64,
}

impl Hidden {
    fn lock(&self) -> MutexGuard<'_, masking::Secrets> {
        self.secrets.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Later than the change it counts: who sees the new version sees the new values.
    fn changed(&self) {
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// The streams of a task.
pub(crate) struct Output {
    control: Arc<Control>,
    hidden: Arc<Hidden>,
    folder: PathBuf,
    pub(crate) budget: Arc<Budget>,
    uploads: Mutex<JoinSet<()>>,
}

impl Output {
    pub(crate) fn new(control: Arc<Control>, secrets: masking::Secrets, folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let budget = Budget::new(control.timing.spool_bytes);
        let hidden = Arc::new(Hidden { secrets: Mutex::new(secrets), version: AtomicU64::new(0) });
        Ok(Self { control, hidden, folder: folder.to_owned(), budget, uploads: Mutex::default() })
    }

    /// Hides these, and nothing else, in every stream from here on.
    pub(crate) fn hide(&self, secrets: masking::Secrets) {
        *self.hidden.lock() = secrets;
        self.hidden.changed();
    }

    /// Hides one more value in every stream from here on: one that was learned while the task runs.
    pub(crate) fn learn(&self, value: &str) {
        self.grow(|secrets| secrets.with(&[value]));
    }

    /// The same for a token that a step was given.
    pub(crate) fn learn_token(&self, token: &str) {
        self.grow(|secrets| secrets.with_tokens(&[token]));
    }

    fn grow(&self, more: impl FnOnce(&masking::Secrets) -> masking::Secrets) {
        let mut secrets = self.hidden.lock();
        *secrets = more(&secrets);
        drop(secrets);
        self.hidden.changed();
    }

    fn secrets(&self) -> masking::Secrets {
        self.hidden.lock().clone()
    }

    pub(crate) fn mask(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.secrets().mask(text.as_bytes())).into_owned()
    }

    /// Sends what an agent before this one had spooled and could not deliver. Where the step had not ended, a last
    /// line says why there is no more.
    pub(crate) fn recover(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Some(step) = entry.file_name().to_str().and_then(|name| name.parse::<StepId>().ok()) else {
                continue;
            };
            let whole = entry.metadata()?.permissions().mode() & 0o777 == WHOLE;
            let mut spool = File::options().read(true).append(!whole).open(&path)?;
            if !whole {
                spool.write_all(DIED)?;
            }
            let written = spool.metadata()?.len();
            self.budget.add(written);
            let ended = Some(digest(&spool, written)?);
            let progress = Progress { written, produced: written, limited: false, ended };
            let upload = Upload {
                control: Arc::clone(&self.control),
                shared: Arc::new(Shared { progress: Mutex::new(progress), changed: Notify::new() }),
                budget: Arc::clone(&self.budget),
                spool,
                step,
                offset: 0,
                mismatches: 0,
            };
            self.lock().spawn(async move {
                upload.run().await;
                let _ = std::fs::remove_file(path);
            });
        }
        Ok(())
    }

    /// Opens the stream of a step. Nothing is sent before `registered`: the suite hears of the step first.
    pub(crate) fn open(&self, step: StepId, registered: oneshot::Receiver<()>) -> io::Result<Stream> {
        let version = self.hidden.version.load(Ordering::Acquire);
        let secrets = self.secrets();
        let path = self.folder.join(step.to_string());
        let spool = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        let reader = File::open(&path)?;
        let shared = Arc::new(Shared { progress: Mutex::default(), changed: Notify::new() });
        let upload = Upload {
            control: Arc::clone(&self.control),
            shared: Arc::clone(&shared),
            budget: Arc::clone(&self.budget),
            spool: reader,
            step,
            offset: 0,
            mismatches: 0,
        };
        self.lock().spawn(async move {
            let _ = registered.await;
            upload.run().await;
            let _ = std::fs::remove_file(path);
        });
        Ok(Stream {
            masker: secrets.masker(),
            hidden: Arc::clone(&self.hidden),
            version,
            own: Vec::new(),
            spool,
            hasher: Sha256::new(),
            shared,
            budget: Arc::clone(&self.budget),
            scratch: Vec::new(),
            last: b'\n',
        })
    }

    fn lock(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.uploads.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits until every stream is sealed, or given up.
    pub(crate) async fn settle(&self) {
        let mut uploads = std::mem::take(&mut *self.lock());
        while uploads.join_next().await.is_some() {}
    }
}

/// One step's output.
pub(crate) struct Stream {
    hidden: Arc<Hidden>,
    version: u64,
    /// What this stream alone hides.
    own: Vec<String>,
    masker: masking::Masker,
    spool: File,
    hasher: Sha256,
    shared: Arc<Shared>,
    budget: Arc<Budget>,
    scratch: Vec<u8>,
    last: u8,
}

impl Stream {
    /// Takes output. The masker keeps what may be the beginning of a secret.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.hidden.version.load(Ordering::Acquire) != self.version {
            self.learn(&[])?;
        }
        let mut masked = std::mem::take(&mut self.scratch);
        self.masker.push(bytes, &mut masked);
        let kept = self.keep(&masked);
        masked.clear();
        self.scratch = masked;
        kept
    }

    /// Hides more values in this stream from here on, and what the task has learned since it was opened.
    pub(crate) fn learn(&mut self, values: &[String]) -> io::Result<()> {
        let mut rest = Vec::new();
        self.masker.flush(&mut rest);
        self.own.extend_from_slice(values);
        self.version = self.hidden.version.load(Ordering::Acquire);
        let secrets = self.hidden.lock().clone();
        self.masker = if self.own.is_empty() { secrets.masker() } else { secrets.with(&self.own).masker() };
        self.keep(&rest)
    }

    /// Adds a line of our own, below what the step wrote.
    pub(crate) fn note(&mut self, text: &str) -> io::Result<()> {
        let lead = if self.last == b'\n' { "" } else { "\n" };
        self.write(format!("{lead}{text}\n").as_bytes())
    }

    fn keep(&mut self, masked: &[u8]) -> io::Result<()> {
        let Some(last) = masked.last() else { return Ok(()) };
        self.last = *last;
        let len = masked.len() as u64;
        let limited = {
            let mut progress = self.shared.lock();
            progress.produced += len;
            progress.limited
        };
        if limited {
            return Ok(());
        }
        self.spool.write_all(masked)?;
        self.hasher.update(masked);
        self.budget.add(len);
        self.shared.lock().written += len;
        self.shared.changed.notify_one();
        Ok(())
    }

    /// Ends the stream; it is sealed in the background.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let mut rest = Vec::new();
        self.masker.flush(&mut rest);
        let kept = self.keep(&rest);
        drop(self);
        kept
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // A spool that nobody may write to is whole: an agent that takes it over adds nothing.
        if let Err(error) = self.spool.set_permissions(Permissions::from_mode(WHOLE)) {
            tracing::warn!(%error, "a spool is not marked as whole");
        }
        self.shared.lock().ended = Some(hex::encode(self.hasher.clone().finalize()));
        self.shared.changed.notify_one();
    }
}

struct Upload {
    control: Arc<Control>,
    shared: Arc<Shared>,
    budget: Arc<Budget>,
    spool: File,
    step: StepId,
    /// The suite has all bytes below.
    offset: u64,
    mismatches: u32,
}

/// Seals that may be refused before the stream is given up: more does not help, and would not end.
const MAX_MISMATCHES: u32 = 3;

enum Next {
    Go,
    Wait,
    Done,
}

impl Upload {
    async fn run(mut self) {
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
fn digest(file: &File, length: u64) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; CHUNK as usize];
    let mut at = 0;
    while at < length {
        let len = (length - at).min(CHUNK) as usize;
        file.read_exact_at(&mut buffer[..len], at)?;
        hasher.update(&buffer[..len]);
        at += len as u64;
    }
    Ok(hex::encode(hasher.finalize()))
}
