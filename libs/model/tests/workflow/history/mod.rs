//! What a case is, and what was seen in it.

pub mod histories;
pub mod tree;

use gantry_model::{
    status::JobStatus,
    workflow::{Kind, StatusSet},
};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::fmt;

/// A graph and what happens to it. Picks are taken modulo the number of candidates, so that every case is valid
/// and a shrunk one still is.
#[derive(Clone, PartialEq)]
pub struct Case {
    /// Upstream jobs come first.
    pub jobs: Vec<Spec>,
    /// Listed in the file in the opposite order.
    pub reversed: bool,
    pub acts: Vec<Act>,
    /// Rerun from failed when it has ended.
    pub rerun: bool,
}

#[derive(Clone, PartialEq)]
pub struct Spec {
    pub kind: Kind,
    /// Whether it has to wait for its turn in a serial group.
    pub serial: bool,
    pub requires: Vec<(usize, StatusSet)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    /// A job that waits for its turn gets it.
    GiveTurn(u32),
    /// A job that waits for its turn is passed over.
    PassOver(u32),
    /// A job at the dispatcher starts.
    Start(u32),
    /// A job at the dispatcher ends.
    Finish(u32, JobStatus),
    /// Its runner is lost.
    Lose(u32),
    /// An approval that waits is given by one of three users.
    Approve(u32, u8),
    /// Any approval is tried by one of three users, whatever became of it.
    TryApprove(u32, u8),
    /// Any job is canceled.
    CancelJob(u32),
    CancelWorkflow,
    /// A message that was handled comes again.
    Duplicate(u32),
    /// The dispatcher speaks of a job that has ended.
    Late(u32, JobStatus),
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} jobs{}",
            self.jobs.len(),
            if self.reversed { ", in reverse file order" } else { "" }
        )?;
        for (index, job) in self.jobs.iter().enumerate() {
            write!(f, "  j{index}: {}{}", if job.serial { "serial " } else { "" }, job.kind.as_str())?;
            for (upstream, accepts) in &job.requires {
                let words: Vec<_> = accepts.iter().map(JobStatus::as_str).collect();
                write!(f, ", requires j{upstream} {{{}}}", words.join(" "))?;
            }
            writeln!(f)?;
        }
        for act in &self.acts {
            writeln!(f, "  {act:?}")?;
        }
        write!(f, "{}", if self.rerun { "  then a rerun from failed" } else { "" })
    }
}

/// A runner of so many cases that repeats itself for the same seed.
pub fn runner(seed: u64, cases: u32) -> TestRunner {
    let mut bytes = [0u8; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 50_000, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

macro_rules! seen {
    ($($(#[$doc:meta])* $field:ident = $word:literal),* $(,)?) => {
        /// How many histories had each kind of happening.
        #[derive(Default)]
        pub struct Seen { pub histories: u64, pub jobs: u64, pub steps: u64, $($(#[$doc])* pub $field: u64),* }

        impl Seen {
            pub fn add(&mut self, other: &Self) {
                self.histories += other.histories;
                self.jobs += other.jobs;
                self.steps += other.steps;
                $(self.$field += other.$field;)*
            }

            /// Each kind is in a tenth of all histories at least, large graphs in three tenths.
            pub fn assert_spread(&self) {
                $(assert!(self.$field * 10 >= self.histories, concat!("too few histories: ", $word));)*
                assert!(self.large * 10 >= self.histories * 3, "too few large graphs");
            }
        }

        impl fmt::Display for Seen {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                writeln!(f, "  {} jobs, {} steps", self.jobs, self.steps)?;
                $(writeln!(f, "  {:5.1} %  {}", 100.0 * self.$field as f64 / self.histories.max(1) as f64, $word)?;)*
                Ok(())
            }
        }
    };
}

seen! {
    large = "20 to 200 jobs",
    finish = "a job succeeds",
    fail = "a job fails or times out",
    lost = "a runner is lost",
    cancel_job = "a job is canceled",
    cancel_workflow = "the workflow is canceled while it runs",
    turn = "a job gets its turn in a serial group",
    passed_over = "a job is passed over in a serial group",
    approve = "an approval is given",
    contested = "a second decision is refused or repeated",
    duplicate = "a message comes twice",
    late = "a message comes after the end",
    not_run = "a job is not run",
    rerun = "a rerun from failed",
}
