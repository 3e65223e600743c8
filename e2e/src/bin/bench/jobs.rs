//! Jobs: how soon they begin, how many run, how soon their output is seen.

pub mod flood;

use crate::{
    LIMIT,
    database::{Database, Work},
    files,
    machine::{self, Limits},
    numbers::{median, ms, percentile, ratio, round, spread},
};
use anyhow::{Context, bail, ensure};
use chrono::DateTime;
use gantry_e2e::{Suite, stack::sum_of, until};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// From the API call to user code: the job creates a file that is watched for here.
pub async fn trigger(suite: &Suite, work: &Path, limits: &Limits) -> anyhow::Result<Value> {
    let mut times = triggers(suite, work, "trigger", None).await?;
    let first = median(&mut times.firsts);
    Ok(json!({
        "call_p50_ms": ms(median(&mut times.calls)), "first_effect": spread(&mut times.firsts),
        "times_the_least": limits.times_least(first),
    }))
}

/// What was measured of triggers, one after the other.
pub struct Triggers {
    /// Until the call was answered.
    pub calls: Vec<Duration>,
    /// Until user code had an effect.
    pub firsts: Vec<Duration>,
}

/// Triggers a pipeline of one job many times, on this machine or on a runner of a class.
pub async fn triggers(
    suite: &Suite,
    work: &Path,
    project: &str,
    class: Option<&str>,
) -> anyhow::Result<Triggers> {
    let signal = work.join(format!("{project}-signal"));
    let class = class.map(|class| format!("    resource_class: {class}\n")).unwrap_or_default();
    let config = format!(
        "version: 2.1\njobs:\n  one:\n    machine: true\n{class}    steps:\n      - run: touch {}\nworkflows:\n  main:\n    jobs: [one]\n",
        signal.display()
    );
    let files = files(work, &format!("{project}-files"), &config)?;
    suite.push(work, project, &files, "refs/heads/main").await?;
    settle(suite, project, 1).await?;
    let mut times = Triggers { calls: Vec::new(), firsts: Vec::new() };
    for _ in 0..40 {
        let _ = fs::remove_file(&signal);
        let begun = Instant::now();
        let (status, answer) =
            suite.post(&format!("/api/v2/project/git/local/{project}/pipeline"), &json!({})).await?;
        times.calls.push(begun.elapsed());
        ensure!(status == 201, "trigger: {status} {answer}");
        times.firsts.push(effect(&signal, begun).await?);
        settle(suite, project, 1).await?;
    }
    Ok(times)
}

/// How long after `begun` user code has made a file. Looks often: the file is what is measured, and nothing tells of it.
pub async fn effect(signal: &Path, begun: Instant) -> anyhow::Result<Duration> {
    while !signal.exists() {
        ensure!(begun.elapsed() < LIMIT, "the job does not run");
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    Ok(begun.elapsed())
}

/// From the API call to the job's first output at somebody who watches it as the page does: the pipeline until the step is
/// there, then its log.
pub async fn seen(suite: &Suite, work: &Path) -> anyhow::Result<Value> {
    let config = "version: 2.1\njobs:\n  one:\n    machine: true\n    steps:\n      - run: { name: say, command: echo hello; sleep 0.3 }\nworkflows:\n  main:\n    jobs: [one]\n";
    let files = files(work, "seen-files", config)?;
    suite.push(work, "seen", &files, "refs/heads/main").await?;
    settle(suite, "seen", 1).await?;
    let mut times = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        let (status, answer) = suite.post("/api/v2/project/git/local/seen/pipeline", &json!({})).await?;
        ensure!(status == 201, "trigger: {status} {answer}");
        let mut pipeline = Subscription::open(suite, STEPS, json!({ "id": answer["id"] })).await?;
        let step = loop {
            let data = pipeline.next().await?.context("the pipeline's stream ended")?;
            let steps = data["pipeline"]["workflows"][0]["jobs"][0]["steps"].as_array().cloned();
            let say = steps.unwrap_or_default().into_iter().find(|step| step["name"] == "say");
            if let Some(id) = say.and_then(|step| step["id"].as_str().map(str::to_owned)) {
                break id;
            }
        };
        let mut log = Subscription::open(suite, LOG, json!({ "step": step })).await?;
        while !log.next().await?.context("the log's stream ended")?["log"]["text"]
            .as_str()
            .is_some_and(|text| text.contains("hello"))
        {}
        times.push(begun.elapsed());
        settle(suite, "seen", 1).await?;
    }
    Ok(spread(&mut times))
}

const STEPS: &str =
    "subscription ($id: ID!) { pipeline(id: $id) { workflows { jobs { steps { id name } } } } }";
const LOG: &str = "subscription ($step: ID!) { log(stepId: $step) { text end } }";

/// A GraphQL subscription over server-sent events.
struct Subscription {
    answer: reqwest::Response,
    events: String,
}

impl Subscription {
    async fn open(suite: &Suite, query: &str, variables: Value) -> anyhow::Result<Self> {
        let answer = reqwest::Client::new()
            .post(format!("{}/graphql/stream", suite.url))
            .header("Circle-Token", &suite.token)
            .json(&json!({ "query": query, "variables": variables }))
            .send()
            .await?
            .error_for_status()?;
        Ok(Self { answer, events: String::new() })
    }

    /// The next event's data; none at the end.
    async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            while let Some(end) = self.events.find("\n\n") {
                let event: String = self.events.drain(..end + 2).collect();
                let Some(data) = event.lines().find_map(|line| line.strip_prefix("data:")) else { continue };
                // What says `complete` has none.
                if data.trim().is_empty() {
                    continue;
                }
                let answer: Value = serde_json::from_str(data.trim())?;
                if let Some(errors) = answer.get("errors") {
                    anyhow::bail!("the subscription ended: {errors}");
                }
                return Ok(Some(answer["data"].clone()));
            }
            let Some(bytes) = self.answer.chunk().await? else { return Ok(None) };
            self.events.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
}

/// The output of a job's step `print`, as soon as there is one.
async fn printing(suite: &Suite, project: &str, number: usize) -> anyhow::Result<Subscription> {
    let path = format!("/api/v1.1/project/git/local/{project}/{number}");
    let step = until("the step", LIMIT, || async {
        let build = suite.get(&path).await?;
        let steps = build["steps"].as_array().cloned().unwrap_or_default();
        let print = steps.iter().find(|step| step["name"] == "print");
        Ok(print.and_then(|step| step["actions"][0]["step_id"].as_str().map(str::to_owned)))
    })
    .await?;
    Subscription::open(suite, LOG, json!({ "step": step })).await
}

/// How late each line arrived that begins with the nanosecond at which it was printed, to the end of the output.
async fn watch(mut log: Subscription) -> anyhow::Result<Vec<Duration>> {
    let (mut text, mut delays) = (String::new(), Vec::new());
    while let Some(data) = log.next().await? {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let piece = &data["log"];
        text.push_str(piece["text"].as_str().unwrap_or_default());
        while let Some(end) = text.find('\n') {
            let line: String = text.drain(..=end).collect();
            let printed = line.split_whitespace().next().and_then(|stamp| stamp.parse::<u64>().ok());
            // What is missing at the end has its reason here.
            let stamp =
                printed.with_context(|| format!("the job wrote {line:?} after {} lines", delays.len()))?;
            delays.push(now.saturating_sub(Duration::from_nanos(stamp)));
        }
        if piece["end"] == true {
            return Ok(delays);
        }
    }
    bail!("the stream of a log ended before the log, after {} lines", delays.len())
}

/// Many jobs of one command in one workflow of a new project.
pub async fn throughput(
    suite: &Suite,
    work: &Path,
    project: &str,
    jobs: usize,
    (limits, watched): (&Limits, &Watched),
) -> anyhow::Result<Value> {
    let files = files(work, "many-files", &many(jobs))?;
    let before = watched.spent(suite).await?;
    let begun = Instant::now();
    suite.push(work, project, &files, "refs/heads/main").await?;
    settle(suite, project, 1).await?;
    let took = begun.elapsed();
    // What is written in batches is on its way.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = watched.spent(suite).await?;
    let rate = jobs as f64 / took.as_secs_f64();
    Ok(json!({
        "jobs": jobs, "jobs_per_s": round(rate), "times_a_30th_of_the_shell_rate": round(rate / limits.shells * 30.0),
        "per_job": per_job(&before, &after, jobs),
    }))
}

/// What a suite consists of, for those who count what it takes.
pub struct Watched {
    pub database: Database,
    /// Addresses at which its processes say what they counted.
    pub metrics: Vec<String>,
    /// Its processes; their descendants belong to it.
    pub pids: Vec<i32>,
    /// Where its data are.
    pub data: PathBuf,
}

impl Watched {
    /// A suite of one process on a data folder.
    pub fn embedded(suite: &Suite, data: PathBuf) -> anyhow::Result<Self> {
        let metrics = vec![format!("{}/metrics", suite.url)];
        Ok(Self { database: Database::of(&data)?, metrics, pids: vec![suite.pid], data })
    }

    async fn spent(&self, suite: &Suite) -> anyhow::Result<Spent> {
        let (http, mut durable) = (reqwest::Client::new(), 0.0);
        for url in &self.metrics {
            let answer = http.get(url).header("Circle-Token", &suite.token).send().await?;
            let metrics = answer.error_for_status()?.text().await?;
            durable += sum_of(&metrics, "gantry_store_commits", "kind=\"durable\"");
        }
        Ok(Spent {
            database: self.database.work()?,
            durable,
            written: machine::written(&self.pids)?,
            device: machine::device_written(&self.data),
            processor: machine::processor_times(&self.pids)?,
        })
    }
}

/// What was spent since the start.
struct Spent {
    database: Work,
    /// Transactions whose commit waited for the disk.
    durable: f64,
    /// Bytes written, by program.
    written: BTreeMap<String, u64>,
    /// Bytes that reached the device, other programs' included.
    device: Option<u64>,
    /// Processor time, by program.
    processor: BTreeMap<String, Duration>,
}

fn per_job(before: &Spent, after: &Spent, jobs: usize) -> Value {
    let each =
        |of: fn(&Work) -> i64| round((of(&after.database) - of(&before.database)) as f64 / jobs as f64);
    let kib = |bytes: f64| round(bytes / 1024.0 / jobs as f64);
    let written: BTreeMap<&str, u64> = after
        .written
        .iter()
        .map(|(name, now)| {
            (name.as_str(), now.saturating_sub(before.written.get(name).copied().unwrap_or(0)))
        })
        .collect();
    let processor: BTreeMap<&str, Duration> = after
        .processor
        .iter()
        .map(|(name, now)| {
            (name.as_str(), now.saturating_sub(before.processor.get(name).copied().unwrap_or_default()))
        })
        .collect();
    let busy = |time: Duration| round(time.as_secs_f64() * 1000.0 / jobs as f64);
    json!({
        "processor_ms": busy(processor.values().sum()),
        "processor_ms_by": processor.iter().map(|(name, time)| (*name, busy(*time))).collect::<BTreeMap<_, _>>(),
        "messages": each(|work| work.messages), "rows": each(|work| work.rows),
        "durable_commits": round((after.durable - before.durable) / jobs as f64), "durable_commits_bar": 12,
        "writing_transactions": each(|work| work.transactions), "all_transactions": each(|work| work.commits),
        "wal_fsyncs": each(|work| work.syncs), "wal_kib": round(each(|work| work.wal_bytes) / 1024.0),
        "written_kib": kib(written.values().sum::<u64>() as f64), "written_kib_bar": 200,
        "device_kib": before.device.zip(after.device).map(|(before, after)| kib(after.saturating_sub(before) as f64)),
        "written_kib_by": written.into_iter().map(|(name, bytes)| (name, kib(bytes as f64))).collect::<BTreeMap<_, _>>(),
    })
}

/// A configuration of so many jobs that print a word.
pub fn many(jobs: usize) -> String {
    let mut config = String::from(
        "version: 2.1\njobs:\n  echo:\n    machine: true\n    steps:\n      - run: echo hello\nworkflows:\n  main:\n    jobs:\n",
    );
    for job in 0..jobs {
        config.push_str(&format!("      - echo: {{ name: j{job} }}\n"));
    }
    config
}

/// One job, fifty that wait for it, and one that waits for those: from the workflow's begin to its end.
pub async fn fan(suite: &Suite, work: &Path) -> anyhow::Result<Value> {
    let mut config = String::from(
        "version: 2.1\njobs:\n  echo:\n    machine: true\n    steps:\n      - run: echo hello\nworkflows:\n  main:\n    jobs:\n      - echo: { name: first }\n",
    );
    let mut names = Vec::new();
    for job in 0..50 {
        config.push_str(&format!("      - echo: {{ name: m{job}, requires: [first] }}\n"));
        names.push(format!("m{job}"));
    }
    config.push_str(&format!("      - echo: {{ name: last, requires: [{}] }}\n", names.join(", ")));
    let files = files(work, "fan-files", &config)?;
    let mut times = Vec::new();
    for project in ["fan-1", "fan-2", "fan-3"] {
        suite.push(work, project, &files, "refs/heads/main").await?;
        let workflow = settle(suite, project, 1).await?.remove(0);
        let at = |name: &str| -> anyhow::Result<_> {
            Ok(DateTime::parse_from_rfc3339(workflow[name].as_str().context("no time")?)?)
        };
        times.push((at("stopped_at")? - at("created_at")?).to_std()?);
    }
    Ok(json!({ "runs": times.len(), "median_ms": ms(median(&mut times)), "bar_ms": 1500 }))
}

/// From the moment at which a line is printed to the one at which a subscriber has it.
pub async fn lines(suite: &Suite, work: &Path) -> anyhow::Result<Value> {
    let command = "sleep 1; for i in $(seq 200); do date +%s%N; sleep 0.02; done";
    let config = format!(
        "version: 2.1\njobs:\n  one:\n    machine: true\n    steps:\n      - run: {{ name: print, command: \"{command}\" }}\nworkflows:\n  main:\n    jobs: [one]\n"
    );
    let files = files(work, "lines-files", &config)?;
    suite.push(work, "lines", &files, "refs/heads/main").await?;
    let mut delays = watch(printing(suite, "lines", 1).await?).await?;
    ensure!(delays.len() == 200, "{} lines of 200 were seen", delays.len());
    let p95 = percentile(&mut delays, 95);
    Ok(
        json!({ "delay": spread(&mut delays), "bar_ms": 250, "of_the_bar": ratio(p95, Duration::from_millis(250)) }),
    )
}

/// One step that prints 100 MB, against the same command alone.
pub async fn large_log(suite: &Suite, work: &Path) -> anyhow::Result<Value> {
    let command = "seq -f %079.0f 1 1250000";
    let alone = machine::timed(|| machine::run("script", &["-qec", command, "/dev/null"]))?;
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
    Ok(json!({ "step_ms": ms(took), "pty_alone_ms": ms(alone), "ratio": ratio(took, alone), "bar": 2 }))
}

/// Waits until the newest pipeline's workflows have ended well, and returns them.
pub async fn settle(suite: &Suite, project: &str, workflows: usize) -> anyhow::Result<Vec<Value>> {
    until("the end", LIMIT, || async {
        let page = suite.get(&format!("/api/v2/project/git/local/{project}/pipeline")).await?;
        let Some(id) = page["items"][0]["id"].as_str() else { return Ok(None) };
        let found = suite.items(&format!("/api/v2/pipeline/{id}/workflow")).await?;
        let done = found.len() == workflows && found.iter().all(|workflow| workflow["status"] == "success");
        Ok(done.then_some(found))
    })
    .await
}
