//! What the machine itself can do, and what processes take of it.

use crate::numbers::{median, ms, ratio, round};
use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The machine's own limits.
pub struct Limits {
    /// One small write that is on disk.
    pub fsync: Duration,
    /// Start and end of `bash -eo pipefail -c true`.
    pub bash: Duration,
    /// Start and end of the agent.
    pub agent: Duration,
    /// `sh -c 'echo hello'`, one after the other, per second.
    pub shells: f64,
    /// Bytes per second through a pipe.
    pub pipe: f64,
    /// Bytes per second through a terminal.
    pub terminal: f64,
}

impl Limits {
    /// Five commits, the agent and a shell: what a job's first output cannot be faster than.
    pub fn first_output(&self) -> Duration {
        self.fsync * 5 + self.agent + self.bash
    }

    pub fn to_json(&self) -> Value {
        json!({
            "fsync_ms": ms(self.fsync), "exec_bash_ms": ms(self.bash), "exec_agent_ms": ms(self.agent),
            "sh_echo_per_s": self.shells, "pipe_mb_per_s": round(self.pipe / 1e6),
            "terminal_mb_per_s": round(self.terminal / 1e6),
        })
    }

    /// How often the least possible time is needed.
    pub fn times_least(&self, first: Duration) -> f64 {
        ratio(first, self.first_output())
    }
}

/// Measures the machine.
pub fn limits(work: &Path) -> anyhow::Result<Limits> {
    let agent = gantry_e2e::binary().with_file_name("gantry-runner");
    let agent = agent.to_str().context("the agent's path is no text")?;
    let bytes = 200_000_000u32;
    let copy = format!("head -c {bytes} /dev/zero | cat > /dev/null");
    let print = format!("head -c {} /dev/zero", bytes / 10);
    Ok(Limits {
        fsync: median(&mut repeat(100, || fsynced_write(work))?),
        bash: median(&mut repeat(50, || run("bash", &["-eo", "pipefail", "-c", "true"]))?),
        agent: median(&mut repeat(50, || run(agent, &["--version"]))?),
        shells: rate(300, || run("sh", &["-c", "echo hello"]))?,
        pipe: f64::from(bytes) / timed(|| run("sh", &["-c", &copy]))?.as_secs_f64(),
        terminal: f64::from(bytes / 10)
            / timed(|| run("script", &["-qec", &print, "/dev/null"]))?.as_secs_f64(),
    })
}

/// Runs a program to its end.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{program}: {}", output.status);
    Ok(())
}

/// How long something takes.
pub fn timed(act: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    act()?;
    Ok(begun.elapsed())
}

fn fsynced_write(work: &Path) -> anyhow::Result<()> {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(work.join("fsync"))?;
    file.write_all(&[7; 512])?;
    Ok(file.sync_data()?)
}

fn repeat(times: usize, mut act: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<Duration>> {
    (0..times).map(|_| timed(&mut act)).collect()
}

fn rate(times: u32, mut act: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    for _ in 0..times {
        act()?;
    }
    Ok(round(f64::from(times) / begun.elapsed().as_secs_f64()))
}

/// These processes and all their descendants: name and process id.
fn tree(pids: &[i32]) -> anyhow::Result<Vec<(String, i32)>> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    let mut names = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // A process that ends meanwhile is no longer of interest.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(") ") else { continue };
        let name = head.split_once('(').map_or("", |(_, name)| name).to_owned();
        let parent = tail.split(' ').nth(1).and_then(|parent| parent.parse().ok()).unwrap_or(0);
        names.insert(pid, name);
        children.entry(parent).or_default().push(pid);
    }
    let (mut found, mut todo) = (Vec::new(), pids.to_vec());
    while let Some(pid) = todo.pop() {
        found.push((names.get(&pid).cloned().unwrap_or_default(), pid));
        todo.extend(children.get(&pid).into_iter().flatten());
    }
    Ok(found)
}

/// Bytes that the whole machine wrote to the device that holds a folder; none where it is not a block device.
pub fn device_written(folder: &Path) -> Option<u64> {
    let device = fs::metadata(folder).ok()?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    // The seventh number counts sectors, always of 512 bytes here.
    Some(stat.split_whitespace().nth(6)?.parse::<u64>().ok()? * 512)
}

/// Proportional resident memory by program, in KiB: shared pages count once.
pub fn resident(pids: &[i32]) -> anyhow::Result<Value> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (name, pid) in tree(pids)? {
        let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap_or_default();
        let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
        *sums.entry(name).or_default() += kib;
        *sums.entry("all".to_owned()).or_default() += kib;
    }
    Ok(json!({ "proportional_kib": sums }))
}

/// Processor time of these processes and their living descendants, by program. What ended below one of them and was
/// waited for is `ended`: agents with their steps, and runs of git.
pub fn processor_times(pids: &[i32]) -> anyhow::Result<BTreeMap<String, Duration>> {
    let mut sums: BTreeMap<String, Duration> = BTreeMap::new();
    for (name, one) in tree(pids)? {
        let Ok(stat) = fs::read_to_string(format!("/proc/{one}/stat")) else { continue };
        let Some((_, tail)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = tail.split(' ').collect();
        // The kernel counts in hundredths of a second for user space.
        let time = |at: [usize; 2]| {
            let ticks: u64 = at.iter().filter_map(|at| fields.get(*at)?.parse::<u64>().ok()).sum();
            Duration::from_millis(ticks * 10)
        };
        let below = if pids.contains(&one) { "ended".to_owned() } else { name.clone() };
        *sums.entry(name).or_default() += time([11, 12]);
        *sums.entry(below).or_default() += time([13, 14]);
    }
    Ok(sums)
}

/// The sum of [`processor_times`].
pub fn processor_time(pids: &[i32]) -> anyhow::Result<Duration> {
    Ok(processor_times(pids)?.into_values().sum())
}

/// Bytes that these processes and their living descendants gave to be written, by program; children that ended count
/// for their parent (agents for the server). The kernel's own `write_bytes` does not serve: where files are cached in
/// large folios, it counts a whole folio (up to 2 MiB) for each 8 KiB that are written and synced.
pub fn written(pids: &[i32]) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (name, pid) in tree(pids)? {
        let Ok(io) = fs::read_to_string(format!("/proc/{pid}/io")) else { continue };
        let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
        *sums.entry(name).or_default() += line.and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sums)
}
