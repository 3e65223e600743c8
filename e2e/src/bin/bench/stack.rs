//! The suite as separate processes on real servers (`scripts/stack`), beside what those servers take by themselves in
//! the same run.

use crate::{
    Bench,
    database::Database,
    jobs::{self, Watched},
    machine::{self, Limits},
    numbers::{median, ms, percentile, round, spread},
    trace,
};
use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use gantry_e2e::{Suite, binary, stack::Stack, until};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tokio::process::{Child, Command};

/// Jobs at a time.
const SLOTS: u32 = 8;
/// What placing by Nomad may add to Nomad's own dispatch.
const OVER_NOMAD: Duration = Duration::from_millis(80);
/// From a trigger to the first effect on a runner that stands ready.
const ON_A_RUNNER: Duration = Duration::from_millis(100);
/// Messages one after the other between a trigger and its first effect.
const MESSAGES: u32 = 4;
const IDLE_MIB: u64 = 600;
const CLASS: &str = "local/bench";

/// The same in one process, in the same run.
struct Embedded {
    /// From a trigger to the first effect, median.
    first: Duration,
    spans: Value,
}

/// Starts the stack, measures, ends it.
pub async fn measure(bench: &Bench, jobs: usize, limits: &Limits) -> anyhow::Result<Value> {
    let embedded = bench.suite("beside", SLOTS).await?;
    let first = jobs::triggers(&embedded, &bench.work, "beside", None).await;
    let spans = trace::spans(&Database::of(&bench.work.join("beside"))?);
    embedded.down().await?;
    let embedded = Embedded { first: median(&mut first?.firsts), spans: spans? };

    let programs = binary().parent().context("the program has no folder")?.to_owned();
    let programs = programs.to_str().context("the folder's name is no text")?;
    let slots = SLOTS.to_string();
    // What is counted per job is read from one database.
    let given =
        [("GANTRY_BIN", programs), ("GANTRY_DISPATCHER_SLOTS", &slots), ("GANTRY_STACK_DATABASES", "one")];
    let stack = Stack::new(&given)?;
    let suite = stack.suite().await?;
    let measured = figures(&suite, &stack, bench, jobs, limits, embedded).await;
    stack.down().await?;
    measured
}

async fn figures(
    suite: &Suite,
    stack: &Stack,
    bench: &Bench,
    jobs: usize,
    limits: &Limits,
    embedded: Embedded,
) -> anyhow::Result<Value> {
    let idle = idle(stack).await?;
    let mut message = message(stack.port("amqp")?).await?;
    let message_p50 = median(&mut message);
    let nomad = nomad(stack, &bench.work).await?;
    let mut placed = jobs::triggers(suite, &bench.work, "placed", None).await?.firsts;
    let database = Database::at(stack.port("postgres")?);
    let spans_placed = trace::spans(&database)?;
    let agents = format!("http://127.0.0.1:{}", stack.port("agents")?);
    let mut taken = on_a_runner(suite, bench, &agents).await?;
    let spans_taken = trace::spans(&database)?;
    let (placed_p50, taken_p50) = (median(&mut placed), median(&mut taken));
    let placed_bar = nomad.as_ref().map(|nomad| nomad.running + OVER_NOMAD);
    let taken_bar = ON_A_RUNNER.min(embedded.first + message_p50 * MESSAGES);
    let watched = watched(stack)?;
    let throughput = jobs::throughput(suite, &bench.work, "many-stack", jobs, (limits, &watched)).await?;
    Ok(json!({
        "idle": idle,
        "message": { "p50_ms": ms(message_p50), "p95_ms": ms(percentile(&mut message, 95)) },
        "nomad": nomad.map(|nomad| json!({ "running_p50_ms": ms(nomad.running), "first_effect_p50_ms": ms(nomad.effect) })),
        "trigger_placed": { "first_effect": spread(&mut placed), "bar_p50_ms": placed_bar.map(ms), "p50_ms": ms(placed_p50), "spans": spans_placed },
        "trigger_on_a_runner": {
            "first_effect": spread(&mut taken), "p50_ms": ms(taken_p50), "bar_p50_ms": ms(taken_bar), "embedded_p50_ms": ms(embedded.first),
            "spans": spans_taken, "embedded_spans": embedded.spans,
        },
        "throughput": throughput,
    }))
}

/// The processes of the product in a stack.
fn ours(stack: &Stack) -> anyhow::Result<Vec<(String, i32)>> {
    let services: BTreeSet<String> = stack.services()?.into_values().flatten().collect();
    let mut all = stack.processes()?;
    all.retain(|(name, _)| services.contains(name));
    Ok(all)
}

fn pids(processes: Vec<(String, i32)>) -> Vec<i32> {
    processes.into_iter().map(|(_, pid)| pid).collect()
}

fn watched(stack: &Stack) -> anyhow::Result<Watched> {
    let metrics = ours(stack)?
        .into_iter()
        .map(|(name, _)| Ok(format!("{}/metrics", stack.internal(&name)?)))
        .collect::<anyhow::Result<_>>()?;
    let data = stack.folder.join("data");
    let database = Database::at(stack.port("postgres")?);
    Ok(Watched { database, metrics, pids: pids(stack.processes()?), data })
}

/// What all takes while nothing is done.
async fn idle(stack: &Stack) -> anyhow::Result<Value> {
    let (ours, all) = (pids(ours(stack)?), pids(stack.processes()?));
    let seconds = 10;
    let before = (machine::processor_time(&ours)?, machine::processor_time(&all)?);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let percent = |now: Duration, then: Duration| {
        round(now.saturating_sub(then).as_secs_f64() / seconds as f64 * 100.0)
    };
    let memory = machine::resident(&ours)?["proportional_kib"]["all"].as_u64().unwrap_or(0) / 1024;
    Ok(json!({
        "processes": ours.len(), "percent_of_a_core": percent(machine::processor_time(&ours)?, before.0),
        "with_the_stores_percent": percent(machine::processor_time(&all)?, before.1),
        "mib": memory, "bar_mib": IDLE_MIB, "with_the_stores": machine::resident(&all)?,
    }))
}

/// A message through a quorum queue, as an event goes: until the broker has confirmed it and the consumer has it.
async fn message(port: u16) -> anyhow::Result<Vec<Duration>> {
    let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let (out, back) = (connection.create_channel().await?, connection.create_channel().await?);
    let queue = "gantry.bench";
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    out.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await?;
    out.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut consumer = back
        .basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    let mut times = Vec::new();
    for _ in 0..100 {
        let begun = Instant::now();
        let properties = BasicProperties::default().with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let sent = out.basic_publish("".into(), queue.into(), options, &[7; 1024], properties).await?;
        sent.await?;
        let delivery = consumer.next().await.context("the consumer ended")??;
        times.push(begun.elapsed());
        delivery.acker.ack(BasicAckOptions::default()).await?;
    }
    out.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    Ok(times)
}

/// Medians of what Nomad itself takes for one task.
struct Nomad {
    /// From the call to the task that it says is running.
    running: Duration,
    /// From the call to an effect of the task.
    effect: Duration,
}

/// The same shape of job as ours: one task, started as a process.
async fn nomad(stack: &Stack, work: &Path) -> anyhow::Result<Option<Nomad>> {
    let Ok(port) = stack.port("nomad") else { return Ok(None) };
    let Ok(token) = fs::read_to_string(stack.folder.join("secret/nomad")) else { return Ok(None) };
    let http = reqwest::Client::new();
    let url = format!("http://127.0.0.1:{port}/v1");
    let ask = |request: reqwest::RequestBuilder| {
        request.header("X-Nomad-Token", token.trim()).query(&[("namespace", "gantry")])
    };
    let signal = work.join("nomad-signal");
    let (mut running, mut effects) = (Vec::new(), Vec::new());
    for n in 0..40 {
        let effect = n % 2 == 1;
        let id = format!("bench-{n}");
        let config = if effect {
            json!({ "command": "/usr/bin/touch", "args": [signal] })
        } else {
            json!({ "command": "/bin/true" })
        };
        let job = json!({ "Job": {
            "ID": id, "Namespace": "gantry", "Type": "batch", "Datacenters": ["*"],
            "TaskGroups": [{
                "Name": "one", "RestartPolicy": { "Attempts": 0, "Mode": "fail" },
                "Tasks": [{
                    "Name": "one", "Driver": "raw_exec", "Config": config, "Resources": { "CPU": 20, "MemoryMB": 20 },
                }],
            }],
        } });
        let _ = fs::remove_file(&signal);
        let begun = Instant::now();
        let answer = ask(http.post(format!("{url}/jobs"))).json(&job).send().await?;
        ensure!(answer.status().is_success(), "Nomad: {}", answer.text().await?);
        if effect {
            effects.push(jobs::effect(&signal, begun).await?);
            continue;
        }
        let mut index = "1".to_owned();
        loop {
            let listed = ask(http.get(format!("{url}/job/{id}/allocations")))
                .query(&[("index", index.as_str()), ("wait", "10s")])
                .send()
                .await?;
            if let Some(next) = listed.headers().get("x-nomad-index") {
                index = next.to_str()?.to_owned();
            }
            let found: Value = listed.error_for_status()?.json().await?;
            match found[0]["TaskStates"]["one"]["State"].as_str() {
                Some("running" | "dead") => break,
                _ if begun.elapsed() > crate::LIMIT => bail!("Nomad does not run {id}: {found}"),
                _ => {}
            }
        }
        running.push(begun.elapsed());
    }
    Ok(Some(Nomad { running: median(&mut running), effect: median(&mut effects) }))
}

/// From a trigger to the first effect where a runner stands ready.
async fn on_a_runner(suite: &Suite, bench: &Bench, agents: &str) -> anyhow::Result<Vec<Duration>> {
    let token = suite.runner_token(CLASS).await?;
    let runner = runner(agents, &bench.work, token["token"].as_str().context("no token")?)?;
    until("the runner", crate::LIMIT, || async {
        let seen = suite.get(&format!("/api/v3/runner?resource-class={CLASS}")).await?;
        Ok((seen["items"][0]["status"] == "online").then_some(()))
    })
    .await?;
    let times = jobs::triggers(suite, &bench.work, "taken", Some(CLASS)).await?;
    drop(runner);
    Ok(times.firsts)
}

fn runner(url: &str, work: &Path, token: &str) -> anyhow::Result<Child> {
    // Steps do not see the folder of this file, and are to make one in `work`.
    let of_its_own = work.join("runner-etc");
    fs::create_dir_all(&of_its_own)?;
    let (file, folder) = (of_its_own.join("runner.yml"), work.join("runner"));
    let text = format!(
        "api:\n  auth_token: {token}\n  url: {url}\nrunner:\n  name: bench\n  concurrency: 2\n  working_directory: {}\n",
        folder.display()
    );
    fs::write(&file, text)?;
    let program = binary().with_file_name("gantry-runner");
    Ok(Command::new(program).arg("--config").arg(file).kill_on_drop(true).spawn()?)
}
