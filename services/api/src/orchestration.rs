//! Why a job waits, whose turn it is, and the settings of a project that decide about workflows.

use crate::{
    auth::Caller,
    error::Answer,
    state::App,
    v2::{body, time},
    view,
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use contracts::{
    conductor::{ExplainWait, Explanation, ReleaseTurn},
    domain::{ChangeProjectSettings, GetProjectSettings, Project, ProjectSettings},
};
use ids::{JobId, OrgId};
use model::permission::Permission;
use serde::Deserialize;
use serde_json::{Value, json};

/// Routes of their own; those below a project are in `v2`.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/api/private/jobs/{id}/explanation", get(explanation))
        .route("/api/private/jobs/{id}/release-serial-group", post(release))
}

/// What a job waits for, since when, and its place in line.
async fn explanation(State(app): State<App>, caller: Caller, Path(job): Path<String>) -> Answer {
    let row = view::job(&app, &caller, view::id::<JobId>(&job, "Job")?).await?;
    let found = app.ask(&caller, &ExplainWait { job_id: JobId(row.id) }).await?;
    Ok(Json(explanation_json(&found)).into_response())
}

fn explanation_json(found: &Explanation) -> Value {
    let waits: Vec<Value> = found
        .waits
        .iter()
        .map(|wait| {
            json!({
                "kind": wait.kind, "text": wait.text, "since": wait.since.map(time), "place": wait.place,
                "line": wait.line, "jobs": wait.jobs, "index": wait.index, "key": wait.key,
            })
        })
        .collect();
    json!({
        "job_id": found.job_id, "workflow_id": found.workflow_id, "name": found.name, "status": found.status,
        "since": found.since.map(time), "reason": found.reason, "waits": waits,
    })
}

/// Takes the lock of a serial group from the job that holds it; the job goes on, the next may start.
async fn release(State(app): State<App>, caller: Caller, Path(job): Path<String>) -> Answer {
    let row = view::job(&app, &caller, view::id::<JobId>(&job, "Job")?).await?;
    app.allow(&caller, Permission::Cancel, OrgId(row.org_id)).await?;
    app.command(&caller, &ReleaseTurn { job_id: JobId(row.id) }).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "message": "Accepted." }))).into_response())
}

#[derive(Default, Deserialize)]
struct Change {
    #[serde(default)]
    advanced: Advanced,
}

/// Settings that are not built yet are refused by name, so that nobody believes that they hold.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Advanced {
    autocancel_builds: Option<bool>,
    disable_ssh: Option<bool>,
}

/// `GET /project/{slug}/settings`.
pub async fn settings(app: &App, caller: &Caller, project: &Project) -> Answer {
    Ok(settings_json(&app.ask(caller, &GetProjectSettings { id: project.id }).await?))
}

/// `PATCH /project/{slug}/settings`: what is not named stays.
pub async fn change_settings(app: &App, caller: &Caller, project: &Project, bytes: &Bytes) -> Answer {
    app.allow(caller, Permission::WriteProject, project.org_id).await?;
    let Change { advanced } = body(bytes)?;
    let Advanced { autocancel_builds, disable_ssh } = advanced;
    let ask = ChangeProjectSettings { id: project.id, autocancel_builds, disable_ssh };
    Ok(settings_json(&app.command(caller, &ask).await?))
}

fn settings_json(settings: &ProjectSettings) -> Response {
    let ProjectSettings { autocancel_builds, disable_ssh } = settings;
    Json(json!({ "advanced": { "autocancel_builds": autocancel_builds, "disable_ssh": disable_ssh } }))
        .into_response()
}
