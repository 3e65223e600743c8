//! What people's pages cost: lists, graphs and logs, by several clients at once.

use crate::{
    jobs,
    numbers::{percentile, spread},
};
use anyhow::{Context, ensure};
use gantry_e2e::Suite;
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Clients of the mix.
const CLIENTS: usize = 8;
/// Requests of each.
const EACH: usize = 70;

/// What the mix asks for.
pub struct Places {
    list: String,
    branch: String,
    number: String,
    graph: String,
    job: String,
    log: String,
    /// What stands before page 1,000 of the list, once there are so many.
    deep: Option<String>,
    slug: String,
}

/// What is asked of a pipeline in a list.
const PAGE: &str = "nodes { id number state status branch subject createdAt workflows { id name status jobs { id name status } } }";
/// Pipelines of a page of the mix.
const PAGE_SIZE: usize = 25;
/// The page that lies deep in the list.
const DEEP: usize = 1000;
/// Pipelines that are leafed through at once on the way there.
const LEAF: usize = 100;

impl Places {
    /// Finds page 1,000 of the list, as soon as there are so many.
    pub async fn find_deep(&mut self, suite: &Suite) -> anyhow::Result<()> {
        let (mut after, mut passed) = (String::new(), 0);
        while self.deep.is_none() && passed < (DEEP - 1) * PAGE_SIZE {
            let query = format!(
                "{{ pipelines(projectSlug: \"{}\", first: {LEAF}{after}) {{ pageInfo {{ hasNextPage endCursor }} }} }}",
                self.slug
            );
            let (answer, _) = ask(suite, &query).await?;
            let info = &answer["data"]["pipelines"]["pageInfo"];
            if info["hasNextPage"] != true {
                return Ok(());
            }
            after = format!(", after: \"{}\"", info["endCursor"].as_str().context("no cursor")?);
            passed += LEAF;
        }
        let deep = format!(
            "{{ pipelines(projectSlug: \"{}\", first: {PAGE_SIZE}{after}) {{ {PAGE} }} }}",
            self.slug
        );
        self.deep.get_or_insert(deep);
        Ok(())
    }
}

/// Makes what the mix asks for, beside the history of `project`: a graph of 300 jobs and a job of 30 steps.
pub async fn prepare(suite: &Suite, work: &Path, project: &str) -> anyhow::Result<Places> {
    let graph = crate::files(work, "graph-files", &held(300))?;
    suite.push(work, "graph", &graph, "refs/heads/main").await?;
    let graph = newest(suite, "graph").await?;
    let steps = crate::files(work, "steps-files", &steps(30))?;
    suite.push(work, "steps", &steps, "refs/heads/main").await?;
    jobs::settle(suite, "steps", 1).await?;
    let build = suite.get("/api/v1.1/project/git/local/steps/1").await?;
    let step = build["steps"].as_array().and_then(|steps| steps.last()).context("no step")?;
    let step = step["actions"][0]["step_id"].as_str().context("no step id")?.to_owned();
    let found = suite.items(&format!("/api/v2/pipeline/{}/workflow", newest(suite, "steps").await?)).await?;
    let workflow = found.first().and_then(|found| found["id"].as_str()).context("no workflow")?.to_owned();
    let jobs = suite.items(&format!("/api/v2/workflow/{workflow}/job")).await?;
    let job = jobs.first().and_then(|job| job["id"].as_str()).context("no job")?.to_owned();
    let slug = format!("git/local/{project}");
    Ok(Places {
        list: format!(
            "{{ pipelines(projectSlug: \"{slug}\", first: {PAGE_SIZE}) {{ {PAGE} pageInfo {{ endCursor }} }} }}"
        ),
        branch: format!(
            "{{ pipelines(projectSlug: \"{slug}\", branch: \"main\", first: {PAGE_SIZE}) {{ {PAGE} }} }}"
        ),
        number: format!("/api/v2/project/{slug}/pipeline/500"),
        graph: format!(
            "{{ pipeline(id: \"{graph}\") {{ workflows {{ jobs {{ id name status requires {{ jobId }} }} }} }} }}"
        ),
        job: format!("{{ job(id: \"{job}\") {{ id name steps {{ id name status log {{ bytes }} }} }} }}"),
        log: format!("/logs/{step}/raw"),
        deep: None,
        slug,
    })
}

/// Three hundred jobs that never run: they wait for a person.
fn held(jobs: usize) -> String {
    let mut config = String::from(
        "version: 2.1\njobs:\n  echo:\n    machine: true\n    steps:\n      - run: echo hello\nworkflows:\n  main:\n    jobs:\n      - hold: { type: approval }\n",
    );
    for job in 0..jobs - 1 {
        config.push_str(&format!("      - echo: {{ name: j{job}, requires: [hold] }}\n"));
    }
    config
}

fn steps(n: usize) -> String {
    let mut config = String::from("version: 2.1\njobs:\n  one:\n    machine: true\n    steps:\n");
    for step in 0..n {
        config.push_str(&format!("      - run: {{ name: s{step}, command: echo {step} }}\n"));
    }
    config + "workflows:\n  main:\n    jobs: [one]\n"
}

/// The newest pipeline of a project, as soon as there is one.
pub async fn newest(suite: &Suite, project: &str) -> anyhow::Result<String> {
    gantry_e2e::until("a pipeline", crate::LIMIT, || async {
        let page = suite.get(&format!("/api/v2/project/git/local/{project}/pipeline")).await?;
        Ok(page["items"][0]["id"].as_str().map(str::to_owned))
    })
    .await
}

/// The list of recent runs on one connection.
pub async fn recent(suite: &Suite, project: &str) -> anyhow::Result<Value> {
    let path = format!("/api/v2/project/git/local/{project}/pipeline");
    let mut times = Vec::new();
    for _ in 0..400 {
        let begun = Instant::now();
        let page = suite.get(&path).await?;
        times.push(begun.elapsed());
        ensure!(page["items"].as_array().is_some_and(|items| items.len() == 20), "not a full page");
    }
    let mut graph = Vec::new();
    let query = format!(
        "{{ pipelines(projectSlug: \"git/local/{project}\", first: 25) {{ nodes {{ id number status }} }} }}"
    );
    for _ in 0..200 {
        graph.push(ask(suite, &query).await?.1);
    }
    let slow = percentile(&mut times, 99) > Duration::from_millis(6);
    Ok(json!({
        "rest": spread(&mut times), "graphql_with_status": spread(&mut graph), "bar_p50_ms": 2.5, "bar_p99_ms": 6,
        "within_p99": !slow,
    }))
}

/// One GraphQL query; its answer and how long it took.
async fn ask(suite: &Suite, query: &str) -> anyhow::Result<(Value, Duration)> {
    let begun = Instant::now();
    let (status, answer) = suite.post("/graphql", &json!({ "query": query })).await?;
    let took = begun.elapsed();
    ensure!(status == 200 && answer.get("errors").is_none(), "{status} {answer}: {query}");
    Ok((answer, took))
}

/// The fixed mix by eight clients at once.
pub async fn mix(suite: &Suite, places: &Places) -> anyhow::Result<Value> {
    let clients = (0..CLIENTS).map(|client| async move {
        let mut times: Vec<(usize, Duration)> = Vec::new();
        for round in 0..EACH {
            let kind = (client + round) % 7;
            let took = match kind {
                0 => ask(suite, &places.list).await?.1,
                1 => ask(suite, &places.branch).await?.1,
                2 => get(suite, &places.number).await?,
                3 => ask(suite, &places.graph).await?.1,
                4 => ask(suite, &places.job).await?.1,
                5 => get(suite, &places.log).await?,
                _ => match &places.deep {
                    Some(deep) => ask(suite, deep).await?.1,
                    None => continue,
                },
            };
            times.push((kind, took));
        }
        anyhow::Ok(times)
    });
    let all: Vec<(usize, Duration)> =
        futures::future::try_join_all(clients).await?.into_iter().flatten().collect();
    let of = |kind: usize| -> Value {
        spread(&mut all.iter().filter(|(found, _)| *found == kind).map(|(_, took)| *took).collect::<Vec<_>>())
    };
    let mut every: Vec<Duration> = all.iter().map(|(_, took)| *took).collect();
    Ok(json!({
        "clients": CLIENTS, "all": spread(&mut every), "bar_p99_ms": 50, "page_of_25": of(0), "by_branch": of(1),
        "by_number": of(2), "graph_of_300": of(3), "job_of_30_steps": of(4), "log": of(5), "page_1000": of(6),
    }))
}

async fn get(suite: &Suite, path: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    suite.bytes(path).await?;
    Ok(begun.elapsed())
}
