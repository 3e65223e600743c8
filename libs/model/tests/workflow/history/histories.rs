//! Plays a history and checks each event against what the promises say.

use super::{Act, Case, Seen};
use chrono::{DateTime, TimeDelta};
use gantry_model::{
    status::{JobStatus, WorkflowStatus},
    workflow::{
        Changes, Command, Dependant, Event, Graph, Job, Kind, Node, Refusal, Root, Rules, StatusSet, Turn,
        Walk,
    },
};
use ids::{JobId, Timestamp, UserId};
use proptest::test_runner::TestCaseError;
use uuid::Uuid;

type Check<T = ()> = Result<T, TestCaseError>;

macro_rules! ensure {
    ($cond:expr, $($text:tt)+) => {
        if !$cond {
            return Err(TestCaseError::fail(format!($($text)+)));
        }
    };
}

/// What an outsider knows of a job.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fact {
    Waits,
    /// For its turn in a serial group.
    InLine,
    Ready,
    Runs,
    Holds,
    Ended(JobStatus),
}

/// What is being done, for judging the events that follow.
#[derive(Clone, Copy, Debug)]
enum Doing {
    Begin,
    /// The serial group says that this job's turn has come.
    Turning(usize),
    /// The serial group says that this job's turn will not come.
    PassingOver(usize),
    /// The dispatcher says that this job started.
    Starting(usize),
    /// The dispatcher says that this job ended so.
    Ending(usize, JobStatus),
    Approving(usize, UserId),
    CancelingJob(usize),
    CancelingAll,
}

struct World {
    requires: Vec<Vec<(usize, StatusSet)>>,
    down: Vec<Vec<(usize, StatusSet)>>,
    kinds: Vec<Kind>,
    serial: Vec<bool>,
    // State as a service would store it.
    root: Root,
    jobs: Vec<Job>,
    // What the events said.
    facts: Vec<Fact>,
    carried: Vec<bool>,
    cancel_asked: Vec<bool>,
    cancel_all: bool,
    approved_by: Vec<Option<UserId>>,
    numbers: [u32; 6],
    said: WorkflowStatus,
    ended: bool,
    // Jobs at the dispatcher and approvals that wait, for picking.
    active: Vec<usize>,
    in_line: Vec<usize>,
    holding: Vec<usize>,
    over: Vec<usize>,
    approvals: Vec<usize>,
    messages: Vec<(usize, Command)>,
    clock: Timestamp,
    seen: Seen,
}

/// Indices into `World::numbers`.
const OPEN: usize = 0;
const BUSY: usize = 1;
const BAD: usize = 2;
const DENIED: usize = 3;
const STOPPED: usize = 4;
const GOOD: usize = 5;

/// Plays a case to its end.
pub fn check<R: Rules>(case: &Case) -> Check<Seen> {
    let mut world = World::begin::<R>(case, None)?;
    for act in &case.acts {
        world.act::<R>(*act)?;
    }
    world.finish::<R>()?;
    let mut seen = std::mem::take(&mut world.seen);
    seen.histories = 1;
    seen.jobs = case.jobs.len() as u64;
    seen.large = u64::from((20..=200).contains(&case.jobs.len()));
    if case.rerun && world.said != WorkflowStatus::Success {
        let kept: Vec<bool> =
            world.facts.iter().map(|fact| *fact == Fact::Ended(JobStatus::Success)).collect();
        let mut again = World::begin::<R>(case, Some(&kept))?;
        again.finish::<R>()?;
        seen.rerun = 1;
        seen.steps += again.seen.steps;
    }
    for flag in [
        &mut seen.finish,
        &mut seen.fail,
        &mut seen.lost,
        &mut seen.cancel_job,
        &mut seen.cancel_workflow,
        &mut seen.turn,
        &mut seen.passed_over,
        &mut seen.approve,
        &mut seen.contested,
        &mut seen.duplicate,
        &mut seen.late,
        &mut seen.not_run,
    ] {
        *flag = (*flag).min(1);
    }
    Ok(seen)
}

fn id(index: usize) -> JobId {
    JobId(Uuid::from_u128(index as u128 + 1))
}

fn index(id: JobId) -> usize {
    (id.0.as_u128() - 1) as usize
}

fn user(n: u8) -> UserId {
    UserId(Uuid::from_u128(0xa000 + u128::from(n)))
}

/// The rule of execution §4 and §5, said once more.
fn holds(accepts: StatusSet, status: JobStatus) -> bool {
    let counts_as = match status {
        JobStatus::Timedout | JobStatus::InfrastructureFail => JobStatus::Failed,
        other => other,
    };
    accepts.iter().any(|accepted| accepted == counts_as)
}

impl World {
    fn begin<R: Rules>(case: &Case, kept: Option<&[bool]>) -> Check<Self> {
        let n = case.jobs.len();
        let place = |index: usize| if case.reversed && kept.is_none() { n - 1 - index } else { index };
        let kept_at = |at: usize| kept.is_some_and(|kept| kept[place_back(case, kept.len(), at)]);
        let mut nodes: Vec<Option<Node>> = vec![None; n];
        for (spec_index, spec) in case.jobs.iter().enumerate() {
            let at = place(spec_index);
            let requires: Vec<_> = spec.requires.iter().map(|(up, set)| (place(*up), *set)).collect();
            let mut job = Job::blocked(id(at), spec.kind, u32::try_from(requires.len()).unwrap());
            if kept_at(at) {
                (job.status, job.unmet) = (JobStatus::Success, 0);
            } else if spec.kind == Kind::Lock || (spec.serial && spec.kind == Kind::Build) {
                job.turn = Turn::Needed;
            }
            nodes[at] = Some(Node { job, requires });
        }
        let graph = Graph { nodes: nodes.into_iter().flatten().collect() };
        let carried: Vec<bool> = (0..n).map(kept_at).collect();
        let down = graph.dependants();
        let clock = DateTime::UNIX_EPOCH;
        let mut world = Self {
            requires: graph.nodes.iter().map(|node| node.requires.clone()).collect(),
            down,
            kinds: graph.nodes.iter().map(|node| node.job.kind).collect(),
            serial: graph.nodes.iter().map(|node| node.job.turn == Turn::Needed).collect(),
            root: Root::new(),
            jobs: graph.nodes.iter().map(|node| node.job.clone()).collect(),
            facts: carried
                .iter()
                .map(|c| if *c { Fact::Ended(JobStatus::Success) } else { Fact::Waits })
                .collect(),
            cancel_asked: vec![false; n],
            cancel_all: false,
            approved_by: vec![None; n],
            numbers: [0; 6],
            said: WorkflowStatus::Running,
            ended: false,
            active: Vec::new(),
            in_line: Vec::new(),
            holding: Vec::new(),
            over: Vec::new(),
            approvals: (0..n).filter(|at| graph.nodes[*at].job.kind == Kind::Approval).collect(),
            messages: Vec::new(),
            clock,
            seen: Seen::default(),
            carried,
        };
        world.numbers[GOOD] = u32::try_from(world.carried.iter().filter(|c| **c).count()).unwrap();
        world.numbers[OPEN] = u32::try_from(n).unwrap() - world.numbers[GOOD];
        let changes =
            graph.begin_as::<R>(clock).map_err(|refusal| TestCaseError::fail(refusal.to_string()))?;
        ensure!(changes.root.counts.total() as usize == n, "R-11: not all jobs are there");
        world.take(changes, Doing::Begin)?;
        // Nothing that could begin or can never begin was overlooked.
        for at in 0..n {
            world.not_overlooked(at)?;
        }
        Ok(world)
    }

    fn dependants(&self, at: usize) -> Vec<Dependant> {
        self.down[at]
            .iter()
            .map(|(at, accepts)| Dependant { job: self.jobs[*at].clone(), accepts: *accepts })
            .collect()
    }

    /// One command, to its last consequence, as a service does it.
    fn step<R: Rules>(
        &mut self,
        at: usize,
        command: &Command,
        doing: Doing,
    ) -> Check<Result<usize, Refusal>> {
        self.clock += TimeDelta::seconds(1);
        self.seen.steps += 1;
        let mut walk = Walk::<R>::under_rules(self.root.clone(), self.clock);
        if let Err(refusal) = walk.command(self.jobs[at].clone(), self.dependants(at), command) {
            return Ok(Err(refusal));
        }
        loop {
            let wanted = walk.wanted();
            if wanted.is_empty() {
                break;
            }
            for id in wanted {
                let below = self.dependants(index(id));
                if let Err(refusal) = walk.propagate(id, below) {
                    return Err(TestCaseError::fail(format!("passing on was refused: {refusal}")));
                }
            }
        }
        let changes = walk.conclude();
        let n = changes.events.len();
        self.take(changes, doing)?;
        Ok(Ok(n))
    }

    fn act<R: Rules>(&mut self, act: Act) -> Check {
        let pick = |from: &[usize], n: u32| (!from.is_empty()).then(|| from[n as usize % from.len()]);
        match act {
            Act::GiveTurn(n) => {
                let Some(at) = pick(&self.in_line, n) else { return Ok(()) };
                self.give_turn::<R>(at)
            }
            Act::PassOver(n) => {
                let Some(at) = pick(&self.in_line, n) else { return Ok(()) };
                self.seen.passed_over += 1;
                let command = Command::PassedOver { reason: "newer".into() };
                self.message::<R>(at, command, Doing::PassingOver(at))?;
                ensure!(
                    self.facts[at] == Fact::Ended(JobStatus::NotRun),
                    "j{at} was passed over and goes on"
                );
                Ok(())
            }
            Act::Start(n) => {
                let Some(at) = pick(&self.active, n) else { return Ok(()) };
                let command = Command::Started { at: self.clock };
                self.message::<R>(at, command, Doing::Starting(at))
            }
            Act::Finish(n, status) => {
                let Some(at) = pick(&self.active, n) else { return Ok(()) };
                match status {
                    JobStatus::Success => self.seen.finish += 1,
                    JobStatus::Failed | JobStatus::Timedout => self.seen.fail += 1,
                    _ => {}
                }
                self.end::<R>(at, status, None)
            }
            Act::Lose(n) => {
                let Some(at) = pick(&self.active, n) else { return Ok(()) };
                self.seen.lost += 1;
                self.end::<R>(at, JobStatus::InfrastructureFail, Some("runner_lost"))
            }
            Act::Approve(n, who) => match pick(&self.holding, n) {
                Some(at) => self.approve::<R>(at, user(who)),
                None => Ok(()),
            },
            Act::TryApprove(n, who) => match pick(&self.approvals, n) {
                Some(at) => self.approve::<R>(at, user(who)),
                None => Ok(()),
            },
            Act::CancelJob(n) => self.cancel_job::<R>(n as usize % self.jobs.len()),
            Act::CancelWorkflow => self.cancel_workflow::<R>(),
            Act::Duplicate(n) => {
                if self.messages.is_empty() {
                    return Ok(());
                }
                let (at, command) = self.messages[n as usize % self.messages.len()].clone();
                // A start that comes again while the job runs, or anything after its end.
                self.seen.duplicate += 1;
                self.nothing_follows::<R>(at, &command, "R-29: a duplicate")
            }
            Act::Late(n, status) => {
                let Some(at) = pick(&self.over, n) else { return Ok(()) };
                self.seen.late += 1;
                let command = Command::Finished { status, reason: None, settled: false, at: self.clock };
                self.nothing_follows::<R>(at, &command, "R-9: a late end")?;
                let command = Command::Started { at: self.clock };
                self.nothing_follows::<R>(at, &command, "R-9: a late start")
            }
        }
    }

    fn message<R: Rules>(&mut self, at: usize, command: Command, doing: Doing) -> Check {
        if let Err(refusal) = self.step::<R>(at, &command, doing)? {
            return Err(TestCaseError::fail(format!("a message of a right history was refused: {refusal}")));
        }
        self.messages.push((at, command));
        Ok(())
    }

    fn give_turn<R: Rules>(&mut self, at: usize) -> Check {
        self.seen.turn += 1;
        self.message::<R>(at, Command::TurnGiven, Doing::Turning(at))?;
        let goes_on = match self.kinds[at] {
            Kind::Lock => Fact::Ended(JobStatus::Success),
            _ => Fact::Ready,
        };
        ensure!(self.facts[at] == goes_on, "j{at} has its turn and is {:?}", self.facts[at]);
        ensure!(self.jobs[at].turn == Turn::Given, "j{at} has its turn and does not know of it");
        Ok(())
    }

    fn end<R: Rules>(&mut self, at: usize, status: JobStatus, reason: Option<&str>) -> Check {
        let command =
            Command::Finished { status, reason: reason.map(str::to_owned), settled: false, at: self.clock };
        self.message::<R>(at, command, Doing::Ending(at, status))?;
        ensure!(
            matches!(self.facts[at], Fact::Ended(_)),
            "R-8: j{at} was reported to have ended and goes on"
        );
        Ok(())
    }

    fn nothing_follows<R: Rules>(&mut self, at: usize, command: &Command, what: &str) -> Check {
        let doing = match command {
            Command::Started { .. } => Doing::Starting(at),
            _ => Doing::Begin,
        };
        match self.step::<R>(at, command, doing)? {
            Ok(0) => Ok(()),
            Ok(_) => Err(TestCaseError::fail(format!("{what} changed something of j{at}"))),
            Err(refusal) => Err(TestCaseError::fail(format!("{what} was refused: {refusal}"))),
        }
    }

    fn approve<R: Rules>(&mut self, at: usize, by: UserId) -> Check {
        let before = self.facts[at];
        let result = self.step::<R>(at, &Command::Approve { by }, Doing::Approving(at, by))?;
        match (before, result) {
            (Fact::Holds, Ok(_)) => {
                self.seen.approve += 1;
                ensure!(
                    self.facts[at] == Fact::Ended(JobStatus::Success),
                    "R-13: approved and not so: j{at}"
                );
            }
            (Fact::Ended(JobStatus::Success), Ok(events)) => {
                self.seen.contested += 1;
                ensure!(
                    events == 0 && self.approved_by[at] == Some(by),
                    "R-13: j{at} was decided by another"
                );
            }
            (Fact::Ended(status), Err(Refusal::AlreadyDecided { status: said, by: winner })) => {
                self.seen.contested += 1;
                ensure!(
                    said == status && winner == self.approved_by[at] && winner != Some(by),
                    "R-13: the refusal does not name the decision of j{at}"
                );
            }
            (Fact::Waits, Err(Refusal::NotOnHold { .. })) => {}
            // Kept from the instance before: nobody decided in this one.
            (Fact::Ended(_), _) if self.carried[at] => {}
            (before, result) => {
                return Err(TestCaseError::fail(format!(
                    "R-13: j{at} was {before:?}, and the answer {result:?}"
                )));
            }
        }
        Ok(())
    }

    fn cancel_job<R: Rules>(&mut self, at: usize) -> Check {
        let before = self.facts[at];
        // The wish counts from here on: the events that follow are judged with it.
        let asked = std::mem::replace(&mut self.cancel_asked[at], true);
        match (before, self.step::<R>(at, &Command::Cancel { reason: None }, Doing::CancelingJob(at))?) {
            (Fact::Ended(JobStatus::Canceled), Ok(0)) => {}
            (Fact::Ended(_), Err(Refusal::JobEnded { .. })) => self.cancel_asked[at] = asked,
            (Fact::Waits | Fact::InLine | Fact::Holds, Ok(_)) => {
                self.seen.cancel_job += 1;
                ensure!(self.facts[at] == Fact::Ended(JobStatus::Canceled), "R-12: j{at} still waits");
            }
            (Fact::Ready | Fact::Runs, Ok(events)) => {
                self.seen.cancel_job += 1;
                ensure!(self.jobs[at].cancel_requested, "R-12: the cancel of j{at} is not marked");
                ensure!(!asked || events == 0, "R-29: the cancel of j{at} counted twice");
            }
            (before, result) => {
                return Err(TestCaseError::fail(format!(
                    "cancel: j{at} was {before:?}, the answer {result:?}"
                )));
            }
        }
        Ok(())
    }

    fn cancel_workflow<R: Rules>(&mut self) -> Check {
        self.clock += TimeDelta::seconds(1);
        self.seen.steps += 1;
        let mut walk = Walk::<R>::under_rules(self.root.clone(), self.clock);
        let open = self.jobs.iter().filter(|job| !job.status.is_terminal()).cloned().collect();
        match walk.cancel_workflow(open, None) {
            Err(Refusal::WorkflowEnded { status }) => {
                ensure!(self.ended && status == self.said, "R-12: refused while it runs");
                return Ok(());
            }
            Err(refusal) => return Err(TestCaseError::fail(format!("cancel was refused: {refusal}"))),
            Ok(()) => {}
        }
        let repeat = self.cancel_all;
        if !self.ended {
            self.cancel_all = true;
            self.seen.cancel_workflow += 1;
        }
        let changes = walk.conclude();
        ensure!(!(repeat || self.ended) || changes.events.is_empty(), "R-29: the cancel counted twice");
        self.take(changes, Doing::CancelingAll)?;
        let waits =
            self.facts.iter().position(|fact| matches!(fact, Fact::Waits | Fact::InLine | Fact::Holds));
        ensure!(waits.is_none(), "R-12: j{} still waits after the cancel", waits.unwrap_or_default());
        Ok(())
    }

    /// Brings everything to its end, which must be possible.
    fn finish<R: Rules>(&mut self) -> Check {
        for _ in 0..=3 * self.jobs.len() {
            if let Some(at) = self.active.last().copied() {
                self.end::<R>(at, JobStatus::Success, None)?;
            } else if let Some(at) = self.in_line.last().copied() {
                self.give_turn::<R>(at)?;
            } else if let Some(at) = self.holding.last().copied() {
                self.approve::<R>(at, user(0))?;
            } else {
                break;
            }
        }
        ensure!(self.ended, "R-8: nothing is left to do and the workflow is {}", self.said);
        // After the end nothing happens any more.
        for at in [0, self.jobs.len() / 2, self.jobs.len() - 1] {
            let command =
                Command::Finished { status: JobStatus::Failed, reason: None, settled: false, at: self.clock };
            self.nothing_follows::<R>(at, &command, "R-9: an end after the end")?;
        }
        self.seen.not_run +=
            self.facts.iter().filter(|fact| **fact == Fact::Ended(JobStatus::NotRun)).count() as u64;
        Ok(())
    }

    /// Takes the changes of a step over, after judging each event.
    fn take(&mut self, changes: Changes, doing: Doing) -> Check {
        let mut over = Vec::new();
        for event in &changes.events {
            ensure!(!self.ended, "R-9: an event after the end: {event:?}");
            match event {
                Event::EdgeMet { .. } => {}
                Event::CancelRequested { job: None } => {
                    ensure!(matches!(doing, Doing::CancelingAll), "nobody canceled the workflow");
                }
                Event::CancelRequested { job: Some(job) } => {
                    let at = index(*job);
                    ensure!(
                        matches!(doing, Doing::CancelingJob(asked) if asked == at),
                        "nobody canceled j{at}"
                    );
                }
                Event::TurnWanted { job } => {
                    let at = index(*job);
                    ensure!(self.serial[at], "j{at} waits for a turn and needs none");
                    self.began(at, self.kinds[at])?;
                    ensure!(self.kinds[at].takes_turns(), "j{at} is a {}", self.kinds[at].as_str());
                    self.facts[at] = Fact::InLine;
                    self.active.retain(|active| *active != at);
                    self.numbers[BUSY] -= 1;
                    self.in_line.push(at);
                }
                Event::JobReady { job } if self.serial[index(*job)] => self.turned(index(*job), doing)?,
                Event::JobReady { job } => self.began(index(*job), Kind::Build)?,
                Event::JobOnHold { job } => self.began(index(*job), Kind::Approval)?,
                Event::JobRunning { job, .. } => {
                    let at = index(*job);
                    ensure!(self.facts[at] == Fact::Ready, "R-10: j{at} runs, and was {:?}", self.facts[at]);
                    ensure!(
                        matches!(doing, Doing::Starting(told) if told == at),
                        "nobody said that j{at} runs"
                    );
                    self.facts[at] = Fact::Runs;
                }
                Event::JobEnded { job, status, approved_by, .. } => {
                    let at = index(*job);
                    self.job_ended(at, *status, *approved_by, doing)?;
                    over.push(at);
                }
                Event::StatusChanged { status } => {
                    ensure!(*status != self.said, "the status changed to what it was");
                    ensure!(!status.is_terminal(), "{status} is an end");
                    self.said = *status;
                }
                Event::Finished { status, .. } => {
                    ensure!(self.numbers[OPEN] == 0, "R-8: finished with {} open jobs", self.numbers[OPEN]);
                    self.said = *status;
                    self.ended = true;
                }
            }
        }
        for at in over {
            if !self.cancel_all {
                for (below, _) in &self.down[at] {
                    self.not_overlooked(*below)?;
                }
            }
        }
        ensure!(
            self.said == self.expected(),
            "the workflow is {}, and should be {}",
            self.said,
            self.expected()
        );
        self.root = changes.root;
        ensure!(self.root.status == self.said, "the row says {}, the events {}", self.root.status, self.said);
        ensure!(self.root.counts.open() == self.numbers[OPEN], "the counts are wrong");
        for (id, job) in changes.jobs {
            let at = index(id);
            let matches = match self.facts[at] {
                Fact::Waits => job.status == JobStatus::Blocked,
                Fact::InLine => job.status == JobStatus::Queued && job.turn == Turn::Wanted,
                Fact::Ready => job.status == JobStatus::Queued,
                Fact::Runs => job.status == JobStatus::Running,
                Fact::Holds => job.status == JobStatus::OnHold,
                Fact::Ended(status) => job.status == status,
            };
            ensure!(matches, "the row of j{at} says {}, the events {:?}", job.status, self.facts[at]);
            self.jobs[at] = job;
        }
        Ok(())
    }

    fn began(&mut self, at: usize, kind: Kind) -> Check {
        ensure!(self.facts[at] == Fact::Waits, "R-10: j{at} began, and was {:?}", self.facts[at]);
        ensure!(self.kinds[at] == kind, "j{at} is a {}", self.kinds[at].as_str());
        ensure!(!self.cancel_all, "R-12: j{at} began after the cancel of the workflow");
        ensure!(!self.cancel_asked[at], "R-12: j{at} began after its cancel");
        self.requirements_hold(at)?;
        if kind.takes_turns() {
            self.facts[at] = Fact::Ready;
            self.active.push(at);
            self.numbers[BUSY] += 1;
        } else {
            self.facts[at] = Fact::Holds;
            self.holding.push(at);
        }
        Ok(())
    }

    /// a job of a serial group runs in its turn only.
    fn turned(&mut self, at: usize, doing: Doing) -> Check {
        ensure!(
            matches!(doing, Doing::Turning(told) if told == at) && self.facts[at] == Fact::InLine,
            "R-22: j{at} began without its turn"
        );
        ensure!(!self.cancel_all && !self.cancel_asked[at], "R-12: j{at} began after its cancel");
        self.facts[at] = Fact::Ready;
        self.in_line.retain(|waiting| *waiting != at);
        self.active.push(at);
        self.numbers[BUSY] += 1;
        Ok(())
    }

    fn requirements_hold(&self, at: usize) -> Check {
        for (up, accepts) in &self.requires[at] {
            let Fact::Ended(status) = self.facts[*up] else {
                return Err(TestCaseError::fail(format!("R-10: j{at} began before j{up} had ended")));
            };
            ensure!(holds(*accepts, status), "R-10: j{at} began after j{up} ended {status}");
        }
        Ok(())
    }

    fn job_ended(&mut self, at: usize, status: JobStatus, by: Option<UserId>, doing: Doing) -> Check {
        let before = self.facts[at];
        ensure!(!matches!(before, Fact::Ended(_)), "R-9: j{at} ended twice");
        ensure!(status.is_terminal(), "{status} is no end");
        ensure!(!self.carried[at], "R-14: j{at} was kept");
        let canceled = self.cancel_all || self.cancel_asked[at];
        match before {
            Fact::Waits if status == JobStatus::NotRun => {
                let broken = self.requires[at]
                    .iter()
                    .any(|(up, accepts)| matches!(self.facts[*up], Fact::Ended(s) if !holds(*accepts, s)));
                ensure!(broken && !canceled, "j{at} is not run, and could");
            }
            Fact::Waits if status == JobStatus::Success => {
                ensure!(
                    self.kinds[at].succeeds_at_once() && !canceled,
                    "R-10: j{at} succeeded without a start"
                );
                self.requirements_hold(at)?;
            }
            Fact::Holds if status == JobStatus::Success => {
                ensure!(
                    matches!(doing, Doing::Approving(asked, who) if asked == at && Some(who) == by),
                    "R-13: nobody approved j{at}"
                );
                self.approved_by[at] = by;
            }
            Fact::InLine if status == JobStatus::Success => {
                let told = matches!(doing, Doing::Turning(told) if told == at);
                ensure!(
                    told && self.kinds[at] == Kind::Lock && !canceled,
                    "R-22: j{at} locked without its turn"
                );
                self.requirements_hold(at)?;
            }
            Fact::InLine if status == JobStatus::NotRun => {
                ensure!(
                    matches!(doing, Doing::PassingOver(told) if told == at),
                    "nobody said that j{at} is passed over"
                );
            }
            Fact::Waits | Fact::InLine | Fact::Holds => {
                ensure!(status == JobStatus::Canceled && canceled, "j{at} ended {status} from {before:?}");
            }
            Fact::Ready | Fact::Runs => {
                let Doing::Ending(told, reported) = doing else {
                    return Err(TestCaseError::fail(format!("nobody said that j{at} ended")));
                };
                let expected = if canceled { JobStatus::Canceled } else { reported };
                ensure!(told == at && status == expected, "R-12: j{at} ended {status}, not {expected}");
            }
            Fact::Ended(_) => {}
        }
        self.facts[at] = Fact::Ended(status);
        self.over.push(at);
        self.active.retain(|active| *active != at);
        self.holding.retain(|holding| *holding != at);
        self.in_line.retain(|waiting| *waiting != at);
        self.numbers[OPEN] -= 1;
        if matches!(before, Fact::Ready | Fact::Runs) {
            self.numbers[BUSY] -= 1;
        }
        match status {
            JobStatus::Failed | JobStatus::Timedout | JobStatus::InfrastructureFail => self.numbers[BAD] += 1,
            JobStatus::Unauthorized => self.numbers[DENIED] += 1,
            JobStatus::Canceled => self.numbers[STOPPED] += 1,
            JobStatus::Success => self.numbers[GOOD] += 1,
            _ => {}
        }
        Ok(())
    }

    /// A job that waits must have something to wait for.
    fn not_overlooked(&self, at: usize) -> Check {
        if self.facts[at] != Fact::Waits {
            return Ok(());
        }
        let mut open = false;
        for (up, accepts) in &self.requires[at] {
            match self.facts[*up] {
                Fact::Ended(status) => {
                    ensure!(holds(*accepts, status), "R-8: j{at} waits, and j{up} ended {status}");
                }
                _ => open = true,
            }
        }
        ensure!(open, "R-8: j{at} waits for nothing");
        Ok(())
    }

    /// The table of execution §3, said once more.
    fn expected(&self) -> WorkflowStatus {
        let [open, busy, bad, denied, stopped, good] = self.numbers;
        match () {
            () if open > 0 && bad > 0 => WorkflowStatus::Failing,
            () if open > 0 && busy == 0 && !self.holding.is_empty() => WorkflowStatus::OnHold,
            () if open > 0 && busy == 0 && !self.in_line.is_empty() => WorkflowStatus::Queued,
            () if open > 0 => WorkflowStatus::Running,
            () if self.cancel_all => WorkflowStatus::Canceled,
            () if denied > 0 => WorkflowStatus::Unauthorized,
            () if bad > 0 => WorkflowStatus::Failed,
            () if stopped > 0 => WorkflowStatus::Canceled,
            () if good > 0 => WorkflowStatus::Success,
            () => WorkflowStatus::NotRun,
        }
    }
}

fn place_back(case: &Case, n: usize, at: usize) -> usize {
    if case.reversed { n - 1 - at } else { at }
}
