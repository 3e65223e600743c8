//! Commands and what follows from them.

use super::state::{Dependant, Event, Job, Kind, Root, StatusSet, Turn};
use crate::status::{JobStatus, WorkflowStatus};
use ids::{Timestamp, UserId};

/// What somebody wants of a job, or what the dispatcher says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The workflow was just made: the job begins if nothing is unmet.
    Begin,
    /// Its serial group says that its turn has come (execution §7).
    TurnGiven,
    /// Its serial group says that its turn will not come: it is not run.
    PassedOver {
        /// Why.
        reason: String,
    },
    /// Its first task started.
    Started {
        /// When.
        at: Timestamp,
    },
    /// All its tasks ended.
    Finished {
        /// How.
        status: JobStatus,
        /// Why.
        reason: Option<String>,
        /// Whether its steps had ended when it was canceled, if it was: the cancel ended the wait for SSH sessions, and
        /// the job ends as its steps did (execution §26).
        settled: bool,
        /// When.
        at: Timestamp,
    },
    /// A person with the permission approves.
    Approve {
        /// Who.
        by: UserId,
    },
    /// Somebody cancels this job only.
    Cancel {
        /// Why, where nobody asked: for example `serial_wait_timeout`.
        reason: Option<String>,
    },
    /// The workflow was canceled: a job that waits ends, one at the dispatcher is to be revoked.
    CancelWithWorkflow {
        /// Why, where nobody asked: for example `approval_expired`.
        reason: Option<String>,
    },
    /// The job has ended: look at the jobs that wait for it.
    Propagate,
}

/// The owner's "no".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The workflow has ended.
    #[error("the workflow has already ended with status {status}")]
    WorkflowEnded {
        /// How.
        status: WorkflowStatus,
    },
    /// The job has ended.
    #[error("the job has already ended with status {status}")]
    JobEnded {
        /// How.
        status: JobStatus,
    },
    /// The approval was decided before.
    #[error("{}", already_decided(*status, *by))]
    AlreadyDecided {
        /// How.
        status: JobStatus,
        /// By whom, if a person approved.
        by: Option<UserId>,
    },
    /// Not an approval that waits.
    #[error("the job does not wait for an approval: it is {status}")]
    NotOnHold {
        /// What it is instead.
        status: JobStatus,
    },
    /// No message of a right history.
    #[error("a job that is {status} cannot take this message: {command}")]
    Illegal {
        /// Where the job is.
        status: JobStatus,
        /// What was wanted.
        command: &'static str,
    },
}

fn already_decided(status: JobStatus, by: Option<UserId>) -> String {
    match by {
        Some(user) => format!("the approval has already been decided: {status}, by user {user}"),
        None => format!("the approval has already been decided: {status}"),
    }
}

/// The places where a decision could go wrong. [`Sound`] takes every default; the tests replace one at a
/// time and must notice each.
#[doc(hidden)]
pub trait Rules {
    /// Whether an upstream's end satisfies an edge.
    fn accepts(accepts: StatusSet, status: JobStatus) -> bool {
        accepts.contains(status.for_requires())
    }

    /// Whether a job with so many unmet edges begins.
    fn begins(unmet: u32) -> bool {
        unmet == 0
    }

    /// Whether a job that waits ends when one of its edges can no longer hold.
    fn broken_edge_ends() -> bool {
        true
    }

    /// Whether the end of a dependant is passed on.
    fn passes_on(_status: JobStatus) -> bool {
        true
    }

    /// Whether nothing can happen to the job any more.
    fn is_final(job: &Job) -> bool {
        job.status.is_terminal()
    }

    /// Whether jobs may begin.
    fn may_begin(root: &Root) -> bool {
        !root.cancel
    }

    /// How a job ends of which the dispatcher reports `reported`.
    fn outcome(root: &Root, job: &Job, reported: JobStatus) -> JobStatus {
        if root.cancel || job.cancel_requested { JobStatus::Canceled } else { reported }
    }

    /// Whether a start that is reported changes the job.
    fn can_start(status: JobStatus) -> bool {
        matches!(status, JobStatus::Queued | JobStatus::NotRunning)
    }

    /// Whether a job that may begin has to wait for its turn in a serial group.
    fn waits_for_turn(job: &Job) -> bool {
        job.turn == Turn::Needed
    }

    /// Whether a job waits for its turn and nothing else knows of it.
    fn is_in_line(job: &Job) -> bool {
        job.status == JobStatus::Queued && job.turn == Turn::Wanted
    }

    /// Whether an approval can be decided.
    fn can_decide(job: &Job) -> bool {
        job.kind == Kind::Approval && job.status == JobStatus::OnHold
    }

    /// The status of a workflow, from nothing but its numbers and marks (execution §3).
    fn verdict(root: &Root) -> WorkflowStatus {
        let counts = &root.counts;
        if counts.open() > 0 {
            return if counts.failed() > 0 {
                WorkflowStatus::Failing
            } else if counts.active() > root.turns {
                WorkflowStatus::Running
            } else if counts.of(JobStatus::OnHold) > 0 {
                WorkflowStatus::OnHold
            } else if root.turns > 0 {
                WorkflowStatus::Queued
            } else {
                WorkflowStatus::Running
            };
        }
        if root.cancel {
            WorkflowStatus::Canceled
        } else if root.error {
            WorkflowStatus::Error
        } else if counts.of(JobStatus::Unauthorized) > 0 {
            WorkflowStatus::Unauthorized
        } else if counts.failed() > 0 {
            WorkflowStatus::Failed
        } else if counts.of(JobStatus::Canceled) > 0 {
            WorkflowStatus::Canceled
        } else if counts.of(JobStatus::Success) > 0 {
            WorkflowStatus::Success
        } else {
            WorkflowStatus::NotRun
        }
    }
}

/// The rules that are in force.
#[derive(Clone, Copy, Debug)]
pub struct Sound;
impl Rules for Sound {}

/// What follows from a command to one job, given the jobs that directly wait for it.
///
/// A duplicate, or a message that comes after the end, yields no events: terminal is final.
///
/// # Errors
/// What was asked is not possible (any more).
pub fn decide(
    root: &Root,
    job: &Job,
    dependants: &[Dependant],
    command: &Command,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    decide_as::<Sound>(root, job, dependants, command, now)
}

/// [`decide`] under given rules.
///
/// # Errors
/// As [`decide`].
#[doc(hidden)]
pub fn decide_as<R: Rules>(
    root: &Root,
    job: &Job,
    dependants: &[Dependant],
    command: &Command,
    now: Timestamp,
) -> Result<Vec<Event>, Refusal> {
    let mut events = Vec::new();
    match command {
        Command::Begin => {
            if job.status == JobStatus::Blocked && R::may_begin(root) && R::begins(job.unmet) {
                begin::<R>(job, now, &mut events);
                if job.kind.succeeds_at_once() {
                    settle::<R>(root, job, JobStatus::Success, dependants, now, &mut events);
                }
            }
        }
        Command::TurnGiven => {
            // One that ended while the turn was on its way gives it back by its end.
            if R::is_in_line(job) && R::may_begin(root) {
                match job.kind {
                    Kind::Lock => {
                        end::<R>(root, job, JobStatus::Success, None, None, now, dependants, &mut events);
                    }
                    _ => events.push(Event::JobReady { job: job.id }),
                }
            }
        }
        Command::PassedOver { reason } => {
            if R::is_in_line(job) {
                let (status, reason) = (JobStatus::NotRun, Some(reason.clone()));
                end::<R>(root, job, status, reason, None, now, dependants, &mut events);
            }
        }
        Command::Started { at } => {
            if R::is_in_line(job) {
                return Err(Refusal::Illegal { status: job.status, command: "started before its turn" });
            } else if R::can_start(job.status) {
                events.push(Event::JobRunning { job: job.id, at: *at });
            } else if !R::is_final(job) && job.status != JobStatus::Running {
                return Err(Refusal::Illegal { status: job.status, command: "started" });
            }
        }
        Command::Finished { status, reason, settled, at } => {
            if R::is_final(job) {
                return Ok(events);
            }
            let elsewhere =
                matches!(job.status, JobStatus::Blocked | JobStatus::OnHold) || R::is_in_line(job);
            if !status.is_terminal() || elsewhere {
                return Err(Refusal::Illegal { status: job.status, command: "finished" });
            }
            let status = if *settled { *status } else { R::outcome(root, job, *status) };
            end::<R>(root, job, status, reason.clone(), None, *at, dependants, &mut events);
        }
        Command::Approve { by } => {
            if R::can_decide(job) {
                end::<R>(root, job, JobStatus::Success, None, Some(*by), now, dependants, &mut events);
            } else if job.kind == Kind::Approval && R::is_final(job) {
                let winner = (job.status == JobStatus::Success).then_some(job.approver).flatten();
                // A repeat of the decision that won is answered like the first one.
                if winner.is_none_or(|winner| winner.user != *by) {
                    return Err(Refusal::AlreadyDecided { status: job.status, by: winner.map(|w| w.user) });
                }
            } else {
                return Err(Refusal::NotOnHold { status: job.status });
            }
        }
        Command::Cancel { reason } => match job.status {
            JobStatus::Canceled => {}
            _ if R::is_final(job) => return Err(Refusal::JobEnded { status: job.status }),
            _ if matches!(job.status, JobStatus::Blocked | JobStatus::OnHold) || R::is_in_line(job) => {
                events.push(Event::CancelRequested { job: Some(job.id) });
                end::<R>(root, job, JobStatus::Canceled, reason.clone(), None, now, dependants, &mut events);
            }
            // The dispatcher may have handed it out already; it ends when the dispatcher says so.
            _ if !job.cancel_requested => events.push(Event::CancelRequested { job: Some(job.id) }),
            _ => {}
        },
        Command::CancelWithWorkflow { reason } => {
            if matches!(job.status, JobStatus::Blocked | JobStatus::OnHold) || R::is_in_line(job) {
                // The jobs that wait for it end in the same way, so nothing is passed on: handlers of
                // `canceled` do not run after the cancel of a workflow (execution §5).
                let status = JobStatus::Canceled;
                let reason = reason.clone();
                events.push(Event::JobEnded { job: job.id, status, reason, approved_by: None, at: now });
            }
        }
        Command::Propagate => {
            if job.status.is_terminal() {
                settle::<R>(root, job, job.status, dependants, now, &mut events);
            }
        }
    }
    Ok(events)
}

/// What follows from the wish to cancel a workflow; each of its open jobs then gets
/// [`Command::CancelWithWorkflow`]. A repeat yields no events.
///
/// # Errors
/// It has ended with another status.
pub fn request_cancel(root: &Root) -> Result<Vec<Event>, Refusal> {
    if root.cancel || root.status == WorkflowStatus::Canceled {
        Ok(Vec::new())
    } else if root.status.is_terminal() {
        Err(Refusal::WorkflowEnded { status: root.status })
    } else {
        Ok(vec![Event::CancelRequested { job: None }])
    }
}

fn begin<R: Rules>(job: &Job, now: Timestamp, events: &mut Vec<Event>) {
    events.push(match job.kind {
        Kind::Build if R::waits_for_turn(job) => Event::TurnWanted { job: job.id },
        Kind::Build => Event::JobReady { job: job.id },
        Kind::Lock => Event::TurnWanted { job: job.id },
        Kind::Approval => Event::JobOnHold { job: job.id },
        Kind::NoOp | Kind::Unlock => Event::JobEnded {
            job: job.id,
            status: JobStatus::Success,
            reason: None,
            approved_by: None,
            at: now,
        },
    });
}

#[expect(clippy::too_many_arguments, reason = "the fields of one event and what it is told to")]
fn end<R: Rules>(
    root: &Root,
    job: &Job,
    status: JobStatus,
    reason: Option<String>,
    approved_by: Option<UserId>,
    at: Timestamp,
    dependants: &[Dependant],
    events: &mut Vec<Event>,
) {
    let event = Event::JobEnded { job: job.id, status, reason, approved_by, at };
    let mut ended = job.clone();
    super::state::evolve(&mut root.clone(), Some(&mut ended), &event);
    events.push(event);
    settle::<R>(root, &ended, status, dependants, at, events);
}

/// Tells the jobs that wait for `job` how it ended.
fn settle<R: Rules>(
    root: &Root,
    job: &Job,
    status: JobStatus,
    dependants: &[Dependant],
    now: Timestamp,
    events: &mut Vec<Event>,
) {
    if !R::may_begin(root) {
        return;
    }
    for Dependant { job: waiting, accepts } in dependants {
        if waiting.status != JobStatus::Blocked {
            continue;
        }
        if R::accepts(*accepts, status) {
            events.push(Event::EdgeMet { job: waiting.id, approver: job.approver });
            if R::begins(waiting.unmet.saturating_sub(1)) {
                begin::<R>(waiting, now, events);
            }
        } else if R::broken_edge_ends() {
            events.push(Event::JobEnded {
                job: waiting.id,
                status: JobStatus::NotRun,
                reason: None,
                approved_by: None,
                at: now,
            });
        }
    }
}
