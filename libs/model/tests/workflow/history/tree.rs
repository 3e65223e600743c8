//! How cases are made and made smaller.

use super::{Act, Case, Spec};
use gantry_model::{
    status::JobStatus,
    workflow::{Kind, StatusSet},
};
use proptest::{
    prelude::Rng,
    strategy::{NewTree, Strategy, ValueTree},
    test_runner::TestRunner,
};

/// All histories. A strategy of its own rather than a composed one: a hundred times as fast, and what is shrunk
/// stays a valid history by construction.
#[derive(Debug)]
pub struct Histories;

impl Strategy for Histories {
    type Tree = Tree;
    type Value = Case;

    fn new_tree(&self, runner: &mut TestRunner) -> NewTree<Self> {
        let case = generate(&mut Dice(runner.rng().next_u64() | 1));
        Ok(Tree { best: case.clone(), current: case, next: 0, progress: false })
    }
}

/// xorshift64*: quick, and good enough to throw dice.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n.max(1)
    }

    fn percent(&mut self, n: u32) -> bool {
        self.next() % 100 < n
    }
}

const TERMINAL: [JobStatus; 5] =
    [JobStatus::Success, JobStatus::Failed, JobStatus::Canceled, JobStatus::Unauthorized, JobStatus::NotRun];

fn accepts(dice: &mut Dice) -> StatusSet {
    match dice.below(100) {
        0..72 => StatusSet::SUCCESS,
        72..80 => [JobStatus::Failed].into_iter().collect(),
        80..88 => TERMINAL.into_iter().collect(),
        88..92 => [JobStatus::Canceled].into_iter().collect(),
        92..96 => StatusSet::SUCCESS.with(JobStatus::Failed),
        96..98 => [JobStatus::NotRun].into_iter().collect(),
        _ => [JobStatus::Unauthorized, JobStatus::NotRun].into_iter().collect(),
    }
}

fn generate(dice: &mut Dice) -> Case {
    let n = if dice.percent(36) {
        let (a, b) = (dice.below(181), dice.below(181));
        20 + a.min(b)
    } else {
        1 + dice.below(19)
    };
    let fan_in = dice.below(4);
    let near = 1 + dice.below(n);
    let serial = [0, 0, 20, 60][dice.below(4)];
    let jobs = (0..n)
        .map(|index| {
            let mut requires: Vec<(usize, StatusSet)> = Vec::new();
            if index > 0 {
                for _ in 0..dice.below(fan_in + 2) {
                    let upstream = index - 1 - dice.below(index.min(near));
                    if requires.iter().all(|(known, _)| *known != upstream) {
                        requires.push((upstream, accepts(dice)));
                    }
                }
            }
            let kind = match dice.below(20) {
                0..4 => Kind::Approval,
                4 | 5 => Kind::NoOp,
                6 if serial > 0 => Kind::Lock,
                7 if serial > 0 => Kind::Unlock,
                _ => Kind::Build,
            };
            // A lock without a group would hold nothing; there is none.
            let serial = kind == Kind::Lock || (kind == Kind::Build && dice.percent(serial));
            Spec { kind, serial, requires }
        })
        .collect();
    // What is left open at the end is brought to its end by the checker, so that a history may stop anywhere.
    let length = dice.below(2 * n + 12);
    let unlucky = dice.percent(50);
    let mut acts: Vec<Act> = (0..length).map(|_| act(dice, n, unlucky)).collect();
    if dice.percent(25) {
        let at = dice.below(acts.len() + 1);
        acts.insert(at, Act::CancelWorkflow);
    }
    Case { jobs, reversed: dice.percent(50), acts, rerun: dice.percent(40) }
}

fn act(dice: &mut Dice, jobs: usize, unlucky: bool) -> Act {
    let pick = dice.next();
    let user = (dice.next() % 3) as u8;
    match dice.below(112) {
        100..108 => Act::GiveTurn(pick),
        108..112 => Act::PassOver(pick),
        0..24 => Act::Start(pick),
        24..62 => {
            // Most jobs succeed, else nothing of a deep graph would ever run.
            let bad = if unlucky { 25 } else { 4 };
            let status = match dice.below(100) {
                k if k >= bad => JobStatus::Success,
                k => [
                    JobStatus::Failed,
                    JobStatus::Failed,
                    JobStatus::Timedout,
                    JobStatus::Canceled,
                    JobStatus::Unauthorized,
                    JobStatus::NotRun,
                ][k % 6],
            };
            Act::Finish(pick, status)
        }
        62..68 if dice.below(jobs) < 12 => Act::Lose(pick),
        68..79 => Act::Approve(pick, user),
        79..84 => Act::TryApprove(pick, user),
        84..88 if dice.below(jobs) < 12 => Act::CancelJob(pick),
        88..94 => Act::Duplicate(pick),
        94..100 => {
            Act::Late(pick, [JobStatus::Success, JobStatus::Failed, JobStatus::Canceled][dice.below(3)])
        }
        _ => Act::Finish(pick, JobStatus::Success),
    }
}

/// Makes a failing case smaller: fewer acts, fewer jobs, fewer edges, plainer kinds.
pub struct Tree {
    /// The smallest case that is known to fail.
    best: Case,
    current: Case,
    next: usize,
    progress: bool,
}

impl Tree {
    /// Tries the next edit of the best case.
    fn advance(&mut self) -> bool {
        loop {
            let Some(edited) = edit(&self.best, self.next) else {
                if !self.progress {
                    self.current = self.best.clone();
                    return false;
                }
                (self.next, self.progress) = (0, false);
                continue;
            };
            self.next += 1;
            if edited != self.best {
                self.current = edited;
                return true;
            }
        }
    }
}

impl ValueTree for Tree {
    type Value = Case;

    fn current(&self) -> Case {
        self.current.clone()
    }

    /// The current case fails.
    fn simplify(&mut self) -> bool {
        if self.current != self.best {
            self.best = self.current.clone();
            self.progress = true;
            // What follows has moved up into the place of what is gone.
            self.next = self.next.saturating_sub(1);
        }
        self.advance()
    }

    /// The current case passes.
    fn complicate(&mut self) -> bool {
        self.advance()
    }
}

/// The `n`-th edit of a case, the greedy ones first.
fn edit(case: &Case, n: usize) -> Option<Case> {
    let mut n = n;
    let mut take = |count: usize| {
        let hit = (n < count).then_some(n);
        n = n.saturating_sub(count);
        if hit.is_some() {
            n = usize::MAX;
        }
        hit
    };
    let edited = |change: &dyn Fn(&mut Case)| {
        let mut edited = case.clone();
        change(&mut edited);
        Some(edited)
    };
    // Blocks of acts and jobs, halves first.
    for size in [case.acts.len() / 2, case.acts.len() / 4, case.acts.len() / 8, 1] {
        if size > 0
            && let Some(block) = take(case.acts.len().div_ceil(size))
        {
            return edited(&|c| drop(c.acts.drain(block * size..((block + 1) * size).min(c.acts.len()))));
        }
    }
    for size in [case.jobs.len() / 2, case.jobs.len() / 4, case.jobs.len() / 8, 1] {
        if size > 0
            && let Some(block) = take(case.jobs.len().div_ceil(size))
        {
            return edited(&|c| {
                let end = ((block + 1) * size).min(c.jobs.len());
                if end - block * size < c.jobs.len() {
                    without_jobs(c, block * size, end);
                }
            });
        }
    }
    if take(1).is_some() {
        return edited(&|c| c.rerun = false);
    }
    if take(1).is_some() {
        return edited(&|c| c.reversed = false);
    }
    if let Some(job) = take(case.jobs.len()) {
        return edited(&|c| c.jobs[job].kind = Kind::Build);
    }
    if let Some(job) = take(case.jobs.len()) {
        return edited(&|c| c.jobs[job].serial = false);
    }
    let edges: Vec<(usize, usize)> = case
        .jobs
        .iter()
        .enumerate()
        .flat_map(|(job, spec)| (0..spec.requires.len()).map(move |edge| (job, edge)))
        .collect();
    if let Some(index) = take(edges.len()) {
        let (job, edge) = edges[index];
        return edited(&|c| {
            c.jobs[job].requires.remove(edge);
        });
    }
    if let Some(index) = take(edges.len()) {
        let (job, edge) = edges[index];
        return edited(&|c| c.jobs[job].requires[edge].1 = StatusSet::SUCCESS);
    }
    // Together first: two acts on the same job must not be torn apart.
    if take(1).is_some() {
        return edited(&|c| c.acts.iter_mut().for_each(plain));
    }
    // An act between two on the same job moves what the second one picks: without it both must pick anew.
    if let Some(index) = take(case.acts.len()) {
        return edited(&|c| {
            c.acts.remove(index);
            c.acts.iter_mut().for_each(plain);
        });
    }
    if let Some(index) = take(case.acts.len()) {
        return edited(&|c| plain(&mut c.acts[index]));
    }
    None
}

fn without_jobs(case: &mut Case, from: usize, to: usize) {
    case.jobs.drain(from..to);
    for job in &mut case.jobs {
        job.requires.retain(|(upstream, _)| !(from..to).contains(upstream));
        for (upstream, _) in &mut job.requires {
            if *upstream >= to {
                *upstream -= to - from;
            }
        }
    }
}

/// The act on the first candidate, by the first user.
fn plain(act: &mut Act) {
    match act {
        Act::GiveTurn(pick)
        | Act::PassOver(pick)
        | Act::Start(pick)
        | Act::Finish(pick, _)
        | Act::Lose(pick)
        | Act::CancelJob(pick)
        | Act::Duplicate(pick)
        | Act::Late(pick, _) => *pick = 0,
        Act::Approve(pick, user) => (*pick, *user) = (0, 0),
        Act::TryApprove(pick, _) => *pick = 0,
        Act::CancelWorkflow => {}
    }
}
