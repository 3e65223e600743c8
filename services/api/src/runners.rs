//! The registry of self-hosted runners (api-v2 §14): plain JSON below `/api/v3/runner`. Runners themselves speak to the
//! dispatcher.

use crate::{
    auth::Caller,
    error::{Answer, Fail},
    graphql::new_token,
    path,
    state::App,
    v2::{body, time},
    view,
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::IntoResponse,
    routing::{delete, get},
};
use chrono::Utc;
use contracts::dispatcher::{
    CountRunnerTasks, CreateRunnerClass, CreateRunnerToken, DeleteRunnerClass, DeleteRunnerToken,
    GetRunnerClass, GetRunnerToken, ListRunnerClasses, ListRunnerTokens, ListRunners, RUNNER_SILENT,
    RunnerClass, RunnerTasks,
};
use ids::{OrgId, RunnerTokenId};
use model::permission::Permission;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Routes of this module.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/api/v3/runner", get(runners))
        .route("/api/v3/runner/tasks", get(unclaimed))
        .route("/api/v3/runner/tasks/running", get(running))
        .route("/api/v3/runner/resource", get(classes).post(create_class))
        .route("/api/v3/runner/resource/{id}", delete(delete_class))
        .route("/api/v3/runner/resource/{id}/force", delete(force_delete_class))
        .route("/api/v3/runner/token", get(tokens).post(create_token))
        .route("/api/v3/runner/token/{id}", delete(delete_token))
}

fn class_json(class: &RunnerClass) -> Value {
    json!({ "id": class.id, "resource_class": class.resource_class, "description": class.description })
}

/// The class of this name or id, if the caller has the right in its organisation; else there is none.
async fn class(app: &App, caller: &Caller, reference: &str, permission: Permission) -> Answer<RunnerClass> {
    let missing = |fail: Fail| fail.hidden_as(Fail::not_found("Resource class"));
    let ask = GetRunnerClass { reference: reference.to_owned() };
    let class = app.ask(caller, &ask).await.map_err(|error| missing(error.into()))?;
    app.allow(caller, Permission::Read, class.org_id).await.map_err(missing)?;
    app.allow(caller, permission, class.org_id).await?;
    Ok(class)
}

async fn named(app: &App, caller: &Caller, uri: &Uri, permission: Permission) -> Answer<RunnerClass> {
    let name =
        path::query(uri, "resource-class").ok_or_else(|| Fail::invalid("resource-class is needed."))?;
    class(app, caller, &name, permission).await
}

/// The classes that a query names by `resource-class`, `namespace` or `org-id`.
async fn chosen(app: &App, caller: &Caller, uri: &Uri) -> Answer<Vec<RunnerClass>> {
    if path::query(uri, "resource-class").is_some() {
        return Ok(vec![named(app, caller, uri, Permission::Read).await?]);
    }
    let orgs = view::orgs(app, caller).await?;
    let (org, namespace) = (path::query(uri, "org-id"), path::query(uri, "namespace"));
    let org_ids = match &org {
        Some(id) => {
            let org = orgs.iter().find(|org| org.id.to_string().eq_ignore_ascii_case(id));
            vec![org.ok_or_else(|| Fail::not_found("Organization"))?.id]
        }
        None => orgs.iter().map(|org| org.id).collect(),
    };
    let all = app.ask(caller, &ListRunnerClasses { org_ids }).await?;
    let in_namespace = |class: &RunnerClass| match (&org, &namespace) {
        (None, Some(namespace)) => class.resource_class.split('/').next() == Some(namespace),
        _ => true,
    };
    Ok(all.into_iter().filter(in_namespace).collect())
}

async fn classes(State(app): State<App>, caller: Caller, uri: Uri) -> Answer {
    let items: Vec<Value> = chosen(&app, &caller, &uri).await?.iter().map(class_json).collect();
    Ok(Json(json!({ "items": items })).into_response())
}

#[derive(Deserialize)]
struct NewClass {
    resource_class: String,
    #[serde(default)]
    description: String,
    org_id: Option<OrgId>,
}

async fn create_class(State(app): State<App>, caller: Caller, bytes: Bytes) -> Answer {
    let new: NewClass = body(&bytes)?;
    let orgs = view::orgs(&app, &caller).await?;
    let namespace = new.resource_class.split('/').next().unwrap_or_default();
    // Without an id: the organisation that has the namespace's name, or the only one.
    let org = match (new.org_id, &orgs[..]) {
        (Some(id), _) => orgs.iter().find(|org| org.id == id),
        (None, [only]) => Some(only),
        (None, many) => many.iter().find(|org| org.name == namespace),
    };
    let org_id = org.map(|org| org.id).ok_or_else(|| {
        Fail::invalid("org_id is needed: the namespace does not say which organisation is meant.")
    })?;
    app.allow(&caller, Permission::Admin, org_id).await?;
    let NewClass { resource_class, description, .. } = new;
    let made = app.command(&caller, &CreateRunnerClass { org_id, resource_class, description }).await?;
    Ok((StatusCode::CREATED, Json(class_json(&made))).into_response())
}

async fn delete_class(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Answer {
    remove_class(&app, &caller, &id, false).await
}

async fn force_delete_class(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Answer {
    remove_class(&app, &caller, &id, true).await
}

async fn remove_class(app: &App, caller: &Caller, id: &str, force: bool) -> Answer {
    let class = class(app, caller, id, Permission::Admin).await?;
    app.command(caller, &DeleteRunnerClass { id: class.id, force }).await?;
    Ok(Json(json!({ "message": "Resource class deleted." })).into_response())
}

async fn tokens(State(app): State<App>, caller: Caller, uri: Uri) -> Answer {
    let class = named(&app, &caller, &uri, Permission::Admin).await?;
    let found = app.ask(&caller, &ListRunnerTokens { class_id: class.id }).await?;
    let items: Vec<Value> = found
        .iter()
        .map(|token| {
            json!({
                "id": token.id, "resource_class": token.resource_class, "nickname": token.nickname,
                "created_at": time(token.created_at),
            })
        })
        .collect();
    Ok(Json(json!({ "items": items })).into_response())
}

#[derive(Deserialize)]
struct NewToken {
    resource_class: String,
    nickname: String,
}

async fn create_token(State(app): State<App>, caller: Caller, bytes: Bytes) -> Answer {
    let new: NewToken = body(&bytes)?;
    let class = class(&app, &caller, &new.resource_class, Permission::Admin).await?;
    let token = new_token()?;
    let sha256 = hex::encode(Sha256::digest(token.as_bytes()));
    let ask = CreateRunnerToken { class_id: class.id, nickname: new.nickname, sha256 };
    let made = app.command(&caller, &ask).await?;
    let shown = json!({
        "id": made.id, "token": token, "resource_class": made.resource_class, "nickname": made.nickname,
        "created_at": time(made.created_at),
    });
    Ok((StatusCode::CREATED, Json(shown)).into_response())
}

async fn delete_token(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Answer {
    let id: RunnerTokenId = view::id(&id, "Token")?;
    let token = app.ask(&caller, &GetRunnerToken { id }).await?;
    app.allow(&caller, Permission::Read, token.org_id)
        .await
        .map_err(|fail| fail.hidden_as(Fail::not_found("Token")))?;
    app.allow(&caller, Permission::Admin, token.org_id).await?;
    app.command(&caller, &DeleteRunnerToken { id }).await?;
    Ok(Json(json!({ "message": "Token deleted." })).into_response())
}

async fn runners(State(app): State<App>, caller: Caller, uri: Uri) -> Answer {
    let class_ids = chosen(&app, &caller, &uri).await?.iter().map(|class| class.id).collect();
    let found = app.ask(&caller, &ListRunners { class_ids }).await?;
    let now = Utc::now();
    let items: Vec<Value> = found
        .iter()
        .map(|runner| {
            json!({
                "resource_class": runner.resource_class, "name": runner.name, "hostname": runner.hostname,
                "version": runner.version, "first_connected": time(runner.first_connected),
                "last_connected": time(runner.last_connected), "last_used": runner.last_used.map(time),
                "status": if now - runner.last_connected < RUNNER_SILENT { "online" } else { "offline" },
            })
        })
        .collect();
    Ok(Json(json!({ "items": items })).into_response())
}

async fn counted(app: &App, caller: &Caller, uri: &Uri) -> Answer<RunnerTasks> {
    let class = named(app, caller, uri, Permission::Read).await?;
    Ok(app.ask(caller, &CountRunnerTasks { class_id: class.id }).await?)
}

async fn unclaimed(State(app): State<App>, caller: Caller, uri: Uri) -> Answer {
    let tasks = counted(&app, &caller, &uri).await?;
    Ok(Json(json!({ "unclaimed_task_count": tasks.unclaimed })).into_response())
}

async fn running(State(app): State<App>, caller: Caller, uri: Uri) -> Answer {
    let tasks = counted(&app, &caller, &uri).await?;
    Ok(Json(json!({ "running_runner_tasks": tasks.running })).into_response())
}
