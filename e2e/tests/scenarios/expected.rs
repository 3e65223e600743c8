//! `expected.yml`: what a scenario does beside its push, and how it must end.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Ids of `e2e/rules.yml` that the scenario guards.
    #[allow(dead_code, reason = "read by the page that maps rules to scenarios")]
    pub rules: Vec<String>,
    /// Why it does not end alike in containers. Without this it runs there too: its `machine: true` becomes a container of
    /// an image with bash and busybox.
    #[serde(default)]
    pub host_only: Option<String>,
    /// Whether it runs on the host; not those that need containers.
    #[serde(default = "yes")]
    pub host: bool,
    /// Pushed ref.
    #[serde(default = "main_branch")]
    pub push: String,
    /// Options of the push (`git push -o`).
    #[serde(default)]
    pub push_options: Vec<String>,
    /// Message of the pushed commit.
    #[serde(default = "message")]
    pub message: String,
    /// Messages of commits that are pushed with it, before it.
    #[serde(default)]
    pub commits: Vec<String>,
    /// Refs and messages of pushes before it, one after another.
    #[serde(default)]
    pub earlier: Vec<(String, String)>,
    /// What the push prints: parts of it.
    #[serde(default)]
    pub says: Vec<String>,
    /// Number of the pipeline that is judged; without it the first one, or that of the trigger.
    #[serde(default)]
    pub pipeline: Option<i64>,
    /// Secrets of the project, set before the build.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
    /// Contexts with their values, made before the build.
    #[serde(default)]
    pub contexts: BTreeMap<String, BTreeMap<String, String>>,
    /// Requests to the API before the push, one after another; of names only `@org@`, `@project@`, `@token@`,
    /// `@url@` and `@slug@` are known.
    #[serde(default)]
    pub before: Vec<Request>,
    /// Body of a trigger by the API after the push: its pipeline is the one that is judged.
    #[serde(default)]
    pub trigger: Option<Value>,
    /// Pipeline errors: each is a part of a message.
    #[serde(default)]
    pub errors: Vec<String>,
    /// No pipeline at all.
    #[serde(default)]
    pub skipped: bool,
    /// Commands once the pipeline stands, one after another: `approve JOB`, `cancel-job JOB`, `release-serial JOB`,
    /// `cancel WORKFLOW`, `rerun WORKFLOW`, `rerun-failed WORKFLOW`, `rerun-failed-tests WORKFLOW`,
    /// `rerun-jobs WORKFLOW: JOB, JOB`, `rerun-tree` (with what waits for them), `push REF` with an empty commit,
    /// `delete REF`; and the waits `job JOB is STATUS`, `workflow NAME is STATUS`, `pipeline NUMBER is STATUS` (all its
    /// workflows), `output JOB STEP: TEXT` and `tests JOB: COUNT` (as many are listed).
    #[serde(default)]
    pub actions: Vec<String>,
    /// Workflows by name; the second one of a name is `NAME#2`.
    #[serde(default)]
    pub workflows: BTreeMap<String, Workflow>,
    /// Pairs: the first job ended before the second started.
    #[serde(default)]
    pub order: Vec<(String, String)>,
    /// Requests to the API once everything has ended, one after another.
    #[serde(default)]
    pub requests: Vec<Request>,
}

impl Expected {
    /// Whether it is to end alike in containers; where nothing runs there is nothing to compare.
    pub fn runs_in_containers(&self) -> bool {
        self.host_only.is_none() && self.errors.is_empty() && !self.skipped
    }
}

fn yes() -> bool {
    true
}

fn main_branch() -> String {
    "refs/heads/main".to_owned()
}

fn message() -> String {
    "Build it".to_owned()
}

/// A workflow's end.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workflow {
    pub status: String,
    pub jobs: BTreeMap<String, Job>,
}

/// A job's end.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    pub status: String,
    /// Names of all steps in order, those that did not run left out.
    #[serde(default)]
    pub sequence: Vec<String>,
    /// Step name → its status; `absent`: it did not run.
    #[serde(default)]
    pub steps: BTreeMap<String, String>,
    /// Step name → exit code.
    #[serde(default)]
    pub exit: BTreeMap<String, i64>,
    /// Step name → the whole output; `NAME#1` is that of parallel index 1, or the second attempt where there is one
    /// node.
    #[serde(default)]
    pub output: BTreeMap<String, String>,
    /// Step name → parts of the output.
    #[serde(default)]
    pub contains: BTreeMap<String, Vec<String>>,
    /// Step name → what the output must not hold.
    #[serde(default)]
    pub lacks: BTreeMap<String, Vec<String>>,
}

/// One request. In all texts `@slug@`, `@pipeline@`, `@workflow:NAME@`, `@job:NAME@`, `@number:NAME@`,
/// `@step:JOB/STEP@`, `@org@`, `@project@`, `@token@`, `@url@` and what was kept before are replaced.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    #[serde(default)]
    pub get: Option<String>,
    #[serde(default)]
    pub post: Option<String>,
    #[serde(default)]
    pub put: Option<String>,
    #[serde(default)]
    pub patch: Option<String>,
    #[serde(default)]
    pub delete: Option<String>,
    /// JSON body.
    #[serde(default)]
    pub body: Option<Value>,
    /// A GraphQL document: sent as the body's `query`.
    #[serde(default)]
    pub graphql: Option<String>,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Without a token.
    #[serde(default)]
    pub anonymous: bool,
    /// Status of the answer.
    #[serde(default = "ok")]
    pub status: u16,
    /// A part of the answer: members may be missing here, but not there.
    #[serde(default)]
    pub holds: Option<Value>,
    /// Parts of the answer's text.
    #[serde(default)]
    pub text: Vec<String>,
    /// What the answer's text must not hold.
    #[serde(default)]
    pub lacks: Vec<String>,
    /// Name → JSON pointer of what later requests use.
    #[serde(default)]
    pub keep: BTreeMap<String, String>,
}

fn ok() -> u16 {
    200
}
