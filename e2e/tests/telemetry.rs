//! What the stack tells of itself: a push is one trace over all services and the agent, and metrics have our names and
//! those of the reference product. `GANTRY_TEST_STACK=1` and `GANTRY_STACK` choose the stack, which is started if it does
//! not run.

use anyhow::{Context, ensure};
use gantry_e2e::{Suite, until};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(60);
/// What nothing of may be told.
const SECRETS: [&str; 4] =
    ["Kx7planted2variable", "Kx7planted2command", "Kx7planted2output", "Kx7planted2environment"];
const CONFIG: &str = r#"
version: 2.1
jobs:
  build:
    machine: true
    environment: { OF_THE_JOB: Kx7planted2environment }
    steps:
      - checkout
      - run: { name: Say it, command: "echo Kx7planted2output; test -n \"$OF_THE_PROJECT\"" }
      - run: "true Kx7planted2command"
  check:
    machine: true
    parallelism: 2
    steps:
      - run: { name: Look, command: "true" }
workflows:
  all:
    jobs:
      - build
      - check: { requires: [build] }
"#;
/// Whose work is told of in the trace of any push.
const SERVICES: [&str; 9] = [
    "gantry-api",
    "gantry-pipelines",
    "gantry-conductor",
    "gantry-dispatcher",
    "gantry-scheduler",
    "gantry-contexts",
    "gantry-output-processor",
    "gantry-projector",
    "gantry-runner",
];
/// Of services §8 what a run without a failure shows.
const METRICS: [&str; 17] = [
    "gantry.bus.handled",
    "gantry.store.commits",
    "gantry.dispatcher.claim_seconds",
    "gantry.output_processor.bytes",
    "gantry.telemetry.spans",
    "circle.run-queue.latency",
    "circle.build-queue.runnable.builds",
    "circle.nomad.server_agent.poll_failure",
    "circle.nomad.server_agent.jobs.pending",
    "circle.nomad.server_agent.jobs.running",
    "circle.nomad.server_agent.jobs.dead",
    "circle.http.request",
    "circleci.distributor.gauge.dispatcher.job_queue.tasks",
    "workflows_conductor.trigger.decision",
    "workflows_conductor.engine_handler.messages.timing",
    "workflows_conductor.messaging.make_workflow.time_since_push",
    "workflows_conductor.execute_workflow.time_to_complete",
];

#[derive(Clone, Debug)]
struct Span {
    trace: String,
    id: String,
    parent: Option<String>,
    service: String,
    name: String,
    pipeline: Option<String>,
    failed: bool,
    lasted: u64,
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn attribute(attributes: &Value, key: &str) -> Option<String> {
    let found = attributes.as_array()?.iter().find(|found| found["key"] == key)?;
    Some(found["value"]["stringValue"].as_str()?.to_owned())
}

/// A number that JSON may hold as text.
fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default()
}

/// What was written to a file since it had so many bytes; all of it, where a new one was begun meanwhile.
fn since(file: &Path, bytes: u64) -> anyhow::Result<String> {
    let all = fs::read(file).with_context(|| file.display().to_string())?;
    let from = usize::try_from(bytes)?;
    Ok(String::from_utf8(all.get(from..).unwrap_or(&all).to_vec())?)
}

/// Every span that the collector was told of.
fn spans(told: &str) -> anyhow::Result<Vec<Span>> {
    let mut all = Vec::new();
    for line in told.lines() {
        let request: Value = serde_json::from_str(line)?;
        for resource in request["resourceSpans"].as_array().into_iter().flatten() {
            let service =
                attribute(&resource["resource"]["attributes"], "service.name").context("no service")?;
            for span in resource["scopeSpans"][0]["spans"].as_array().into_iter().flatten() {
                let parent = text(span, "parentSpanId");
                all.push(Span {
                    trace: text(span, "traceId").to_owned(),
                    id: text(span, "spanId").to_owned(),
                    parent: (!parent.is_empty()).then(|| parent.to_owned()),
                    service: service.clone(),
                    name: text(span, "name").to_owned(),
                    pipeline: attribute(&span["attributes"], "gantry.pipeline.id"),
                    failed: number(&span["status"]["code"]) == 2,
                    lasted: number(&span["endTimeUnixNano"]) - number(&span["startTimeUnixNano"]),
                });
            }
        }
    }
    Ok(all)
}

/// The one trace of a pipeline, once it is whole: the workflow has ended, and every span's parent is there.
fn whole(told: &str, pipeline: &str) -> anyhow::Result<Vec<Span>> {
    let all = spans(told)?;
    let of: BTreeSet<&str> = all
        .iter()
        .filter(|span| span.pipeline.as_deref() == Some(pipeline))
        .map(|span| span.trace.as_str())
        .collect();
    ensure!(of.len() == 1, "the pipeline is told of in {} traces", of.len());
    let trace: Vec<Span> = all.iter().filter(|span| of.contains(span.trace.as_str())).cloned().collect();
    let services: BTreeSet<&str> = trace.iter().map(|span| span.service.as_str()).collect();
    let silent: Vec<_> = SERVICES.iter().filter(|service| !services.contains(**service)).collect();
    ensure!(silent.is_empty(), "{silent:?} tell nothing of it");
    ensure!(trace.iter().any(|span| span.name == "workflow all"), "the workflow has not been told of");
    let ids: BTreeSet<&str> = trace.iter().map(|span| span.id.as_str()).collect();
    let orphans: Vec<_> = trace
        .iter()
        .filter(|span| span.parent.as_deref().is_some_and(|parent| !ids.contains(parent)))
        .collect();
    ensure!(orphans.is_empty(), "{} spans without their parents: {orphans:?}", orphans.len());
    Ok(trace)
}

async fn push(suite: &Suite, work: &Path, project: &str) -> anyhow::Result<String> {
    let files = work.join("files");
    fs::create_dir_all(files.join(".circleci"))?;
    // The project is there from its first push on; that one makes no pipeline that counts.
    fs::write(files.join("README"), project)?;
    suite.push_as(work, project, &files, "refs/heads/main", "Begin [skip ci]").await?;
    let variable = json!({ "name": "OF_THE_PROJECT", "value": SECRETS[0] });
    let (status, said) =
        suite.post(&format!("/api/v2/project/git/local/{project}/envvar"), &variable).await?;
    ensure!(status == 201, "the variable: {status} {said}");
    fs::write(files.join(".circleci/config.yml"), CONFIG)?;
    suite.push(work, project, &files, "refs/heads/main").await?;
    let path = format!("/api/v2/project/git/local/{project}/pipeline");
    until("the pipeline", LIMIT, || async {
        let found = suite.items(&path).await?;
        Ok(found.first().and_then(|pipeline| Some(pipeline["id"].as_str()?.to_owned())))
    })
    .await
}

#[tokio::test]
async fn a_push_is_one_trace_and_the_metrics_have_their_names() -> anyhow::Result<()> {
    let (Some(suite), Some(folder)) = (Suite::stack().await?, env::var_os("GANTRY_STACK")) else {
        eprintln!("left out: GANTRY_TEST_STACK and GANTRY_STACK name no stack");
        return Ok(());
    };
    let folder = PathBuf::from(folder).join("telemetry");
    let traces = folder.join("traces.jsonl");
    let before = fs::metadata(&traces).with_context(|| traces.display().to_string())?.len();
    let told = || since(&traces, before);
    let work = tempfile::tempdir()?;
    let pipeline = push(&suite, work.path(), &format!("telemetry-{}", std::process::id())).await?;
    let path = format!("/api/v2/pipeline/{pipeline}/workflow");
    let ended = until("the end of the workflow", LIMIT, || async {
        let found = suite.items(&path).await?.into_iter().next();
        Ok(found.filter(|workflow| !["running", "queued"].contains(&text(workflow, "status"))))
    })
    .await?;
    ensure!(ended["status"] == "success", "{ended}");

    let trace = until("the whole trace", LIMIT, || async { whole(&told()?, &pipeline).map(Some) }).await?;
    let by_id: BTreeMap<&str, &Span> = trace.iter().map(|span| (span.id.as_str(), span)).collect();
    ensure!(by_id.len() == trace.len(), "spans have one id");
    let above = |span: &Span| {
        let chain = std::iter::successors(Some(span), |span| by_id.get(span.parent.as_deref()?).copied());
        chain.map(|span| format!("{} {}", span.service, span.name)).collect::<Vec<_>>()
    };
    let roots: Vec<_> = trace.iter().filter(|span| span.parent.is_none()).collect();
    let [root] = roots[..] else { anyhow::bail!("one span has no parent: {roots:?}") };
    ensure!(root.service == "gantry-api" && root.name.starts_with("POST /git/"), "it begins with {root:?}");
    // A message may be handled again because another writer was in the way.
    let failed: Vec<_> =
        trace.iter().filter(|span| span.failed && !span.name.starts_with("consume ")).collect();
    ensure!(failed.is_empty(), "all went well, but: {failed:?}");

    let named = |name: &str| trace.iter().filter(|span| span.name == name).cloned().collect::<Vec<_>>();
    for (name, many) in [
        ("workflow all", 1),
        ("job build", 1),
        ("job check", 1),
        ("task", 3),
        ("step Checkout code", 1),
        ("step Say it", 1),
        ("step Look", 2),
    ] {
        let found = named(name);
        ensure!(found.len() == many, "{many} spans {name:?}, not {}", found.len());
        ensure!(
            found.iter().all(|span| name == "claim" || span.lasted > 0),
            "{name:?} took no time: {found:?}"
        );
    }
    for step in trace.iter().filter(|span| span.name.starts_with("step ")) {
        let above = above(step);
        let (agent, rest) = (above[0].starts_with("gantry-runner step "), &above[1..]);
        let ladder =
            ["gantry-dispatcher task", "gantry-dispatcher job ", "gantry-conductor workflow.job_ready"];
        ensure!(
            agent && ladder.iter().zip(rest).all(|(want, is)| is.starts_with(want)),
            "a step is in {above:?}"
        );
        ensure!(rest.iter().any(|is| is == "gantry-conductor workflow all"), "a step is in {above:?}");
        ensure!(
            above.last().is_some_and(|last| last.starts_with("gantry-api POST")),
            "a step is in {above:?}"
        );
    }

    let told = told()?;
    for secret in SECRETS {
        ensure!(!told.contains(secret), "{secret} is told of in traces");
    }

    let statsd = folder.join("statsd.log");
    let missing = || {
        let said = fs::read_to_string(&statsd).unwrap_or_default();
        let names: BTreeSet<&str> = said.lines().filter_map(|line| line.split(':').next()).collect();
        METRICS.iter().copied().filter(|name| !names.contains(name)).collect::<Vec<_>>()
    };
    until("every metric", LIMIT, || async { Ok(missing().is_empty().then_some(())) })
        .await
        .with_context(|| format!("{:?} were not sent", missing()))?;
    println!("{} spans of {} services in one trace", trace.len(), SERVICES.len());
    Ok(())
}
