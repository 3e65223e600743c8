//! The GraphQL API: queries over the views with data loaders, mutations that ask the owners, subscriptions
//! over server-sent events (`/graphql/stream`) and WebSocket (`/graphql/ws`).

mod limits;
mod mutations;
mod results;
mod subscriptions;
mod topic;
mod types;

use crate::{
    auth::Caller,
    error::{Fail, Problem},
    state::App,
    store::{JobRow, PipelineFilter, ProjectRow, StepRow, WorkflowRow},
    view,
};
use async_graphql::{
    BatchRequest, BatchResponse, Context, ErrorExtensions, ID, Object, Schema, SchemaBuilder,
    dataloader::{DataLoader, Loader},
    parser::types::OperationType,
};
use async_graphql_axum::{GraphQLProtocol, GraphQLWebSocket};
use axum::{
    Router,
    body::Bytes,
    extract::{State, WebSocketUpgrade},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use futures::StreamExt;
use mutations::Mutation;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    convert::Infallible,
    str::FromStr,
    sync::{Arc, OnceLock},
    time::Duration,
};
use subscriptions::Subscription;
use types::{Job, Pipeline, PipelineConnection, Project, ProjectConnection, Step, Viewer, Workflow};
use uuid::Uuid;

/// How long a request may take.
const EXECUTION: Duration = Duration::from_secs(5);

type Suite = Schema<Query, Mutation, Subscription>;
type Outcome<T> = async_graphql::Result<T>;

impl From<Fail> for async_graphql::Error {
    fn from(fail: Fail) -> Self {
        let code = fail.code;
        Self::new(fail.message).extend_with(|_, extensions| extensions.set("code", code))
    }
}

fn app<'a>(ctx: &'a Context<'_>) -> &'a App {
    ctx.data_unchecked::<App>()
}

fn caller<'a>(ctx: &'a Context<'_>) -> Outcome<&'a Caller> {
    ctx.data::<Caller>().map_err(|_| Fail::unauthenticated().into())
}

fn parse<T: FromStr>(id: &ID, what: &str) -> Outcome<T> {
    Ok(view::id(id, what)?)
}

fn first(first: Option<i32>) -> Outcome<i64> {
    match first.unwrap_or(20) {
        rows @ 1..=limits::ROWS => Ok(rows.into()),
        _ => Err(Fail::invalid(format!("first is from 1 to {}", limits::ROWS)).into()),
    }
}

/// Rows of many parents in one query.
struct Rows(App);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct WorkflowsOf(Uuid);
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct JobsOf(Uuid);
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct StepsOf(Uuid);
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct ProjectOf(Uuid);

fn grouped<K: Eq + std::hash::Hash, V>(rows: Vec<V>, key: impl Fn(&V) -> K) -> HashMap<K, Vec<V>> {
    let mut found: HashMap<K, Vec<V>> = HashMap::new();
    for row in rows {
        found.entry(key(&row)).or_default().push(row);
    }
    found
}

fn unread(error: sqlx::Error) -> async_graphql::Error {
    Fail::from(error).into()
}

impl Loader<WorkflowsOf> for Rows {
    type Value = Vec<WorkflowRow>;
    type Error = async_graphql::Error;

    async fn load(&self, keys: &[WorkflowsOf]) -> Result<HashMap<WorkflowsOf, Self::Value>, Self::Error> {
        let ids: Vec<_> = keys.iter().map(|key| key.0).collect();
        let rows = self.0.views.workflows_of(&ids).await.map_err(unread)?;
        Ok(grouped(rows, |row| WorkflowsOf(row.pipeline_id)))
    }
}

impl Loader<JobsOf> for Rows {
    type Value = Vec<JobRow>;
    type Error = async_graphql::Error;

    async fn load(&self, keys: &[JobsOf]) -> Result<HashMap<JobsOf, Self::Value>, Self::Error> {
        let ids: Vec<_> = keys.iter().map(|key| key.0).collect();
        let rows = self.0.views.jobs_of(&ids).await.map_err(unread)?;
        Ok(grouped(rows, |row| JobsOf(row.workflow_id)))
    }
}

impl Loader<StepsOf> for Rows {
    type Value = Vec<StepRow>;
    type Error = async_graphql::Error;

    async fn load(&self, keys: &[StepsOf]) -> Result<HashMap<StepsOf, Self::Value>, Self::Error> {
        let ids: Vec<_> = keys.iter().map(|key| key.0).collect();
        let rows = self.0.views.steps_of(&ids).await.map_err(unread)?;
        Ok(grouped(rows, |row| StepsOf(row.job_id)))
    }
}

impl Loader<ProjectOf> for Rows {
    type Value = ProjectRow;
    type Error = async_graphql::Error;

    async fn load(&self, keys: &[ProjectOf]) -> Result<HashMap<ProjectOf, Self::Value>, Self::Error> {
        let ids: Vec<_> = keys.iter().map(|key| key.0).collect();
        let rows = self.0.views.projects_by_id(&ids).await.map_err(unread)?;
        Ok(rows.into_iter().map(|row| (ProjectOf(row.id), row)).collect())
    }
}

fn loader<'a>(ctx: &'a Context<'_>) -> &'a DataLoader<Rows> {
    ctx.data_unchecked::<DataLoader<Rows>>()
}

/// Reads. What the caller may not see is null or not found.
pub struct Query;

/// Null instead of an error for what is not there.
fn optional<T>(found: Result<T, Fail>) -> Outcome<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(fail) if fail.code == "not_found" => Ok(None),
        Err(fail) => Err(fail.into()),
    }
}

#[Object]
impl Query {
    /// Who asks.
    async fn viewer(&self, ctx: &Context<'_>) -> Outcome<Viewer> {
        Ok(Viewer(caller(ctx)?.user.clone()))
    }

    /// Projects by slug.
    #[graphql(complexity = "limits::list(first, child_complexity)")]
    async fn projects(
        &self,
        ctx: &Context<'_>,
        first: Option<i32>,
        after: Option<String>,
    ) -> Outcome<ProjectConnection> {
        let limit = self::first(first)?;
        let orgs: Vec<_> =
            view::orgs(app(ctx), caller(ctx)?).await?.iter().map(|org| org.id.uuid()).collect();
        let rows = app(ctx).views.projects(&orgs, after.as_deref(), limit + 1).await.map_err(unread)?;
        Ok(ProjectConnection::new(rows, limit))
    }

    /// One project by slug, `circleci/…` slug or id.
    async fn project(&self, ctx: &Context<'_>, slug: String) -> Outcome<Option<Project>> {
        Ok(optional(view::project(app(ctx), caller(ctx)?, &slug).await)?.map(Project))
    }

    /// Pipelines, newest first: of a project, or of all.
    #[graphql(complexity = "limits::list(first, child_complexity)")]
    async fn pipelines(
        &self,
        ctx: &Context<'_>,
        project_slug: Option<String>,
        branch: Option<String>,
        #[graphql(default)] mine: bool,
        first: Option<i32>,
        after: Option<String>,
    ) -> Outcome<PipelineConnection> {
        let (app, caller) = (app(ctx), caller(ctx)?);
        let mut filter =
            PipelineFilter { branch, actor: mine.then_some(caller.user.id), ..PipelineFilter::default() };
        match project_slug {
            Some(slug) => filter.project = Some(view::project(app, caller, &slug).await?.id.uuid()),
            None => {
                filter.orgs = Some(view::orgs(app, caller).await?.iter().map(|org| org.id.uuid()).collect())
            }
        }
        PipelineConnection::load(app, caller, filter, self::first(first)?, after).await
    }

    /// One pipeline.
    async fn pipeline(&self, ctx: &Context<'_>, id: ID) -> Outcome<Option<Pipeline>> {
        Ok(optional(view::pipeline(app(ctx), caller(ctx)?, parse(&id, "Pipeline")?).await)?.map(Pipeline))
    }

    /// One workflow.
    async fn workflow(&self, ctx: &Context<'_>, id: ID) -> Outcome<Option<Workflow>> {
        Ok(optional(view::workflow(app(ctx), caller(ctx)?, parse(&id, "Workflow")?).await)?.map(Workflow))
    }

    /// One job.
    async fn job(&self, ctx: &Context<'_>, id: ID) -> Outcome<Option<Job>> {
        Ok(optional(view::job(app(ctx), caller(ctx)?, parse(&id, "Job")?).await)?.map(Job))
    }

    /// One step.
    async fn step(&self, ctx: &Context<'_>, id: ID) -> Outcome<Option<Step>> {
        let place = optional(crate::logs::place(app(ctx), caller(ctx)?, &id).await)?;
        Ok(place.map(|place| Step(StepRow::from_record(place.job_id.uuid(), place.step))))
    }
}

fn build() -> SchemaBuilder<Query, Mutation, Subscription> {
    Schema::build(Query, Mutation, Subscription)
        // Room for their own counts, which say what is too large; recursion of the parser itself is bounded.
        .limit_recursive_depth(32)
        .extension(limits::Limits)
}

/// The schema as committed at `schema.graphql`.
pub fn sdl() -> String {
    build().finish().sdl()
}

/// `/graphql` and its streams.
pub fn routes(app: &App) -> Router<App> {
    let schema = build().data(app.clone()).data(DataLoader::new(Rows(app.clone()), tokio::spawn)).finish();
    let (by_post, by_get, stream, ws) = (schema.clone(), schema.clone(), schema.clone(), schema);
    Router::new()
        .route(
            "/graphql",
            get(move |caller: Caller, uri: Uri| answer_get(by_get.clone(), caller, uri))
                .post(move |caller: Caller, body: Bytes| answer_post(by_post.clone(), caller, body)),
        )
        .route(
            "/graphql/stream",
            axum::routing::post(move |State(app): State<App>, caller: Caller, body: Bytes| {
                follow(stream.clone(), app, caller, body)
            }),
        )
        .route(
            "/graphql/ws",
            get(move |State(app): State<App>, headers: HeaderMap, uri: Uri, protocol, upgrade| {
                socket(ws.clone(), app, headers, uri, protocol, upgrade)
            }),
        )
}

fn bad(status: StatusCode, code: &str, message: String) -> Response {
    let body = json!({ "errors": [{ "message": message, "extensions": { "code": code } }] }).to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[expect(clippy::result_large_err, reason = "the early answer of a handler, made once per request")]
fn read<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, Response> {
    if body.len() > limits::DOCUMENT {
        let message = format!("a request has at most {} bytes", limits::DOCUMENT);
        return Err(bad(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
    }
    serde_json::from_slice(body).map_err(|error| {
        bad(StatusCode::BAD_REQUEST, "invalid_json", format!("the request cannot be read: {error}"))
    })
}

/// Whether a document was refused for its size, before anything was executed.
fn refused(response: &async_graphql::Response) -> bool {
    let code = |error: &async_graphql::ServerError| match error.extensions.as_ref()?.get("code")? {
        async_graphql::Value::String(code) => Some(code.clone()),
        _ => None,
    };
    !response.errors.is_empty()
        && response
            .errors
            .iter()
            .all(|error| code(error).is_some_and(|code| limits::CODES.contains(&code.as_str())))
}

/// Executes a request within its time; a batch one after the other, each with limits of its own.
async fn execute(schema: Suite, caller: Caller, request: BatchRequest) -> Response {
    if let BatchRequest::Batch(batch) = &request
        && !(1..=limits::BATCH).contains(&batch.len())
    {
        let message = format!("a batch has 1 to {} requests, this one has {}", limits::BATCH, batch.len());
        return bad(StatusCode::BAD_REQUEST, "batch_too_large", message);
    }
    let response = match tokio::time::timeout(EXECUTION, schema.execute_batch(request.data(caller))).await {
        Ok(response) => response,
        Err(_) => {
            let message = format!("the query took longer than {} s", EXECUTION.as_secs());
            return bad(StatusCode::REQUEST_TIMEOUT, "query_timeout", message);
        }
    };
    let refused = match &response {
        BatchResponse::Single(response) => refused(response),
        BatchResponse::Batch(all) => all.iter().all(refused),
    };
    let status = if refused { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    match serde_json::to_vec(&response) {
        Ok(body) if body.len() > limits::RESPONSE => {
            let message =
                format!("the answer has more than {} bytes: ask for less at once", limits::RESPONSE);
            bad(StatusCode::PAYLOAD_TOO_LARGE, "response_too_large", message)
        }
        Ok(body) => {
            (status, [(header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
        }
        Err(error) => bad(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()),
    }
}

async fn answer_post(schema: Suite, caller: Caller, body: Bytes) -> Response {
    // A list is a batch, whatever is in it: an empty one would pass for a request with nothing in it.
    let request = if body.trim_ascii_start().starts_with(b"[") {
        read(&body).map(BatchRequest::Batch)
    } else {
        read(&body).map(BatchRequest::Single)
    };
    match request {
        Ok(request) => execute(schema, caller, request).await,
        Err(response) => response,
    }
}

async fn answer_get(schema: Suite, caller: Caller, uri: Uri) -> Response {
    let request = async_graphql::http::parse_query_string(uri.query().unwrap_or_default());
    let mut request = match request {
        Ok(request) => request,
        Err(error) => return bad(StatusCode::BAD_REQUEST, "invalid", error.to_string()),
    };
    if request.query.len() > limits::DOCUMENT {
        let message = format!("a request has at most {} bytes", limits::DOCUMENT);
        return bad(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message);
    }
    // A link must change nothing.
    let changes = request
        .parsed_query()
        .is_ok_and(|document| document.operations.iter().any(|(_, op)| op.node.ty != OperationType::Query));
    if changes {
        let message = "only queries are answered to GET".to_owned();
        return bad(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
    }
    execute(schema, caller, request.into()).await
}

/// `text/event-stream` with `next` and `complete` events, one operation per connection.
async fn follow(schema: Suite, app: App, caller: Caller, body: Bytes) -> Response {
    let request: async_graphql::Request = match read(&body) {
        Ok(request) => request,
        Err(response) => return response,
    };
    let open = match app.streams.open(&caller).await {
        Ok(open) => open,
        Err(fail) => return Problem(fail).into_response(),
    };
    let stop = app.stop.clone();
    let events = schema
        .execute_stream(request.data(caller))
        .take_until(async move { stop.cancelled().await })
        .map(move |response| {
            // It is open as long as it is read.
            let _open = &open;
            let data = serde_json::to_string(&response).unwrap_or_default();
            Ok::<_, Infallible>(Event::default().event("next").data(data))
        })
        .chain(futures::stream::once(async { Ok(Event::default().event("complete").data("")) }));
    let mut response =
        Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The token comes with the upgrade, or with `connection_init`, because browsers send no headers here.
async fn socket(
    schema: Suite,
    app: App,
    headers: HeaderMap,
    uri: Uri,
    protocol: GraphQLProtocol,
    upgrade: WebSocketUpgrade,
) -> Response {
    let known = Caller::of(&app, &headers, &uri).await.ok();
    let place = match app.streams.place() {
        Ok(place) => place,
        Err(fail) => return Problem(fail).into_response(),
    };
    upgrade
        .max_message_size(limits::MESSAGE)
        .max_frame_size(limits::MESSAGE)
        .protocols(["graphql-transport-ws", "graphql-ws"])
        .on_upgrade(move |socket| async move {
            let _held = place;
            let stop = app.stop.clone();
            // Counted from when it is known whose it is, and no longer than it is open.
            let present = Arc::new(OnceLock::new());
            let counted = Arc::clone(&present);
            let serve = GraphQLWebSocket::new(socket, schema, protocol)
                .on_connection_init(move |payload: Value| async move {
                    let mut data = async_graphql::Data::default();
                    if let Some(caller) = known {
                        let _ = counted.set(app.streams.present(&caller).await?);
                        data.insert(caller);
                        return Ok(data);
                    }
                    let mut headers = HeaderMap::new();
                    for (name, value) in payload.as_object().into_iter().flatten() {
                        let name = if name == "token" { "circle-token" } else { name };
                        let value = value.as_str().and_then(|value| HeaderValue::from_str(value).ok());
                        if let (Ok(name), Some(value)) = (http::HeaderName::from_str(name), value) {
                            headers.insert(name, value);
                        }
                    }
                    let caller = Caller::of(&app, &headers, &uri).await?;
                    let _ = counted.set(app.streams.present(&caller).await?);
                    data.insert(caller);
                    Ok(data)
                })
                .serve();
            tokio::select! {
                () = serve => {}
                () = stop.cancelled() => {}
            }
            drop(present);
        })
}

/// A fresh personal token; only its digest is kept.
pub fn new_token() -> Result<String, Fail> {
    let mut random = [0u8; 32];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| {
        Fail::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the machine has no randomness")
    })?;
    Ok(format!("gantry_{}", bs58::encode(random).into_string()))
}
