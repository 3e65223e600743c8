//! Wrong rules, one at a time. Each of them must be noticed, or the checker is worth nothing.

use crate::history::{Case, histories, runner, tree::Histories};
use gantry_model::{
    status::{JobStatus, WorkflowStatus},
    workflow::{Job, Kind, Root, Rules, Sound, StatusSet, Turn},
};
use proptest::test_runner::TestError;

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident { $($rule:item)* })*) => {
        $($(#[$doc])* struct $name; impl Rules for $name { $($rule)* })*

        #[test]
        fn each_mutant_is_caught() {
            $(caught::<$name>(stringify!($name));)*
        }
    };
}

fn caught<R: Rules>(name: &str) {
    let result = runner(7, 5_000).run(&Histories, |case: Case| histories::check::<R>(&case).map(drop));
    match result {
        Err(TestError::Fail(why, case)) => {
            println!("{name}: {why}\n{case:?}\n");
            assert!(
                case.jobs.len() <= 5 && case.acts.len() <= 6,
                "{name} is not shrunk to what matters:\n{case:?}"
            );
        }
        Err(TestError::Abort(why)) => panic!("{name}: {why}"),
        Ok(()) => panic!("{name} was not noticed in 5,000 histories"),
    }
}

mutants! {
    /// `timedout` and `infrastructure_fail` do not count as `failed`.
    RawStatus {
        fn accepts(accepts: StatusSet, status: JobStatus) -> bool {
            accepts.contains(status)
        }
    }

    /// A job begins when the first of its requirements holds.
    FanInOfOne {
        fn begins(_: u32) -> bool {
            true
        }
    }

    /// A job waits for one requirement more than it has.
    NeverBegins {
        fn begins(unmet: u32) -> bool {
            unmet == u32::MAX
        }
    }

    /// A job whose requirement can no longer hold waits for ever.
    WaitsForever {
        fn broken_edge_ends() -> bool {
            false
        }
    }

    /// `not_run` goes one edge far.
    NotPassedOn {
        fn passes_on(status: JobStatus) -> bool {
            status != JobStatus::NotRun
        }
    }

    /// What waits for a no-op hears nothing.
    SilentNoOp {
        fn passes_on(status: JobStatus) -> bool {
            status != JobStatus::Success
        }
    }

    /// A late report overwrites the end.
    LastReportWins {
        fn is_final(_: &Job) -> bool {
            false
        }
    }

    /// A job that had ended runs again when a start is reported once more.
    RunsAgain {
        fn can_start(status: JobStatus) -> bool {
            status != JobStatus::Blocked && status != JobStatus::Running
        }
    }

    /// A start that comes twice counts twice.
    StartsTwice {
        fn can_start(status: JobStatus) -> bool {
            matches!(status, JobStatus::Queued | JobStatus::Running)
        }
    }

    /// A success that comes after the cancel stands.
    ResultBeatsCancel {
        fn outcome(_: &Root, _: &Job, reported: JobStatus) -> JobStatus {
            reported
        }
    }

    /// The cancel of one job is forgotten when its result comes.
    ForgetsJobCancel {
        fn outcome(root: &Root, _: &Job, reported: JobStatus) -> JobStatus {
            if root.cancel { JobStatus::Canceled } else { reported }
        }
    }

    /// The second approver decides again.
    DecidesTwice {
        fn can_decide(job: &Job) -> bool {
            job.kind == Kind::Approval && matches!(job.status, JobStatus::OnHold | JobStatus::Success)
        }
    }

    /// An approval is given before its requirements hold.
    DecidesEarly {
        fn can_decide(job: &Job) -> bool {
            job.kind == Kind::Approval && !job.status.is_terminal()
        }
    }

    /// A workflow ends although approvals wait.
    EndsEarly {
        fn verdict(root: &Root) -> WorkflowStatus {
            if root.counts.active() == 0 && root.counts.of(JobStatus::OnHold) > 0 {
                WorkflowStatus::Success
            } else {
                Sound::verdict(root)
            }
        }
    }

    /// A failure that was handled downstream is forgiven.
    ForgivesFailure {
        fn verdict(root: &Root) -> WorkflowStatus {
            match Sound::verdict(root) {
                WorkflowStatus::Failed if root.counts.of(JobStatus::Success) > 0 => WorkflowStatus::Success,
                other => other,
            }
        }
    }

    /// A canceled workflow ends as its jobs did.
    CancelLeavesNoMark {
        fn verdict(root: &Root) -> WorkflowStatus {
            Sound::verdict(&Root { cancel: false, ..root.clone() })
        }
    }

    /// A job of a serial group does not wait for its turn.
    IgnoresTurn {
        fn waits_for_turn(_: &Job) -> bool {
            false
        }
    }

    /// A job keeps its place in line after it was canceled there.
    CancelForgetsTheLine {
        fn is_in_line(job: &Job) -> bool {
            job.turn == Turn::Wanted && !job.cancel_requested && job.status != JobStatus::Queued
        }
    }

    /// A turn that is given twice starts a job twice.
    TurnsTwice {
        fn is_in_line(job: &Job) -> bool {
            matches!(job.turn, Turn::Wanted | Turn::Given) && !job.status.is_terminal()
        }
    }

    /// A workflow that only waits for a turn says that it runs.
    QueuedLooksBusy {
        fn verdict(root: &Root) -> WorkflowStatus {
            Sound::verdict(&Root { turns: 0, ..root.clone() })
        }
    }
}
