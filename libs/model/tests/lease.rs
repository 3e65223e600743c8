//! Three agents, two dispatchers and a receiver of output under a bad network, by seed: messages are late, lost and
//! repeated, processes stand still and die between any two steps, clocks run at different speeds. The decisions are
//! those of [`gantry_model::lease`]; everything around them is played.
//!
//! `GANTRY_SEEDS` says how many seeds are tried (default 10,000), `GANTRY_SEED` the first.

use chrono::{DateTime, TimeDelta};
use gantry_model::lease::{
    Claim, Expiry, Report, Rules, Sound, Stage, Task, claim_as, expire_as, holds, report,
};
use ids::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Milliseconds of simulated time.
type Ms = i64;

const LEASE: Ms = 1800;
const SELF_STOP: Ms = 1500;
const RENEW: Ms = 100;
const CLAIM_TIMEOUT: Ms = 600;
const REQUEUES: u32 = 3;
const TASKS: usize = 4;
const AGENTS: usize = 3;
const END: Ms = 60_000;

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }
}

fn at(ms: Ms) -> Timestamp {
    DateTime::UNIX_EPOCH + TimeDelta::milliseconds(ms)
}

/// A row with the times that the database keeps beside it.
#[derive(Clone, Copy, Debug)]
struct Row {
    task: Task,
    deadline: Ms,
}

/// What one agent does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Doing {
    Idle,
    /// Asks for a task that it was placed for.
    Claiming {
        task: usize,
        epoch: i64,
        claim: u128,
    },
    /// Runs user code.
    Running {
        task: usize,
        epoch: i64,
        token_ends: Ms,
        heard: Ms,
        until: Ms,
    },
    /// Has an outcome to tell.
    Reporting {
        task: usize,
        epoch: i64,
        tries: u32,
    },
}

#[derive(Clone, Debug)]
enum Event {
    /// An agent takes its next step, if it is still the same incarnation.
    Agent(usize, u32),
    /// A dispatcher looks for what is due.
    Sweep(usize),
    /// A dispatcher ends a task whose epoch it has closed.
    Expire { dispatcher: usize, life: u32, task: usize, epoch: i64 },
    /// A dispatcher commits a report after the epoch is closed.
    Commit { dispatcher: usize, life: u32, agent: usize, task: usize, epoch: i64 },
    /// A write of an agent reaches the receiver.
    Write { task: usize, epoch: i64, token_ends: Ms },
    /// Somebody cancels a task.
    Cancel(usize),
}

struct World {
    dice: Dice,
    now: Ms,
    queue: BTreeMap<(Ms, u64), Event>,
    n: u64,
    rows: Vec<Row>,
    /// What the receiver has closed.
    closed: Vec<i64>,
    agents: Vec<(Doing, u32)>,
    dispatchers: [u32; 2],
    /// Agents to be started, as the scheduler's rows say: task and epoch.
    wanted: BTreeSet<(usize, i64)>,
    claims: u128,
    // What really happened.
    started: Vec<BTreeSet<i64>>,
    written: Vec<Vec<i64>>,
    ended: Vec<u32>,
    told: BTreeSet<(usize, i64)>,
    lost: u32,
    requeued: u32,
    /// An agent that got what it was not placed for: agent's epoch, and the lease's.
    misplaced: Option<(i64, i64)>,
}

type Check = Result<(), String>;

macro_rules! ensure {
    ($cond:expr, $($text:tt)+) => {
        if !$cond {
            return Err(format!($($text)+));
        }
    };
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: 0,
            queue: BTreeMap::new(),
            n: 0,
            rows: Vec::new(),
            closed: vec![0; TASKS],
            agents: vec![(Doing::Idle, 0); AGENTS],
            dispatchers: [0; 2],
            wanted: BTreeSet::new(),
            claims: 0,
            started: vec![BTreeSet::new(); TASKS],
            written: vec![Vec::new(); TASKS],
            ended: vec![0; TASKS],
            told: BTreeSet::new(),
            lost: 0,
            requeued: 0,
            misplaced: None,
        };
        for task in 0..TASKS {
            let queued = Task { stage: Stage::Queued, epoch: 1, requeues: 0, cancel_requested: false };
            world.rows.push(Row { task: queued, deadline: CLAIM_TIMEOUT });
            world.wanted.insert((task, 1));
            if world.dice.percent(15) {
                let when = world.dice.below(5000) as Ms;
                world.after(when, Event::Cancel(task));
            }
        }
        for agent in 0..AGENTS {
            world.after(agent as Ms, Event::Agent(agent, 0));
        }
        world.after(50, Event::Sweep(0));
        world.after(75, Event::Sweep(1));
        world
    }

    fn after(&mut self, delay: Ms, event: Event) {
        self.n += 1;
        self.queue.insert((self.now + delay.max(1), self.n), event);
    }

    /// How long a message takes: mostly short, now and then longer than any lease.
    fn travel(&mut self) -> Ms {
        match self.dice.below(100) {
            0..90 => self.dice.below(30) as Ms,
            90..97 => self.dice.below(600) as Ms,
            _ => self.dice.below(3 * LEASE as u64) as Ms,
        }
    }

    fn run<R: Rules>(&mut self) -> Check {
        while let Some(((now, _), event)) = self.queue.pop_first() {
            if now > END {
                break;
            }
            self.now = now;
            match event {
                Event::Agent(agent, life) if self.agents[agent].1 == life => self.step::<R>(agent)?,
                Event::Agent(..) => {}
                Event::Sweep(dispatcher) => self.sweep(dispatcher),
                Event::Expire { dispatcher, life, task, epoch } if self.dispatchers[dispatcher] == life => {
                    self.expire::<R>(task, epoch)?;
                }
                Event::Commit { dispatcher, life, agent, task, epoch }
                    if self.dispatchers[dispatcher] == life =>
                {
                    self.commit(agent, task, epoch)?;
                }
                Event::Expire { .. } | Event::Commit { .. } => {}
                Event::Write { task, epoch, token_ends } => {
                    if R::takes(self.closed[task], epoch, at(token_ends), at(self.now)) {
                        self.written[task].push(epoch);
                        ensure!(
                            self.written[task].is_sorted(),
                            "R-23: output of an older epoch of task {task} was taken: {:?}",
                            self.written[task]
                        );
                        ensure!(
                            !matches!(self.rows[task].task.stage, Stage::Finished { .. }),
                            "R-19: output of task {task} was taken after its end"
                        );
                    }
                }
                Event::Cancel(task) => {
                    let row = &mut self.rows[task];
                    match row.task.stage {
                        Stage::Waiting | Stage::Queued => {
                            row.task.stage = Stage::Finished { reported: false };
                            row.task.cancel_requested = true;
                            self.ended[task] += 1;
                        }
                        Stage::Leased { .. } => row.task.cancel_requested = true,
                        Stage::Finished { .. } => {}
                    }
                }
            }
            self.always()?;
        }
        for task in 0..TASKS {
            let stage = self.rows[task].task.stage;
            ensure!(matches!(stage, Stage::Finished { .. }), "R-8: task {task} is {stage:?} at the end");
            ensure!(self.ended[task] == 1, "R-9: task {task} ended {} times", self.ended[task]);
        }
        Ok(())
    }

    /// What is true at every moment.
    fn always(&self) -> Check {
        // The scheduler ends agents of older epochs whenever it comes to it: a lease with one of them is lost.
        if let Some((placed, got)) = self.misplaced {
            return Err(format!("R-15: an agent that was placed for epoch {placed} holds epoch {got}"));
        }
        for task in 0..TASKS {
            let running = self
                .agents
                .iter()
                .filter(|(doing, _)| matches!(doing, Doing::Running { task: t, .. } if *t == task));
            ensure!(running.count() <= 1, "R-15: two agents run task {task} at {}", self.now);
            ensure!(
                self.started[task].len() <= 1,
                "R-16: user code of task {task} began in epochs {:?}",
                self.started[task]
            );
        }
        Ok(())
    }

    /// Answers that get lost, and requests too.
    fn arrives(&mut self) -> bool {
        !self.dice.percent(8)
    }

    fn step<R: Rules>(&mut self, agent: usize) -> Check {
        let (doing, life) = self.agents[agent];
        // It dies, with everything that it knew. What it runs dies with it.
        if self.dice.percent(1) && doing != Doing::Idle {
            self.agents[agent] = (Doing::Idle, life + 1);
            let pause = 200 + self.dice.below(2000) as Ms;
            self.after(pause, Event::Agent(agent, life + 1));
            return Ok(());
        }
        let (next, pause) = match doing {
            Doing::Idle => match self.wanted.iter().copied().next() {
                Some((task, epoch)) => {
                    // Placing is at least once: the row goes only sometimes.
                    if self.dice.percent(85) {
                        self.wanted.remove(&(task, epoch));
                    }
                    self.claims += 1;
                    (Doing::Claiming { task, epoch, claim: self.claims }, self.travel())
                }
                None => (Doing::Idle, 50),
            },
            Doing::Claiming { task, epoch, claim } => self.claim::<R>(task, epoch, claim),
            Doing::Running { task, epoch, token_ends, heard, until } => {
                self.running(task, epoch, token_ends, heard, until)
            }
            Doing::Reporting { task, epoch, tries } => {
                if tries > 40 {
                    (Doing::Idle, 1)
                } else {
                    if self.arrives() {
                        self.report(agent, task, epoch);
                    }
                    (Doing::Reporting { task, epoch, tries: tries + 1 }, 100)
                }
            }
        };
        if matches!(self.agents[agent], (now, l) if l == life && now == doing) {
            self.agents[agent].0 = next;
        }
        self.after(pause, Event::Agent(agent, life));
        Ok(())
    }

    fn claim<R: Rules>(&mut self, task: usize, epoch: i64, claim: u128) -> (Doing, Ms) {
        let again = (Doing::Claiming { task, epoch, claim }, 40);
        if !self.arrives() {
            return again;
        }
        let row = &mut self.rows[task];
        let decided = claim_as::<R>(&row.task, epoch, Uuid::from_u128(claim));
        match decided {
            Claim::Grant => {
                row.task.stage = Stage::Leased { claim: Uuid::from_u128(claim), permit: true };
                row.deadline = self.now + LEASE;
            }
            Claim::Repeat => {}
            Claim::Stale(_) => return (Doing::Idle, 1),
        }
        if row.task.epoch != epoch {
            self.misplaced = Some((epoch, row.task.epoch));
        }
        let (epoch, token_ends) = (row.task.epoch, row.deadline);
        let asked = self.now;
        // The answer may be lost, or come so late that the agent must not begin.
        let back = self.travel();
        if !self.arrives() {
            return again;
        }
        if back > SELF_STOP {
            return (Doing::Idle, back);
        }
        self.started[task].insert(epoch);
        let until = self.now + 100 + self.dice.below(4000) as Ms;
        (Doing::Running { task, epoch, token_ends, heard: asked, until }, RENEW)
    }

    /// User code runs on while the agent renews, writes, and watches its own time.
    fn running(&mut self, task: usize, epoch: i64, token_ends: Ms, heard: Ms, until: Ms) -> (Doing, Ms) {
        // Its clock is up to a tenth slow.
        let silent = (self.now - heard) * 9 / 10;
        if silent >= SELF_STOP * 9 / 10 {
            return (Doing::Idle, 1);
        }
        let write = self.travel();
        self.after(write, Event::Write { task, epoch, token_ends });
        if self.now >= until {
            return (Doing::Reporting { task, epoch, tries: 0 }, 1);
        }
        let (mut heard, mut ends) = (heard, token_ends);
        if self.arrives() {
            let row = &mut self.rows[task];
            if !holds(&row.task, epoch) {
                // The answer says so, if it comes.
                return if self.arrives() {
                    (Doing::Idle, 1)
                } else {
                    (Doing::Running { task, epoch, token_ends, heard, until }, RENEW)
                };
            }
            row.deadline = self.now + LEASE;
            let (deadline, cancel) = (row.deadline, row.task.cancel_requested);
            if self.arrives() {
                (heard, ends) = (self.now, deadline);
                if cancel {
                    return (Doing::Reporting { task, epoch, tries: 0 }, 1);
                }
            }
        }
        // It stands still now and then, user code with it, but never past its own limit: the limit is the kernel's.
        let pause = if self.dice.percent(3) { self.dice.below(1000) as Ms } else { RENEW };
        let pause = pause.min((heard + SELF_STOP - self.now).max(1));
        (Doing::Running { task, epoch, token_ends: ends, heard, until }, pause)
    }

    /// A dispatcher takes a report: it closes the epoch at the receiver, and then commits.
    fn report(&mut self, agent: usize, task: usize, epoch: i64) {
        if report(&self.rows[task].task, epoch) == Report::Accept {
            self.closed[task] = self.closed[task].max(epoch);
        }
        let dispatcher = self.dice.below(2) as usize;
        let life = self.dispatchers[dispatcher];
        let delay = self.travel();
        self.after(delay, Event::Commit { dispatcher, life, agent, task, epoch });
        self.crash(dispatcher);
    }

    fn commit(&mut self, agent: usize, task: usize, epoch: i64) -> Check {
        let row = &mut self.rows[task];
        let decided = report(&row.task, epoch);
        if decided == Report::Accept {
            ensure!(self.closed[task] >= epoch, "R-19: task {task} was released with its epoch open");
            row.task.stage = Stage::Finished { reported: true };
            self.ended[task] += 1;
            self.told.insert((task, epoch));
        }
        if decided == Report::Repeat {
            ensure!(self.told.contains(&(task, epoch)), "R-19: a report that never decided is acknowledged");
        }
        if self.arrives()
            && let (Doing::Reporting { task: t, epoch: e, .. }, _) = self.agents[agent]
            && (t, e) == (task, epoch)
        {
            self.agents[agent].0 = Doing::Idle;
        }
        Ok(())
    }

    fn sweep(&mut self, dispatcher: usize) {
        for task in 0..TASKS {
            let row = self.rows[task];
            let waits = matches!(row.task.stage, Stage::Queued | Stage::Leased { .. });
            if waits && row.deadline < self.now {
                // The epoch is closed first. A receiver that does not answer has closed by itself: tokens end with the
                // lease.
                if self.dice.percent(70) {
                    self.closed[task] = self.closed[task].max(row.task.epoch);
                }
                let life = self.dispatchers[dispatcher];
                let delay = self.travel();
                self.after(delay, Event::Expire { dispatcher, life, task, epoch: row.task.epoch });
            }
        }
        self.crash(dispatcher);
        self.after(100, Event::Sweep(dispatcher));
    }

    fn expire<R: Rules>(&mut self, task: usize, seen: i64) -> Check {
        let row = &mut self.rows[task];
        // Locked and read again: it may have been renewed, or be over.
        let due = matches!(row.task.stage, Stage::Queued | Stage::Leased { .. }) && row.deadline < self.now;
        if !due || row.task.epoch != seen {
            return Ok(());
        }
        match expire_as::<R>(&row.task, REQUEUES) {
            Expiry::Requeue => {
                row.task.stage = Stage::Queued;
                row.task.epoch += 1;
                row.task.requeues += 1;
                row.deadline = self.now + CLAIM_TIMEOUT;
                self.wanted.insert((task, row.task.epoch));
                self.requeued += 1;
            }
            Expiry::Finish(..) => {
                row.task.stage = Stage::Finished { reported: false };
                self.ended[task] += 1;
                self.lost += 1;
            }
        }
        Ok(())
    }

    /// A dispatcher dies now and then: what it had begun and not committed is gone.
    fn crash(&mut self, dispatcher: usize) {
        if self.dice.percent(3) {
            self.dispatchers[dispatcher] += 1;
        }
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let first = number("GANTRY_SEED").unwrap_or(1);
    first..first + number("GANTRY_SEEDS").unwrap_or(10_000)
}

/// The first seed that shows something wrong, and what.
fn wrong<R: Rules>(seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| World::new(seed).run::<R>().err().map(|why| (seed, why)))
}

#[test]
fn r15_to_r19_hold_under_every_seed() {
    let (mut lost, mut requeued, mut told) = (0, 0, 0);
    let all = seeds();
    let n = all.end - all.start;
    for seed in all {
        let mut world = World::new(seed);
        world.run::<Sound>().unwrap_or_else(|why| panic!("GANTRY_SEED={seed}: {why}"));
        lost += world.lost;
        requeued += world.requeued;
        told += world.told.len();
    }
    println!("{n} seeds: {told} reports decided, {lost} tasks were given up, {requeued} were queued again");
    if n >= 1000 {
        assert!(lost > 100 && requeued > 100 && told > 1000, "the network was too kind");
    }
}

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident { $($rule:item)* })*) => {
        $($(#[$doc])* struct $name; impl Rules for $name { $($rule)* })*

        #[test]
        fn each_mutant_is_caught() {
            $(
                let (seed, why) = wrong::<$name>(1..5000).expect(concat!(stringify!($name), " was not noticed"));
                println!("{}: seed {seed}: {why}", stringify!($name));
            )*
        }
    };
}

mutants! {
    /// A task whose agent is silent is given to another, though its code may have run.
    TriesAgain {
        fn may_try_again(_: bool) -> bool {
            true
        }
    }

    /// An agent that was placed for an older epoch gets the task.
    AnyEpoch {
        fn same_epoch(_: &Task, _: i64) -> bool {
            true
        }
    }

    /// A receiver takes what comes after the end of a token, or after the epoch was closed.
    OpenReceiver {
        fn takes(_: i64, _: i64, _: Timestamp, _: Timestamp) -> bool {
            true
        }
    }
}
