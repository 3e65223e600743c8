//! The types of the graph.

use super::{
    JobsOf, Outcome, ProjectOf, StepsOf, WorkflowsOf, app, caller, first, limits, loader,
    results::{Artifact, Test, Tests},
};
use crate::{
    artifacts,
    auth::Caller,
    state::App,
    store::{JobRow, PipelineFilter, PipelineRow, ProjectRow, StepRow, WorkflowRow},
    view,
};
use async_graphql::{Context, ID, Object, SimpleObject};
use contracts::{
    conductor::{self, ExplainWait},
    domain::{self, ListTokens},
    pipelines::GetPipelineConfig,
    test_results::ListTests,
};
use ids::{JobId, PipelineId, Timestamp, WorkflowId};
use std::collections::HashSet;
use uuid::Uuid;

fn gid(id: Uuid) -> ID {
    ID(id.to_string())
}

/// Who asks.
pub struct Viewer(pub domain::User);

#[Object]
impl Viewer {
    async fn id(&self) -> ID {
        gid(self.0.id.uuid())
    }
    async fn login(&self) -> &str {
        &self.0.login
    }
    /// Whether it administers the installation.
    async fn admin(&self) -> bool {
        self.0.admin
    }
    /// Personal tokens; never their values.
    async fn tokens(&self, ctx: &Context<'_>) -> Outcome<Vec<Token>> {
        let found = app(ctx).ask(caller(ctx)?, &ListTokens {}).await.map_err(crate::error::Fail::from)?;
        Ok(found.into_iter().map(Token::from).collect())
    }
    /// Organisations.
    async fn organizations(&self, ctx: &Context<'_>) -> Outcome<Vec<Organization>> {
        let orgs = view::orgs(app(ctx), caller(ctx)?).await?;
        Ok(orgs.into_iter().map(|org| Organization { id: gid(org.id.uuid()), name: org.name }).collect())
    }
}

/// A personal token's public part.
#[derive(SimpleObject)]
pub struct Token {
    id: ID,
    label: String,
    created_at: Timestamp,
}

impl From<domain::TokenInfo> for Token {
    fn from(info: domain::TokenInfo) -> Self {
        Self { id: gid(info.id.uuid()), label: info.label, created_at: info.created_at }
    }
}

/// An organisation.
#[derive(SimpleObject)]
pub struct Organization {
    id: ID,
    name: String,
}

/// Where a page ends.
#[derive(SimpleObject)]
pub struct PageInfo {
    has_next_page: bool,
    has_previous_page: bool,
    start_cursor: Option<String>,
    end_cursor: Option<String>,
}

fn page_info(more: bool, start: Option<String>, end: Option<String>) -> PageInfo {
    PageInfo { has_next_page: more, has_previous_page: false, start_cursor: start, end_cursor: end }
}

/// A page of projects.
#[derive(SimpleObject)]
pub struct ProjectConnection {
    edges: Vec<ProjectEdge>,
    nodes: Vec<Project>,
    page_info: PageInfo,
}

/// A project in a page.
#[derive(SimpleObject)]
pub struct ProjectEdge {
    cursor: String,
    node: Project,
}

impl ProjectConnection {
    pub fn new(mut rows: Vec<ProjectRow>, limit: i64) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let edges: Vec<_> = rows
            .into_iter()
            .map(|row| ProjectEdge { cursor: row.slug.clone(), node: Project(row.into()) })
            .collect();
        Self {
            page_info: page_info(
                more,
                edges.first().map(|edge| edge.cursor.clone()),
                edges.last().map(|edge| edge.cursor.clone()),
            ),
            nodes: edges.iter().map(|edge| edge.node.clone()).collect(),
            edges,
        }
    }
}

/// One repository that is built.
#[derive(Clone)]
pub struct Project(pub domain::Project);

#[Object]
impl Project {
    async fn id(&self) -> ID {
        gid(self.0.id.uuid())
    }
    /// `git/<org>/<repo>`.
    async fn slug(&self) -> &str {
        &self.0.slug
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    /// Name of the organisation.
    async fn organization(&self) -> &str {
        &self.0.org
    }
    async fn default_branch(&self) -> &str {
        &self.0.default_branch
    }
    /// Address to clone from.
    async fn clone_url(&self, ctx: &Context<'_>) -> String {
        app(ctx).url(&format!("/{}.git", self.0.slug))
    }
    /// Its page.
    async fn url(&self, ctx: &Context<'_>) -> String {
        app(ctx).url(&format!("/projects/{}", self.0.slug))
    }
    /// Pipelines, newest first.
    #[graphql(complexity = "limits::list(first, child_complexity)")]
    async fn pipelines(
        &self,
        ctx: &Context<'_>,
        branch: Option<String>,
        first: Option<i32>,
        after: Option<String>,
    ) -> Outcome<PipelineConnection> {
        let filter = PipelineFilter { project: Some(self.0.id.uuid()), branch, ..PipelineFilter::default() };
        PipelineConnection::load(app(ctx), caller(ctx)?, filter, self::first(first)?, after).await
    }
    /// One pipeline by number.
    async fn pipeline(&self, ctx: &Context<'_>, number: i64) -> Outcome<Option<Pipeline>> {
        let views = &app(ctx).views;
        let row = app(ctx).caught_up(|| views.pipeline_by_number(self.0.id.uuid(), number)).await?;
        Ok(row.map(Pipeline))
    }
}

/// A page of pipelines.
#[derive(SimpleObject)]
pub struct PipelineConnection {
    edges: Vec<PipelineEdge>,
    nodes: Vec<Pipeline>,
    page_info: PageInfo,
}

/// A pipeline in a page.
#[derive(SimpleObject)]
pub struct PipelineEdge {
    cursor: String,
    node: Pipeline,
}

impl PipelineConnection {
    pub async fn load(
        app: &App,
        caller: &Caller,
        filter: PipelineFilter,
        limit: i64,
        after: Option<String>,
    ) -> Outcome<Self> {
        let (rows, next) = view::pipelines(app, caller, filter.clone(), after.as_deref(), limit).await?;
        let edges: Vec<_> = rows
            .into_iter()
            .map(|row| PipelineEdge {
                cursor: view::cursor_after(app, caller, &filter, &row),
                node: Pipeline(row),
            })
            .collect();
        Ok(Self {
            page_info: page_info(
                next.is_some(),
                edges.first().map(|edge| edge.cursor.clone()),
                edges.last().map(|edge| edge.cursor.clone()),
            ),
            nodes: edges.iter().map(|edge| edge.node.clone()).collect(),
            edges,
        })
    }
}

/// What made a pipeline.
#[derive(SimpleObject)]
pub struct Trigger {
    /// `webhook` (pushes), `api`, …
    #[graphql(name = "type")]
    kind: String,
    /// Login of the person, if known.
    actor: Option<String>,
    received_at: Option<Timestamp>,
}

/// A message about a configuration.
#[derive(SimpleObject)]
pub struct PipelineError {
    #[graphql(name = "type")]
    kind: String,
    message: String,
}

/// One compile of a configuration for one revision.
#[derive(Clone)]
pub struct Pipeline(pub PipelineRow);

/// The word for all workflows of a pipeline. Of several instances of a workflow only the newest counts.
fn rollup<'a>(state: &'a str, workflows: &'a [WorkflowRow]) -> &'a str {
    const ORDER: &[&str] = &[
        "failing",
        "running",
        "queued",
        "on_hold",
        "error",
        "failed",
        "unauthorized",
        "canceled",
        "success",
        "not_run",
    ];
    if state == "errored" {
        return "errored";
    }
    let mut seen = HashSet::new();
    let newest: Vec<_> = workflows
        .iter()
        .filter(|row| seen.insert(row.name.as_str()))
        .map(|row| row.status.as_str())
        .collect();
    ORDER.iter().copied().find(|word| newest.contains(word)).unwrap_or("created")
}

#[Object]
impl Pipeline {
    async fn id(&self) -> ID {
        gid(self.0.id)
    }
    /// Dense per project.
    async fn number(&self) -> i64 {
        self.0.number
    }
    /// `created` or `errored`.
    async fn state(&self) -> &str {
        &self.0.state
    }
    /// One word for all its workflows.
    async fn status(&self, ctx: &Context<'_>) -> Outcome<String> {
        let workflows = loader(ctx).load_one(WorkflowsOf(self.0.id)).await?.unwrap_or_default();
        Ok(rollup(&self.0.state, &workflows).to_owned())
    }
    async fn created_at(&self) -> Timestamp {
        self.0.created_at
    }
    /// When it, a workflow, a job or a step of it changed last: a follower goes on from here after a break.
    async fn changed_at(&self) -> Timestamp {
        self.0.changed_at
    }
    async fn revision(&self) -> &str {
        &self.0.revision
    }
    async fn branch(&self) -> Option<&str> {
        self.0.branch.as_deref()
    }
    async fn tag(&self) -> Option<&str> {
        self.0.tag.as_deref()
    }
    /// First line of the commit's message.
    async fn subject(&self) -> Option<&str> {
        self.0.subject.as_deref()
    }
    async fn trigger(&self) -> Trigger {
        let text = |name: &str| self.0.trigger[name].as_str().map(str::to_owned);
        Trigger {
            kind: text("kind").unwrap_or_default(),
            actor: text("actor_login"),
            received_at: text("received_at").and_then(|at| at.parse().ok()),
        }
    }
    async fn errors(&self) -> Vec<PipelineError> {
        let errors = self.0.errors.as_array().map_or(&[][..], Vec::as_slice);
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        errors
            .iter()
            .map(|error| PipelineError { kind: text(&error["type"]), message: text(&error["message"]) })
            .collect()
    }
    async fn project(&self, ctx: &Context<'_>) -> Outcome<Option<Project>> {
        Ok(loader(ctx).load_one(ProjectOf(self.0.project_id)).await?.map(|row| Project(row.into())))
    }
    async fn project_slug(&self) -> &str {
        &self.0.slug
    }
    /// Its page.
    async fn url(&self, ctx: &Context<'_>) -> String {
        app(ctx).url(&format!("/projects/{}/pipelines/{}", self.0.slug, self.0.number))
    }
    /// Workflows, newest first.
    #[graphql(complexity = "1 + 2 * child_complexity")]
    async fn workflows(&self, ctx: &Context<'_>) -> Outcome<Vec<Workflow>> {
        let rows = loader(ctx).load_one(WorkflowsOf(self.0.id)).await?.unwrap_or_default();
        Ok(rows.into_iter().map(Workflow).collect())
    }
    /// The configuration as in the repository and as compiled.
    #[graphql(complexity = "50")]
    async fn config(&self, ctx: &Context<'_>) -> Outcome<Config> {
        let ask = GetPipelineConfig { id: PipelineId(self.0.id) };
        let config = app(ctx).ask(caller(ctx)?, &ask).await.map_err(crate::error::Fail::from)?;
        let app = app(ctx);
        Ok(Config {
            source: app.receive(config.source).await?,
            compiled: app.receive(config.compiled).await?,
        })
    }
}

/// A configuration.
#[derive(SimpleObject)]
pub struct Config {
    source: String,
    compiled: String,
}

/// One instance of a named workflow.
#[derive(Clone)]
pub struct Workflow(pub WorkflowRow);

#[Object]
impl Workflow {
    async fn id(&self) -> ID {
        gid(self.0.id)
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    async fn status(&self) -> &str {
        &self.0.status
    }
    async fn created_at(&self) -> Timestamp {
        self.0.created_at
    }
    async fn stopped_at(&self) -> Option<Timestamp> {
        self.0.stopped_at
    }
    /// Id of the user who started it.
    async fn started_by(&self) -> Option<ID> {
        self.0.started_by.map(gid)
    }
    /// Id of the user who canceled it.
    async fn canceled_by(&self) -> Option<ID> {
        self.0.canceled_by.map(gid)
    }
    /// The workflow of which this is a rerun.
    async fn rerun_of(&self) -> Option<ID> {
        self.0.rerun_of.map(gid)
    }
    /// Version of the aggregate that this shows.
    async fn version(&self) -> i64 {
        self.0.version
    }
    async fn pipeline_id(&self) -> ID {
        gid(self.0.pipeline_id)
    }
    async fn pipeline_number(&self) -> i64 {
        self.0.pipeline_number
    }
    async fn project_slug(&self) -> &str {
        &self.0.slug
    }
    async fn pipeline(&self, ctx: &Context<'_>) -> Outcome<Pipeline> {
        Ok(Pipeline(view::pipeline(app(ctx), caller(ctx)?, PipelineId(self.0.pipeline_id)).await?))
    }
    /// The graph: jobs in file order.
    #[graphql(complexity = "1 + 3 * child_complexity")]
    async fn jobs(&self, ctx: &Context<'_>) -> Outcome<Vec<Job>> {
        let rows = loader(ctx).load_one(JobsOf(self.0.id)).await?.unwrap_or_default();
        Ok(rows.into_iter().map(Job).collect())
    }
}

/// An edge of a workflow's graph.
#[derive(SimpleObject)]
pub struct Requirement {
    /// Upstream job.
    job_id: ID,
    /// Statuses that satisfy it.
    accepts: Vec<String>,
}

/// One node of a workflow's graph.
#[derive(Clone)]
pub struct Job(pub JobRow);

#[Object]
impl Job {
    async fn id(&self) -> ID {
        gid(self.0.id)
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    /// `build`, `approval`, `no-op`, `lock` or `unlock`.
    #[graphql(name = "type")]
    async fn kind(&self) -> &str {
        &self.0.kind
    }
    async fn status(&self) -> &str {
        &self.0.status
    }
    /// Why, where the status alone does not say it.
    async fn reason(&self) -> Option<&str> {
        self.0.reason.as_deref()
    }
    /// Dense per project; null until it is ready, and of approvals.
    async fn number(&self) -> Option<i64> {
        self.0.number
    }
    /// Edges to upstream jobs.
    async fn requires(&self) -> Vec<Requirement> {
        let edges = self.0.requires.as_array().map_or(&[][..], Vec::as_slice);
        edges
            .iter()
            .filter_map(|edge| {
                Some(Requirement {
                    job_id: ID(edge["job_id"].as_str()?.to_owned()),
                    accepts: edge["accepts"]
                        .as_array()?
                        .iter()
                        .filter_map(|word| Some(word.as_str()?.to_owned()))
                        .collect(),
                })
            })
            .collect()
    }
    async fn contexts(&self) -> &[String] {
        &self.0.contexts
    }
    async fn executor(&self) -> Option<&str> {
        self.0.executor.as_deref()
    }
    async fn resource_class(&self) -> Option<&str> {
        self.0.resource_class.as_deref()
    }
    async fn parallelism(&self) -> i32 {
        self.0.parallelism
    }
    async fn approved_by(&self) -> Option<ID> {
        self.0.approved_by.map(gid)
    }
    async fn created_at(&self) -> Timestamp {
        self.0.created_at
    }
    async fn queued_at(&self) -> Option<Timestamp> {
        self.0.queued_at
    }
    async fn started_at(&self) -> Option<Timestamp> {
        self.0.started_at
    }
    async fn stopped_at(&self) -> Option<Timestamp> {
        self.0.stopped_at
    }
    /// Its page.
    async fn url(&self, ctx: &Context<'_>) -> String {
        app(ctx).url(&format!("/jobs/{}", self.0.id))
    }
    async fn workflow_id(&self) -> ID {
        gid(self.0.workflow_id)
    }
    async fn pipeline_id(&self) -> ID {
        gid(self.0.pipeline_id)
    }
    async fn workflow(&self, ctx: &Context<'_>) -> Outcome<Workflow> {
        Ok(Workflow(view::workflow(app(ctx), caller(ctx)?, WorkflowId(self.0.workflow_id)).await?))
    }
    /// Steps by number and parallel index.
    #[graphql(complexity = "1 + 5 * child_complexity")]
    async fn steps(&self, ctx: &Context<'_>) -> Outcome<Vec<Step>> {
        let rows = loader(ctx).load_one(StepsOf(self.0.id)).await?.unwrap_or_default();
        Ok(rows.into_iter().map(Step).collect())
    }
    /// Files that it kept for people, by index and path.
    #[graphql(complexity = "20 + 5 * child_complexity")]
    async fn artifacts(&self, ctx: &Context<'_>) -> Outcome<Vec<Artifact>> {
        let job = JobId(self.0.id);
        let found = artifacts::all(app(ctx), caller(ctx)?, job).await?;
        Ok(found.into_iter().map(|record| Artifact::of(app(ctx), job, record)).collect())
    }
    /// Its tests in the order of their reports.
    #[graphql(complexity = "20 + 5 * child_complexity")]
    async fn tests(
        &self,
        ctx: &Context<'_>,
        #[graphql(default = 0)] offset: u64,
        #[graphql(default = 100, validator(maximum = 500))] limit: u32,
    ) -> Outcome<Tests> {
        let ask = ListTests { job_id: JobId(self.0.id), offset, limit };
        let page = app(ctx).ask(caller(ctx)?, &ask).await.map_err(crate::error::Fail::from)?;
        Ok(Tests {
            total: page.total,
            problems: page.problems,
            items: page.items.into_iter().map(Test::from).collect(),
        })
    }
    /// Why it waits, in sentences. Empty once it runs.
    #[graphql(complexity = "20")]
    async fn waiting(&self, ctx: &Context<'_>) -> Outcome<Vec<String>> {
        if !matches!(self.0.status.as_str(), "blocked" | "on_hold" | "queued" | "not_running") {
            return Ok(Vec::new());
        }
        // An explanation is not worth an error.
        let ask = ExplainWait { job_id: JobId(self.0.id) };
        let explained = app(ctx).ask(caller(ctx)?, &ask).await;
        Ok(explained.map(|found| found.waits.into_iter().map(|wait| wait.text).collect()).unwrap_or_default())
    }
    /// What it waits for, since when, and its place in line: asked of those who decide.
    #[graphql(complexity = "20")]
    async fn explanation(&self, ctx: &Context<'_>) -> Outcome<Explanation> {
        let ask = ExplainWait { job_id: JobId(self.0.id) };
        Ok(Explanation(app(ctx).ask(caller(ctx)?, &ask).await.map_err(crate::error::Fail::from)?))
    }
}

/// Where a job stands, and what it waits for.
pub struct Explanation(conductor::Explanation);

#[Object]
impl Explanation {
    /// Status as its owner knows it now.
    async fn status(&self) -> &str {
        self.0.status.as_str()
    }
    /// Since when it has that status.
    async fn since(&self) -> Option<Timestamp> {
        self.0.since
    }
    /// Why it ended so, where the status does not say it.
    async fn reason(&self) -> Option<&str> {
        self.0.reason.as_deref()
    }
    /// What it waits for; empty once it runs or has ended.
    async fn waits(&self) -> Vec<Wait> {
        self.0.waits.iter().cloned().map(Wait).collect()
    }
}

/// One thing that a job, or a task of it, waits for.
pub struct Wait(conductor::Wait);

#[Object]
impl Wait {
    /// `requirement`, `approval`, `serial_group`, `slot`, `org_limit`, `project_limit`, `class_limit`, `placement`, `runner`,
    /// `stop` or `other`.
    async fn kind(&self) -> &str {
        &self.0.kind
    }
    /// A sentence for people.
    async fn text(&self) -> &str {
        &self.0.text
    }
    async fn since(&self) -> Option<Timestamp> {
        self.0.since
    }
    /// Place in line, from 1.
    async fn place(&self) -> Option<i64> {
        self.0.place.and_then(|n| i64::try_from(n).ok())
    }
    /// How many are in line.
    async fn line(&self) -> Option<i64> {
        self.0.line.and_then(|n| i64::try_from(n).ok())
    }
    /// Ids of the jobs that it waits for.
    async fn jobs(&self) -> Vec<ID> {
        self.0.jobs.iter().map(|job| gid(job.uuid())).collect()
    }
    /// Parallel index of the task, of what a task waits for.
    async fn index(&self) -> Option<u32> {
        self.0.index
    }
    /// Configuration key of the limit that holds it up.
    async fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }
}

/// One step of one task.
#[derive(Clone)]
pub struct Step(pub StepRow);

/// How far a step's output is known.
#[derive(SimpleObject)]
pub struct LogPosition {
    /// Bytes.
    bytes: i64,
    /// `open`, `complete`, `truncated_by_limit` or `interrupted`.
    state: String,
}

#[Object]
impl Step {
    /// The `{step}` of `/logs/{step}/…`.
    async fn id(&self) -> ID {
        gid(self.0.id)
    }
    async fn job_id(&self) -> ID {
        gid(self.0.job_id)
    }
    /// 0 spin-up, 99 environment, 101… configured steps.
    async fn number(&self) -> i32 {
        self.0.number
    }
    /// Parallel index.
    async fn index(&self) -> i32 {
        self.0.index
    }
    async fn name(&self) -> &str {
        &self.0.name
    }
    async fn status(&self) -> &str {
        &self.0.status
    }
    async fn command(&self) -> Option<&str> {
        self.0.bash_command.as_deref()
    }
    async fn exit_code(&self) -> Option<i32> {
        self.0.exit_code
    }
    async fn background(&self) -> bool {
        self.0.background
    }
    async fn started_at(&self) -> Timestamp {
        self.0.started_at
    }
    async fn ended_at(&self) -> Option<Timestamp> {
        self.0.ended_at
    }
    /// How far its output is known.
    async fn log(&self) -> LogPosition {
        LogPosition { bytes: self.0.bytes, state: self.0.log_state.clone() }
    }
}
