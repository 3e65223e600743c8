//! Output of steps: `/logs/{step}/…` (web-app §5.1). The owner of the bytes is `output-processor`; here are
//! lines, ranges, search and the live tail over its windows.

use crate::{
    auth::Caller,
    error::{Fail, Problem},
    path,
    state::{App, away},
    view,
};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use backon::{ExponentialBuilder, Retryable};
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::output::{GetStep, LogWindow, ReadLog, StepPlace};
use futures::{Stream, StreamExt};
use ids::{OrgId, StepId};
use model::permission::Permission;
use serde_json::{Value, json};
use std::{convert::Infallible, io, time::Duration};
use tokio::time::Instant;

/// Bytes of one window.
const WINDOW: u32 = 128 << 10;
/// Lines of one answer at most.
const LINES: u64 = 4096;
/// How long a tail asks for news at a time.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a tail's permission is looked at again.
const RECHECK: Duration = Duration::from_secs(60);
/// For so long a stream that has begun goes on asking an owner that does not answer, before it ends with an error.
const HOLDS_ON: Duration = Duration::from_secs(60);

/// Routes below `/logs`.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/logs/{step}/meta", get(meta))
        .route("/logs/{step}/lines", get(lines))
        .route("/logs/{step}/raw", get(raw))
        .route("/logs/{step}/tail", get(tail))
        .route("/logs/{step}/search", get(search))
}

type Served = Result<Response, Problem>;

/// A window of output.
pub struct Window {
    /// The bytes.
    pub data: Vec<u8>,
    /// Offset after them.
    pub next: u64,
    /// Known in all.
    pub total: u64,
    /// No more will come.
    pub sealed: bool,
}

/// The step, if the caller may see it.
pub async fn place(app: &App, caller: &Caller, step: &str) -> Result<StepPlace, Fail> {
    let step_id: StepId = view::id(step, "Step")?;
    let place = match app.ask(caller, &GetStep { step_id }).await {
        Ok(place) => place,
        // What the view has may be a moment old; better than nothing while the owner cannot say.
        Err(error) if away(&error) => match app.views.step(step_id).await? {
            Some(place) => place,
            None => return Err(error.into()),
        },
        Err(error) => return Err(error.into()),
    };
    let job =
        view::job(app, caller, place.job_id).await.map_err(|fail| fail.hidden_as(Fail::not_found("Step")))?;
    app.allow(caller, Permission::Read, OrgId(job.org_id)).await?;
    Ok(place)
}

/// Reads one window.
pub async fn read(
    app: &App,
    caller: &Caller,
    step_id: StepId,
    offset: u64,
    wait: Duration,
) -> Result<Window, Fail> {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(0);
    let options = bus::AskOptions { deadline: wait + Duration::from_secs(5), ..bus::AskOptions::default() };
    let ask = ReadLog { step_id, offset, limit: WINDOW, wait_ms };
    let LogWindow { data, next, total, sealed } = app.bus.ask_with(options, &caller.actor(), &ask).await?;
    let data = STANDARD
        .decode(data)
        .map_err(|_| Fail::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "output cannot be read"))?;
    Ok(Window { data, next, total, sealed })
}

/// Asks on behalf of a stream that has begun: an owner that is away for a while delays it and does not end it.
async fn hold_on<T, F: Future<Output = Result<T, Fail>>>(ask: impl FnMut() -> F) -> Result<T, Fail> {
    let pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times();
    let began = Instant::now();
    ask.retry(pauses)
        .when(|fail| fail.status == StatusCode::SERVICE_UNAVAILABLE && began.elapsed() < HOLDS_ON)
        .await
}

/// All output up to `limit` bytes, and whether there is more.
pub async fn read_all(
    app: &App,
    caller: &Caller,
    step: StepId,
    limit: usize,
) -> Result<(Vec<u8>, bool), Fail> {
    let mut out = Vec::new();
    let mut offset = 0;
    loop {
        let window = read(app, caller, step, offset, Duration::ZERO).await?;
        if window.data.is_empty() {
            return Ok((out, false));
        }
        out.extend_from_slice(&window.data);
        offset = window.next;
        if out.len() > limit {
            out.truncate(limit);
            return Ok((out, true));
        }
    }
}

/// Lines of a step's output, one after another.
struct Lines<'a> {
    app: &'a App,
    caller: &'a Caller,
    step: StepId,
    offset: u64,
    buffer: Vec<u8>,
    start: usize,
    ended: bool,
}

impl<'a> Lines<'a> {
    fn new(app: &'a App, caller: &'a Caller, step: StepId) -> Self {
        Self { app, caller, step, offset: 0, buffer: Vec::new(), start: 0, ended: false }
    }

    async fn next(&mut self) -> Result<Option<String>, Fail> {
        // A line is cut at 1 MiB, like the agent's chunks.
        let mut looked = 0;
        loop {
            let rest = &self.buffer[self.start..];
            if let Some(end) = rest[looked..].iter().position(|byte| *byte == b'\n') {
                let end = looked + end;
                let line = String::from_utf8_lossy(&rest[..end]).into_owned();
                self.start += end + 1;
                return Ok(Some(line));
            }
            looked = rest.len();
            if self.ended || looked > 1 << 20 {
                if rest.is_empty() {
                    return Ok(None);
                }
                let line = String::from_utf8_lossy(rest).into_owned();
                self.start = self.buffer.len();
                return Ok(Some(line));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            let window = read(self.app, self.caller, self.step, self.offset, Duration::ZERO).await?;
            self.ended = window.data.is_empty();
            self.offset = window.next;
            self.buffer.extend_from_slice(&window.data);
        }
    }
}

fn state_of(place: &StepPlace) -> Value {
    let step = &place.step;
    json!({
        "step_id": step.step_id, "job_id": place.job_id, "task_id": place.task_id,
        "name": step.name, "number": step.number, "index": step.index, "status": step.status,
        "exit_code": step.exit_code, "command": step.bash_command,
        "started_at": step.started_at, "ended_at": step.ended_at,
        "bytes": step.bytes, "complete": step.log_state == "complete", "state": step.log_state,
        "lost": step.log_state == "interrupted", "truncated": step.log_state == "truncated_by_limit",
        "hash": step.sha256,
    })
}

async fn meta(State(app): State<App>, caller: Caller, Path(step): Path<String>) -> Served {
    let place = place(&app, &caller, &step).await?;
    let mut answer = state_of(&place);
    // What is stored may be more than the last report said.
    let window = read(&app, &caller, place.step.step_id, u64::MAX >> 1, Duration::ZERO).await;
    if let Ok(window) = window {
        answer["bytes"] = window.total.into();
    }
    Ok(Json(answer).into_response())
}

async fn lines(State(app): State<App>, caller: Caller, Path(step): Path<String>, uri: Uri) -> Served {
    let place = place(&app, &caller, &step).await?;
    let from = path::number(&uri, "from").unwrap_or(0);
    let count = path::number(&uri, "count").unwrap_or(1000).min(LINES);
    let mut reader = Lines::new(&app, &caller, place.step.step_id);
    let mut number = 0;
    let mut found = Vec::new();
    while (found.len() as u64) < count {
        let Some(line) = reader.next().await? else { break };
        if number >= from {
            found.push(line);
        }
        number += 1;
    }
    let more = (found.len() as u64) == count && count > 0;
    Ok(Json(json!({
        "from": from, "count": found.len(), "lines": found,
        "next": more.then_some(from + count), "complete": place.step.log_state != "open",
    }))
    .into_response())
}

/// The bytes that a `Range` asks for; `Err`: it cannot be satisfied.
fn range(headers: &HeaderMap, total: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some(value) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else {
        return Ok(None);
    };
    let Some((from, to)) = value.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    let (from, to) = (from.trim(), to.trim());
    let (start, end) = match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(start), Ok(end)) if start <= end => (start, end.saturating_add(1).min(total)),
        (Ok(start), Err(_)) if to.is_empty() => (start, total),
        (Err(_), Ok(last)) if from.is_empty() => (total.saturating_sub(last), total),
        // Several ranges, or nonsense: the whole is a correct answer.
        _ => return Ok(None),
    };
    if start < end { Ok(Some((start, end))) } else { Err(()) }
}

async fn raw(State(app): State<App>, caller: Caller, Path(step): Path<String>, headers: HeaderMap) -> Served {
    let place = place(&app, &caller, &step).await?;
    let id = place.step.step_id;
    let first = read(&app, &caller, id, 0, Duration::ZERO).await?;
    let total = first.total;
    let (start, end, status) = match range(&headers, total) {
        Ok(None) => (0, total, StatusCode::OK),
        Ok(Some((start, end))) => (start, end, StatusCode::PARTIAL_CONTENT),
        Err(()) => {
            let unsatisfied = [(header::CONTENT_RANGE, format!("bytes */{total}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, unsatisfied).into_response());
        }
    };
    let body = futures::stream::try_unfold(start, move |offset| {
        let (app, caller) = (app.clone(), caller.clone());
        async move {
            if offset >= end {
                return Ok(None);
            }
            let window = hold_on(|| read(&app, &caller, id, offset, Duration::ZERO))
                .await
                .map_err(|fail| io::Error::other(fail.message))?;
            let wanted = usize::try_from(end - offset).unwrap_or(usize::MAX).min(window.data.len());
            if wanted == 0 {
                return Err(io::Error::other("the output is shorter than it was"));
            }
            let mut data = window.data;
            data.truncate(wanted);
            let next = offset + wanted as u64;
            Ok(Some((Bytes::from(data), next)))
        }
    });
    let mut response = (status, Body::from_stream(body)).into_response();
    let headers = response.headers_mut();
    let text = |text: String| HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(end - start));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_DISPOSITION, text(format!("attachment; filename=\"{id}.log\"")));
    if status == StatusCode::PARTIAL_CONTENT {
        headers.insert(header::CONTENT_RANGE, text(format!("bytes {start}-{}/{total}", end - 1)));
    }
    if let Some(hash) = &place.step.sha256 {
        headers.insert(header::ETAG, text(format!("\"{hash}\"")));
    }
    Ok(response)
}

/// A piece of a tail.
pub struct Piece {
    /// Offset of its first byte.
    pub offset: u64,
    /// Offset after it: where to go on after a break.
    pub next: u64,
    /// The bytes.
    pub data: Vec<u8>,
    /// Whether it was the last.
    pub end: bool,
}

impl Piece {
    /// The text; bytes that are none are shown as U+FFFD.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}

/// How many of these bytes are whole characters; broken ones count as whole.
fn whole(data: &[u8]) -> usize {
    // A character has at most four bytes: only the last three can be the start of one.
    for back in 1..=data.len().min(3) {
        let at = data.len() - back;
        match std::str::from_utf8(&data[at..]) {
            Err(error) if error.valid_up_to() == 0 && error.error_len().is_none() => return at,
            _ if data[at] < 0x80 || data[at] >= 0xc0 => break,
            _ => {}
        }
    }
    data.len()
}

/// Output from `offset` on, as it comes, until the step's stream is sealed or the server stops.
pub fn follow(
    app: App,
    caller: Caller,
    step: StepId,
    org: OrgId,
    offset: u64,
) -> impl Stream<Item = Result<Piece, Fail>> {
    struct State {
        app: App,
        caller: Caller,
        offset: u64,
        checked: Instant,
        over: bool,
    }
    let state = State { app, caller, offset, checked: Instant::now(), over: false };
    futures::stream::try_unfold(state, move |mut state| async move {
        loop {
            if state.over {
                return Ok(None);
            }
            let stop = state.app.stop.clone();
            let look = async {
                if state.checked.elapsed() > RECHECK {
                    hold_on(|| state.app.allow(&state.caller, Permission::Read, org)).await?;
                    state.checked = Instant::now();
                }
                hold_on(|| read(&state.app, &state.caller, step, state.offset, PATIENCE)).await
            };
            let window = tokio::select! {
                window = look => window?,
                () = stop.cancelled() => return Ok(None),
            };
            let over = window.sealed && window.next >= window.total;
            let take = if over { window.data.len() } else { whole(&window.data) };
            if take == 0 && !over {
                if !window.data.is_empty() {
                    // The rest of a character is still to come.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
            let piece = Piece {
                offset: state.offset,
                next: state.offset + take as u64,
                data: window.data[..take].to_vec(),
                end: over,
            };
            state.offset = piece.next;
            state.over = over;
            return Ok(Some((piece, state)));
        }
    })
}

async fn tail(
    State(app): State<App>,
    caller: Caller,
    Path(step): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Served {
    let place = place(&app, &caller, &step).await?;
    let job = view::job(&app, &caller, place.job_id).await?;
    let stream = app.streams.open(&caller).await?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let offset = last.or_else(|| path::number(&uri, "offset")).unwrap_or(0);
    let pieces = follow(app, caller, place.step.step_id, OrgId(job.org_id), offset);
    let events = pieces.flat_map(move |piece| {
        // It is open as long as it is read.
        let _open = &stream;
        let events = match piece {
            Ok(piece) => {
                let mut events = Vec::new();
                if !piece.data.is_empty() {
                    let data = json!({
                        "offset": piece.offset, "next": piece.next, "text": piece.text(),
                        // As it was written: terminals take bytes.
                        "data": STANDARD.encode(&piece.data),
                    });
                    events.push(Event::default().id(piece.next.to_string()).data(data.to_string()));
                }
                if piece.end {
                    let data = json!({ "bytes": piece.next }).to_string();
                    events.push(Event::default().event("end").id(piece.next.to_string()).data(data));
                }
                events
            }
            Err(fail) => vec![
                Event::default()
                    .event("fail")
                    .data(json!({ "code": fail.code, "message": fail.message }).to_string()),
            ],
        };
        futures::stream::iter(events.into_iter().map(Ok::<_, Infallible>))
    });
    let mut response =
        Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

async fn search(State(app): State<App>, caller: Caller, Path(step): Path<String>, uri: Uri) -> Served {
    let place = place(&app, &caller, &step).await?;
    let wanted = path::query(&uri, "q").or_else(|| path::query(&uri, "re")).unwrap_or_default();
    if wanted.is_empty() || wanted.len() > 1024 {
        return Err(Fail::invalid("q has 1 to 1024 bytes").into());
    }
    let flag = |name: &str| path::query(&uri, name).is_some_and(|value| value != "0" && value != "false");
    let mut pattern =
        if path::query(&uri, "q").is_some() && !flag("re") { regex::escape(&wanted) } else { wanted };
    if flag("word") {
        pattern = format!(r"\b(?:{pattern})\b");
    }
    let pattern = regex::RegexBuilder::new(&pattern)
        .case_insensitive(!flag("case"))
        .size_limit(1 << 20)
        .build()
        .map_err(|error| Fail::invalid(format!("the pattern cannot be read: {error}")))?;
    let started = Instant::now();
    let (send, receive) = tokio::sync::mpsc::channel::<Result<Bytes, Infallible>>(16);
    tokio::spawn(async move {
        let mut reader = Lines::new(&app, &caller, place.step.step_id);
        let (mut line_number, mut total) = (0u64, 0u64);
        let problem = loop {
            match reader.next().await {
                Ok(None) => break None,
                Err(fail) => break Some(fail),
                Ok(Some(line)) => {
                    for found in pattern.find_iter(&line).filter(|found| !found.is_empty()) {
                        total += 1;
                        let row = json!({
                            "line": line_number,
                            "col": line[..found.start()].chars().count(),
                            "len": found.as_str().chars().count(),
                        });
                        if total <= 10_000 && send.send(Ok(format!("{row}\n").into())).await.is_err() {
                            return;
                        }
                    }
                    line_number += 1;
                }
            }
        };
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut last = json!({ "total": total, "scanned": line_number, "ms": ms });
        if let Some(fail) = problem {
            last["error"] = fail.message.into();
        }
        let _ = send.send(Ok(format!("{last}\n").into())).await;
    });
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receive));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}
