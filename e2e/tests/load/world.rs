//! The stack with two processes of each service, and what runs on it.

use anyhow::{Context, ensure};
use gantry_e2e::{
    Suite, binary,
    ledger::{Fan, LIMIT, Ledger},
    stack::{Stack, run},
    until,
};
use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

/// One small job.
pub const PROBE: Fan = Fan { jobs: 1, lines: 1, between: "true", class: None, more: ("", "") };

pub struct World {
    pub stack: Stack,
    pub suite: Suite,
    pub ledger: Ledger,
    pub full: bool,
    /// Where processes find the programs: links, so that another build can take their place.
    pub programs: Programs,
    projects: AtomicUsize,
}

/// A folder of links to the programs of a build.
pub struct Programs {
    folder: tempfile::TempDir,
    ours: PathBuf,
}

impl Programs {
    fn new() -> anyhow::Result<Self> {
        let ours = fs::canonicalize(binary().parent().context("the programs lie in a folder")?)?;
        let folder = tempfile::tempdir()?;
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let programs = Self { folder, ours };
        programs.set(&programs.ours)?;
        Ok(programs)
    }

    /// What is started from now on is of this build.
    pub fn set(&self, build: &Path) -> anyhow::Result<()> {
        for program in ["gantry", "gantry-runner"] {
            let (draft, name) = (self.folder.path().join("draft"), self.folder.path().join(program));
            symlink(build.join(program), &draft)?;
            fs::rename(draft, name)?;
        }
        Ok(())
    }

    /// The build under test.
    pub fn ours(&self) -> &Path {
        &self.ours
    }
}

/// Workflows that were started and are to be judged.
pub struct Load {
    pub fan: &'static Fan,
    pub projects: Vec<String>,
}

impl World {
    /// Starts everything and lets a first job end.
    pub async fn up(full: bool) -> anyhow::Result<Self> {
        let programs = Programs::new()?;
        // Two builds take part in an upgrade; it begins with the other one, whose schema is the older.
        let path = programs.folder.path().to_str().context("a folder with a name")?.to_owned();
        let mut given = vec![("GANTRY_STACK_REPLICAS", "2"), ("GANTRY_BIN", path.as_str())];
        if full {
            given.push(("GANTRY_DISPATCHER_SLOTS", "24"));
        }
        let stack = Stack::new(&given)?;
        let suite = stack.suite().await?;
        let world =
            Self { stack, suite, ledger: Ledger::new()?, full, programs, projects: AtomicUsize::new(0) };
        world.probe().await?;
        Ok(world)
    }

    /// A number for a short run, and one for a full run.
    pub fn pick<T>(&self, short: T, full: T) -> T {
        if self.full { full } else { short }
    }

    /// A name for one more project.
    pub fn project(&self, what: &str) -> String {
        format!("{what}-{}-{}", std::process::id(), self.projects.fetch_add(1, Ordering::Relaxed))
    }

    /// Pushes a workflow to each of so many new projects.
    pub async fn push(&self, what: &str, fan: &'static Fan, projects: usize) -> anyhow::Result<Load> {
        let mut load = Load { fan, projects: Vec::new() };
        for _ in 0..projects {
            let project = self.project(what);
            self.push_patiently(&project, fan).await?;
            load.projects.push(project);
        }
        Ok(load)
    }

    /// Pushes until it is taken: whoever pushes while things fail does so again.
    async fn push_patiently(&self, project: &str, fan: &Fan) -> anyhow::Result<()> {
        self.ledger.prepare(project, fan).await?;
        until("a push", LIMIT, || async { self.ledger.push_again(&self.suite, project).await.map(Some) })
            .await?;
        Ok(())
    }

    /// What a service's database answers to a question for one number, as its owner knows it: views may be late.
    pub async fn asked(&self, service: &str, question: &str) -> anyhow::Result<u64> {
        Ok(run(&mut self.stack.psql_of(service, question)?).await?.trim().parse()?)
    }

    /// How many tasks have ended so, by the dispatcher's rows.
    pub async fn finished_tasks(&self, so: &str) -> anyhow::Result<u64> {
        let count = format!("SELECT count(*) FROM dispatcher.tasks WHERE state = 'finished' AND {so}");
        self.asked("dispatcher", &count).await
    }

    /// How many jobs of a load have begun.
    pub fn begun(&self, load: &Load) -> anyhow::Result<usize> {
        let ran = self.ledger.ran()?;
        let mine =
            |name: &&String| load.projects.iter().any(|project| name.starts_with(&format!("{project}/")));
        Ok(ran.keys().filter(mine).count())
    }

    /// Waits until so many jobs of a load have begun.
    pub async fn wait_begun(&self, load: &Load, jobs: usize) -> anyhow::Result<()> {
        until("user code", LIMIT, || async { Ok((self.begun(load)? >= jobs).then_some(())) }).await
    }

    /// Judges every workflow of a load: each job ran once with all of its output, or is said to be lost, which at most
    /// `may_lose` are. How many were lost.
    pub async fn judge(&self, load: &Load, may_lose: usize) -> anyhow::Result<usize> {
        let mut lost = Vec::new();
        for project in &load.projects {
            let verdict = self.ledger.judge(&self.suite, project, load.fan).await?;
            let expected = if verdict.lost.is_empty() { "success" } else { "failed" };
            ensure!(
                verdict.status == expected,
                "{project} is {}, lost jobs: {:?}",
                verdict.status,
                verdict.lost
            );
            lost.extend(verdict.lost);
        }
        ensure!(lost.len() <= may_lose, "{may_lose} jobs may be lost, and {lost:?} were");
        Ok(lost.len())
    }

    /// One small job succeeds.
    pub async fn probe(&self) -> anyhow::Result<()> {
        let load = self.push("probe", &PROBE, 1).await?;
        self.judge(&load, 0).await?;
        Ok(())
    }

    /// Waits until every process of every service can serve.
    pub async fn all_ready(&self) -> anyhow::Result<()> {
        for name in self.stack.services()?.into_values().flatten() {
            self.stack.ready(&name).await?;
        }
        Ok(())
    }

    /// Seeds of this run: named by `GANTRY_SEEDS`, else one that is printed.
    pub fn seeds(&self) -> Vec<u64> {
        match env::var("GANTRY_SEEDS") {
            Ok(text) => text.split(',').filter_map(|seed| seed.trim().parse().ok()).collect(),
            Err(_) => vec![fastrand::u64(1..1_000_000)],
        }
    }
}

/// A number of the environment.
pub fn number(name: &str, otherwise: u64) -> anyhow::Result<u64> {
    match env::var(name) {
        Ok(text) => text.trim().parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(otherwise),
    }
}
