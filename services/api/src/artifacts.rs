//! Artifacts and test results of a job (api-v2 §4, §18), and the way to an artifact's bytes.
//!
//! Bytes never come from here: a download is answered with a signed address that lives for five minutes, where it is
//! served as something to be saved (security §9.3).

use crate::{
    auth::Caller,
    error::{Answer, Fail},
    path,
    state::App,
    view,
};
use axum::{
    Json, Router,
    extract::{OriginalUri, Path, State},
    http::{HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use contracts::{
    stores::{ArtifactRecord, ListArtifacts, OpenArtifact},
    test_results::{ListTests, TestPage, TestRecord},
};
use ids::JobId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Of a page of v2.
const PAGE: u32 = 100;
/// Of one answer of v1.1, which has no pages.
const WHOLE: usize = 20_000;

/// Routes below `/artifacts`.
pub fn routes() -> Router<App> {
    Router::new().route("/artifacts/{job}/{index}/{*path}", get(download))
}

#[derive(Serialize, Deserialize)]
struct Cursor<T> {
    job: uuid::Uuid,
    after: T,
}

/// The place in a list that a page token of this job names.
fn after<T: for<'a> Deserialize<'a>>(app: &App, job: JobId, kind: &str, uri: &Uri) -> Answer<Option<T>> {
    let Some(token) = path::query(uri, "page-token").filter(|token| !token.is_empty()) else {
        return Ok(None);
    };
    let cursor = app.keys.open_claims::<Cursor<T>>(kind, &token).filter(|cursor| cursor.job == job.uuid());
    let cursor = cursor.ok_or_else(|| {
        Fail::new(StatusCode::BAD_REQUEST, "bad_cursor", "the page token is not of this list")
    })?;
    Ok(Some(cursor.after))
}

fn page(items: Vec<Value>, next: Option<String>) -> Response {
    Json(json!({ "items": items, "next_page_token": next })).into_response()
}

/// Where the bytes of an artifact are asked for.
pub fn address(app: &App, job: JobId, artifact: &ArtifactRecord) -> String {
    let encoded: Vec<String> = artifact.path.split('/').map(path::encode).collect();
    app.url(&format!("/artifacts/{job}/{}/{}", artifact.index, encoded.join("/")))
}

fn artifact_json(app: &App, job: JobId, artifact: &ArtifactRecord) -> Value {
    json!({
        "path": artifact.path, "node_index": artifact.index, "url": address(app, job, artifact),
        "size": artifact.size, "sha256": artifact.sha256,
    })
}

/// `GET /project/{slug}/{number}/artifacts`.
pub async fn list(app: &App, caller: &Caller, job: JobId, uri: &Uri) -> Answer {
    let after = after(app, job, "artifacts", uri)?;
    let found = app.ask(caller, &ListArtifacts { job_id: job, after, limit: PAGE }).await?;
    let next = found.items.last().filter(|_| found.more).map(|last| {
        let after = (last.index, last.path.clone());
        app.keys.seal_claims("artifacts", &Cursor { job: job.uuid(), after })
    });
    Ok(page(found.items.iter().map(|artifact| artifact_json(app, job, artifact)).collect(), next))
}

/// All artifacts of a job.
pub async fn all(app: &App, caller: &Caller, job: JobId) -> Answer<Vec<ArtifactRecord>> {
    let mut all: Vec<ArtifactRecord> = Vec::new();
    loop {
        let after = all.last().map(|last| (last.index, last.path.clone()));
        let found = app.ask(caller, &ListArtifacts { job_id: job, after, limit: 500 }).await?;
        all.extend(found.items);
        if !found.more || all.len() >= WHOLE {
            return Ok(all);
        }
    }
}

/// Whether a job has any artifact; `false` while nobody knows.
pub async fn any(app: &App, caller: &Caller, job: JobId) -> bool {
    let found = app.ask(caller, &ListArtifacts { job_id: job, after: None, limit: 1 }).await;
    found.is_ok_and(|found| !found.items.is_empty())
}

/// The same in v1.1: a bare array.
pub async fn list_v1(app: &App, caller: &Caller, job: JobId) -> Answer {
    let items = all(app, caller, job).await?;
    let items = items.iter().map(|artifact| {
        let mut item = artifact_json(app, job, artifact);
        item["pretty_path"] = artifact.path.as_str().into();
        item
    });
    Ok(Json(items.collect::<Vec<_>>()).into_response())
}

fn test_json(test: &TestRecord) -> Value {
    json!({
        "classname": test.classname, "file": test.file, "name": test.name, "result": test.result,
        "run_time": test.run_time, "message": test.message, "source": "unknown", "source_type": "unknown",
    })
}

/// `GET /project/{slug}/{number}/tests`.
pub async fn tests(app: &App, caller: &Caller, job: JobId, uri: &Uri) -> Answer {
    let offset = after::<u64>(app, job, "tests", uri)?.unwrap_or(0);
    let found = app.ask(caller, &ListTests { job_id: job, offset, limit: PAGE }).await?;
    let end = offset + found.items.len() as u64;
    let next = (end < found.total && !found.items.is_empty())
        .then(|| app.keys.seal_claims("tests", &Cursor { job: job.uuid(), after: end }));
    Ok(page(found.items.iter().map(test_json).collect(), next))
}

/// The same in v1.1: all of them, and what could not be read.
pub async fn tests_v1(app: &App, caller: &Caller, job: JobId) -> Answer {
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    loop {
        let ask = ListTests { job_id: job, offset: all.len() as u64, limit: 500 };
        let TestPage { items, total, problems: wrong } = app.ask(caller, &ask).await?;
        problems = if problems.is_empty() { wrong } else { problems };
        let ended = items.is_empty();
        all.extend(items.iter().map(test_json));
        if ended || all.len() as u64 >= total || all.len() >= WHOLE {
            break;
        }
    }
    Ok(Json(json!({ "tests": all, "exceptions": problems })).into_response())
}

/// Answers with the address of an artifact's bytes: as a redirect, or as JSON with `?format=json` for pages that
/// cannot send their token along.
async fn download(
    State(app): State<App>,
    caller: Caller,
    OriginalUri(uri): OriginalUri,
    Path((job, index, path)): Path<(String, u32, String)>,
) -> Answer {
    let row = view::job(&app, &caller, view::id::<JobId>(&job, "Artifact")?).await?;
    app.allow(&caller, model::permission::Permission::Read, ids::OrgId(row.org_id)).await?;
    let place = app.ask(&caller, &OpenArtifact { job_id: JobId(row.id), index, path }).await?;
    if path::query(&uri, "format").is_some_and(|format| format == "json") {
        return Ok(Json(json!({ "url": place.url })).into_response());
    }
    let location = HeaderValue::from_str(&place.url).map_err(|_| {
        Fail::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the artifact has no address")
    })?;
    let headers = [
        (header::LOCATION, location),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    Ok((StatusCode::FOUND, headers).into_response())
}
