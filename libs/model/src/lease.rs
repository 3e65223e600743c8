//! Claim, lease, report and expiry of a task: who may run it, and whose word about it counts (reliability §7,
//! R-15 … R-19).
//!
//! The rows are the dispatcher's; what may happen to them is decided here, so that the simulation of agents,
//! dispatchers and a bad network runs the same code.

use crate::status::JobStatus;
use ids::Timestamp;
use uuid::Uuid;

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Has no slot.
    Waiting,
    /// Has one and waits for its agent.
    Queued,
    /// An agent holds it until the lease ends.
    Leased {
        /// The claim that got it: a repeat of it is answered like the first.
        claim: Uuid,
        /// Whether the agent may have run user code.
        permit: bool,
    },
    /// Nothing can follow.
    Finished {
        /// Whether its agent's report decided.
        reported: bool,
    },
}

/// What decides about a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Where it stands.
    pub stage: Stage,
    /// Grows each time that it is queued; never shrinks.
    pub epoch: i64,
    /// How often it was queued again.
    pub requeues: u32,
    /// Somebody canceled it.
    pub cancel_requested: bool,
}

/// Answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It gets the lease.
    Grant,
    /// It has it already.
    Repeat,
    /// It does not get it, and why.
    Stale(&'static str),
}

/// Answer to a final report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// It decides.
    Accept,
    /// It has decided.
    Repeat,
    /// It comes too late: evidence that changes nothing.
    Stale,
}

/// What becomes of a task whose time ran out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// No user code ran: a second try is safe.
    Requeue,
    /// It ended.
    Finish(JobStatus, &'static str),
}

/// The places where a decision could go wrong; the tests replace one at a time and must notice each.
#[doc(hidden)]
pub trait Rules {
    /// Whether an agent that was made for `placed` may have the task at its epoch.
    fn same_epoch(task: &Task, placed: i64) -> bool {
        task.epoch == placed
    }

    /// Whether a task may be given to another agent after its time ran out.
    fn may_try_again(permit: bool) -> bool {
        !permit
    }

    /// Whether a receiver takes what an agent of an epoch writes.
    fn takes(closed_to: i64, epoch: i64, token_ends: Timestamp, now: Timestamp) -> bool {
        epoch > closed_to && now < token_ends
    }
}

/// The rules that are in force.
#[derive(Clone, Copy, Debug)]
pub struct Sound;
impl Rules for Sound {}

/// Decides on a claim by an agent that was placed for an epoch.
pub fn claim(task: &Task, placed: i64, claim: Uuid) -> Claim {
    claim_as::<Sound>(task, placed, claim)
}

/// [`claim`] under given rules.
#[doc(hidden)]
pub fn claim_as<R: Rules>(task: &Task, placed: i64, claim: Uuid) -> Claim {
    if !R::same_epoch(task, placed) {
        return Claim::Stale("the task was queued again");
    }
    match task.stage {
        Stage::Leased { claim: held, .. } if held == claim => Claim::Repeat,
        Stage::Leased { .. } => Claim::Stale("another agent holds the task"),
        Stage::Finished { .. } => Claim::Stale("the task has ended"),
        Stage::Queued if task.cancel_requested => Claim::Stale("the task was canceled"),
        Stage::Queued => Claim::Grant,
        Stage::Waiting => Claim::Stale("the task has no slot"),
    }
}

/// Whether the holder of an epoch still has its lease: only then it is renewed.
pub fn holds(task: &Task, epoch: i64) -> bool {
    matches!(task.stage, Stage::Leased { .. }) && task.epoch == epoch
}

/// Decides on a final report (R-19: it counts once per task and epoch).
pub fn report(task: &Task, epoch: i64) -> Report {
    match task.stage {
        Stage::Leased { .. } if task.epoch == epoch => Report::Accept,
        Stage::Finished { reported: true } if task.epoch == epoch => Report::Repeat,
        _ => Report::Stale,
    }
}

/// What becomes of a task whose time ran out, or that waited too long to be placed at all (execution §30).
pub fn expire(task: &Task, max_requeues: u32) -> Expiry {
    expire_as::<Sound>(task, max_requeues)
}

/// [`expire`] under given rules.
#[doc(hidden)]
pub fn expire_as<R: Rules>(task: &Task, max_requeues: u32) -> Expiry {
    if task.stage == Stage::Waiting {
        return Expiry::Finish(JobStatus::Timedout, "queue_timeout");
    }
    let permit = matches!(task.stage, Stage::Leased { permit: true, .. });
    match (task.cancel_requested, R::may_try_again(permit)) {
        (true, _) => Expiry::Finish(JobStatus::Canceled, "the agent did not answer"),
        (false, false) => Expiry::Finish(JobStatus::InfrastructureFail, "runner_lost"),
        (false, true) if task.requeues < max_requeues => Expiry::Requeue,
        (false, true) => Expiry::Finish(JobStatus::InfrastructureFail, "no_runner"),
    }
}
