//! States and events, and how the one follows from the other.

use crate::{
    plan::JobKind,
    status::{JobStatus, WorkflowStatus},
};
use ids::{JobId, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What kind of node a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Runs steps.
    #[serde(rename = "build")]
    Build,
    /// Waits for a person.
    #[serde(rename = "approval")]
    Approval,
    /// Succeeds at once.
    #[serde(rename = "no-op")]
    NoOp,
    /// Succeeds in its turn of a serial group, and keeps it.
    #[serde(rename = "lock")]
    Lock,
    /// Succeeds at once, and gives back what a lock keeps.
    #[serde(rename = "unlock")]
    Unlock,
}

impl Kind {
    /// The public word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Approval => "approval",
            Self::NoOp => "no-op",
            Self::Lock => "lock",
            Self::Unlock => "unlock",
        }
    }

    /// Whether it needs nobody to succeed once it may begin.
    pub const fn succeeds_at_once(self) -> bool {
        matches!(self, Self::NoOp | Self::Unlock)
    }

    /// Whether it takes part in a serial group by itself.
    pub const fn takes_turns(self) -> bool {
        matches!(self, Self::Build | Self::Lock)
    }

    /// The kind with this word.
    pub fn parse(word: &str) -> Option<Self> {
        let all = [Self::Build, Self::Approval, Self::NoOp, Self::Lock, Self::Unlock];
        all.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl From<&JobKind> for Kind {
    fn from(kind: &JobKind) -> Self {
        match kind {
            JobKind::Build { .. } => Self::Build,
            JobKind::Approval => Self::Approval,
            JobKind::NoOp => Self::NoOp,
            JobKind::Lock => Self::Lock,
            JobKind::Unlock => Self::Unlock,
        }
    }
}

/// Every job status once, in the order of their declaration.
const STATUSES: [JobStatus; 12] = [
    JobStatus::Blocked,
    JobStatus::Queued,
    JobStatus::NotRunning,
    JobStatus::Running,
    JobStatus::OnHold,
    JobStatus::Success,
    JobStatus::Failed,
    JobStatus::Canceled,
    JobStatus::Unauthorized,
    JobStatus::NotRun,
    JobStatus::InfrastructureFail,
    JobStatus::Timedout,
];

/// A set of job statuses: what an edge accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StatusSet(u16);

impl StatusSet {
    /// The default edge.
    pub const SUCCESS: Self = Self(1 << JobStatus::Success as u16);

    /// Adds one.
    #[must_use]
    pub const fn with(self, status: JobStatus) -> Self {
        Self(self.0 | 1 << status as u16)
    }

    /// Whether it is in.
    pub const fn contains(self, status: JobStatus) -> bool {
        self.0 & (1 << status as u16) != 0
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Its members.
    pub fn iter(self) -> impl Iterator<Item = JobStatus> {
        STATUSES.into_iter().filter(move |status| self.contains(*status))
    }
}

impl FromIterator<JobStatus> for StatusSet {
    fn from_iter<I: IntoIterator<Item = JobStatus>>(statuses: I) -> Self {
        statuses.into_iter().fold(Self::default(), Self::with)
    }
}

impl From<&BTreeSet<JobStatus>> for StatusSet {
    fn from(set: &BTreeSet<JobStatus>) -> Self {
        set.iter().copied().collect()
    }
}

/// How many jobs have each status. The workflow's status is a function of these numbers and the marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts([u32; STATUSES.len()]);

impl Counts {
    /// How many have this one.
    pub const fn of(&self, status: JobStatus) -> u32 {
        self.0[status as usize]
    }

    /// A job appears with this status.
    pub const fn add(&mut self, status: JobStatus) {
        self.0[status as usize] += 1;
    }

    const fn moved(&mut self, from: JobStatus, to: JobStatus) {
        // A wrong count must not stop a workflow for good: it saturates, and the refold check finds it.
        self.0[from as usize] = self.0[from as usize].saturating_sub(1);
        self.0[to as usize] += 1;
    }

    /// Statuses with their numbers, without the zeros.
    pub fn iter(&self) -> impl Iterator<Item = (JobStatus, u32)> {
        STATUSES.into_iter().map(|status| (status, self.of(status))).filter(|(_, n)| *n > 0)
    }

    /// All jobs.
    pub fn total(&self) -> u32 {
        self.0.iter().sum()
    }

    /// Jobs at the dispatcher.
    pub const fn active(&self) -> u32 {
        self.of(JobStatus::Queued) + self.of(JobStatus::NotRunning) + self.of(JobStatus::Running)
    }

    /// Jobs that have not ended.
    pub const fn open(&self) -> u32 {
        self.active() + self.of(JobStatus::Blocked) + self.of(JobStatus::OnHold)
    }

    /// Jobs that failed in the sense of `requires`.
    pub const fn failed(&self) -> u32 {
        self.of(JobStatus::Failed) + self.of(JobStatus::Timedout) + self.of(JobStatus::InfrastructureFail)
    }
}

impl FromIterator<(JobStatus, u32)> for Counts {
    fn from_iter<I: IntoIterator<Item = (JobStatus, u32)>>(counts: I) -> Self {
        counts.into_iter().fold(Self::default(), |mut all, (status, n)| {
            all.0[status as usize] += n;
            all
        })
    }
}

impl Serialize for Counts {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Counts {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(std::collections::BTreeMap::<JobStatus, u32>::deserialize(deserializer)?.into_iter().collect())
    }
}

/// Where a job stands with the serial group that it belongs to (execution §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Turn {
    /// It belongs to none.
    #[default]
    Free,
    /// It will have to wait for its turn.
    Needed,
    /// It waits for its turn: everything else that it needs is there.
    Wanted,
    /// It has, or had, its turn.
    Given,
}

impl Turn {
    /// The word that is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Needed => "needed",
            Self::Wanted => "wanted",
            Self::Given => "given",
        }
    }

    /// The turn with this word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Free, Self::Needed, Self::Wanted, Self::Given].into_iter().find(|turn| turn.as_str() == word)
    }

    /// Whether the serial group knows of the job: it waits there, or holds the lock.
    pub const fn is_in_group(self) -> bool {
        matches!(self, Self::Wanted | Self::Given)
    }
}

/// What is true of a workflow as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Public status.
    pub status: WorkflowStatus,
    /// Jobs per status.
    pub counts: Counts,
    /// Of the queued ones, those that wait for their turn in a serial group.
    pub turns: u32,
    /// Somebody canceled the workflow: nothing starts any more, and it ends `canceled`.
    pub cancel: bool,
    /// We could not start or finish a job ourselves.
    pub error: bool,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

impl Root {
    /// A workflow without jobs yet.
    pub fn new() -> Self {
        Self {
            status: WorkflowStatus::Running,
            counts: Counts::default(),
            turns: 0,
            cancel: false,
            error: false,
            ended_at: None,
        }
    }
}

impl Default for Root {
    fn default() -> Self {
        Self::new()
    }
}

/// Who approved, and when: the latest one upstream acts for the jobs below (execution §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Approver {
    /// Who.
    pub user: UserId,
    /// When.
    pub at: Timestamp,
}

/// What is true of a job. Its graph is not here: edges come with the [`Dependant`]s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Which.
    pub id: JobId,
    /// What kind.
    pub kind: Kind,
    /// Public status.
    pub status: JobStatus,
    /// Edges that are not satisfied yet.
    pub unmet: u32,
    /// Where it stands with its serial group.
    pub turn: Turn,
    /// Somebody asked to cancel this job, or its workflow, while the dispatcher had it.
    pub cancel_requested: bool,
    /// The latest approver upstream; of a given approval: who gave it.
    pub approver: Option<Approver>,
    /// Why it ended so, where the status does not say it.
    pub reason: Option<String>,
}

impl Job {
    /// A job that waits for `unmet` edges.
    pub const fn blocked(id: JobId, kind: Kind, unmet: u32) -> Self {
        Self {
            id,
            kind,
            status: JobStatus::Blocked,
            unmet,
            turn: Turn::Free,
            cancel_requested: false,
            approver: None,
            reason: None,
        }
    }
}

/// A job that waits for another one, and the statuses of the other that it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependant {
    /// The one that waits.
    pub job: Job,
    /// What satisfies its edge.
    pub accepts: StatusSet,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody asked to cancel one job, or all.
    CancelRequested {
        /// Which; `None`: the workflow.
        job: Option<JobId>,
    },
    /// One of a job's edges is satisfied. Follows from the end of the upstream job, so it changes rows but
    /// is not published.
    EdgeMet {
        /// The job that waits.
        job: JobId,
        /// Approver that comes down the edge.
        approver: Option<Approver>,
    },
    /// All edges of a job are satisfied, and it has to wait for its turn in a serial group.
    TurnWanted {
        /// Which.
        job: JobId,
    },
    /// A build job may run: it goes to the dispatcher.
    JobReady {
        /// Which.
        job: JobId,
    },
    /// All edges of an approval are satisfied: it waits for a person.
    JobOnHold {
        /// Which.
        job: JobId,
    },
    /// Its first task started.
    JobRunning {
        /// Which.
        job: JobId,
        /// When.
        at: Timestamp,
    },
    /// It ended.
    JobEnded {
        /// Which.
        job: JobId,
        /// How.
        status: JobStatus,
        /// Why.
        reason: Option<String>,
        /// Approver, of an approval that was given.
        approved_by: Option<UserId>,
        /// When.
        at: Timestamp,
    },
    /// The workflow's public status changed and is not terminal.
    StatusChanged {
        /// To what.
        status: WorkflowStatus,
    },
    /// The workflow ended.
    Finished {
        /// How.
        status: WorkflowStatus,
        /// When.
        at: Timestamp,
    },
}

impl Event {
    /// The job that it changes.
    pub const fn job(&self) -> Option<JobId> {
        match self {
            Self::EdgeMet { job, .. }
            | Self::TurnWanted { job }
            | Self::JobReady { job }
            | Self::JobOnHold { job }
            | Self::JobRunning { job, .. }
            | Self::JobEnded { job, .. } => Some(*job),
            Self::CancelRequested { job } => *job,
            Self::StatusChanged { .. } | Self::Finished { .. } => None,
        }
    }
}

/// Reason of a job that ended because of a failure of our own; the workflow ends `error`.
pub(super) const INTERNAL_ERROR: &str = "internal_error";

/// Applies an event to the root and to the job of which it speaks.
///
/// `job` is the job that [`Event::job`] names; without it only the root changes.
pub fn evolve(root: &mut Root, job: Option<&mut Job>, event: &Event) {
    let to = match event {
        Event::CancelRequested { job: None } => {
            root.cancel = true;
            None
        }
        Event::StatusChanged { status } => {
            root.status = *status;
            None
        }
        Event::Finished { status, at } => {
            root.status = *status;
            root.ended_at = Some(*at);
            None
        }
        Event::CancelRequested { job: Some(_) } | Event::EdgeMet { .. } => None,
        Event::TurnWanted { .. } | Event::JobReady { .. } => Some(JobStatus::Queued),
        Event::JobOnHold { .. } => Some(JobStatus::OnHold),
        Event::JobRunning { .. } => Some(JobStatus::Running),
        Event::JobEnded { status, reason, .. } => {
            root.error |= reason.as_deref() == Some(INTERNAL_ERROR);
            Some(*status)
        }
    };
    let Some(job) = job else { return };
    debug_assert_eq!(event.job(), Some(job.id), "the event speaks of another job");
    if let Some(to) = to {
        root.counts.moved(job.status, to);
        job.status = to;
    }
    // Whatever moves a job that waits for its turn ends the wait.
    if job.turn == Turn::Wanted && to.is_some() {
        root.turns = root.turns.saturating_sub(1);
        // A lock has its turn when it succeeds.
        if to == Some(JobStatus::Success) {
            job.turn = Turn::Given;
        }
    }
    match event {
        Event::CancelRequested { .. } => job.cancel_requested = true,
        Event::TurnWanted { .. } => {
            job.turn = Turn::Wanted;
            root.turns += 1;
        }
        Event::JobReady { .. } if job.turn == Turn::Wanted => job.turn = Turn::Given,
        Event::EdgeMet { approver, .. } => {
            job.unmet = job.unmet.saturating_sub(1);
            job.approver = later(job.approver, *approver);
        }
        Event::JobEnded { reason, approved_by, at, .. } => {
            job.reason.clone_from(reason);
            if let Some(user) = approved_by {
                job.approver = Some(Approver { user: *user, at: *at });
            }
        }
        _ => {}
    }
}

fn later(a: Option<Approver>, b: Option<Approver>) -> Option<Approver> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b.at >= a.at { b } else { a }),
        (a, b) => a.or(b),
    }
}
