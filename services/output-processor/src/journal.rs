//! The journal: one per process, for all streams. Appends go to the page cache at once, so that readers see them;
//! one task syncs all of them together, and only then they are acknowledged.
//!
//! A segment is a header and frames: length, CRC-32C of the payload, payload. The first frame that does not check
//! ends a segment: it was torn by a crash, and nothing behind it was acknowledged. A segment is deleted when nobody
//! holds it any more: a holder is a stream that is not in the blob store yet, or a task whose record is not sealed.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const MAGIC: &[u8; 8] = b"GANTRYJ1";
const HEADER: u64 = 16;
const FRAME: usize = 8;
/// No frame is larger: a chunk has 1 MiB at most, a report too.
const MAX_PAYLOAD: usize = 8 << 20;

/// A file of the journal.
#[derive(Debug)]
pub(crate) struct Segment {
    number: u64,
    path: PathBuf,
    file: File,
}

/// Bytes in the journal. The file stays readable as long as someone knows a place in it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    segment: Arc<Segment>,
    at: u64,
}

impl Place {
    /// Reads `buffer.len()` bytes, `skip` bytes after the place.
    pub(crate) fn read(&self, skip: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.segment.file.read_exact_at(buffer, self.at + skip)
    }

    /// The place so many bytes later.
    pub(crate) fn after(&self, bytes: u64) -> Self {
        Self { segment: Arc::clone(&self.segment), at: self.at + bytes }
    }

    /// Grows with every append, also across restarts.
    pub(crate) fn version(&self) -> i64 {
        i64::try_from((self.segment.number << 32) | self.at).unwrap_or(i64::MAX)
    }
}

/// A moment of the journal; what was appended before is durable when the ticket is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// The journal failed; what was not acknowledged may be lost, and nothing more is accepted until a restart.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the journal cannot be written")]
pub(crate) struct Failed;

#[derive(Clone, Copy, Debug, Default)]
struct Durable {
    until: Ticket,
    failed: bool,
}

struct Writer {
    active: Arc<Segment>,
    length: u64,
    ticket: u64,
    /// Older segments that were written since the last sync.
    unsynced: Vec<Arc<Segment>>,
    /// A segment was made: its folder must be synced too.
    new_file: bool,
    /// Who needs which segment.
    held: BTreeMap<u64, (Arc<Segment>, HashSet<Uuid>)>,
    failed: bool,
}

pub(crate) struct Journal {
    folder: PathBuf,
    segment_bytes: u64,
    writer: Mutex<Writer>,
    written: Notify,
    durable: watch::Sender<Durable>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("folder", &self.folder).finish_non_exhaustive()
    }
}

fn make(folder: &Path, number: u64) -> io::Result<Arc<Segment>> {
    let path = folder.join(format!("{number:016x}.journal"));
    // Output of jobs is confidential: nobody else reads it from the disk.
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    let begun = file.write_all(MAGIC).and_then(|()| file.write_all(&number.to_le_bytes()));
    if let Err(error) = begun {
        // On a full disk: the name must be free when there is room again.
        fs::remove_file(&path)?;
        return Err(error);
    }
    Ok(Arc::new(Segment { number, path, file }))
}

fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".journal")?;
    u64::from_str_radix(name, 16).ok()
}

/// Segments in a folder, in order.
pub(crate) fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = fs::read_dir(folder)?
        .filter_map(|entry| entry.map(|entry| number_of(&entry.path())).transpose())
        .collect::<io::Result<_>>()?;
    numbers.sort_unstable();
    Ok(numbers)
}

/// Hands every payload of a segment to `each`, in order, up to a torn end. For a journal that nobody writes.
pub(crate) fn payloads<E: From<io::Error>>(
    folder: &Path,
    number: u64,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let bytes = fs::read(folder.join(format!("{number:016x}.journal")))?;
    let mut rest = if bytes.starts_with(MAGIC) { bytes.get(HEADER as usize..) } else { None };
    while let Some((left, payload)) = rest.and_then(|left| Some((left, frame(left)?))) {
        each(payload)?;
        rest = left.get(FRAME + payload.len()..);
    }
    Ok(())
}

/// Removes all segments of a folder. For a journal that nobody writes.
pub(crate) fn discard(folder: &Path) -> io::Result<()> {
    for number in numbers(folder)? {
        fs::remove_file(folder.join(format!("{number:016x}.journal")))?;
    }
    File::open(folder)?.sync_all()
}

/// Splits the next whole frame off; `None`: it is torn.
fn frame(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_at_checked(4)?;
    let (crc, rest) = rest.split_at_checked(4)?;
    let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(crc.try_into().ok()?);
    // A length of zero is what an unwritten block of a file reads as.
    if length == 0 || length > MAX_PAYLOAD {
        return None;
    }
    rest.get(..length).filter(|payload| crc32c::crc32c(payload) == crc)
}

impl Journal {
    /// Opens or makes the journal and hands every payload that it holds to `recover`, in order; it answers who
    /// needs it.
    pub(crate) fn open(
        folder: &Path,
        segment_bytes: u64,
        mut recover: impl FnMut(&[u8], Place) -> Option<Uuid>,
    ) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let numbers = numbers(folder)?;
        let mut held = BTreeMap::new();
        for (nth, &number) in numbers.iter().enumerate() {
            let path = folder.join(format!("{number:016x}.journal"));
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let mut bytes = Vec::new();
            (&file).read_to_end(&mut bytes)?;
            let segment = Arc::new(Segment { number, path, file });
            let holders = Self::recover_segment(&segment, &bytes, nth + 1 == numbers.len(), &mut recover)?;
            held.insert(number, (segment, holders));
        }
        // Always a fresh segment: what the last one holds stays as it was found.
        let number = numbers.last().map_or(1, |last| last + 1);
        let active = make(folder, number)?;
        held.insert(number, (Arc::clone(&active), HashSet::new()));
        let writer = Writer {
            active,
            length: HEADER,
            ticket: 0,
            unsynced: Vec::new(),
            new_file: true,
            held,
            failed: false,
        };
        let journal = Self {
            folder: folder.to_owned(),
            segment_bytes,
            writer: Mutex::new(writer),
            written: Notify::new(),
            durable: watch::Sender::new(Durable::default()),
        };
        journal.lock().delete_unheld();
        Ok(journal)
    }

    fn recover_segment(
        segment: &Arc<Segment>,
        bytes: &[u8],
        last: bool,
        recover: &mut impl FnMut(&[u8], Place) -> Option<Uuid>,
    ) -> io::Result<HashSet<Uuid>> {
        let mut holders = HashSet::new();
        if !bytes.starts_with(MAGIC) || bytes.len() < HEADER as usize {
            // A crash between making the file and its first sync.
            if !last {
                tracing::error!(segment = %segment.path.display(), "a journal segment has no header");
            }
            return Ok(holders);
        }
        let mut at = HEADER as usize;
        while let Some(payload) = bytes.get(at..).and_then(frame) {
            let place = Place { segment: Arc::clone(segment), at: (at + FRAME) as u64 };
            holders.extend(recover(payload, place));
            at += FRAME + payload.len();
        }
        if at < bytes.len() {
            let torn = bytes.len() - at;
            if last {
                tracing::warn!(segment = %segment.path.display(), torn, "cutting the torn end of the journal");
            } else {
                // Either two segments were unsynced when the machine went down, then nothing there was
                // acknowledged, or the disk lost something: keep the evidence.
                tracing::error!(segment = %segment.path.display(), torn, "a journal segment does not check");
                fs::write(segment.path.with_extension("damaged"), bytes)?;
            }
            segment.file.set_len(at as u64)?;
            segment.file.sync_all()?;
        }
        Ok(holders)
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        // Appends restore the length on every failure, so that a panic elsewhere leaves a whole journal.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a payload that `holder` needs. It is readable at once and durable with the ticket. `head` and `tail`
    /// are one payload; the place is that of the tail.
    pub(crate) fn append(&self, holder: Uuid, head: &[u8], tail: &[u8]) -> Result<(Place, Ticket), Failed> {
        let length = u32::try_from(head.len() + tail.len()).map_err(|_| Failed)?;
        let crc = crc32c::crc32c_append(crc32c::crc32c(head), tail);
        let mut bytes = Vec::with_capacity(FRAME + head.len() + tail.len());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(head);
        bytes.extend_from_slice(tail);

        let mut writer = self.lock();
        if writer.failed {
            return Err(Failed);
        }
        let appended = writer.append(&self.folder, self.segment_bytes, &bytes);
        let payload = appended.map_err(|error| {
            tracing::error!(%error, "the journal cannot be written");
            if writer.failed {
                self.durable.send_modify(|durable| durable.failed = true);
            }
            Failed
        })?;
        let number = payload.segment.number;
        if let Some((_, holders)) = writer.held.get_mut(&number) {
            holders.insert(holder);
        }
        let ticket = Ticket(writer.ticket);
        drop(writer);
        self.written.notify_one();
        Ok((payload.after(head.len() as u64), ticket))
    }

    /// From now on segments have higher numbers than this.
    pub(crate) fn begin_above(&self, number: u64) -> io::Result<()> {
        let mut writer = self.lock();
        if writer.active.number <= number { writer.roll(&self.folder, number + 1) } else { Ok(()) }
    }

    /// Accepts nothing more, so that another process may have the folder.
    pub(crate) fn end(&self) {
        self.lock().failed = true;
        self.durable.send_modify(|durable| durable.failed = true);
    }

    /// Waits until what has this ticket is on disk.
    pub(crate) async fn durable(&self, ticket: Ticket) -> Result<(), Failed> {
        let mut durable = self.durable.subscribe();
        let reached = durable
            .wait_for(|durable| durable.failed || durable.until >= ticket)
            .await
            .map_err(|_| Failed)?;
        if reached.until >= ticket { Ok(()) } else { Err(Failed) }
    }

    /// `holder` needs nothing of the journal any more.
    pub(crate) fn release(&self, holder: Uuid) {
        let mut writer = self.lock();
        for (_, holders) in writer.held.values_mut() {
            holders.remove(&holder);
        }
        writer.delete_unheld();
    }

    /// Segments on disk, the active one included.
    pub(crate) fn segments(&self) -> usize {
        self.lock().held.len()
    }

    /// Syncs what was appended, all of it together, until `stop`, and once more then.
    pub(crate) async fn sync_loop(&self, stop: CancellationToken) {
        loop {
            let stopping = tokio::select! {
                () = self.written.notified() => false,
                () = stop.cancelled() => true,
            };
            self.sync().await;
            if stopping {
                return;
            }
        }
    }

    async fn sync(&self) {
        let (until, segments, new_file) = {
            let mut writer = self.lock();
            let mut segments = std::mem::take(&mut writer.unsynced);
            segments.push(Arc::clone(&writer.active));
            (Ticket(writer.ticket), segments, std::mem::take(&mut writer.new_file))
        };
        if self.durable.borrow().until >= until {
            return;
        }
        let folder = self.folder.clone();
        let synced = tokio::task::spawn_blocking(move || {
            failpoints::failpoint_blocking("output-processor.journal.before")?;
            for segment in &segments {
                segment.file.sync_data()?;
            }
            if new_file {
                File::open(folder)?.sync_all()?;
            }
            failpoints::failpoint_blocking("output-processor.journal.after")?;
            io::Result::Ok(())
        });
        let result = synced.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        if let Err(error) = &result {
            // After a failed sync nobody knows what is on disk: only reading it again tells.
            tracing::error!(%error, "the journal cannot be synced; it accepts nothing until a restart");
            self.lock().failed = true;
        }
        self.durable.send_modify(|durable| match result {
            Ok(()) => durable.until = until,
            Err(_) => durable.failed = true,
        });
    }
}

impl Writer {
    fn append(&mut self, folder: &Path, segment_bytes: u64, bytes: &[u8]) -> io::Result<Place> {
        if self.length >= segment_bytes {
            self.roll(folder, self.active.number + 1)?;
        }
        if let Err(error) = self.active.file.write_all_at(bytes, self.length) {
            // A part may be there, for example on a full disk; the next append overwrites it, a crash cuts it.
            if let Err(error) = self.active.file.set_len(self.length) {
                tracing::error!(%error, "the journal cannot be cut");
                self.failed = true;
            }
            return Err(error);
        }
        let place = Place { segment: Arc::clone(&self.active), at: self.length + FRAME as u64 };
        self.length += bytes.len() as u64;
        self.ticket += bytes.len() as u64;
        Ok(place)
    }

    /// Begins another segment.
    fn roll(&mut self, folder: &Path, number: u64) -> io::Result<()> {
        let next = make(folder, number)?;
        self.held.insert(next.number, (Arc::clone(&next), HashSet::new()));
        self.unsynced.push(std::mem::replace(&mut self.active, next));
        self.length = HEADER;
        self.new_file = true;
        self.delete_unheld();
        Ok(())
    }

    fn delete_unheld(&mut self) {
        let active = self.active.number;
        self.held.retain(|&number, (segment, holders)| {
            if number == active || !holders.is_empty() {
                return true;
            }
            match fs::remove_file(&segment.path) {
                Ok(()) => false,
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => {
                    tracing::warn!(%error, segment = %segment.path.display(), "a journal segment stays");
                    true // the next release tries again
                }
            }
        });
    }
}
