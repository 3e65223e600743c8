//! What agents call.

use crate::{
    hub::{Hub, Work, log_key},
    peers, steps,
    task::{Accepted, ChunkVerdict, Deny, Lease, Task},
};
use agent_api::{CHUNK_CRC, ChunkAck, MAX_CHUNK, Problem, Seal, StepReport};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing,
};
use bytes::Bytes;
use ids::{StepId, TaskId};
use kit::keys::FenceClaims;
use serde::Deserialize;
use std::sync::Arc;

/// Longest name of a step in bytes.
const MAX_NAME: usize = 1024;
/// Longest command in bytes.
const MAX_COMMAND: usize = 256 * 1024;

pub(crate) fn router(hub: Arc<Hub>) -> Router {
    let steps = "/v1/tasks/{task}/steps";
    let chunks = "/v1/tasks/{task}/streams/{step}/chunks";
    let seal = "/v1/tasks/{task}/streams/{step}/seal";
    Router::new()
        .route(steps, routing::post(post_step))
        .route(chunks, routing::put(put_chunk))
        .route(seal, routing::post(post_seal))
        .route("/v1/tasks/{task}/siblings", routing::get(crate::siblings::siblings))
        .merge(crate::stores::router())
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&hub), peers::pass_on))
        .route(peers::PATH, routing::post(peers::answer))
        .layer(DefaultBodyLimit::max(MAX_CHUNK))
        .with_state(hub)
}

/// An error answer.
pub(crate) struct Refused(StatusCode, Problem);

impl Refused {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self(status, Problem { code: code.to_owned(), message: message.into(), next_offset: None })
    }

    /// Something of ours is away: the agent tries again. The details are for our log.
    pub(crate) fn unavailable(error: &dyn std::fmt::Display) -> Self {
        tracing::warn!(%error, "output cannot be taken now");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "dependency_unavailable", "output cannot be stored now")
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        metrics::counter!("gantry.output_processor.refused", "code" => self.1.code.clone()).increment(1);
        (self.0, Json(self.1)).into_response()
    }
}

impl From<Deny> for Refused {
    fn from(deny: Deny) -> Self {
        let (status, code, next_offset) = match &deny {
            Deny::StaleLease => (StatusCode::CONFLICT, "stale_lease", None),
            Deny::Foreign => (StatusCode::FORBIDDEN, "forbidden", None),
            Deny::OffsetGap(next) => (StatusCode::CONFLICT, "offset_gap", Some(*next)),
            Deny::LogConflict => (StatusCode::CONFLICT, "log_conflict", None),
            Deny::Sealed => (StatusCode::CONFLICT, "stream_sealed", None),
            Deny::SealMismatch(next) => (StatusCode::CONFLICT, "seal_mismatch", Some(*next)),
            Deny::TooManySteps(_) => (StatusCode::UNPROCESSABLE_ENTITY, "too_many_steps", None),
            Deny::Gone | Deny::Journal(_) | Deny::Read(_) => return Self::unavailable(&deny),
        };
        Self(status, Problem { code: code.to_owned(), message: deny.to_string(), next_offset })
    }
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self::unavailable(&error)
    }
}

/// Who calls: the holder of a fence token for this task.
pub(crate) fn lease(hub: &Hub, headers: &HeaderMap, task: TaskId) -> Result<Lease, Refused> {
    let refused = |code: &str, message: &str| Refused::new(StatusCode::UNAUTHORIZED, code, message);
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .ok_or_else(|| refused("unauthenticated", "a fence token is needed"))?;
    let claims: FenceClaims = hub
        .keys
        .open_claims("fence", token)
        .ok_or_else(|| refused("unauthenticated", "the fence token is not one of ours"))?;
    if claims.task_id != task {
        return Err(Refused::new(StatusCode::FORBIDDEN, "forbidden", "the fence token is of another task"));
    }
    if claims.expires_at <= hub.store.now().timestamp_millis() {
        // Not `stale_lease`: the lease may live, and the agent gets a new token with its renewal.
        return Err(refused("fence_expired", "the fence token has run out: renew the lease"));
    }
    let trace = claims.trace.and_then(|trace| trace.parse().ok());
    Ok(Lease { job_id: claims.job_id, epoch: claims.epoch, trace })
}

/// Applies a rule to the task; once more when the task left memory at that moment.
pub(crate) async fn on_task<T>(
    hub: &Hub,
    id: TaskId,
    rule: impl Fn(&Task) -> Result<T, Deny>,
) -> Result<T, Refused> {
    let mut task = hub.task(id).await?;
    let mut result = rule(&task);
    if matches!(result, Err(Deny::Gone)) {
        task = hub.task(id).await?;
        result = rule(&task);
    }
    if matches!(result, Err(Deny::StaleLease)) {
        hub.let_go(&task).await;
    }
    result.map_err(Refused::from)
}

#[derive(Deserialize)]
struct ChunkQuery {
    offset: u64,
}

async fn put_chunk(
    State(hub): State<Arc<Hub>>,
    Path((task_id, step_id)): Path<(TaskId, StepId)>,
    Query(query): Query<ChunkQuery>,
    request: Request,
) -> Result<Json<ChunkAck>, Refused> {
    let lease = lease(&hub, request.headers(), task_id)?;
    let announced = crc_header(request.headers())?;
    let data = body(request).await?;
    if crc32c::crc32c(&data) != announced {
        let message = "the chunk is damaged: send it again";
        return Err(Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "checksum_mismatch", message));
    }
    hub.check_owner(task_id, step_id)?;
    let rule = |task: &Task| task.chunk(&hub.journal, &hub.config, &lease, step_id, query.offset, &data);
    let accepted = match on_task(&hub, task_id, rule).await {
        Ok(ChunkVerdict::Accepted(accepted)) => accepted,
        Ok(ChunkVerdict::CompareWithBlob { total }) => {
            compare(&hub, step_id, query.offset, &data, total).await?
        }
        Err(refused) => {
            if refused.1.code == "log_conflict" {
                metrics::counter!("log_conflicts_total").increment(1);
                tracing::error!(%task_id, %step_id, offset = query.offset, length = data.len(), "output conflicts");
            }
            return Err(refused);
        }
    };
    let Accepted { ack, ticket, grew } = accepted;
    if grew {
        hub.place(task_id, lease.job_id, step_id);
        // Shown before it is durable, acknowledged after.
        hub.tell_output(step_id, ack.next_offset).await;
    }
    hub.journal.durable(ticket).await.map_err(Deny::from)?;
    metrics::counter!("gantry.output_processor.bytes").increment(data.len() as u64);
    Ok(Json(ack))
}

/// A repeat of bytes that left the journal: equal is fine, anything else comes after the seal.
async fn compare(hub: &Hub, step: StepId, offset: u64, data: &[u8], total: u64) -> Result<Accepted, Refused> {
    let range = offset..offset + data.len() as u64;
    let stored = async { hub.blobs.get(&log_key(step)?, Some(range)).await?.bytes().await };
    let stored = stored.await.map_err(|error| Refused::unavailable(&error))?;
    if stored != data {
        return Err(Deny::Sealed.into());
    }
    let ack = ChunkAck { next_offset: total, limit_reached: false };
    Ok(Accepted { ack, ticket: Default::default(), grew: false })
}

fn crc_header(headers: &HeaderMap) -> Result<u32, Refused> {
    let text = headers.get(CHUNK_CRC).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let number = if text.len() == 8 { u32::from_str_radix(text, 16).ok() } else { None };
    number.ok_or_else(|| {
        let message = format!("{CHUNK_CRC} must hold the CRC-32C of the chunk as eight hex digits");
        Refused::new(StatusCode::BAD_REQUEST, "invalid", message)
    })
}

async fn body(request: Request) -> Result<Bytes, Refused> {
    if request.headers().contains_key(header::CONTENT_ENCODING) {
        let message = "chunks are taken as they are, without an encoding";
        return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid", message));
    }
    Bytes::from_request(request, &()).await.map_err(|rejection| {
        let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { "too_large" } else { "invalid" };
        Refused::new(rejection.status(), code, format!("a body has at most {MAX_CHUNK} bytes: {rejection}"))
    })
}

pub(crate) async fn json<T: for<'a> Deserialize<'a>>(request: Request) -> Result<T, Refused> {
    serde_json::from_slice(&body(request).await?).map_err(|error| {
        Refused::new(StatusCode::BAD_REQUEST, "invalid", format!("the body cannot be read: {error}"))
    })
}

async fn post_seal(
    State(hub): State<Arc<Hub>>,
    Path((task_id, step_id)): Path<(TaskId, StepId)>,
    request: Request,
) -> Result<Json<serde_json::Value>, Refused> {
    let lease = lease(&hub, request.headers(), task_id)?;
    let seal: Seal = json(request).await?;
    hub.check_owner(task_id, step_id)?;
    let rule = |task: &Task| task.seal(&hub.journal, &hub.config, &lease, step_id, &seal);
    let (new, ticket) = on_task(&hub, task_id, rule).await?;
    if new {
        hub.place(task_id, lease.job_id, step_id);
        // Asked for before anything is waited for: a caller who hangs up takes nothing back.
        hub.later(Work::Store(task_id, step_id));
        hub.changed(task_id);
        hub.tell_output(step_id, seal.total_bytes).await;
    }
    hub.journal.durable(ticket).await.map_err(Deny::from)?;
    Ok(Json(serde_json::json!({})))
}

async fn post_step(
    State(hub): State<Arc<Hub>>,
    Path(task_id): Path<TaskId>,
    request: Request,
) -> Result<Json<serde_json::Value>, Refused> {
    let lease = lease(&hub, request.headers(), task_id)?;
    let report = checked(json(request).await?)?;
    let step_id = report.step_id;
    hub.check_owner(task_id, step_id)?;
    let rule = |task: &Task| task.report(&hub.journal, &hub.config, &lease, report.clone());
    let (new, ticket) = on_task(&hub, task_id, rule).await?;
    if new {
        if let Some(span) = steps::span(&lease, task_id, &report) {
            span.record();
        }
        hub.place(task_id, lease.job_id, step_id);
        hub.changed(task_id);
        hub.tell_job(lease.job_id, step_id).await;
    }
    hub.journal.durable(ticket).await.map_err(Deny::from)?;
    Ok(Json(serde_json::json!({})))
}

/// A report as it may be stored: known status, bounded text, and without NUL, which Postgres cannot hold.
fn checked(mut report: StepReport) -> Result<StepReport, Refused> {
    const STATUSES: [&str; 6] =
        ["running", "success", "failed", "canceled", "timedout", "infrastructure_fail"];
    if !STATUSES.contains(&report.status.as_str()) {
        let message = format!("the status of a step is one of {}", STATUSES.join(", "));
        return Err(Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message));
    }
    report.name = bounded(&report.name, MAX_NAME);
    report.bash_command = report.bash_command.map(|command| bounded(&command, MAX_COMMAND));
    Ok(report)
}

/// At most `limit` bytes of a text, cut between characters.
pub(crate) fn bounded(text: &str, limit: usize) -> String {
    let text = text.replace('\0', "\u{fffd}");
    if text.len() <= limit {
        return text;
    }
    let end = text.floor_char_boundary(limit.saturating_sub('…'.len_utf8()));
    format!("{}…", &text[..end])
}
