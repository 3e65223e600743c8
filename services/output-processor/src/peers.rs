//! The other processes of this service. A task belongs to the one whose journal holds it; what reaches another is passed on
//! (reliability §8.2). The rows of owners say who that is, and stand from a task's first call until its record is complete.

use crate::{
    http::Refused,
    hub::Hub,
    store::{self, Journal},
};
use agent_api::MAX_CHUNK;
use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use chrono::Utc;
use contracts::{Request as Ask, RequestError};
use eventstore::Store;
use ids::TaskId;
use kit::keys::Keys;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

/// Where a peer answers the requests of other services.
pub(crate) const PATH: &str = "/v1/peer";
/// Marks what was passed on once: the owner may have changed meanwhile, and nothing goes round.
const PASSED: &str = "x-gantry-passed-on";
/// Milliseconds for which a request's asker still waits: clocks of two machines differ.
const LEFT: &str = "x-gantry-left-ms";
const CONNECT: Duration = Duration::from_secs(1);
/// For a chunk and its sync; the agent's own patience is longer.
const CALL: Duration = Duration::from_secs(9);
/// A pass from one process to another is shown within it.
const TOKEN: Duration = Duration::from_secs(60);
/// Until the owner of a task is looked up again that did not answer.
pub(crate) const AGAIN: Duration = Duration::from_millis(200);

/// What this process knows to reach the others.
pub(crate) struct Peers {
    /// Its own journal.
    pub(crate) me: Uuid,
    keys: Keys,
    store: Store,
    http: reqwest::Client,
}

/// Whose a task is.
#[derive(Debug)]
pub(crate) enum Whose {
    Ours,
    /// The journal's process, if it ever said where it is.
    Theirs(Journal),
}

/// A pass between processes of one installation.
#[derive(Serialize, Deserialize)]
struct PeerClaims {
    expires_at: i64,
}

impl Peers {
    pub(crate) fn new(me: Uuid, keys: Keys, store: Store) -> reqwest::Result<Self> {
        // They are on our own network: no proxy stands between.
        let http = reqwest::Client::builder().connect_timeout(CONNECT).no_proxy().build()?;
        Ok(Self { me, keys, store, http })
    }

    /// Lets a peer answer a request.
    ///
    /// # Errors
    /// The outer one: it cannot be reached.
    pub(crate) async fn ask(
        &self,
        peer: &Journal,
        request: &Ask,
    ) -> anyhow::Result<Result<Value, RequestError>> {
        let expires_at = self.store.now().timestamp_millis() + i64::try_from(TOKEN.as_millis())?;
        let left = (request.deadline - Utc::now()).to_std().unwrap_or_default();
        let answer = self
            .http
            .post(format!("{}{PATH}", peer.url))
            .bearer_auth(self.keys.seal_claims("peer", &PeerClaims { expires_at }))
            .timeout(left)
            .header(LEFT, left.as_millis().to_string())
            .json(request)
            .send()
            .await?;
        metrics::counter!("gantry.output_processor.passed_on", "what" => "request").increment(1);
        Ok(answer.error_for_status()?.json().await?)
    }
}

/// Whether a request between processes comes from one of ours.
fn trusted(hub: &Hub, headers: &HeaderMap) -> bool {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let claims = token.and_then(|value| value.strip_prefix("Bearer "));
    let claims: Option<PeerClaims> = claims.and_then(|token| hub.keys.open_claims("peer", token));
    claims.is_some_and(|claims| claims.expires_at > hub.store.now().timestamp_millis())
}

impl Hub {
    /// Whose a task is; nobody's becomes ours.
    pub(crate) async fn whose(&self, task: TaskId) -> sqlx::Result<Whose> {
        let Some(peers) = self.peers.as_ref().filter(|_| self.task_in_memory(task).is_none()) else {
            return Ok(Whose::Ours);
        };
        let known = store::owner(self.store.pool(), task).await?;
        let owner = match known {
            Some(owner) => owner,
            None => store::claim(self.store.pool(), task, peers.me).await?,
        };
        Ok(if owner.id == peers.me { Whose::Ours } else { Whose::Theirs(owner) })
    }
}

/// Passes an agent's call on to the process whose journal holds its task.
pub(crate) async fn pass_on(State(hub): State<Arc<Hub>>, request: Request, next: Next) -> Response {
    let Some(task) = task_of(&hub, &request) else { return next.run(request).await };
    match hub.whose(task).await {
        Ok(Whose::Ours) => next.run(request).await,
        Ok(Whose::Theirs(owner)) => {
            passed(&hub, &owner, request).await.unwrap_or_else(IntoResponse::into_response)
        }
        Err(error) => Refused::from(error).into_response(),
    }
}

/// The task that a call is about, if others may hold it and the caller is let in: who is not is refused here, and leaves no
/// row.
fn task_of(hub: &Hub, request: &Request) -> Option<TaskId> {
    hub.peers.as_ref()?;
    let rest = request.uri().path().strip_prefix("/v1/tasks/")?;
    let task = rest.split('/').next()?.parse().ok()?;
    crate::http::lease(hub, request.headers(), task).is_ok().then_some(task)
}

async fn passed(hub: &Hub, owner: &Journal, request: Request) -> Result<Response, Refused> {
    let Some(peers) = &hub.peers else { return Err(Refused::unavailable(&"there are no peers")) };
    if request.headers().contains_key(PASSED) {
        return Err(Refused::unavailable(&"the task's owner changes"));
    }
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let body = axum::body::to_bytes(body, MAX_CHUNK)
        .await
        .map_err(|error| Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error.to_string()))?;
    let mut headers = parts.headers;
    for name in [header::HOST, header::CONTENT_LENGTH, header::CONNECTION, header::TRANSFER_ENCODING] {
        headers.remove(name);
    }
    let sent = peers
        .http
        .request(parts.method, format!("{}{target}", owner.url))
        .headers(headers)
        .header(PASSED, "1")
        .timeout(CALL)
        .body(body)
        .send();
    let answer = sent.await.map_err(|error| Refused::unavailable(&error))?;
    metrics::counter!("gantry.output_processor.passed_on", "what" => "call").increment(1);
    let status = answer.status();
    let kind = answer.headers().get(header::CONTENT_TYPE).cloned();
    let bytes = answer.bytes().await.map_err(|error| Refused::unavailable(&error))?;
    let mut response = (status, bytes).into_response();
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    Ok(response)
}

/// Answers a request that reached another process.
pub(crate) async fn answer(State(hub): State<Arc<Hub>>, headers: HeaderMap, body: bytes::Bytes) -> Response {
    if !trusted(&hub, &headers) {
        return Refused::new(StatusCode::UNAUTHORIZED, "unauthenticated", "this is between our processes")
            .into_response();
    }
    match serde_json::from_slice::<Ask>(&body) {
        Ok(mut request) => {
            let left = headers.get(LEFT).and_then(|value| value.to_str().ok()?.parse().ok());
            if let Some(left) = left {
                request.deadline = Utc::now() + Duration::from_millis(left);
            }
            Json(crate::answers::here(&hub, request).await).into_response()
        }
        Err(error) => Refused::new(StatusCode::BAD_REQUEST, "invalid", error.to_string()).into_response(),
    }
}
