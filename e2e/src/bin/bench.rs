//! Measures the real `gantry up`, each figure beside the machine's own limit taken in the same run.
//!
//! Usage: `scripts/bench [--jobs N]`. Prints a table on standard error and one JSON document on standard output.

use anyhow::{Context, ensure};
use gantry_e2e::{Suite, until};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(600);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut jobs = 200;
    while let Some(argument) = arguments.next() {
        ensure!(argument == "--jobs", "unknown argument {argument}; usage: bench [--jobs N]");
        jobs = arguments.next().context("--jobs needs a number")?.parse()?;
    }
    let work = tempfile::tempdir()?;
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
    let mut figures = serde_json::Map::new();

    let fsync = median(&mut repeat(50, || fsynced_write(work.path()))?);
    let bash = median(&mut repeat(50, || run("bash", &["-eo", "pipefail", "-c", "true"]))?);
    let shell = rate(200, || run("sh", &["-c", "echo hello"]))?;
    figures.insert(
        "machine".into(),
        json!({ "fsync_ms": ms(fsync), "exec_bash_ms": ms(bash), "sh_echo_per_s": shell }),
    );

    let data = work.path().join("data");
    let begun = Instant::now();
    let suite = Suite::up(&data, &[]).await?;
    let cold = begun.elapsed();
    suite.down().await?;
    let begun = Instant::now();
    let suite = Suite::up(&data, &[]).await?;
    figures.insert("start".into(), json!({ "cold_ms": ms(cold), "warm_ms": ms(begun.elapsed()) }));
    figures.insert("resident_idle_kib".into(), resident(suite.pid)?);

    figures.insert("trigger".into(), trigger(&suite, work.path(), fsync, bash).await?);
    figures.insert("throughput".into(), throughput(&suite, work.path(), jobs, shell).await?);
    figures.insert("log_100_mb".into(), large_log(&suite, work.path()).await?);
    figures.insert("resident_loaded_kib".into(), resident(suite.pid)?);
    suite.down().await?;

    for (name, figure) in &figures {
        eprintln!("{name:20} {figure}");
    }
    println!("{}", Value::Object(figures));
    Ok(())
}

/// From the API call to user code: the job creates a file that is watched for here.
async fn trigger(suite: &Suite, work: &Path, fsync: Duration, bash: Duration) -> anyhow::Result<Value> {
    let signal = work.join("signal");
    let config = format!(
        "version: 2.1\njobs:\n  one:\n    machine: true\n    steps:\n      - run: touch {}\nworkflows:\n  main:\n    jobs: [one]\n",
        signal.display()
    );
    fs::set_permissions(work, fs::Permissions::from_mode(0o777))?;
    let files = files(work, "trigger-files", &config)?;
    suite.push(work, "trigger", &files, "refs/heads/main").await?;
    settle(suite, "trigger", 1).await?;
    let (mut calls, mut firsts) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        let _ = fs::remove_file(&signal);
        let begun = Instant::now();
        let (status, answer) = suite.post("/api/v2/project/git/local/trigger/pipeline", &json!({})).await?;
        calls.push(begun.elapsed());
        ensure!(status == 201, "trigger: {status} {answer}");
        while !signal.exists() {
            ensure!(begun.elapsed() < LIMIT, "the job does not run");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        firsts.push(begun.elapsed());
    }
    let first = median(&mut firsts);
    Ok(json!({
        "call_p50_ms": ms(median(&mut calls)), "first_effect_p50_ms": ms(first), "first_effect_p95_ms": ms(percentile(&mut firsts, 95)),
        "ratio_to_5_fsyncs_and_bash": ratio(first, fsync * 5 + bash),
    }))
}

/// Many jobs of one command in one workflow, through the default number of slots.
async fn throughput(suite: &Suite, work: &Path, jobs: usize, shell: f64) -> anyhow::Result<Value> {
    let mut config = String::from(
        "version: 2.1\njobs:\n  echo:\n    machine: true\n    steps:\n      - run: echo hello\nworkflows:\n  main:\n    jobs:\n",
    );
    for job in 0..jobs {
        config.push_str(&format!("      - echo: {{ name: j{job} }}\n"));
    }
    let files = files(work, "many-files", &config)?;
    let begun = Instant::now();
    suite.push(work, "many", &files, "refs/heads/main").await?;
    settle(suite, "many", 1).await?;
    let rate = jobs as f64 / begun.elapsed().as_secs_f64();
    Ok(json!({ "jobs": jobs, "jobs_per_s": round(rate), "of_the_machines_shell_rate": round(rate / shell) }))
}

/// One step that prints 100 MB, against the same command alone.
async fn large_log(suite: &Suite, work: &Path) -> anyhow::Result<Value> {
    let command = "seq -f %079.0f 1 1250000";
    let begun = Instant::now();
    run("script", &["-qec", command, "/dev/null"])?;
    let alone = begun.elapsed();
    let config = format!(
        "version: 2.1\njobs:\n  one:\n    machine: true\n    steps:\n      - run: {{ name: print, command: \"{command}\" }}\nworkflows:\n  main:\n    jobs: [one]\n"
    );
    let files = files(work, "large-files", &config)?;
    suite.push(work, "large", &files, "refs/heads/main").await?;
    settle(suite, "large", 1).await?;
    let build = suite.get("/api/v1.1/project/git/local/large/1").await?;
    let steps = build["steps"].as_array().cloned().unwrap_or_default();
    let print = &steps.iter().find(|step| step["name"] == "print").context("no step")?["actions"][0];
    let took = Duration::from_millis(print["run_time_millis"].as_u64().unwrap_or_default());
    let log = suite.bytes(&format!("/logs/{}/raw", print["step_id"].as_str().unwrap_or_default())).await?;
    ensure!(log.len() == 100_000_000, "{} bytes of log", log.len());
    Ok(json!({ "step_ms": ms(took), "pty_alone_ms": ms(alone), "ratio": ratio(took, alone) }))
}

/// Waits until the newest pipeline's workflows have ended well.
async fn settle(suite: &Suite, project: &str, workflows: usize) -> anyhow::Result<()> {
    until("the end", LIMIT, || async {
        let pipelines = suite.items(&format!("/api/v2/project/git/local/{project}/pipeline")).await?;
        let Some(id) = pipelines.first().and_then(|pipeline| pipeline["id"].as_str()) else {
            return Ok(None);
        };
        let found = suite.items(&format!("/api/v2/pipeline/{id}/workflow")).await?;
        let done = found.len() == workflows && found.iter().all(|workflow| workflow["status"] == "success");
        Ok(done.then_some(()))
    })
    .await
}

fn files(work: &Path, name: &str, config: &str) -> anyhow::Result<std::path::PathBuf> {
    let folder = work.join(name);
    fs::create_dir_all(folder.join(".circleci"))?;
    fs::write(folder.join(".circleci/config.yml"), config)?;
    Ok(folder)
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).stdin(std::process::Stdio::null()).output()?;
    ensure!(output.status.success(), "{program}: {}", output.status);
    Ok(())
}

fn fsynced_write(work: &Path) -> anyhow::Result<()> {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(work.join("fsync"))?;
    file.write_all(&[7; 512])?;
    Ok(file.sync_data()?)
}

fn repeat(times: usize, mut act: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<Duration>> {
    (0..times)
        .map(|_| {
            let begun = Instant::now();
            act()?;
            Ok(begun.elapsed())
        })
        .collect()
}

fn rate(times: u32, mut act: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    for _ in 0..times {
        act()?;
    }
    Ok(round(f64::from(times) / begun.elapsed().as_secs_f64()))
}

/// Resident memory of the server and of all its descendants, in KiB; shared pages count each time.
fn resident(pid: i32) -> anyhow::Result<Value> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(json!({ "gantry": line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()) }))
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

fn median(times: &mut [Duration]) -> Duration {
    percentile(times, 50)
}

fn ms(time: Duration) -> f64 {
    round(time.as_secs_f64() * 1000.0)
}

fn ratio(time: Duration, limit: Duration) -> f64 {
    round(time.as_secs_f64() / limit.as_secs_f64())
}

fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}
