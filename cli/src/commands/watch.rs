//! `gantry watch`: the live tree of a pipeline, pushed by the server.
//!
//! The server nudges over one subscription; at each nudge the state is read again and what changed is printed.
//! Output of running steps is followed over one stream each.

use super::{log::actions, nouns::pipeline, text};
use crate::{Client, Exit, Failure, Global, place};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};
use std::{collections::HashMap, io::Write, sync::Arc, time::Duration};
use tokio::{sync::Mutex, task::JoinSet};

/// A server that says nothing for so long is asked anyway.
const QUIET: Duration = Duration::from_secs(10);

pub(super) async fn run(global: &Global, number: &str, no_wait_approval: bool) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let slug = place::project(global).await?;
    let pipeline = pipeline(&client, &slug, number).await?;
    watch(&client, &slug, &pipeline, no_wait_approval, global.json, |_| async { Ok(()) }).await
}

/// Watches to the end; `on_hold` is called with a workflow that waits for approval.
pub(super) async fn watch<F, Fut>(
    client: &Client,
    slug: &str,
    pipeline: &Value,
    no_wait_approval: bool,
    as_json: bool,
    mut on_hold: F,
) -> Result<Exit, Failure>
where
    F: FnMut(String) -> Fut,
    Fut: Future<Output = Result<(), Failure>>,
{
    let id = text(pipeline, "id").to_owned();
    eprintln!("{slug} #{}  {}", super::cell(pipeline, "number"), super::cell(pipeline, "vcs.commit.subject"));
    if text(pipeline, "state") == "errored" {
        for error in pipeline.get("errors").and_then(Value::as_array).into_iter().flatten() {
            eprintln!("  {}", text(error, "message"));
        }
        return Ok(Exit::Failed);
    }
    let mut nudges = std::pin::pin!(
        client.subscribe("subscription($id: ID!) { pipeline(id: $id) { id } }", json!({ "id": id })).await?
    );
    let mut screen = Screen::new(client.clone(), slug.to_owned());
    loop {
        let workflows = client.items(&format!("/api/v2/pipeline/{id}/workflow"), 1000).await?;
        for workflow in &workflows {
            let workflow_id = text(workflow, "id").to_owned();
            let jobs = client.items(&format!("/api/v2/workflow/{workflow_id}/job"), 100_000).await?;
            screen.show(workflow, &jobs).await?;
            if text(workflow, "status") == "on_hold" {
                if no_wait_approval {
                    return Ok(Exit::OnHold);
                }
                on_hold(workflow_id).await?;
            }
        }
        if !workflows.is_empty()
            && workflows.iter().all(|workflow| workflow.get("stopped_at").is_some_and(|at| !at.is_null()))
        {
            screen.drain().await;
            // A rerun in the same pipeline speaks for its workflow: the newest of each name counts.
            let mut last: HashMap<&str, &Value> = HashMap::new();
            for workflow in &workflows {
                let slot = last.entry(text(workflow, "name")).or_insert(workflow);
                if text(workflow, "created_at") > text(slot, "created_at") {
                    *slot = workflow;
                }
            }
            let exit = last
                .values()
                .map(|workflow| Exit::of_status(text(workflow, "status")))
                .max_by_key(|exit| exit.code());
            if as_json {
                println!("{}", json!({ "pipeline": pipeline, "workflows": workflows }));
            }
            return Ok(exit.unwrap_or(Exit::Success));
        }
        match tokio::time::timeout(QUIET, nudges.next()).await {
            Ok(Some(_)) => while nudges.next().now_or_never().flatten().is_some() {},
            Err(_) => {}
            Ok(None) => {
                let query = "subscription($id: ID!) { pipeline(id: $id) { id } }";
                nudges.set(client.subscribe(query, json!({ "id": id })).await?);
            }
        }
    }
}

/// What has been printed so far, and the steps that are being followed.
struct Screen {
    client: Client,
    slug: String,
    seen: HashMap<String, String>,
    followed: Arc<Mutex<HashMap<String, ()>>>,
    tails: JoinSet<()>,
}

impl Screen {
    fn new(client: Client, slug: String) -> Self {
        Self { client, slug, seen: HashMap::new(), followed: Arc::default(), tails: JoinSet::new() }
    }

    async fn show(&mut self, workflow: &Value, jobs: &[Value]) -> Result<(), Failure> {
        self.line(text(workflow, "id"), text(workflow, "name"), text(workflow, "status"), "  ");
        for job in jobs {
            self.line(text(job, "id"), text(job, "name"), text(job, "status"), "    ");
            let number = job.get("job_number").and_then(Value::as_i64);
            let begun =
                !matches!(text(job, "status"), "blocked" | "queued" | "not_running" | "on_hold" | "not_run");
            if let Some(number) = number.filter(|_| begun) {
                self.follow(number, text(job, "name")).await?;
            }
        }
        Ok(())
    }

    fn line(&mut self, id: &str, name: &str, status: &str, indent: &str) {
        if self.seen.get(id).map(String::as_str) != Some(status) {
            self.seen.insert(id.to_owned(), status.to_owned());
            let shape = match status {
                "success" => "ok",
                "failed" | "infrastructure_fail" | "timedout" | "error" | "failing" | "unauthorized" => "x ",
                "canceled" | "not_run" => "! ",
                "on_hold" => "? ",
                _ => "..",
            };
            anstream::println!("{indent}{shape} {name}  {status}");
        }
    }

    /// Follows every step of the job that is not followed yet.
    async fn follow(&mut self, number: i64, name: &str) -> Result<(), Failure> {
        for action in actions(&self.client, &self.slug, number).await? {
            let step = text(&action, "step_id").to_owned();
            let configured = action.get("step").and_then(Value::as_u64).is_some_and(|step| step > 100);
            if !configured || self.followed.lock().await.insert(step.clone(), ()).is_some() {
                continue;
            }
            let (client, name) = (self.client.clone(), name.to_owned());
            self.tails.spawn(async move {
                // A tail that breaks is no failure of the watch: the log stays readable with `gantry log`.
                let _ = tail(&client, &step, &name).await;
            });
        }
        Ok(())
    }

    async fn drain(&mut self) {
        let all = async { while self.tails.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(5), all).await;
    }
}

async fn tail(client: &Client, step: &str, name: &str) -> Result<(), Failure> {
    let mut events = std::pin::pin!(client.events(&format!("/logs/{step}/tail")).await?);
    let mut rest: Vec<u8> = Vec::new();
    while let Some(event) = events.next().await {
        let json: Value = serde_json::from_str(&event.data).unwrap_or_default();
        rest.extend(STANDARD.decode(text(&json, "data")).unwrap_or_default());
        let ended = event.event == "end";
        let cut = if ended {
            rest.len()
        } else {
            rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
        };
        let mut out = std::io::stdout().lock();
        for line in rest[..cut].split_inclusive(|byte| *byte == b'\n') {
            write!(out, "      {name} | ")?;
            out.write_all(line)?;
            if !line.ends_with(b"\n") {
                writeln!(out)?;
            }
        }
        out.flush()?;
        rest.drain(..cut);
        if ended {
            break;
        }
    }
    Ok(())
}
