//! The embedded git server: smart HTTP over the real `git upload-pack` and `git receive-pack`.
//!
//! After a push the repository's refs are compared with those that were delivered. Each change becomes a
//! delivery in one commit with the new state of the refs, so a change is delivered once, whoever pushed it
//! and even if we died between the push and the commit: the next comparison finds it.

mod push_options;

use crate::{
    auth::{self, Caller},
    error::Fail,
    state::App,
    store,
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use contracts::{
    Actor, NewEvent,
    delivery::{Decision, DeliveryReceived, GetDecision, GitRef},
    domain::{EnsureProject, GetProject, Project},
};
use eventstore::{Key, trace};
use futures::StreamExt;
use ids::DeliveryId;
use kit::keys::SourceClaims;
use model::permission::Permission;
use push_options::PushOptions;
use std::{collections::BTreeMap, io, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Child,
    sync::mpsc,
};
use tower_http::decompression::{DecompressionBody, RequestDecompressionLayer};
use vcs::Repository;

/// Routes below `/git`.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/git/{org}/{repo}/info/refs", get(advertise))
        .route("/git/{org}/{repo}/git-upload-pack", post(upload_pack))
        .route("/git/{org}/{repo}/git-receive-pack", post(receive_pack))
        .layer(
            // Git sends long requests compressed.
            tower::ServiceBuilder::new()
                .layer(RequestDecompressionLayer::new())
                .map_request(|request: Request<DecompressionBody<Body>>| request.map(Body::new)),
        )
}

/// Whoever speaks to the git server.
enum Visitor {
    /// Somebody with a token.
    Caller(Caller),
    /// A task that may read this one project.
    Task,
}

/// What `git` shows to its user when it is refused.
struct Refused(Fail);

impl<E: Into<Fail>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = self.0.status;
        let mut response = (status, format!("{}\n", self.0.message)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Gantry\""));
        }
        response
    }
}

type Served = Result<Response, Refused>;

struct Place {
    org: String,
    repo: String,
    repository: Repository,
}

impl Place {
    fn slug(&self) -> String {
        format!("git/{}/{}", self.org, self.repo)
    }
}

fn place(app: &App, org: String, repo: &str) -> Result<Place, Fail> {
    let repo = repo.strip_suffix(".git").unwrap_or(repo).to_owned();
    let repository = app.git.repository(&org, &repo).map_err(|error| Fail::invalid(error.to_string()))?;
    Ok(Place { org, repo, repository })
}

async fn visitor(app: &App, headers: &HeaderMap, uri: &Uri, place: &Place) -> Result<Visitor, Fail> {
    let token = auth::token(headers).ok_or_else(Fail::unauthenticated)?;
    if let Some(claims) = app.keys.open_claims::<SourceClaims>("source", &token) {
        let valid =
            claims.project_slug == place.slug() && claims.expires_at > app.store.now().timestamp_millis();
        return if valid { Ok(Visitor::Task) } else { Err(Fail::forbidden()) };
    }
    Caller::of(app, headers, uri).await.map(Visitor::Caller)
}

/// Refuses readers who may not see the project, and repositories that are not there.
async fn may_read(app: &App, visitor: &Visitor, place: &Place) -> Result<(), Fail> {
    if let Visitor::Caller(caller) = visitor {
        let project = app.ask(caller, &GetProject { reference: place.slug() }).await?;
        app.allow(caller, Permission::Read, project.org_id).await?;
    }
    if place.repository.exists() { Ok(()) } else { Err(Fail::not_found("Repository")) }
}

/// The project to push to, made if it does not exist.
async fn pushed_project(app: &App, visitor: &Visitor, place: &Place) -> Result<(Caller, Project), Fail> {
    let Visitor::Caller(caller) = visitor else { return Err(Fail::forbidden()) };
    let ask = EnsureProject { org: place.org.clone(), repo: place.repo.clone() };
    let project = match app.ask(caller, &GetProject { reference: place.slug() }).await {
        Ok(project) => project,
        Err(contracts::RequestError::Refused(refusal)) if refusal.code == "not_found" => {
            app.ask(caller, &ask).await?
        }
        Err(other) => return Err(other.into()),
    };
    app.allow(caller, Permission::Trigger, project.org_id).await?;
    if !place.repository.exists() {
        let lock = repository_lock(app, &project).await;
        let _held = lock.lock().await;
        // Held before it exists: a push that we die over is found again.
        store::hold_repository(&mut *app.store.pool().acquire().await?, &project).await?;
        place.repository.init(&project.default_branch).await.map_err(|error| broken(&error))?;
    }
    Ok((caller.clone(), project))
}

fn broken(error: &vcs::Error) -> Fail {
    tracing::error!(error = error as &dyn std::error::Error, "a repository cannot be used");
    Fail::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the repository cannot be used")
}

fn no_git(error: &io::Error) -> Fail {
    tracing::error!(error = error as &dyn std::error::Error, "git could not be run");
    Fail::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "git could not be run on the server")
}

fn packet(payload: &[u8]) -> Vec<u8> {
    let mut out = format!("{:04x}", payload.len() + 4).into_bytes();
    out.extend_from_slice(payload);
    out
}

fn answer(content_type: &'static str, body: Body) -> Response {
    (
        [
            (header::CONTENT_TYPE, content_type),
            (header::CACHE_CONTROL, "no-cache, max-age=0, must-revalidate"),
        ],
        body,
    )
        .into_response()
}

fn command(place: &Place, service: &str, headers: &HeaderMap) -> tokio::process::Command {
    let mut command = vcs::git(place.repository.dir());
    // A task fetches its revision even when the branch has moved on by force.
    command.args([
        "-c",
        "uploadpack.allowAnySHA1InWant=true",
        "-c",
        "uploadpack.allowFilter=true",
        "-c",
        "receive.advertisePushOptions=true",
    ]);
    command.arg(service).arg("--stateless-rpc");
    if let Some(protocol) = headers.get("git-protocol").and_then(|value| value.to_str().ok())
        && protocol.len() < 256
    {
        command.env("GIT_PROTOCOL", protocol);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A push begins work: it is refused as a whole while none is taken, before a byte of it is stored.
fn may_push(app: &App) -> Result<(), Fail> {
    app.bus
        .admission()
        .check()
        .map_err(|refusal| Fail::new(StatusCode::SERVICE_UNAVAILABLE, &refusal.code, refusal.message))
}

async fn advertise(
    State(app): State<App>,
    Path((org, repo)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Served {
    let service = crate::path::query(&uri, "service").unwrap_or_default();
    let place = place(&app, org, &repo)?;
    let visitor = visitor(&app, &headers, &uri, &place).await?;
    let (name, content_type) = match service.as_str() {
        "git-upload-pack" => {
            may_read(&app, &visitor, &place).await?;
            ("upload-pack", "application/x-git-upload-pack-advertisement")
        }
        "git-receive-pack" => {
            may_push(&app)?;
            pushed_project(&app, &visitor, &place).await?;
            ("receive-pack", "application/x-git-receive-pack-advertisement")
        }
        _ => return Err(Fail::new(StatusCode::FORBIDDEN, "invalid", "only smart HTTP is served").into()),
    };
    let output = command(&place, name, &headers)
        .args(["--advertise-refs", "."])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| no_git(&error))?;
    if !output.status.success() {
        tracing::error!(git.said = %String::from_utf8_lossy(&output.stderr), "git {name} failed");
        return Err(Fail::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "git failed").into());
    }
    let version_2 = headers.get("git-protocol").is_some_and(|value| value.as_bytes() == b"version=2");
    let mut body = Vec::new();
    if !(version_2 && name == "upload-pack") {
        body = packet(format!("# service={service}\n").as_bytes());
        body.extend_from_slice(b"0000");
    }
    body.extend_from_slice(&output.stdout);
    Ok(answer(content_type, Body::from(body)))
}

async fn upload_pack(
    State(app): State<App>,
    Path((org, repo)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Served {
    let place = place(&app, org, &repo)?;
    let visitor = visitor(&app, &headers, &uri, &place).await?;
    may_read(&app, &visitor, &place).await?;
    let mut child = command(&place, "upload-pack", &headers)
        .arg(".")
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| no_git(&error))?;
    let (send, receive) = mpsc::channel::<io::Result<Bytes>>(8);
    tokio::spawn(async move {
        let Some(mut stdout) = child.stdout.take() else { return };
        let feed = feed(&mut child, body, |_| {});
        let drain = async {
            loop {
                let mut block = Vec::with_capacity(64 << 10);
                match stdout.read_buf(&mut block).await {
                    Ok(0) => break,
                    Ok(_) if send.send(Ok(block.into())).await.is_err() => break,
                    Ok(_) => {}
                    Err(error) => {
                        let _ = send.send(Err(error)).await;
                        break;
                    }
                }
            }
        };
        tokio::join!(feed, drain);
        finish(&mut child, "upload-pack").await;
    });
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receive));
    Ok(answer("application/x-git-upload-pack-result", body))
}

/// Hands the request's body to git; `look` sees what passes. When it breaks off git sees the end of its input and
/// refuses.
fn feed<F: FnMut(&[u8])>(child: &mut Child, body: Body, mut look: F) -> impl Future<Output = ()> + use<F> {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let feed = async move {
        let Some(mut stdin) = stdin else { return };
        let mut body = body.into_data_stream();
        while let Some(block) = body.next().await {
            let Ok(block) = block else { break };
            look(&block);
            if stdin.write_all(&block).await.is_err() {
                break;
            }
        }
        let _ = stdin.shutdown().await;
    };
    let listen = async move {
        let Some(stderr) = stderr else { return };
        let mut said = Vec::new();
        let mut limited = stderr.take(16 << 10);
        let _ = limited.read_to_end(&mut said).await;
        // The rest is read too, else git would wait for us.
        let _ = tokio::io::copy(&mut limited.into_inner(), &mut tokio::io::sink()).await;
        if !said.is_empty() {
            tracing::debug!(git.said = %String::from_utf8_lossy(&said), "git spoke");
        }
    };
    async move {
        tokio::join!(feed, listen);
    }
}

async fn finish(child: &mut Child, name: &str) {
    match child.wait().await {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::debug!(%status, "git {name} ended"),
        Err(error) => tracing::warn!(%error, "git {name} could not be waited for"),
    }
}

async fn receive_pack(
    State(app): State<App>,
    Path((org, repo)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Served {
    let place = place(&app, org, &repo)?;
    let visitor = visitor(&app, &headers, &uri, &place).await?;
    may_push(&app)?;
    let (caller, project) = pushed_project(&app, &visitor, &place).await?;
    let mut child =
        command(&place, "receive-pack", &headers).arg(".").spawn().map_err(|error| no_git(&error))?;
    let (send, receive) = mpsc::channel::<io::Result<Bytes>>(8);
    // A task of its own: a client that goes away must not keep an accepted push from being delivered.
    let push = async move {
        let Some(stdout) = child.stdout.take() else { return };
        let mut options = PushOptions::default();
        let feed = feed(&mut child, body, |block| options.read(block));
        let (sideband, ()) = tokio::join!(forward(stdout, &send), feed);
        finish(&mut child, "receive-pack").await;
        let pusher = Pusher { caller: &caller, no_pipeline: options.no_pipeline() };
        let delivered = deliver(&app, &project, &place.repository, Some(pusher)).await;
        if sideband.flush {
            if sideband.used {
                match delivered {
                    Ok(delivered) => {
                        for (delivery, event) in delivered {
                            let line = outcome(&app, &caller, &project, delivery, &event).await;
                            let _ = send.send(Ok(progress(&line))).await;
                        }
                    }
                    Err(error) => {
                        tracing::error!(error = %error.message, slug = project.slug, "a push is not delivered yet");
                        let line = "the push is stored; its pipeline starts when the server has recovered\n";
                        let _ = send.send(Ok(progress(line))).await;
                    }
                }
            }
            let _ = send.send(Ok(Bytes::from_static(b"0000"))).await;
        }
    };
    tokio::spawn(trace::within(trace::current(), push));
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receive));
    Ok(answer("application/x-git-receive-pack-result", body))
}

/// A line that git shows after `remote: `.
fn progress(line: &str) -> Bytes {
    let mut payload = vec![2];
    payload.extend_from_slice(line.as_bytes());
    packet(&payload).into()
}

struct Sideband {
    /// Whether the answer has bands.
    used: bool,
    /// Whether its final flush was held back.
    flush: bool,
}

/// Forwards git's packets but for the last flush, before which we have something to say.
async fn forward(mut stdout: impl AsyncRead + Unpin, send: &mpsc::Sender<io::Result<Bytes>>) -> Sideband {
    let mut seen = Sideband { used: false, flush: false };
    loop {
        let mut head = [0u8; 4];
        if stdout.read_exact(&mut head).await.is_err() {
            return seen;
        }
        let length = std::str::from_utf8(&head).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
        // An earlier flush was not the last one.
        if std::mem::take(&mut seen.flush) {
            let _ = send.send(Ok(Bytes::from_static(b"0000"))).await;
        }
        match length {
            Some(0) => seen.flush = true,
            Some(length @ 4..=65_520) => {
                let mut whole = head.to_vec();
                whole.resize(length, 0);
                if stdout.read_exact(&mut whole[4..]).await.is_err() {
                    return seen;
                }
                seen.used |= matches!(whole.get(4), Some(1..=3));
                let _ = send.send(Ok(whole.into())).await;
            }
            _ => {
                // Not packets: whatever it is, the client shall see it.
                let _ = send.send(Ok(Bytes::copy_from_slice(&head))).await;
                let mut rest = Vec::new();
                let _ = stdout.read_to_end(&mut rest).await;
                let _ = send.send(Ok(rest.into())).await;
                return seen;
            }
        }
    }
}

async fn outcome(
    app: &App,
    caller: &Caller,
    project: &Project,
    delivery_id: DeliveryId,
    event: &DeliveryReceived,
) -> String {
    let (GitRef::Branch(name) | GitRef::Tag(name)) = &event.reference;
    let wait = app.config.decision_wait;
    let ask = GetDecision { delivery_id, wait_ms: u64::try_from(wait.as_millis()).unwrap_or(3000) };
    let options = bus::AskOptions { deadline: wait + Duration::from_secs(1), ..bus::AskOptions::default() };
    match app.bus.ask_with(options, &caller.actor(), &ask).await {
        Ok(Decision::Pipeline { number, .. }) => {
            format!(
                "pipeline {number}: {}\n",
                app.url(&format!("/projects/{}/pipelines/{number}", project.slug))
            )
        }
        Ok(Decision::Skipped { reason }) => format!("no pipeline for {name}: {reason}\n"),
        Ok(Decision::Pending) | Err(_) => {
            format!("{name} was received: {}\n", app.url(&format!("/projects/{}", project.slug)))
        }
    }
}

async fn repository_lock(app: &App, project: &Project) -> std::sync::Arc<tokio::sync::Mutex<()>> {
    app.repositories.lock().await.entry(project.id.uuid()).or_default().clone()
}

/// Branches and tags with the commits that they lead to.
async fn references(repository: &Repository) -> Result<BTreeMap<String, String>, Fail> {
    let output = vcs::git(repository.dir())
        .args([
            "for-each-ref",
            "--format=%(refname) %(objecttype) %(objectname) %(*objecttype) %(*objectname)",
        ])
        .args(["refs/heads", "refs/tags"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| no_git(&error))?;
    if !output.status.success() {
        tracing::error!(git.said = %String::from_utf8_lossy(&output.stderr), "refs could not be listed");
        return Err(Fail::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "git failed"));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| {
            let parts: Vec<_> = line.split(' ').collect();
            match parts[..] {
                [name, "commit", id, ..] | [name, "tag", _, "commit", id] => {
                    Some((name.to_owned(), id.to_owned()))
                }
                _ => None,
            }
        })
        .collect())
}

/// Whether a commit message asks for no pipeline: within the first 250 characters of its title, or of its body
/// (execution §2).
fn skips(message: &str) -> bool {
    let (title, body) = message.trim_start().split_once('\n').unwrap_or((message, ""));
    [title, body.trim_start()].into_iter().any(|part| {
        let head: String = part.chars().take(250).collect::<String>().to_lowercase();
        head.contains("[skip ci]") || head.contains("[ci skip]")
    })
}

/// Who pushed, and how.
#[derive(Clone, Copy, Debug)]
pub struct Pusher<'a> {
    /// Who.
    pub caller: &'a Caller,
    /// Whether no pipeline is wanted: `git push -o ci.skip`.
    pub no_pipeline: bool,
}

/// Makes deliveries of all refs that are not what was delivered.
pub async fn deliver(
    app: &App,
    project: &Project,
    repository: &Repository,
    pusher: Option<Pusher<'_>>,
) -> Result<Vec<(DeliveryId, DeliveryReceived)>, Fail> {
    let caller = pusher.map(|pusher| pusher.caller);
    let lock = repository_lock(app, project).await;
    let _held = lock.lock().await;
    // Git is asked before the transaction, which calls nothing outside Postgres.
    let now = references(repository).await?;
    let known = {
        let mut db = app.store.pool().acquire().await?;
        store::delivered_refs(&mut db, project.id).await?
    };
    let mut changed = Vec::new();
    let mut reader = None;
    for (name, revision) in &now {
        if known.get(name) == Some(revision) {
            continue;
        }
        let reference = match (name.strip_prefix("refs/heads/"), name.strip_prefix("refs/tags/")) {
            (Some(branch), _) => GitRef::Branch(branch.to_owned()),
            (_, Some(tag)) => GitRef::Tag(tag.to_owned()),
            _ => continue,
        };
        let reader = match &mut reader {
            Some(reader) => reader,
            none => none.insert(repository.read().map_err(|error| broken(&error))?),
        };
        let commit = reader.commit(revision).await.map_err(|error| broken(&error))?;
        changed.push((name, revision, reference, commit));
    }
    let gone: Vec<_> = known.keys().filter(|name| !now.contains_key(*name)).collect();
    if changed.is_empty() && gone.is_empty() {
        return Ok(Vec::new());
    }
    let actor = caller.map_or_else(|| Actor::service("api"), Caller::actor);
    let deliveries: Vec<_> = changed.iter().map(|_| DeliveryId::new()).collect();
    let mut keys = vec![Key::new("repository", project.id.uuid())];
    keys.extend(deliveries.iter().map(|id| Key::new("delivery", id.uuid())));
    let mut tx = app.store.begin(&keys).await?;
    for name in gone {
        store::ref_deleted(tx.conn(), project.id, name).await?;
    }
    let (mut done, mut events) = (Vec::new(), Vec::new());
    for (delivery_id, (name, revision, reference, commit)) in deliveries.into_iter().zip(changed) {
        let event = DeliveryReceived {
            delivery_id,
            project: project.clone(),
            reference,
            before: known.get(name).cloned(),
            revision: revision.clone(),
            skip: commit.as_ref().is_some_and(|commit| skips(&commit.message)),
            no_pipeline: pusher.is_some_and(|pusher| pusher.no_pipeline),
        };
        let personal = commit.map(|commit| {
            let message: String = commit.message.chars().take(16_384).collect();
            serde_json::json!({ "subject": commit.subject, "message": message, "author": commit.author })
        });
        store::ref_delivered(tx.conn(), project.id, name, revision).await?;
        store::delivery(tx.conn(), &event, caller.map(|caller| caller.user.id)).await?;
        let mut new = NewEvent::new("delivery", delivery_id.uuid(), actor.clone(), &event)
            .in_project(project.org_id, project.id);
        if let Some(mut personal) = personal {
            if let (Some(caller), Some(fields)) = (caller, personal.as_object_mut()) {
                fields.insert("pusher".to_owned(), caller.user.login.clone().into());
            }
            new = new.with_personal(personal);
        }
        events.push(new);
        done.push((delivery_id, event));
    }
    if !events.is_empty() {
        tx.append(&events).await?;
    }
    tx.commit().await?;
    Ok(done)
}

/// Delivers what was pushed before a crash kept us from it.
pub async fn recover(app: &App) {
    let projects = match store::repositories(app.store.pool()).await {
        Ok(projects) => projects,
        Err(error) => {
            tracing::warn!(%error, "repositories could not be listed");
            return;
        }
    };
    for project in projects {
        if app.stop.is_cancelled() {
            return;
        }
        let Ok(repository) = app.git.repository(&project.org, &project.name) else { continue };
        if !repository.exists() {
            tracing::warn!(slug = project.slug, "the repository is gone");
            continue;
        }
        match deliver(app, &project, &repository, None).await {
            Ok(found) if found.is_empty() => {}
            Ok(found) => tracing::info!(slug = project.slug, count = found.len(), "delivered earlier pushes"),
            Err(error) => {
                tracing::warn!(slug = project.slug, error = error.message, "pushes could not be compared")
            }
        }
    }
}
