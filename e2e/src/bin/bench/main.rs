//! Measures the real `gantry up`, each figure beside the machine's own limit taken in the same run.
//!
//! Usage: `scripts/bench [--jobs N] [--history N,N,…] [--only NAME,NAME,…]`. Prints a table on standard error and one
//! JSON document on standard output. Parts: `start`, `trigger`, `throughput`, `fan`, `step`,
//! `lines`, `flood`, `log`, `stack` (the suite as separate processes, where `scripts/stack` can start it), `history`.

mod api;
mod database;
mod history;
mod jobs;
mod machine;
mod numbers;
mod stack;
mod step;
mod trace;

use anyhow::{Context, bail};
use gantry_e2e::Suite;
use numbers::ms;
use serde_json::{Map, Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Nothing that is waited for takes longer.
pub const LIMIT: Duration = Duration::from_secs(600);

struct Arguments {
    jobs: usize,
    history: Vec<u32>,
    only: Option<Vec<String>>,
}

impl Arguments {
    fn read() -> anyhow::Result<Self> {
        let mut found = Self { jobs: 500, history: vec![1000, 10_000, 100_000], only: None };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--jobs" => found.jobs = value.parse()?,
                "--history" => {
                    found.history = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                    found.history.sort_unstable();
                }
                "--only" => found.only = Some(value.split(',').map(str::to_owned).collect()),
                _ => bail!(
                    "unknown argument {name}; usage: bench [--jobs N] [--history N,N] [--only NAME,NAME]"
                ),
            }
        }
        Ok(found)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|name| name == part))
    }
}

/// A folder for everything, and what was measured so far.
pub struct Bench {
    /// Where data folders, repositories and files lie.
    pub work: PathBuf,
    figures: Map<String, Value>,
}

impl Bench {
    /// Keeps a figure and says it at once: a long run shows where it is.
    fn note(&mut self, name: &str, figure: Value) {
        eprintln!("{name:24} {figure}");
        self.figures.insert(name.to_owned(), figure);
    }

    /// A suite with so many slots on a data folder of that name.
    pub async fn suite(&self, data: &str, slots: u32) -> anyhow::Result<Suite> {
        let config = self.work.join(format!("{data}-{slots}.toml"));
        fs::write(&config, format!("[dispatcher]\nslots = {slots}\n[api]\nmax_streams_of_session = 0\n"))?;
        let config = config.to_str().context("the folder's name is no text")?.to_owned();
        Suite::up(&self.work.join(data), &["--config", &config]).await
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read()?;
    let work = tempfile::tempdir()?;
    // Jobs run as another user, and some of them write here.
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o777))?;
    let mut bench = Bench { work: work.path().to_owned(), figures: Map::new() };
    let limits = machine::limits(work.path())?;
    bench.note("machine", limits.to_json());

    if arguments.wants("start") {
        start(&mut bench).await?;
    }
    if arguments.wants("trigger") {
        let suite = bench.suite("data", 8).await?;
        let figure = jobs::trigger(&suite, &bench.work, &limits).await?;
        bench.note("trigger", figure);
        let figure = jobs::seen(&suite, &bench.work).await?;
        bench.note("trigger_to_output_seen", figure);
        let figure = trace::spans(&database::Database::of(&bench.work.join("data"))?)?;
        bench.note("spans", figure);
        suite.down().await?;
    }
    if arguments.wants("throughput") {
        for slots in [2, 8] {
            let suite = bench.suite("data", slots).await?;
            let watched = jobs::Watched::embedded(&suite, bench.work.join("data"))?;
            let (project, by) = (format!("many-{slots}"), (&limits, &watched));
            let figure = jobs::throughput(&suite, &bench.work, &project, arguments.jobs, by).await?;
            bench.note(&format!("throughput_{slots}_slots"), figure);
            bench.note(&format!("resident_{slots}_slots"), machine::resident(&[suite.pid])?);
            suite.down().await?;
        }
    }
    if arguments.wants("fan") {
        let suite = bench.suite("data", 8).await?;
        let figure = jobs::fan(&suite, &bench.work).await?;
        bench.note("fan_1_50_1", figure);
        suite.down().await?;
    }
    if arguments.wants("step") {
        let suite = bench.suite("data", 8).await?;
        let figure = step::measure(&suite, &bench.work, &bench.work.join("data")).await?;
        bench.note("step_of_a_workflow_of", figure);
        suite.down().await?;
    }
    if arguments.wants("lines") {
        let suite = bench.suite("data", 8).await?;
        let figure = jobs::lines(&suite, &bench.work).await?;
        bench.note("line_delay", figure);
        suite.down().await?;
    }
    if arguments.wants("flood") {
        let suite = bench.suite("flood", 100).await?;
        // What a small machine carries, then what is asked of a large one.
        let most = arguments.jobs.min(100);
        for jobs in [(most / 5).max(1), most] {
            let figure = jobs::flood::measure(&suite, &bench.work, jobs, &limits).await?;
            bench.note(&format!("output_of_{jobs}_jobs"), figure);
        }
        suite.down().await?;
    }
    if arguments.wants("log") {
        let suite = bench.suite("data", 8).await?;
        let figure = jobs::large_log(&suite, &bench.work).await?;
        bench.note("log_100_mb", figure);
        suite.down().await?;
    }
    if arguments.wants("stack") {
        let figure = stack::measure(&bench, arguments.jobs.min(200), &limits).await?;
        bench.note("stack", figure);
    }
    if arguments.wants("history") {
        history::measure(&mut bench, &arguments.history, &limits).await?;
    }
    println!("{}", Value::Object(bench.figures));
    Ok(())
}

/// Cold and warm start, and what an idle suite takes.
async fn start(bench: &mut Bench) -> anyhow::Result<()> {
    let begun = Instant::now();
    bench.suite("data", 8).await?.down().await?;
    let cold = begun.elapsed();
    let begun = Instant::now();
    let suite = bench.suite("data", 8).await?;
    let warm = begun.elapsed();
    let before = machine::processor_time(&[suite.pid])?;
    let watched = Duration::from_secs(10);
    tokio::time::sleep(watched).await;
    let busy =
        machine::processor_time(&[suite.pid])?.saturating_sub(before).as_secs_f64() / watched.as_secs_f64();
    let memory = machine::resident(&[suite.pid])?;
    suite.down().await?;
    bench.note(
        "start",
        json!({
            "cold_and_down_ms": ms(cold), "warm_ms": ms(warm), "idle_percent_of_a_core": numbers::round(busy * 100.0),
        }),
    );
    bench.note("resident_idle", memory);
    Ok(())
}

/// A folder with this configuration in it.
pub fn files(work: &Path, name: &str, config: &str) -> anyhow::Result<PathBuf> {
    let folder = work.join(name);
    fs::create_dir_all(folder.join(".circleci"))?;
    fs::write(folder.join(".circleci/config.yml"), config)?;
    Ok(folder)
}
