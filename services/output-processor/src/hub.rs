//! All tasks of this process, and the handles that its parts share.

use crate::{
    config::Config,
    entry::{Entry, Fact, decode},
    journal::{Failed, Journal, Place, Ticket},
    peers::Peers,
    slot::Slot,
    store,
    task::{Deny, Task, Whereabouts},
};
use backon::{ExponentialBuilder, Retryable};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use blobs::{Blobs, Key};
use bus::Bus;
use bytes::Bytes;
use contracts::output::{LogWindow, StepPlace, StepRecord};
use eventstore::Store;
use futures::StreamExt;
use ids::{JobId, StepId, TaskId, Timestamp};
use kit::keys::Keys;
use live::Live;
use records::{Document, NewDocument, Records};
use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Kind of the documents of steps; their group is the job.
pub(crate) const STEP: &str = "step";
/// The records are not asked again so soon after they did not answer.
const AWAY: Duration = Duration::from_secs(2);
/// Most bytes of a window.
pub(crate) const WINDOW: u64 = 128 * 1024;
/// Readers that may wait long at the same time. Each holds one of the places for requests to this service, and a
/// crowd of viewers must not keep a close waiting.
const WAITERS: usize = 24;
/// How long the others wait.
const CROWDED: Duration = Duration::from_millis(100);
/// Longest pause between two tries to read what the stores have of a journal.
const AGAIN: Duration = Duration::from_secs(5);
/// How long a reader trusts that it is told of new bytes.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Work for the background.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Move a sealed stream to the blob store.
    Store(TaskId, StepId),
    /// Complete the record of a task whose epochs are closed.
    Finish(TaskId),
}

/// Work and how often it failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Todo {
    pub(crate) work: Work,
    pub(crate) failures: u32,
}

/// Tasks, and how they are found.
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) tasks: HashMap<TaskId, Arc<Task>>,
    steps: HashMap<StepId, TaskId>,
    jobs: HashMap<JobId, HashSet<TaskId>>,
}

/// The service's state. Shared by reference count.
pub(crate) struct Hub {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) keys: Keys,
    pub(crate) bus: Bus,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) live: Arc<dyn Live>,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) journal: Journal,
    /// Where the journal is.
    pub(crate) slot: Slot,
    /// `None`: no other process serves.
    pub(crate) peers: Option<Peers>,
    /// Ends waits of readers: they ask again, and another process answers.
    pub(crate) stop: CancellationToken,
    index: Mutex<Index>,
    /// Held while a task comes into the maps or leaves them, so that its fence is never read half way.
    pub(crate) moving: tokio::sync::Mutex<()>,
    /// Tasks with steps that are to be written to the records.
    pub(crate) changed: Mutex<HashSet<TaskId>>,
    pub(crate) changes: Notify,
    pub(crate) work: mpsc::UnboundedSender<Todo>,
    waiters: Semaphore,
    /// When a step was last not found because the records did not answer.
    records_failed: Mutex<Option<Instant>>,
}

/// What the hub is made of.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) keys: Keys,
    pub(crate) bus: Bus,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) live: Arc<dyn Live>,
    pub(crate) records: Arc<dyn Records>,
    /// Where other processes of this service reach this one; `None`: there are none.
    pub(crate) peer_url: Option<String>,
    pub(crate) stop: CancellationToken,
}

/// Work that a task was left with.
pub(crate) type Left = Vec<(Arc<Task>, Vec<Work>)>;

/// Name of a stream's blob.
pub(crate) fn log_key(step: StepId) -> blobs::Result<Key> {
    Key::new(format!("logs/{step}"))
}

impl Hub {
    /// Opens the journal and takes in what it holds.
    pub(crate) async fn open(
        parts: Parts,
        folder: &Path,
        work: mpsc::UnboundedSender<Todo>,
    ) -> anyhow::Result<Self> {
        let (root, segment_bytes) = (folder.to_owned(), parts.config.segment_bytes);
        let opened = tokio::task::spawn_blocking(move || {
            let slot = Slot::take(&root)?;
            let mut index = Index::default();
            let journal = Journal::open(&slot.folder, segment_bytes, |payload, place| {
                let entry = known(payload)?;
                let holder = holder(&entry);
                index.replay(entry, place);
                Some(holder)
            })?;
            std::io::Result::Ok((slot, journal, index))
        });
        let (slot, journal, index) = opened.await??;
        let Parts { config, store, keys, bus, blobs, live, records, peer_url, stop } = parts;
        let peers = match &peer_url {
            Some(url) => {
                store::opened(store.pool(), slot.id, url).await?;
                Some(Peers::new(slot.id, keys.clone(), store.clone())?)
            }
            None => None,
        };
        let hub = Self {
            config,
            store,
            keys,
            bus,
            blobs,
            live,
            records,
            journal,
            slot,
            peers,
            stop,
            index: Mutex::new(index),
            moving: tokio::sync::Mutex::default(),
            changed: Mutex::default(),
            changes: Notify::new(),
            work,
            waiters: Semaphore::new(WAITERS),
            records_failed: Mutex::default(),
        };
        let tasks: Vec<Arc<Task>> = hub.index().tasks.values().cloned().collect();
        // What was written lies in the stores, which may be away: they are waited for (reliability R-38).
        let pauses = ExponentialBuilder::default()
            .with_min_delay(AGAIN / 10)
            .with_max_delay(AGAIN)
            .without_max_times();
        let left = (|| hub.settle(tasks.clone(), None))
            .retry(pauses)
            .when(|_| !hub.stop.is_cancelled())
            .notify(|error, _| {
                tracing::warn!(error = format!("{error:#}"), "the journal waits for the stores");
            })
            .await?;
        hub.go_on(left);
        Ok(hub)
    }

    /// Drops what was finished before the tasks were read from a journal, and what is another process's; what is left of the
    /// others to be done. What belongs to the journal `from`, which is taken over, counts as ours.
    pub(crate) async fn settle(&self, tasks: Vec<Arc<Task>>, from: Option<Uuid>) -> anyhow::Result<Left> {
        let ids: Vec<TaskId> = tasks.iter().map(|task| task.id).collect();
        let known = store::known(self.store.pool(), &ids).await?;
        let (mut left, mut over, mut claims) = (Vec::new(), Vec::new(), Vec::new());
        for task in tasks {
            let written = self.written_versions(&task).await?;
            let known = known.get(&task.id).copied().unwrap_or_default();
            let ours = |owner: Uuid| {
                from == Some(owner) || self.peers.as_ref().is_none_or(|peers| owner == peers.me)
            };
            if known.owner.is_some_and(|owner| !ours(owner)) {
                self.evict(&task);
                continue;
            }
            let (is_over, work) = self.stands(&task, known, &written);
            if is_over {
                self.evict(&task);
                over.push(task.id);
            } else {
                if known.owner.is_none() {
                    claims.push(task.id);
                }
                left.push((task, work));
            }
        }
        if let Some(peers) = &self.peers {
            store::disown(self.store.pool(), &over, peers.me).await?;
            store::claim_all(self.store.pool(), &claims, peers.me).await?;
        }
        Ok(left)
    }

    /// Whether everything of a task was finished before, and else what is to be done.
    fn stands(&self, task: &Task, known: store::Known, written: &HashMap<StepId, i64>) -> (bool, Vec<Work>) {
        let mut work = Vec::new();
        let mut done = Vec::new();
        let mut state = task.lock();
        state.index = known.index;
        for (id, step) in &mut state.steps {
            step.persisted = written.get(id).copied().unwrap_or_default();
        }
        // A fence row is written when the record of its epochs is complete.
        let finished = state.steps.iter().filter(|(_, step)| step.epoch <= known.closed_to);
        done.extend(finished.map(|(id, _)| *id));
        for step in &done {
            state.steps.remove(step);
        }
        let stored = state.steps.iter().filter(|(_, step)| step.stored).map(|(id, _)| id.uuid());
        let stored: Vec<_> = stored.chain(done.iter().map(|id| id.uuid())).collect();
        for step in stored {
            self.journal.release(step);
        }
        let over = state.steps.is_empty() && state.closed <= known.closed_to;
        state.closed = state.closed.max(known.closed_to);
        for (id, step) in &state.steps {
            if step.seal.is_some() && !step.stored {
                work.push(Work::Store(task.id, *id));
            }
        }
        if !over && state.is_over() {
            work.push(Work::Finish(task.id));
        }
        (over, work)
    }

    /// Puts tasks that are in memory to work.
    pub(crate) fn go_on(&self, left: Left) {
        for (task, work) in left {
            work.into_iter().for_each(|work| self.later(work));
            self.changed(task.id);
        }
    }

    /// Takes tasks of another journal into memory. The caller holds `moving`.
    pub(crate) fn take_in(&self, from: Index) {
        let Index { tasks, steps, jobs } = from;
        let mut index = self.index();
        let tasks: HashMap<TaskId, Arc<Task>> =
            tasks.into_iter().filter(|(_, task)| !task.lock().gone).collect();
        index.steps.extend(steps.into_iter().filter(|(_, task)| tasks.contains_key(task)));
        for (job, of) in jobs {
            let of: Vec<TaskId> = of.into_iter().filter(|task| tasks.contains_key(task)).collect();
            if !of.is_empty() {
                index.jobs.entry(job).or_default().extend(of);
            }
        }
        index.tasks.extend(tasks);
    }

    /// What the records have of a task's steps, so that a restart does not tell it all again.
    async fn written_versions(&self, task: &Task) -> anyhow::Result<HashMap<StepId, i64>> {
        let job = task.lock().job;
        let Some(job) = job else { return Ok(HashMap::new()) };
        let documents = self.records.list_by(STEP, job.uuid()).await?;
        Ok(documents.into_iter().map(|document| (StepId(document.id), document.version)).collect())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task, with its fence; takes it into memory if it is not there.
    pub(crate) async fn task(&self, id: TaskId) -> sqlx::Result<Arc<Task>> {
        if let Some(task) = self.task_in_memory(id) {
            return Ok(task);
        }
        let _moving = self.moving.lock().await;
        if let Some(task) = self.task_in_memory(id) {
            return Ok(task);
        }
        let known = store::known(self.store.pool(), &[id]).await?.remove(&id).unwrap_or_default();
        let task = self.index().task(id);
        {
            let mut state = task.lock();
            state.closed = state.closed.max(known.closed_to);
            state.index = known.index;
        }
        Ok(task)
    }

    /// All tasks in memory, none of them on its way in or out.
    pub(crate) async fn held(&self) -> Vec<Arc<Task>> {
        let _moving = self.moving.lock().await;
        self.index().tasks.values().cloned().collect()
    }

    /// What was closed before this is past its retention; `None`: nothing ever is.
    pub(crate) fn retained_since(&self, now: Timestamp) -> Option<Timestamp> {
        let days = i64::from(self.config.retention_days);
        (days > 0).then(|| now - chrono::TimeDelta::days(days))
    }

    pub(crate) fn task_in_memory(&self, id: TaskId) -> Option<Arc<Task>> {
        self.index().tasks.get(&id).cloned()
    }

    /// Refuses a step of another task.
    pub(crate) fn check_owner(&self, task: TaskId, step: StepId) -> Result<(), Deny> {
        let foreign = self.index().steps.get(&step).is_some_and(|owner| *owner != task);
        if foreign { Err(Deny::Foreign) } else { Ok(()) }
    }

    /// Lets readers find a task by its step and job.
    pub(crate) fn place(&self, task: TaskId, job: JobId, step: StepId) {
        self.index().place(task, Some(job), Some(step));
    }

    /// Takes a task out of memory. The caller holds `moving`, or nothing else runs yet.
    pub(crate) fn evict(&self, task: &Task) {
        let (steps, job) = {
            let mut state = task.lock();
            state.gone = true;
            (state.steps.keys().copied().collect::<Vec<_>>(), state.job)
        };
        {
            let mut index = self.index();
            index.tasks.remove(&task.id);
            for step in &steps {
                index.steps.remove(step);
            }
            if let Some(job) = job
                && let Some(tasks) = index.jobs.get_mut(&job)
            {
                tasks.remove(&task.id);
                if tasks.is_empty() {
                    index.jobs.remove(&job);
                }
            }
        }
        for step in steps {
            self.journal.release(step.uuid());
        }
        self.journal.release(task.id.uuid());
    }

    /// Lets a task leave memory that was only looked up: all that is known of it is its row.
    pub(crate) async fn let_go(&self, task: &Task) {
        let _moving = self.moving.lock().await;
        {
            let mut state = task.lock();
            if state.gone || state.closed_version > 0 || state.closed == 0 || !state.steps.is_empty() {
                return;
            }
            state.gone = true;
        }
        self.evict(task);
        self.disown(task.id).await;
    }

    /// Nothing of a task is ours any more; whoever is called next may say what is known of it.
    pub(crate) async fn disown(&self, task: TaskId) {
        let Some(peers) = &self.peers else { return };
        if let Err(error) = store::disown(self.store.pool(), &[task], peers.me).await {
            // The next start of this journal does it; until then calls come here.
            tracing::debug!(%error, "a task that is over stays this process's");
        }
    }

    /// Notes that steps of a task are to be written to the records.
    pub(crate) fn changed(&self, task: TaskId) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(task);
        self.changes.notify_one();
    }

    pub(crate) fn later(&self, work: Work) {
        // The receiver lives as long as the process serves; what is lost with it is found again at the start.
        if self.work.send(Todo { work, failures: 0 }).is_err() {
            tracing::debug!(?work, "left for the next start");
        }
    }

    /// Tells viewers how many bytes a step has now.
    pub(crate) async fn tell_output(&self, step: StepId, total: u64) {
        let told = self.live.publish(&live::step_topic(step), Bytes::from(total.to_string())).await;
        if let Err(error) = told {
            tracing::debug!(%error, "viewers look by themselves");
        }
    }

    /// Tells viewers that a job's steps changed.
    pub(crate) async fn tell_job(&self, job: JobId, step: StepId) {
        let told = self.live.publish(&live::job_topic(job), Bytes::from(step.to_string())).await;
        if let Err(error) = told {
            tracing::debug!(%error, "viewers look by themselves");
        }
    }

    pub(crate) fn owner(&self, step: StepId) -> Option<Arc<Task>> {
        let index = self.index();
        index.tasks.get(index.steps.get(&step)?).cloned()
    }

    /// A step and where it belongs.
    pub(crate) async fn step(&self, id: StepId) -> anyhow::Result<Option<StepPlace>> {
        if let Some(task) = self.owner(id) {
            let state = task.lock();
            let record =
                state.steps.get(&id).and_then(|step| step.record(id, state.index.unwrap_or_default()));
            if let (Some(step), Some(job_id)) = (record, state.job) {
                return Ok(Some(StepPlace { job_id, task_id: task.id, step }));
            }
        }
        // A store that is away lets each ask wait for seconds; one of them is enough for all that come together.
        if self
            .records_failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some_and(|at| at.elapsed() < AWAY)
        {
            let why: Box<dyn std::error::Error + Send + Sync> = "it did not answer a moment ago".into();
            return Err(records::Error::from(why).into());
        }
        let found = self.records.get(STEP, id.uuid()).await;
        if found.is_err() {
            *self.records_failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        let document = found?;
        Ok(document.map(|document| serde_json::from_value(document.body)).transpose()?)
    }

    /// All steps of a job, by index and number.
    pub(crate) async fn steps_of(&self, job: JobId) -> anyhow::Result<Vec<StepRecord>> {
        // Memory first: what is not there any more is complete in the records.
        let mut steps: HashMap<StepId, StepRecord> = HashMap::new();
        let tasks: Vec<Arc<Task>> = {
            let index = self.index();
            let ids = index.jobs.get(&job).into_iter().flatten();
            ids.filter_map(|id| index.tasks.get(id).cloned()).collect()
        };
        for task in tasks {
            let state = task.lock();
            let index = state.index.unwrap_or_default();
            steps.extend(state.steps.iter().filter_map(|(id, step)| Some((*id, step.record(*id, index)?))));
        }
        for Document { body, .. } in self.records.list_by(STEP, job.uuid()).await? {
            let place: StepPlace = serde_json::from_value(body)?;
            steps.entry(place.step.step_id).or_insert(place.step);
        }
        let mut steps: Vec<StepRecord> = steps.into_values().collect();
        steps.sort_by_key(|step| (step.index, step.number, step.started_at, step.step_id));
        Ok(steps)
    }

    /// A window of a step's output; `None`: nobody knows the step.
    pub(crate) async fn window(
        &self,
        id: StepId,
        offset: u64,
        limit: u32,
    ) -> anyhow::Result<Option<LogWindow>> {
        let limit = u64::from(limit).min(WINDOW);
        let until = offset.saturating_add(limit);
        let in_memory = self.owner(id).and_then(|task| {
            let state = task.lock();
            let step = state.steps.get(&id)?;
            Some((step.total(), step.seal.is_some(), step.whereabouts(offset, until.min(step.total()))))
        });
        let (total, sealed, whereabouts) = match in_memory {
            Some(found) => found,
            None => match self.step(id).await {
                Ok(Some(place)) => (place.step.bytes, true, Whereabouts::Blob),
                Ok(None) => return Ok(None),
                // Without its record: what was stored is the whole output.
                Err(error) => match self.blobs.head(&log_key(id)?).await {
                    Ok(Some(meta)) => (meta.size, true, Whereabouts::Blob),
                    Ok(None) | Err(_) => return Err(error),
                },
            },
        };
        let until = until.min(total);
        let data = if offset >= until {
            Vec::new()
        } else {
            match whereabouts {
                Whereabouts::Journal(chunks) => {
                    let read = move || {
                        let parts = chunks.iter().map(|chunk| chunk.read(offset, until));
                        parts.collect::<std::io::Result<Vec<_>>>().map(|parts| parts.concat())
                    };
                    tokio::task::spawn_blocking(read).await??
                }
                Whereabouts::Blob => {
                    self.blobs.get(&log_key(id)?, Some(offset..until)).await?.bytes().await?
                }
            }
        };
        let next = offset + data.len() as u64;
        Ok(Some(LogWindow { data: BASE64.encode(data), next, total, sealed }))
    }

    /// A window that waits up to `wait` for bytes beyond `offset`, or for the end.
    pub(crate) async fn window_when_ready(
        &self,
        id: StepId,
        offset: u64,
        limit: u32,
        wait: Duration,
    ) -> anyhow::Result<Option<LogWindow>> {
        let place = self.waiters.try_acquire();
        let wait = if place.is_ok() { wait } else { wait.min(CROWDED) };
        let deadline = Instant::now() + wait;
        loop {
            // Listen first: what comes between look and listening would be told to nobody.
            let listening =
                if wait.is_zero() { None } else { self.live.subscribe(&live::step_topic(id)).await.ok() };
            let window = self.window(id, offset, limit).await?;
            let ready = window.as_ref().is_none_or(|window| window.sealed || window.total > offset);
            let now = Instant::now();
            if ready || now >= deadline || self.stop.is_cancelled() {
                return Ok(window);
            }
            let look_again = deadline.min(now + LOOK_AGAIN);
            match listening {
                Some(mut messages) => {
                    if let Ok(None) = tokio::time::timeout_at(look_again, messages.next()).await {
                        // The live store forgot us; do not spin while it is away.
                        tokio::time::sleep_until(look_again.min(now + Duration::from_millis(50))).await;
                    }
                }
                None => tokio::time::sleep_until(look_again).await,
            }
        }
    }

    /// The document of a step.
    pub(crate) fn document(place: &StepPlace, version: i64) -> serde_json::Result<NewDocument> {
        Ok(NewDocument {
            kind: STEP,
            id: place.step.step_id.uuid(),
            group: place.job_id.uuid(),
            version,
            body: serde_json::to_value(place)?,
        })
    }
}

/// A payload of a journal, if this version knows it.
fn known(payload: &[u8]) -> Option<Entry<'_>> {
    let entry = decode(payload);
    if entry.is_none() {
        tracing::error!("an entry of the journal cannot be read");
    }
    entry
}

/// Who needs an entry.
fn holder(entry: &Entry<'_>) -> Uuid {
    match entry {
        Entry::Chunk(head, _) => head.step_id.uuid(),
        Entry::Fact(Fact::Sealed { step_id, .. }) => step_id.uuid(),
        Entry::Fact(
            Fact::Step { task_id, .. } | Fact::Stored { task_id, .. } | Fact::Closed { task_id, .. },
        ) => task_id.uuid(),
    }
}

impl Index {
    /// Takes in an entry that lies at `place`.
    fn replay(&mut self, entry: Entry<'_>, place: Place) {
        match entry {
            Entry::Chunk(head, data) => {
                let task = self.task(head.task_id);
                self.place(head.task_id, Some(head.job_id), Some(head.step_id));
                task.replay_chunk(&head, data, place.after(crate::entry::CHUNK_HEAD as u64));
            }
            Entry::Fact(fact) => {
                let (task_id, job, step) = match &fact {
                    Fact::Step { task_id, job_id, report, .. } => {
                        (*task_id, Some(*job_id), Some(report.step_id))
                    }
                    Fact::Sealed { task_id, job_id, step_id, .. }
                    | Fact::Stored { task_id, job_id, step_id, .. } => {
                        (*task_id, Some(*job_id), Some(*step_id))
                    }
                    Fact::Closed { task_id, .. } => (*task_id, None, None),
                };
                let task = self.task(task_id);
                self.place(task_id, job, step);
                task.replay_fact(fact, place.version());
            }
        }
    }

    /// Writes an entry of another journal into this one and takes it in from there.
    pub(crate) fn write(&mut self, journal: &Journal, payload: &[u8]) -> Result<Option<Ticket>, Failed> {
        let Some(entry) = known(payload) else { return Ok(None) };
        let (place, ticket) = journal.append(holder(&entry), &[], payload)?;
        self.replay(entry, place);
        Ok(Some(ticket))
    }

    fn task(&mut self, id: TaskId) -> Arc<Task> {
        Arc::clone(self.tasks.entry(id).or_insert_with(|| Arc::new(Task::new(id))))
    }

    fn place(&mut self, task: TaskId, job: Option<JobId>, step: Option<StepId>) {
        if let Some(job) = job {
            self.jobs.entry(job).or_default().insert(task);
        }
        if let Some(step) = step {
            self.steps.insert(step, task);
        }
    }
}
