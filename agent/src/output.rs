//! Output on its way to the suite: masked, spooled on disk, sent in chunks that may be repeated, sealed.

mod reserve;
mod upload;

use crate::control::Control;
use aws_lc_rs::digest::{Context, SHA256};
use ids::StepId;
use reserve::Reserve;
use std::{
    fs::{File, Permissions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
};
use upload::{Upload, digest};

/// What the log of a step ends with whose agent died.
const DIED: &[u8] = b"\nThe agent died here; nothing of the step was recorded after this.\n";
/// Mode of a spool whose step has ended.
const WHOLE: u32 = 0o400;

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
    reserve: Arc<Reserve>,
    pub(crate) budget: Arc<Budget>,
    uploads: Mutex<JoinSet<()>>,
}

impl Output {
    pub(crate) fn new(control: Arc<Control>, secrets: masking::Secrets, folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let budget = Budget::new(control.timing.spool_bytes);
        let hidden = Arc::new(Hidden { secrets: Mutex::new(secrets), version: AtomicU64::new(0) });
        let reserve = Arc::new(Reserve::make(folder));
        Ok(Self { control, hidden, folder: folder.to_owned(), reserve, budget, uploads: Mutex::default() })
    }

    /// What a step says that failed while nothing was left of the disk: it is not its author's fault.
    pub(crate) fn out_of_room(&self) -> io::Result<()> {
        if self.reserve.is_last() { Err(self.reserve.disk_full()) } else { Ok(()) }
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

    /// What is hidden by now.
    pub(crate) fn secrets(&self) -> masking::Secrets {
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
        Ok(Stream(Arc::new(Mutex::new(Open {
            masker: secrets.masker(),
            hidden: Arc::clone(&self.hidden),
            version,
            own: Vec::new(),
            spool,
            hasher: Context::new(&SHA256),
            shared,
            reserve: Arc::clone(&self.reserve),
            budget: Arc::clone(&self.budget),
            scratch: Vec::new(),
            last: b'\n',
        }))))
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
pub(crate) struct Stream(Arc<Mutex<Open>>);

impl Stream {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes output. The masker keeps what may be the beginning of a secret.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.lock().write(bytes)
    }

    /// Hides more values in this stream from here on, and what the task has learned since it was opened.
    pub(crate) fn learn(&mut self, values: &[String]) -> io::Result<()> {
        self.lock().learn(values)
    }

    /// Adds a line of our own, below what the step wrote.
    pub(crate) fn note(&mut self, text: &str) -> io::Result<()> {
        self.lock().note(text)
    }

    /// Ends the stream; it is sealed in the background.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.lock().flush()
    }

    /// For who has something to say about the step while another writes it.
    pub(crate) fn aside(&self) -> Aside {
        Aside(Arc::downgrade(&self.0))
    }
}

/// Adds lines to a stream that somebody else writes, as long as it is open.
pub(crate) struct Aside(Weak<Mutex<Open>>);

impl Aside {
    pub(crate) fn note(&self, text: &str) {
        let Some(open) = self.0.upgrade() else { return };
        let noted = open.lock().unwrap_or_else(std::sync::PoisonError::into_inner).note(text);
        if let Err(error) = noted {
            // Who writes the stream finds that too.
            tracing::debug!(%error, "a remark was not written");
        }
    }
}

/// What is behind a [`Stream`].
struct Open {
    hidden: Arc<Hidden>,
    version: u64,
    /// What this stream alone hides.
    own: Vec<String>,
    masker: masking::Masker,
    spool: File,
    hasher: Context,
    shared: Arc<Shared>,
    reserve: Arc<Reserve>,
    budget: Arc<Budget>,
    scratch: Vec<u8>,
    last: u8,
}

impl Open {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
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

    fn learn(&mut self, values: &[String]) -> io::Result<()> {
        let mut rest = Vec::new();
        self.masker.flush(&mut rest);
        self.own.extend_from_slice(values);
        self.version = self.hidden.version.load(Ordering::Acquire);
        let secrets = self.hidden.lock().clone();
        self.masker = if self.own.is_empty() { secrets.masker() } else { secrets.with(&self.own).masker() };
        self.keep(&rest)
    }

    fn note(&mut self, text: &str) -> io::Result<()> {
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
        match self.spool(masked) {
            Err(error) if reserve::is_full(&error) => {
                // What was read is kept, and a few lines after it; the step ends.
                if self.reserve.release() {
                    self.spool(masked)?;
                }
                Err(self.reserve.disk_full())
            }
            done => done,
        }
    }

    /// Writes all of it or nothing.
    fn spool(&mut self, masked: &[u8]) -> io::Result<()> {
        if let Err(error) = self.spool.write_all(masked) {
            let written = self.shared.lock().written;
            self.spool.set_len(written)?;
            self.spool.seek(SeekFrom::Start(written))?;
            return Err(error);
        }
        let len = masked.len() as u64;
        self.hasher.update(masked);
        self.budget.add(len);
        self.shared.lock().written += len;
        self.shared.changed.notify_one();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut rest = Vec::new();
        self.masker.flush(&mut rest);
        self.keep(&rest)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // A spool that nobody may write to is whole: an agent that takes it over adds nothing.
        if let Err(error) = self.spool.set_permissions(Permissions::from_mode(WHOLE)) {
            tracing::warn!(%error, "a spool is not marked as whole");
        }
        self.shared.lock().ended = Some(hex::encode(self.hasher.clone().finish()));
        self.shared.changed.notify_one();
    }
}
