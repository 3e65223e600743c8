//! REST v2 (api-v2 §2–§6, §9).

use crate::{
    artifacts,
    auth::Caller,
    configs,
    error::{Answer, Fail},
    orchestration, path,
    ssh_keys::{self, Shape},
    state::App,
    store::{JobRow, PipelineFilter, PipelineRow, WorkflowRow},
    view::{self, PAGE, id},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{OriginalUri, Path, State},
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{any, delete, get, post},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    conductor::{ApproveJob, CancelJob, CancelWorkflow, RerunWorkflow},
    contexts::{
        ContextInfo, CreateContext, DeleteContext, GetContext, ListContexts, ListVariables, RemoveVariable,
        Scope, SetVariable, VariableInfo,
    },
    domain::Project,
    pipelines::{GetPipelineConfig, TriggerPipeline},
};
use ids::{ContextId, JobId, PipelineId, Timestamp, WorkflowId};
use model::{permission::Permission, status::JobStatus};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// Routes below `/api/v2`.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/api/v2/me", get(me))
        .route("/api/v2/me/collaborations", get(collaborations))
        .route("/api/v2/pipeline", get(pipelines))
        .route("/api/v2/pipeline/{id}", get(pipeline))
        .route("/api/v2/pipeline/{id}/workflow", get(pipeline_workflows))
        .route("/api/v2/pipeline/{id}/config", get(pipeline_config))
        .route("/api/v2/workflow/{id}", get(workflow))
        .route("/api/v2/workflow/{id}/job", get(workflow_jobs))
        .route("/api/v2/workflow/{id}/cancel", post(cancel_workflow))
        .route("/api/v2/workflow/{id}/rerun", post(rerun_workflow))
        .route("/api/v2/workflow/{id}/approve/{job}", post(approve_job))
        .route("/api/v2/jobs/{id}/cancel", post(cancel_job))
        .route("/api/v2/context", get(contexts).post(create_context))
        .route("/api/v2/context/{id}", get(context).delete(delete_context))
        .route("/api/v2/context/{id}/environment-variable", get(context_variables))
        .route(
            "/api/v2/context/{id}/environment-variable/{name}",
            delete(remove_context_variable).put(set_context_variable),
        )
        .route("/api/v2/project/{*rest}", any(project))
        .route("/api/v2/{*rest}", any(missing))
}

async fn missing() -> Fail {
    Fail::not_found("Route")
}

/// Milliseconds and `Z`.
pub fn time(at: Timestamp) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// A body that may be absent.
pub fn body<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Fail> {
    let bytes: &[u8] = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| Fail::invalid(format!("the body cannot be read: {error}")))
}

fn page(items: Vec<Value>, next: Option<String>) -> Response {
    Json(json!({ "items": items, "next_page_token": next })).into_response()
}

fn message(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "message": text }))).into_response()
}

async fn me(caller: Caller) -> Response {
    Json(json!({ "id": caller.user.id, "login": caller.user.login, "name": caller.user.login, "avatar_url": null }))
        .into_response()
}

async fn collaborations(State(app): State<App>, caller: Caller) -> Answer {
    let orgs = view::orgs(&app, &caller).await?;
    let items: Vec<_> = orgs
        .into_iter()
        .map(|org| {
            json!({
                "id": org.id, "name": org.name, "slug": format!("git/{}", org.name),
                "vcs_type": "git", "vcs-type": "git", "avatar_url": "",
            })
        })
        .collect();
    Ok(Json(items).into_response())
}

/// `Project`.
pub fn project_json(app: &App, project: &Project) -> Value {
    json!({
        "id": project.id, "slug": project.slug, "name": project.name,
        "organization_id": project.org_id, "organization_name": project.org,
        "organization_slug": format!("git/{}", project.org),
        "vcs_info": {
            "vcs_url": app.url(&format!("/{}.git", project.slug)),
            "provider": "Git", "default_branch": project.default_branch,
        },
    })
}

fn pipeline_json(app: &App, row: &PipelineRow) -> Value {
    let url = app.url(&format!("/{}.git", row.slug));
    let mut vcs = json!({
        "provider_name": "Git", "target_repository_url": url, "origin_repository_url": url,
        "revision": row.revision, "commit": { "subject": row.subject, "body": null },
    });
    if let Some(branch) = &row.branch {
        vcs["branch"] = branch.as_str().into();
    }
    if let Some(tag) = &row.tag {
        vcs["tag"] = tag.as_str().into();
    }
    let login = row.trigger["actor_login"].as_str().unwrap_or("unknown");
    let received =
        row.trigger["received_at"].as_str().and_then(|at| at.parse().ok()).unwrap_or(row.created_at);
    json!({
        "id": row.id, "number": row.number, "project_slug": row.slug, "state": row.state,
        "created_at": time(row.created_at), "updated_at": time(row.created_at), "errors": row.errors,
        "trigger": {
            "type": row.trigger["kind"], "received_at": time(received),
            "actor": { "login": login, "avatar_url": null },
        },
        "vcs": vcs,
    })
}

fn workflow_json(row: &WorkflowRow) -> Value {
    // v2 has no word for a workflow that waits for a lock.
    let status = if row.status == "queued" { "running" } else { &row.status };
    let mut out = json!({
        "id": row.id, "name": row.name, "pipeline_id": row.pipeline_id, "pipeline_number": row.pipeline_number,
        "project_slug": row.slug, "status": status, "started_by": row.started_by.unwrap_or_default(),
        "created_at": time(row.created_at), "stopped_at": row.stopped_at.map(time), "tag": null,
    });
    if let Some(user) = row.canceled_by {
        out["canceled_by"] = json!(user);
    }
    out
}

fn job_json(row: &JobRow, slug: &str) -> Value {
    let edges = row.requires.as_array().map_or(&[][..], Vec::as_slice);
    let requires: Map<String, Value> = edges
        .iter()
        .filter_map(|edge| Some((edge["job_id"].as_str()?.to_owned(), edge["accepts"].clone())))
        .collect();
    let mut out = json!({
        "id": row.id, "name": row.name, "type": row.kind, "status": row.status, "project_slug": slug,
        "started_at": row.started_at.map(time), "stopped_at": row.stopped_at.map(time),
        "dependencies": requires.keys().collect::<Vec<_>>(), "requires": requires,
    });
    if let Some(number) = row.number {
        out["job_number"] = number.into();
    }
    if row.kind == "approval" {
        out["approval_request_id"] = json!(row.id);
    }
    if let Some(user) = row.approved_by {
        out["approved_by"] = json!(user);
    }
    if let Some(user) = row.canceled_by {
        out["canceled_by"] = json!(user);
    }
    out
}

async fn pipelines(State(app): State<App>, caller: Caller, uri: Uri) -> Answer {
    let mut filter = PipelineFilter::default();
    let orgs = view::orgs(&app, &caller).await?;
    let mine = path::query(&uri, "mine").is_some_and(|mine| mine == "true");
    let slug = path::query(&uri, "org-slug");
    if mine {
        filter.actor = Some(caller.user.id);
    } else if slug.is_none() {
        return Err(Fail::invalid("org-slug is needed unless mine=true"));
    }
    let chosen: Vec<_> = orgs
        .iter()
        .filter(|org| {
            slug.as_ref()
                .is_none_or(|slug| *slug == format!("git/{}", org.name) || *slug == org.id.to_string())
        })
        .map(|org| org.id.uuid())
        .collect();
    if chosen.is_empty() {
        return Err(Fail::not_found("Organization"));
    }
    filter.orgs = Some(chosen);
    let token = path::query(&uri, "page-token");
    let (rows, next) = view::pipelines(&app, &caller, filter, token.as_deref(), PAGE).await?;
    Ok(page(rows.iter().map(|row| pipeline_json(&app, row)).collect(), next))
}

async fn pipeline(State(app): State<App>, caller: Caller, Path(pipeline): Path<String>) -> Answer {
    let row = view::pipeline(&app, &caller, id::<PipelineId>(&pipeline, "Pipeline")?).await?;
    Ok(Json(pipeline_json(&app, &row)).into_response())
}

async fn pipeline_workflows(State(app): State<App>, caller: Caller, Path(pipeline): Path<String>) -> Answer {
    let row = view::pipeline(&app, &caller, id::<PipelineId>(&pipeline, "Pipeline")?).await?;
    let rows = app.views.workflows_of(&[row.id]).await?;
    Ok(page(rows.iter().map(workflow_json).collect(), None))
}

async fn pipeline_config(State(app): State<App>, caller: Caller, Path(pipeline): Path<String>) -> Answer {
    let id = id::<PipelineId>(&pipeline, "Pipeline")?;
    view::pipeline(&app, &caller, id).await?;
    let config = app.ask(&caller, &GetPipelineConfig { id }).await?;
    let mut out = json!({
        "source": app.receive(config.source).await?, "compiled": app.receive(config.compiled).await?,
    });
    if let Some(setup) = config.setup {
        out["setup-config"] = app.receive(setup.source).await?.into();
        out["compiled-setup-config"] = app.receive(setup.compiled).await?.into();
    }
    Ok(Json(out).into_response())
}

async fn workflow(State(app): State<App>, caller: Caller, Path(workflow): Path<String>) -> Answer {
    let row = view::workflow(&app, &caller, id::<WorkflowId>(&workflow, "Workflow")?).await?;
    Ok(Json(workflow_json(&row)).into_response())
}

async fn workflow_jobs(State(app): State<App>, caller: Caller, Path(workflow): Path<String>) -> Answer {
    let row = view::workflow(&app, &caller, id::<WorkflowId>(&workflow, "Workflow")?).await?;
    let jobs = app.views.jobs_of(&[row.id]).await?;
    Ok(page(jobs.iter().map(|job| job_json(job, &row.slug)).collect(), None))
}

async fn cancel_workflow(State(app): State<App>, caller: Caller, Path(workflow): Path<String>) -> Answer {
    let row = view::workflow(&app, &caller, id::<WorkflowId>(&workflow, "Workflow")?).await?;
    app.allow(&caller, Permission::Cancel, ids::OrgId(row.org_id)).await?;
    let state = app.command(&caller, &CancelWorkflow { id: WorkflowId(row.id) }).await?;
    app.workflow_seen(state.id, state.version).await;
    Ok(message(StatusCode::ACCEPTED, "Accepted."))
}

#[derive(Deserialize)]
struct Rerun {
    #[serde(default)]
    from_failed: bool,
    #[serde(default)]
    enable_ssh: bool,
    #[serde(default)]
    sparse_tree: bool,
    /// Only the failed tests of jobs that failed: an addition of ours to `from_failed`.
    #[serde(default)]
    failed_tests: bool,
    jobs: Option<Vec<JobId>>,
}

async fn rerun_workflow(
    State(app): State<App>,
    caller: Caller,
    Path(workflow): Path<String>,
    bytes: Bytes,
) -> Answer {
    let row = view::workflow(&app, &caller, id::<WorkflowId>(&workflow, "Workflow")?).await?;
    app.allow(&caller, Permission::Rerun, ids::OrgId(row.org_id)).await?;
    let rerun: Rerun = body(&bytes)?;
    let ask = RerunWorkflow {
        id: WorkflowId(row.id),
        from_failed: rerun.from_failed,
        // Some clients send an empty list where they mean none.
        jobs: rerun.jobs.filter(|jobs| !jobs.is_empty()),
        sparse_tree: rerun.sparse_tree,
        failed_tests: rerun.failed_tests,
        ssh: rerun.enable_ssh,
    };
    let state = app.command(&caller, &ask).await?;
    app.workflow_seen(state.id, state.version).await;
    Ok((StatusCode::ACCEPTED, Json(json!({ "workflow_id": state.id }))).into_response())
}

async fn approve_job(
    State(app): State<App>,
    caller: Caller,
    Path((workflow, job)): Path<(String, String)>,
) -> Answer {
    let row = view::workflow(&app, &caller, id::<WorkflowId>(&workflow, "Workflow")?).await?;
    app.allow(&caller, Permission::Approve, ids::OrgId(row.org_id)).await?;
    let ask = ApproveJob { workflow_id: Some(WorkflowId(row.id)), job_id: id(&job, "Job")? };
    let state = app.command(&caller, &ask).await?;
    app.workflow_seen(state.id, state.version).await;
    Ok(message(StatusCode::ACCEPTED, "Accepted."))
}

async fn cancel_job(State(app): State<App>, caller: Caller, Path(job): Path<String>) -> Answer {
    let row = view::job(&app, &caller, id::<JobId>(&job, "Job")?).await?;
    cancel(&app, &caller, &row).await?;
    Ok(message(StatusCode::OK, "Accepted."))
}

/// Cancels a job and waits for the view.
pub async fn cancel(app: &App, caller: &Caller, row: &JobRow) -> Answer<()> {
    app.allow(caller, Permission::Cancel, ids::OrgId(row.org_id)).await?;
    let state = app.command(caller, &CancelJob { job_id: JobId(row.id) }).await?;
    app.workflow_seen(state.id, state.version).await;
    Ok(())
}

/// Everything below a project: the slug has one or three segments, so the router cannot tell them apart.
async fn project(
    State(app): State<App>,
    caller: Caller,
    OriginalUri(uri): OriginalUri,
    method: Method,
    bytes: Bytes,
) -> Answer {
    let (reference, rest) =
        path::project(&uri, "/api/v2/project/").ok_or_else(|| Fail::not_found("Project"))?;
    let rest: Vec<_> = rest.iter().map(String::as_str).collect();
    let project = view::project(&app, &caller, &reference).await?;
    match (method.as_str(), &rest[..]) {
        ("GET", []) => Ok(Json(project_json(&app, &project)).into_response()),
        ("GET", ["pipeline"]) => project_pipelines(&app, &caller, &project, &uri, false).await,
        ("GET", ["pipeline", "mine"]) => project_pipelines(&app, &caller, &project, &uri, true).await,
        ("POST", ["pipeline"]) => trigger(&app, &caller, project, &bytes).await,
        ("GET", ["pipeline", number]) => {
            let number = id::<i64>(number, "Pipeline")?;
            let row = app.caught_up(|| app.views.pipeline_by_number(project.id.uuid(), number)).await?;
            let row = row.ok_or_else(|| Fail::not_found("Pipeline"))?;
            Ok(Json(pipeline_json(&app, &row)).into_response())
        }
        ("GET", ["job", number]) => {
            let row = view::numbered_job(&app, &caller, &project, number).await?;
            job_details(&app, &project, &row).await
        }
        ("POST", ["job", number, "cancel"]) => {
            let row = view::numbered_job(&app, &caller, &project, number).await?;
            cancel(&app, &caller, &row).await?;
            Ok(message(StatusCode::ACCEPTED, "Accepted."))
        }
        ("GET", ["settings"]) => orchestration::settings(&app, &caller, &project).await,
        ("PATCH", ["settings"]) => orchestration::change_settings(&app, &caller, &project, &bytes).await,
        ("GET", [number, list @ ("artifacts" | "tests")]) => {
            let row = view::numbered_job(&app, &caller, &project, number).await?;
            match *list {
                "artifacts" => artifacts::list(&app, &caller, JobId(row.id), &uri).await,
                _ => artifacts::tests(&app, &caller, JobId(row.id), &uri).await,
            }
        }
        (_, ["checkout-key", rest @ ..]) => {
            ssh_keys::checkout(&app, &caller, &project, (&method, &uri, rest), &bytes, Shape::V2).await
        }
        (_, ["envvar", rest @ ..]) => project_variables(&app, &caller, &project, &method, rest, &bytes).await,
        _ => Err(Fail::not_found("Route")),
    }
}

async fn project_pipelines(app: &App, caller: &Caller, project: &Project, uri: &Uri, mine: bool) -> Answer {
    let filter = PipelineFilter {
        project: Some(project.id.uuid()),
        branch: path::query(uri, "branch"),
        actor: mine.then_some(caller.user.id),
        ..PipelineFilter::default()
    };
    let token = path::query(uri, "page-token");
    let (rows, next) = view::pipelines(app, caller, filter, token.as_deref(), PAGE).await?;
    Ok(page(rows.iter().map(|row| pipeline_json(app, row)).collect(), next))
}

#[derive(Deserialize)]
struct Trigger {
    branch: Option<String>,
    tag: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
}

async fn trigger(app: &App, caller: &Caller, project: Project, bytes: &Bytes) -> Answer {
    app.allow(caller, Permission::Trigger, project.org_id).await?;
    let body: Trigger = body(bytes)?;
    let view = trigger_pipeline(app, caller, project, body.branch, body.tag, body.parameters).await?;
    let reference = json!({
        "id": view.id, "state": view.state, "number": view.number, "created_at": time(view.created_at),
    });
    Ok((StatusCode::CREATED, Json(reference)).into_response())
}

/// Triggers a pipeline and waits for the view.
pub async fn trigger_pipeline(
    app: &App,
    caller: &Caller,
    project: Project,
    branch: Option<String>,
    tag: Option<String>,
    parameters: Map<String, Value>,
) -> Answer<contracts::pipelines::PipelineView> {
    if branch.is_some() && tag.is_some() {
        return Err(Fail::invalid("Only one of branch and tag can be given."));
    }
    configs::check_parameters(&parameters)?;
    let ask =
        TriggerPipeline { project, branch, tag, parameters, actor_login: Some(caller.user.login.clone()) };
    let view = app.command(caller, &ask).await?;
    let _ = app.caught_up(|| app.views.pipeline(view.id)).await;
    Ok(view)
}

async fn job_details(app: &App, project: &Project, row: &JobRow) -> Answer {
    let workflow = app.views.workflow(WorkflowId(row.workflow_id)).await?;
    let tasks = app.views.tasks_of(JobId(row.id)).await?;
    let ended = JobStatus::parse(&row.status).is_some_and(JobStatus::is_terminal);
    let runs: Vec<_> = tasks
        .iter()
        .map(|task| {
            // A task that was never reported follows its job.
            let status = if ended && matches!(task.status.as_str(), "queued" | "running") {
                &row.status
            } else {
                &task.status
            };
            json!({ "index": task.index, "status": status })
        })
        .collect();
    let duration = match (row.started_at, row.stopped_at) {
        (Some(start), Some(stop)) => Some((stop - start).num_milliseconds()),
        _ => None,
    };
    let messages: Vec<_> = row
        .reason
        .iter()
        .map(|reason| json!({ "type": "reason", "message": reason, "reason": reason }))
        .collect();
    Ok(Json(json!({
        "number": row.number, "id": row.id, "name": row.name, "status": row.status,
        "web_url": app.url(&format!("/jobs/{}", row.id)),
        "parallelism": row.parallelism, "parallel_runs": runs,
        "created_at": time(row.created_at), "queued_at": time(row.queued_at.unwrap_or(row.created_at)),
        "started_at": row.started_at.map(time), "stopped_at": row.stopped_at.map(time), "duration": duration,
        "executor": { "resource_class": row.resource_class.clone().unwrap_or_default(), "type": row.executor },
        "project": {
            "id": project.id, "slug": project.slug, "name": project.name,
            "external_url": app.url(&format!("/{}.git", project.slug)),
        },
        "organization": { "name": project.org },
        "pipeline": { "id": row.pipeline_id },
        "latest_workflow": { "id": row.workflow_id, "name": workflow.map(|workflow| workflow.name) },
        "contexts": row.contexts.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>(),
        "messages": messages,
    }))
    .into_response())
}

fn variable_json(variable: &VariableInfo) -> Value {
    let created = time(variable.created_at);
    let mut answer = json!({ "name": variable.name, "value": variable.masked, "created_at": created, "created-at": created });
    add_use(&mut answer, variable);
    answer
}

/// Beside what api-v2 shows of a variable: how often and by whom it was set, and when a job last had it
/// (security §4.1).
fn add_use(answer: &mut Value, variable: &VariableInfo) {
    answer["updated_at"] = json!(time(variable.updated_at));
    answer["version"] = json!(variable.version);
    answer["updated_by"] = json!(variable.updated_by);
    answer["last_used_at"] = json!(variable.last_used_at.map(time));
}

fn valid_name(name: &str) -> Result<(), Fail> {
    let mut bytes = name.bytes();
    let valid = name.len() <= 300
        && bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if valid {
        Ok(())
    } else {
        Err(Fail::invalid(
            "A variable's name has letters, digits and underscores, and does not begin with a digit.",
        ))
    }
}

/// Seals a value: plain ones never ride on the bus.
pub async fn set_variable(
    app: &App,
    caller: &Caller,
    scope: Scope,
    name: String,
    value: &str,
) -> Answer<VariableInfo> {
    valid_name(&name)?;
    if value.chars().count() > 32_000 {
        return Err(Fail::invalid("A variable's value has at most 32000 characters."));
    }
    let ask = SetVariable { scope, name, sealed: seal(app, value).await? };
    Ok(app.command(caller, &ask).await?)
}

/// What is to be said about a value that was taken all the same (security §4.5).
fn warned(mut answer: Value, value: &str) -> Value {
    if !masking::is_maskable(value.as_bytes()) {
        let message = format!(
            "the value is not masked in output: it has fewer than {} bytes, or is a word of logic",
            masking::MIN_LEN
        );
        answer["warnings"] = json!([{ "code": "value_too_short_to_mask", "message": message }]);
    }
    answer
}

/// Seals a value for a request.
pub async fn seal(app: &App, value: &str) -> Result<String, Fail> {
    let sealed = app.secrets.encrypt("request", value.as_bytes()).await.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "a value could not be sealed");
        Fail::new(StatusCode::SERVICE_UNAVAILABLE, "dependency_unavailable", "the key store does not answer")
    })?;
    Ok(STANDARD.encode(sealed))
}

#[derive(Deserialize)]
pub struct NewVariable {
    pub name: String,
    pub value: String,
}

async fn project_variables(
    app: &App,
    caller: &Caller,
    project: &Project,
    method: &Method,
    rest: &[&str],
    bytes: &Bytes,
) -> Answer {
    let scope = Scope::Project(project.id);
    app.allow(caller, Permission::WriteProject, project.org_id).await?;
    match (method.as_str(), rest) {
        ("GET", []) => {
            let found = app.ask(caller, &ListVariables { scope }).await?;
            Ok(page(found.iter().map(variable_json).collect(), None))
        }
        ("POST", []) => {
            let new: NewVariable = body(bytes)?;
            let info = set_variable(app, caller, scope, new.name, &new.value).await?;
            let shown = warned(variable_json(&info), &new.value);
            Ok((StatusCode::CREATED, Json(shown)).into_response())
        }
        ("GET", [name]) => {
            let found = app.ask(caller, &ListVariables { scope }).await?;
            let found = found.iter().find(|variable| variable.name == *name);
            let found = found.ok_or_else(|| Fail::not_found("Environment variable"))?;
            Ok(Json(variable_json(found)).into_response())
        }
        ("DELETE", [name]) => {
            app.command(caller, &RemoveVariable { scope, name: (*name).to_owned() }).await?;
            Ok(message(StatusCode::OK, "Environment variable deleted."))
        }
        _ => Err(Fail::not_found("Route")),
    }
}

fn context_json(context: &ContextInfo) -> Value {
    json!({ "id": context.id, "name": context.name, "created_at": time(context.created_at) })
}

/// The caller's organisation with this id or slug.
async fn owner(app: &App, caller: &Caller, id: Option<&str>, slug: Option<&str>) -> Answer<ids::OrgId> {
    if id.is_none() && slug.is_none() {
        return Err(Fail::invalid("An owner's id or slug is needed."));
    }
    let orgs = view::orgs(app, caller).await?;
    orgs.into_iter()
        .find(|org| match (id, slug) {
            (Some(id), _) => org.id.to_string().eq_ignore_ascii_case(id),
            (None, Some(slug)) => slug == format!("git/{}", org.name) || slug == org.id.to_string(),
            (None, None) => false,
        })
        .map(|org| org.id)
        .ok_or_else(|| Fail::not_found("Organization"))
}

async fn contexts(State(app): State<App>, caller: Caller, uri: Uri) -> Answer {
    let (id, slug) = (path::query(&uri, "owner-id"), path::query(&uri, "owner-slug"));
    let org_id = owner(&app, &caller, id.as_deref(), slug.as_deref()).await?;
    app.allow(&caller, Permission::Read, org_id).await?;
    let found = app.ask(&caller, &ListContexts { org_id }).await?;
    Ok(page(found.iter().map(context_json).collect(), None))
}

#[derive(Deserialize)]
struct NewContext {
    name: String,
    owner: Owner,
}

#[derive(Deserialize)]
struct Owner {
    id: Option<String>,
    slug: Option<String>,
}

async fn create_context(State(app): State<App>, caller: Caller, bytes: Bytes) -> Answer {
    let new: NewContext = body(&bytes)?;
    let name = new.name;
    if name.is_empty()
        || name.chars().count() > 200
        || name.trim() != name
        || name.chars().any(char::is_control)
    {
        return Err(Fail::invalid("A context's name has 1 to 200 characters and no space around it."));
    }
    let org_id = owner(&app, &caller, new.owner.id.as_deref(), new.owner.slug.as_deref()).await?;
    app.allow(&caller, Permission::WriteContext, org_id).await?;
    let context = app.command(&caller, &CreateContext { org_id, name }).await?;
    Ok(Json(context_json(&context)).into_response())
}

/// A context that the caller may use; an unknown one is as forbidden as a foreign one (api-v2 §0.6).
async fn permitted(app: &App, caller: &Caller, text: &str, permission: Permission) -> Answer<ContextInfo> {
    let id = text.parse::<ContextId>().map_err(|_| Fail::forbidden())?;
    let unknown = |fail: Fail| fail.hidden_as(Fail::forbidden());
    let context = app.ask(caller, &GetContext { id }).await.map_err(|error| unknown(error.into()))?;
    match context.org_id {
        Some(org) => app.allow(caller, permission, org).await.map_err(unknown)?,
        None if caller.user.admin => {}
        None => return Err(Fail::forbidden()),
    }
    Ok(context)
}

async fn context(State(app): State<App>, caller: Caller, Path(context): Path<String>) -> Answer {
    let context = permitted(&app, &caller, &context, Permission::Read).await?;
    Ok(Json(context_json(&context)).into_response())
}

async fn delete_context(State(app): State<App>, caller: Caller, Path(context): Path<String>) -> Answer {
    let context = permitted(&app, &caller, &context, Permission::WriteContext).await?;
    app.command(&caller, &DeleteContext { id: context.id }).await?;
    Ok(message(StatusCode::OK, "Context deleted."))
}

fn context_variable_json(context: ContextId, variable: &VariableInfo) -> Value {
    let mut answer = json!({
        "variable": variable.name, "context_id": context, "created_at": time(variable.created_at),
        "truncated_value": variable.masked.strip_prefix("xxxx").unwrap_or(&variable.masked),
    });
    add_use(&mut answer, variable);
    answer
}

async fn context_variables(State(app): State<App>, caller: Caller, Path(context): Path<String>) -> Answer {
    let context = permitted(&app, &caller, &context, Permission::Read).await?;
    let found = app.ask(&caller, &ListVariables { scope: Scope::Context(context.id) }).await?;
    Ok(page(found.iter().map(|variable| context_variable_json(context.id, variable)).collect(), None))
}

#[derive(Deserialize)]
struct NewValue {
    value: String,
}

async fn set_context_variable(
    State(app): State<App>,
    caller: Caller,
    Path((context, name)): Path<(String, String)>,
    bytes: Bytes,
) -> Answer {
    let context = permitted(&app, &caller, &context, Permission::WriteContext).await?;
    let new: NewValue = body(&bytes)?;
    let info = set_variable(&app, &caller, Scope::Context(context.id), name, &new.value).await?;
    Ok(Json(warned(context_variable_json(context.id, &info), &new.value)).into_response())
}

async fn remove_context_variable(
    State(app): State<App>,
    caller: Caller,
    Path((context, name)): Path<(String, String)>,
) -> Answer {
    let context = permitted(&app, &caller, &context, Permission::WriteContext).await?;
    app.command(&caller, &RemoveVariable { scope: Scope::Context(context.id), name }).await?;
    Ok(message(StatusCode::OK, "Environment variable deleted."))
}
