//! Somebody who uses the suite all the time, and does again what failed (reliability R-39).

use crate::world::{PROBE, World};
use anyhow::{Context, ensure};
use futures::future::join_all;
use serde_json::json;
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// What fails is tried again for so long; then it has failed.
const RETRIED: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);
/// Of one request.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a client saw.
#[derive(Default)]
pub struct Seen {
    asked: usize,
    /// Requests that a repeat within two seconds answered, and why they had failed.
    repeated: Vec<String>,
    /// Requests that failed for good.
    failed: Vec<String>,
    slowest: (Duration, String),
    /// Projects whose push was taken.
    pushed: Vec<String>,
    /// Pipelines whose trigger was taken.
    triggered: Vec<String>,
}

/// Asks without end until told to stop.
pub struct Client<'a> {
    world: &'a World,
    http: reqwest::Client,
    seen: Mutex<Seen>,
    /// A project with a finished pipeline, and a step of it with its output.
    project: String,
    step: (String, Vec<u8>),
}

impl<'a> Client<'a> {
    pub async fn new(world: &'a World) -> anyhow::Result<Self> {
        let load = world.push("client", &PROBE, 1).await?;
        world.judge(&load, 0).await?;
        let project = load.projects.into_iter().next().context("one project")?;
        let slug = format!("git/local/{project}");
        let build = world.suite.get(&format!("/api/v1.1/project/{slug}/1")).await?;
        let step = build["steps"].as_array().into_iter().flatten().find(|step| step["name"] == "work");
        let id = step.and_then(|step| step["actions"][0]["step_id"].as_str()).context("no step")?.to_owned();
        let bytes = world.suite.bytes(&format!("/logs/{id}/raw")).await?;
        let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
        Ok(Self { world, http, seen: Mutex::default(), project, step: (id, bytes) })
    }

    /// Until `stop`; what was begun is finished.
    pub async fn run(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let reads = join_all([0, 1, 2, 3].map(|which| self.read(which, stop)));
        let (_, pushed, triggered) = tokio::join!(reads, self.push(stop), self.trigger(stop));
        pushed?;
        triggered
    }

    /// Nothing failed, and what was taken came to its end.
    pub async fn judge(self) -> anyhow::Result<()> {
        let seen = self.seen.into_inner().expect("no thread panicked");
        let (slowest, what) = seen.slowest;
        println!(
            "  {} requests, {} answered by a repeat within {RETRIED:?}, slowest {:.1} s ({what}); {} pushes and {} triggers taken",
            seen.asked,
            seen.repeated.len(),
            slowest.as_secs_f64(),
            seen.pushed.len(),
            seen.triggered.len()
        );
        for (what, count) in counted(&seen.repeated) {
            println!("    repeated {count} times: {what}");
        }
        ensure!(seen.failed.is_empty(), "requests failed: {:#?}", seen.failed);
        ensure!(!seen.pushed.is_empty() && !seen.triggered.is_empty(), "nothing was pushed or triggered");
        for project in &seen.pushed {
            let verdict = self.world.ledger.judge(&self.world.suite, project, &PROBE).await?;
            ensure!(verdict.status == "success", "{project} is {}: {:?}", verdict.status, verdict.lost);
        }
        for pipeline in &seen.triggered {
            gantry_e2e::until("the end of a triggered workflow", gantry_e2e::ledger::LIMIT, || async {
                let found = self.world.suite.items(&format!("/api/v2/pipeline/{pipeline}/workflow")).await?;
                let status = found.first().and_then(|found| found["status"].as_str()).unwrap_or_default();
                ensure!(!["failed", "error", "canceled"].contains(&status), "it is {status}");
                Ok((status == "success").then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    async fn read(&self, which: usize, stop: &CancellationToken) {
        let slug = format!("git/local/{}", self.project);
        let query = json!({ "query": "{ viewer { login } }" });
        while !stop.is_cancelled() {
            match which {
                0 => self.get("who am I", "/api/v2/me", |_| true).await,
                1 => self.get("pipelines", &format!("/api/v2/project/{slug}/pipeline"), |_| true).await,
                2 => {
                    let whole = |bytes: &[u8]| bytes == self.step.1;
                    self.get("output", &format!("/logs/{}/raw", self.step.0), whole).await;
                }
                _ => {
                    self.retried("GraphQL", async || {
                        let answer = self.request("POST", "/graphql").json(&query).send().await?;
                        let (status, text) = (answer.status(), answer.text().await?);
                        ensure!(status.is_success() && !text.contains("\"errors\""), "{status} {text}");
                        Ok(())
                    })
                    .await;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn push(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        while !stop.is_cancelled() {
            let project = self.world.project("pushed");
            self.world.ledger.prepare(&project, &PROBE).await?;
            let taken = self.retried("push", async || {
                self.world.ledger.push_again(&self.world.suite, &project).await.map(|_| ())
            });
            if taken.await.is_some() {
                self.seen.lock().expect("no thread panicked").pushed.push(project);
            }
            stop.run_until_cancelled(tokio::time::sleep(Duration::from_secs(2))).await;
        }
        Ok(())
    }

    async fn trigger(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let path = format!("/api/v2/project/git/local/{}/pipeline", self.project);
        let mut number = 0;
        while !stop.is_cancelled() {
            // A repeat is the same trigger.
            let key = format!("{}-{number}", self.project);
            number += 1;
            let taken = self.retried("trigger", async || {
                let request = self.request("POST", &path).header("Idempotency-Key", &key);
                let answer = request.json(&json!({ "branch": "main" })).send().await?;
                let (status, text) = (answer.status(), answer.text().await?);
                ensure!(status.is_success(), "{status} {text}");
                let answer: serde_json::Value = serde_json::from_str(&text)?;
                Ok(answer["id"].as_str().context("no id")?.to_owned())
            });
            if let Some(id) = taken.await {
                self.seen.lock().expect("no thread panicked").triggered.push(id);
            }
            stop.run_until_cancelled(tokio::time::sleep(Duration::from_secs(2))).await;
        }
        Ok(())
    }

    fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.world.suite.url);
        let method = method.parse().expect("a method of HTTP");
        self.http.request(method, url).header("Circle-Token", &self.world.suite.token)
    }

    async fn get(&self, what: &str, path: &str, right: impl Fn(&[u8]) -> bool) {
        self.retried(what, async || {
            let answer = self.request("GET", path).send().await?;
            let (status, bytes) = (answer.status(), answer.bytes().await?);
            let text = || String::from_utf8_lossy(&bytes).chars().take(300).collect::<String>();
            ensure!(status.is_success() && right(&bytes), "{status} {}", text());
            Ok(())
        })
        .await;
    }

    /// The answer, of the first attempt or of one that began soon after it failed.
    async fn retried<T>(&self, what: &str, ask: impl AsyncFn() -> anyhow::Result<T>) -> Option<T> {
        let begun = Instant::now();
        let mut first_failed: Option<(Instant, String)> = None;
        let answer = loop {
            let error = match ask().await {
                Ok(answer) => break Some(answer),
                Err(error) => format!("{what}: {error:#}").replace(&self.world.suite.token, "…"),
            };
            let (since, _) = first_failed.get_or_insert_with(|| (Instant::now(), error.clone()));
            if since.elapsed() > RETRIED {
                self.seen.lock().expect("no thread panicked").failed.push(error);
                break None;
            }
            tokio::time::sleep(PAUSE).await;
        };
        let mut seen = self.seen.lock().expect("no thread panicked");
        seen.asked += 1;
        if let (Some((_, why)), Some(_)) = (first_failed, &answer) {
            seen.repeated.push(why);
        }
        if begun.elapsed() > seen.slowest.0 {
            seen.slowest = (begun.elapsed(), what.to_owned());
        }
        answer
    }
}

fn counted(what: &[String]) -> std::collections::BTreeMap<&str, usize> {
    let mut counts = std::collections::BTreeMap::new();
    for text in what {
        *counts.entry(text.as_str()).or_default() += 1;
    }
    counts
}
