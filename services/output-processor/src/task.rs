//! A task in memory, and the rules of its output. Every rule looks, appends to the journal and changes the state
//! under the task's lock, so that a close and a chunk cannot pass each other.

use crate::{
    config::Config,
    entry::{ChunkHead, Fact, SealFact},
    journal::{Failed, Journal, Place, Ticket},
};
use agent_api::{ChunkAck, Seal, StepReport};
use aws_lc_rs::digest::{Context, SHA256};
use contracts::{output::StepRecord, trace::Trace};
use ids::{JobId, StepId, TaskId, Timestamp};
use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Why something was not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Deny {
    #[error("the lease is over: its epoch is closed")]
    StaleLease,
    #[error("the step belongs to another task")]
    Foreign,
    #[error("bytes up to {0} are stored; go on there")]
    OffsetGap(u64),
    #[error("other bytes are stored at this offset")]
    LogConflict,
    #[error("the stream is sealed")]
    Sealed,
    #[error("the stored bytes are others than those that were to be sealed")]
    SealMismatch(u64),
    #[error("a task may report {0} steps (logs.max_steps)")]
    TooManySteps(usize),
    #[error("the task left memory while the request waited")]
    Gone,
    #[error(transparent)]
    Journal(#[from] Failed),
    #[error("the journal cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// A task whose output is not yet complete in the blob store.
pub(crate) struct Task {
    pub(crate) id: TaskId,
    /// Read while something of the task is committed elsewhere; a close waits until that is done.
    pub(crate) commits: std::sync::Arc<tokio::sync::RwLock<()>>,
    state: Mutex<TaskState>,
}

#[derive(Default)]
pub(crate) struct TaskState {
    pub(crate) job: Option<JobId>,
    /// What is said of it belongs there; not in the journal, so not known after a restart until its agent calls.
    pub(crate) trace: Option<Trace>,
    pub(crate) index: Option<u32>,
    /// Epochs up to this one are closed.
    pub(crate) closed: i64,
    pub(crate) closed_ticket: Ticket,
    pub(crate) closed_version: i64,
    /// Bytes that its streams store.
    bytes: u64,
    pub(crate) steps: BTreeMap<StepId, Step>,
    /// Removed from the maps: look again.
    pub(crate) gone: bool,
}

/// One step and its stream.
pub(crate) struct Step {
    pub(crate) epoch: i64,
    report: Option<StepReport>,
    /// Of the newest entry that changed the record.
    pub(crate) version: i64,
    /// Of the newest one that was written to the records.
    pub(crate) persisted: i64,
    /// Of the newest entry of all.
    pub(crate) ticket: Ticket,
    chunks: Vec<Chunk>,
    next: u64,
    /// Of all bytes so far, until the seal.
    hasher: Context,
    pub(crate) seal: Option<SealFact>,
    /// The bytes are in the blob store.
    pub(crate) stored: bool,
}

/// Bytes of a stream in the journal.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    offset: u64,
    length: u64,
    place: Place,
}

impl Chunk {
    /// The bytes of `from..to`, as far as they are in this chunk.
    pub(crate) fn read(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let (start, end) = (from.max(self.offset), to.min(self.offset + self.length));
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(start)).unwrap_or_default()];
        self.place.read(start - self.offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// Where bytes of a stream are.
#[derive(Debug)]
pub(crate) enum Whereabouts {
    Journal(Vec<Chunk>),
    Blob,
}

impl Step {
    fn new(epoch: i64) -> Self {
        Self {
            epoch,
            report: None,
            version: 0,
            persisted: 0,
            ticket: Ticket::default(),
            chunks: Vec::new(),
            next: 0,
            hasher: Context::new(&SHA256),
            seal: None,
            stored: false,
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.next
    }

    /// Where the bytes of a range are.
    pub(crate) fn whereabouts(&self, from: u64, to: u64) -> Whereabouts {
        if self.stored {
            return Whereabouts::Blob;
        }
        let first = self.chunks.partition_point(|chunk| chunk.offset + chunk.length <= from);
        Whereabouts::Journal(
            self.chunks[first..].iter().take_while(|chunk| chunk.offset < to).cloned().collect(),
        )
    }

    /// Whether the stored bytes at `offset` are these.
    fn holds(&self, offset: u64, data: &[u8]) -> io::Result<bool> {
        let end = offset + data.len() as u64;
        let Whereabouts::Journal(chunks) = self.whereabouts(offset, end) else {
            return Ok(false); // the caller compares with the blob
        };
        let mut rest = data;
        for chunk in chunks {
            let bytes = chunk.read(offset, end)?;
            let Some((head, tail)) = rest.split_at_checked(bytes.len()) else { return Ok(false) };
            if head != bytes {
                return Ok(false);
            }
            rest = tail;
        }
        Ok(rest.is_empty())
    }

    fn push(&mut self, place: Place, offset: u64, data: &[u8]) {
        self.hasher.update(data);
        let length = data.len() as u64;
        self.chunks.push(Chunk { offset, length, place });
        self.next = offset + length;
    }

    fn sha256(&self) -> String {
        hex::encode(self.hasher.clone().finish())
    }

    fn has_ended(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.status != "running")
    }

    /// The step as others see it; `None` while only its bytes are known.
    pub(crate) fn record(&self, id: StepId, index: u32) -> Option<StepRecord> {
        let report = self.report.as_ref()?;
        Some(StepRecord {
            step_id: id,
            number: report.number,
            index,
            name: report.name.clone(),
            status: report.status.clone(),
            bash_command: report.bash_command.clone(),
            exit_code: report.exit_code,
            background: report.background,
            started_at: report.started_at,
            ended_at: report.ended_at,
            bytes: self.next,
            log_state: self.seal.as_ref().map_or("open", SealFact::log_state).to_owned(),
            sha256: self.seal.as_ref().map(|seal| seal.sha256.clone()),
        })
    }

    pub(crate) fn drop_chunks(&mut self) {
        self.stored = true;
        self.chunks = Vec::new();
    }

    fn learn(&mut self, report: StepReport, version: i64) {
        // Terminal is final; a late "running" is a repeat that was overtaken.
        if !self.has_ended() {
            self.report = Some(report);
            self.version = version;
        }
    }

    fn close(&mut self, id: StepId, at: Timestamp, version: i64) {
        if self.seal.is_none() {
            let (total_bytes, sha256) = (self.next, self.sha256());
            self.seal =
                Some(SealFact { total_bytes, produced_bytes: total_bytes, sha256, interrupted: true });
            self.version = version;
        }
        // Its bytes were accepted, so they are shown, even if nobody said what they are of.
        let report = self.report.get_or_insert_with(|| StepReport {
            step_id: id,
            number: 0,
            name: "unreported step".to_owned(),
            status: "running".to_owned(),
            bash_command: None,
            exit_code: None,
            background: false,
            started_at: at,
            ended_at: None,
        });
        if report.status == "running" {
            "infrastructure_fail".clone_into(&mut report.status);
            report.ended_at = Some(at);
            self.version = version;
        }
    }
}

impl TaskState {
    fn step(&mut self, id: StepId, epoch: i64) -> &mut Step {
        self.steps.entry(id).or_insert_with(|| Step::new(epoch))
    }

    fn close(&mut self, epoch: i64, at: Timestamp, version: i64) {
        self.closed = self.closed.max(epoch);
        self.closed_version = self.closed_version.max(version);
        // A refused first chunk leaves an empty step behind, of which nothing is to be said.
        self.steps.retain(|_, step| {
            step.epoch > epoch || step.report.is_some() || step.seal.is_some() || step.next > 0
        });
        for (id, step) in &mut self.steps {
            if step.epoch <= epoch {
                step.close(*id, at, version);
            }
        }
    }

    /// Steps that changed since they were written to the records.
    pub(crate) fn unwritten(&self) -> impl Iterator<Item = (StepId, &Step)> {
        self.steps
            .iter()
            .filter(|(_, step)| step.report.is_some() && step.version > step.persisted)
            .map(|(id, step)| (*id, step))
    }

    /// Whether every epoch that left something is closed.
    pub(crate) fn is_over(&self) -> bool {
        self.closed > 0 && self.steps.values().all(|step| step.epoch <= self.closed)
    }

    fn accept(&mut self, step: StepId, lease: &Lease, limit: usize) -> Result<&mut Step, Deny> {
        self.admit(lease)?;
        if !self.steps.contains_key(&step) && self.steps.len() >= limit {
            return Err(Deny::TooManySteps(limit));
        }
        let step = self.step(step, lease.epoch);
        // A stream has one writer: another epoch never continues it.
        if step.epoch == lease.epoch { Ok(step) } else { Err(Deny::StaleLease) }
    }

    fn admit(&mut self, lease: &Lease) -> Result<(), Deny> {
        if self.gone {
            return Err(Deny::Gone);
        }
        if lease.epoch <= self.closed {
            return Err(Deny::StaleLease);
        }
        self.job.get_or_insert(lease.job_id);
        self.trace = self.trace.or(lease.trace);
        Ok(())
    }
}

/// Who writes: from the fence token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    pub(crate) job_id: JobId,
    pub(crate) epoch: i64,
    /// What its reports are told of within.
    pub(crate) trace: Option<Trace>,
}

/// An accepted chunk.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) ack: ChunkAck,
    /// Acknowledge when this is durable.
    pub(crate) ticket: Ticket,
    /// Whether there are new bytes.
    pub(crate) grew: bool,
}

/// What to do with a chunk of a stream whose bytes left the journal.
#[derive(Debug)]
pub(crate) enum ChunkVerdict {
    Accepted(Accepted),
    /// Equal bytes are a repeat; compare with the blob.
    CompareWithBlob {
        total: u64,
    },
}

impl Task {
    pub(crate) fn new(id: TaskId) -> Self {
        Self { id, commits: std::sync::Arc::default(), state: Mutex::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, TaskState> {
        // Every rule appends first and changes the state last: a panic leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a lease may still write.
    pub(crate) fn check(&self, lease: &Lease) -> Result<(), Deny> {
        self.lock().admit(lease)
    }

    /// A chunk of output (reliability §8.1).
    pub(crate) fn chunk(
        &self,
        journal: &Journal,
        config: &Config,
        lease: &Lease,
        step_id: StepId,
        offset: u64,
        data: &[u8],
    ) -> Result<ChunkVerdict, Deny> {
        let mut state = self.lock();
        let task_room = config.max_task_bytes.saturating_sub(state.bytes);
        let step = state.accept(step_id, lease, config.max_steps)?;
        if offset > step.next {
            return Err(if step.seal.is_some() { Deny::Sealed } else { Deny::OffsetGap(step.next) });
        }
        let overlap = usize::try_from(step.next - offset).unwrap_or(usize::MAX).min(data.len());
        let (old, new) = data.split_at(overlap);
        if step.seal.is_some() && !new.is_empty() {
            return Err(Deny::Sealed);
        }
        if step.stored && !old.is_empty() {
            return Ok(ChunkVerdict::CompareWithBlob { total: step.next });
        }
        if !step.holds(offset, old)? {
            return Err(if step.seal.is_some() { Deny::Sealed } else { Deny::LogConflict });
        }
        let room = config.max_step_bytes.saturating_sub(step.next).min(task_room);
        let stored = &new[..usize::try_from(room).unwrap_or(usize::MAX).min(new.len())];
        if !stored.is_empty() {
            let at = step.next;
            let head =
                ChunkHead { task_id: self.id, job_id: lease.job_id, step_id, epoch: lease.epoch, offset: at };
            let (place, ticket) = journal.append(step_id.uuid(), &head.encode(), stored)?;
            step.push(place, at, stored);
            step.ticket = ticket;
        }
        let ack = ChunkAck { next_offset: step.next, limit_reached: stored.len() < new.len() };
        let accepted = Accepted { ack, ticket: step.ticket, grew: !stored.is_empty() };
        state.bytes += stored.len() as u64;
        Ok(ChunkVerdict::Accepted(accepted))
    }

    /// The end of a stream. Whether it is new, and the ticket to wait for.
    pub(crate) fn seal(
        &self,
        journal: &Journal,
        config: &Config,
        lease: &Lease,
        step_id: StepId,
        seal: &Seal,
    ) -> Result<(bool, Ticket), Deny> {
        let mut state = self.lock();
        let step = state.accept(step_id, lease, config.max_steps)?;
        let sha256 = seal.sha256.to_ascii_lowercase();
        if let Some(sealed) = &step.seal {
            let same = sealed.sha256 == sha256 && sealed.total_bytes == seal.total_bytes;
            return if same { Ok((false, step.ticket)) } else { Err(Deny::Sealed) };
        }
        if seal.total_bytes != step.next || sha256 != step.sha256() {
            // Bytes are missing at the end, or somewhere something differs: then all are compared again.
            return Err(Deny::SealMismatch(if seal.total_bytes > step.next { step.next } else { 0 }));
        }
        let fact = SealFact {
            total_bytes: seal.total_bytes,
            produced_bytes: seal.produced_bytes.max(seal.total_bytes),
            sha256,
            interrupted: false,
        };
        let (task_id, job_id, epoch) = (self.id, lease.job_id, lease.epoch);
        let entry = Fact::Sealed { task_id, job_id, epoch, step_id, seal: fact.clone() };
        let (place, ticket) = journal.append(step_id.uuid(), &entry.encode(), &[])?;
        step.seal = Some(fact);
        step.ticket = ticket;
        step.version = place.version();
        Ok((true, ticket))
    }

    /// A step began or ended. Whether that is news, and the ticket to wait for.
    pub(crate) fn report(
        &self,
        journal: &Journal,
        config: &Config,
        lease: &Lease,
        report: StepReport,
    ) -> Result<(bool, Ticket), Deny> {
        let mut state = self.lock();
        let step = state.accept(report.step_id, lease, config.max_steps)?;
        let known = step.report.as_ref();
        if step.has_ended() || known.is_some_and(|known| known.status == report.status) {
            return Ok((false, step.ticket));
        }
        let (task_id, job_id, epoch) = (self.id, lease.job_id, lease.epoch);
        let fact = Fact::Step { task_id, job_id, epoch, report: report.clone() };
        let (place, ticket) = journal.append(task_id.uuid(), &fact.encode(), &[])?;
        step.learn(report, place.version());
        step.ticket = ticket;
        Ok((true, ticket))
    }

    /// Closes an epoch: nothing of it is accepted after this returns. Whether it is news, and the ticket.
    pub(crate) fn close(&self, journal: &Journal, epoch: i64, at: Timestamp) -> Result<(bool, Ticket), Deny> {
        let mut state = self.lock();
        if state.gone {
            return Err(Deny::Gone);
        }
        if epoch <= state.closed {
            return Ok((false, state.closed_ticket));
        }
        let fact = Fact::Closed { task_id: self.id, epoch, at };
        let (place, ticket) = journal.append(self.id.uuid(), &fact.encode(), &[])?;
        state.close(epoch, at, place.version());
        state.closed_ticket = ticket;
        Ok((true, ticket))
    }

    /// The bytes of a stream are in the blob store. `None`: that was known.
    pub(crate) fn stored(&self, journal: &Journal, step_id: StepId) -> Result<Option<Ticket>, Deny> {
        let mut state = self.lock();
        let (Some(job_id), false) = (state.job, state.gone) else { return Ok(None) };
        let Some(step) = state.steps.get_mut(&step_id).filter(|step| !step.stored) else { return Ok(None) };
        let Some(seal) = step.seal.clone() else { return Ok(None) };
        let fact = Fact::Stored { task_id: self.id, job_id, epoch: step.epoch, step_id, seal };
        let (_, ticket) = journal.append(self.id.uuid(), &fact.encode(), &[])?;
        step.drop_chunks();
        Ok(Some(ticket))
    }

    /// Takes in what the journal held at the start.
    pub(crate) fn replay_chunk(&self, head: &ChunkHead, data: &[u8], place: Place) {
        let mut state = self.lock();
        state.job.get_or_insert(head.job_id);
        let step = state.step(head.step_id, head.epoch);
        // A gap: the beginning is in the blob store, which a later entry says, or it was lost, and the agent,
        // which keeps its bytes until the seal, sends it again.
        if head.offset == step.next {
            step.push(place, head.offset, data);
            state.bytes += data.len() as u64;
        }
    }

    /// Takes in a fact that the journal held at the start.
    pub(crate) fn replay_fact(&self, fact: Fact, version: i64) {
        let mut state = self.lock();
        match fact {
            Fact::Step { job_id, epoch, report, .. } => {
                state.job.get_or_insert(job_id);
                state.step(report.step_id, epoch).learn(report, version);
            }
            Fact::Sealed { job_id, epoch, step_id, seal, .. } => {
                state.job.get_or_insert(job_id);
                let step = state.step(step_id, epoch);
                if seal.total_bytes != step.next || seal.sha256 != step.sha256() {
                    // True if the beginning is in the blob store; then the entry that says so comes later.
                    tracing::debug!(%step_id, "a sealed stream is not whole in the journal");
                }
                step.seal = Some(seal);
                step.version = version;
            }
            Fact::Stored { job_id, epoch, step_id, seal, .. } => {
                state.job.get_or_insert(job_id);
                let step = state.step(step_id, epoch);
                step.next = seal.total_bytes;
                step.version = step.version.max(version);
                step.seal = Some(seal);
                step.drop_chunks();
            }
            Fact::Closed { epoch, at, .. } => state.close(epoch, at, version),
        }
    }
}
