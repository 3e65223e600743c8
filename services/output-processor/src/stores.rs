//! Caches, workspaces, artifacts and test reports (execution §15–§18, reliability §8.4).
//!
//! The bytes go past this service: agents put and get them at the blob store, by URLs that are signed for exactly the
//! announced size and digest. What an agent uploads is a promise first; a commit looks at what the store really has
//! and makes it visible, all of it or nothing. The scope of everything is computed from the task (security §9.3).

mod artifacts;
mod caches;
mod chunks;
mod follow;
mod objects;
mod reports;
mod sweep;
mod workspaces;

pub(crate) use artifacts::{list as list_artifacts, open as open_artifact};
pub(crate) use follow::Jobs;
pub(crate) use sweep::{sweep, sweep_loop};

use crate::{
    answers::SERVICE,
    http::{Refused, json, lease, on_task},
    hub::Hub,
    task::{Lease, Task},
};
use axum::{
    Json, Router,
    extract::{MatchedPath, Path, Request, State},
    http::StatusCode,
    routing::post,
};
use contracts::Actor;
use ids::{JobId, TaskId};
use serde::{Serialize, de::DeserializeOwned};
use spans::{Kind, Name, Open, Span};
use std::{future::Future, sync::Arc};
use tokio::sync::OwnedRwLockReadGuard;
use uuid::Uuid;

/// Routes that agents call, below `/v1/tasks/{task}/stores`.
pub(crate) fn router() -> Router<Arc<Hub>> {
    let at = |rest: &str| format!("/v1/tasks/{{task}}/stores/{rest}");
    Router::new()
        .route(&at("cache/check"), post(|s, p, r| answer(s, p, r, caches::check)))
        .route(&at("cache/find"), post(|s, p, r| answer(s, p, r, caches::find)))
        .route(&at("cache/commit"), post(|s, p, r| answer(s, p, r, caches::commit)))
        .route(&at("workspace/layers"), post(|s, p, r| answer(s, p, r, workspaces::layers)))
        .route(&at("workspace/commit"), post(|s, p, r| answer(s, p, r, workspaces::commit)))
        .route(&at("chunks/missing"), post(|s, p, r| answer(s, p, r, chunks::missing)))
        .route(&at("chunks/uploads"), post(|s, p, r| answer(s, p, r, chunks::uploads)))
        .route(&at("chunks/downloads"), post(|s, p, r| answer(s, p, r, chunks::downloads)))
        .route(&at("artifacts/uploads"), post(|s, p, r| answer(s, p, r, artifacts::uploads)))
        .route(&at("artifacts/parts"), post(|s, p, r| answer(s, p, r, artifacts::parts)))
        .route(&at("artifacts/commit"), post(|s, p, r| answer(s, p, r, artifacts::commit)))
        .route(&at("tests/upload"), post(|s, p, r| answer(s, p, r, reports::upload)))
        .route(&at("tests/commit"), post(|s, p, r| answer(s, p, r, reports::commit)))
}

/// Who asks: a task under a lease that lives, and what is known of its job.
pub(crate) struct Caller {
    pub(crate) hub: Arc<Hub>,
    pub(crate) task: Arc<Task>,
    pub(crate) lease: Lease,
    pub(crate) job: Job,
}

/// What the conductor said of a job.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Job {
    pub(crate) org_id: Uuid,
    pub(crate) project_id: Uuid,
    pub(crate) workspace_id: Uuid,
    pub(crate) name: String,
    pub(crate) number: i64,
    pub(crate) branch: Option<String>,
    pub(crate) revision: String,
    pub(crate) cache_days: Option<i32>,
}

impl Caller {
    pub(crate) fn job_id(&self) -> JobId {
        self.lease.job_id
    }

    /// Whose caches and chunks it may read and write: those of its project. Builds of forks, which would have a scope
    /// of their own, do not come from the embedded git server.
    pub(crate) fn scope(&self) -> Uuid {
        self.job.project_id
    }

    pub(crate) fn actor(&self) -> Actor {
        Actor::service("output-processor")
    }

    /// Holds the epoch open: while the guard lives, a close waits, and what is committed under it was in time.
    pub(crate) async fn in_time(&self) -> Result<OwnedRwLockReadGuard<()>, Refused> {
        let guard = Arc::clone(&self.task.commits).read_owned().await;
        self.task.check(&self.lease)?;
        Ok(guard)
    }
}

async fn answer<A, R, F>(
    State(hub): State<Arc<Hub>>,
    Path(task_id): Path<TaskId>,
    request: Request,
    handler: impl FnOnce(Caller, A) -> F,
) -> Result<Json<R>, Refused>
where
    A: DeserializeOwned,
    R: Serialize,
    F: Future<Output = Result<R, Refused>>,
{
    let lease = lease(&hub, request.headers(), task_id)?;
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().and_then(|route| Some(route.as_str().rsplit_once("/stores/")?.1));
    let ask: A = json(request).await?;
    on_task(&hub, task_id, |task| task.check(&lease)).await?;
    let task = hub.task(task_id).await?;
    let job: Option<Job> = sqlx::query_as(
        "SELECT org_id, project_id, workspace_id, name, number, branch, revision, cache_days \
         FROM output_processor.jobs WHERE job_id = $1",
    )
    .bind(lease.job_id.uuid())
    .fetch_optional(hub.store.pool())
    .await?;
    // The conductor's news may be a moment behind the agent's start; a job without such steps never comes.
    let job = job.ok_or_else(|| {
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, "job_unknown", "nothing is known of this job yet")
    })?;
    let name = Name::of("stores", route.unwrap_or_default());
    let span = lease.trace.and_then(|trace| Span::begin(Some(trace), SERVICE, Kind::Server, name));
    let span = Open::new(span.map(|span| span.with("gantry.task.id", task_id.uuid())));
    let within = span.context().or(lease.trace);
    let handled = handler(Caller { hub: Arc::clone(&hub), task, lease, job }, ask);
    let answer = eventstore::trace::within(within, handled).await;
    span.end(answer.is_err());
    answer.map(Json)
}

/// A refusal for good: what the agent asks for is not allowed.
pub(crate) fn refuse(code: &str, message: impl Into<String>) -> Refused {
    Refused::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
}

/// A SHA-256 in hex.
pub(crate) fn digest(text: &str) -> Result<[u8; 32], Refused> {
    let bytes = hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| refuse("invalid", format!("{text:.80} is not the SHA-256 of anything")))
}

/// At most so many things in one request.
pub(crate) fn bounded(count: usize) -> Result<(), Refused> {
    let limit = agent_api::stores::MAX_BATCH;
    if count <= limit { Ok(()) } else { Err(refuse("too_many", format!("at most {limit} in one request"))) }
}
