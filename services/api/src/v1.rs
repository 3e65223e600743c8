//! REST v1.1, what is still called of it (api-v2 §18).

use crate::{
    artifacts,
    auth::Caller,
    error::{Answer, Fail},
    logs, path,
    ssh_keys::{self, Shape},
    state::App,
    store::{JobRow, StepRow},
    user_keys,
    v2::{self, time},
    view,
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{OriginalUri, Path, State},
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use bus::AskOptions;
use contracts::{
    conductor::RerunWorkflow,
    contexts::{ListVariables, RemoveVariable, Scope, VariableInfo},
    domain::{GetProjectSettings, Project},
    output::GetSteps,
};
use ids::{JobId, ProjectId, WorkflowId};
use model::permission::Permission;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

/// Output that one answer holds at most.
const OUTPUT: usize = 4 << 20;

/// Routes below `/api/v1.1`.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/api/v1.1/me", get(me))
        .route("/api/v1.1/projects", get(projects))
        .route("/api/v1.1/recent-builds", get(recent))
        .route("/api/v1.1/output/{step}", get(output))
        .route("/api/v1.1/user/ssh-key", any(user_keys::route))
        .route("/api/v1.1/project/{*rest}", any(project))
        .route("/api/v1.1/{*rest}", any(|| async { Fail::not_found("Route") }))
}

async fn me(caller: Caller) -> Response {
    Json(json!({
        "login": caller.user.login, "name": caller.user.login, "avatar_url": null, "selected_email": null,
        "admin": caller.user.admin, "identities": {}, "projects": {}, "num_projects_followed": 0,
    }))
    .into_response()
}

async fn projects(State(app): State<App>, caller: Caller) -> Answer {
    let orgs: Vec<_> = view::orgs(&app, &caller).await?.iter().map(|org| org.id.uuid()).collect();
    let rows = app.views.projects(&orgs, None, 1000).await?;
    let items: Vec<_> = rows
        .into_iter()
        .map(|row| {
            json!({
                "vcs_url": app.url(&format!("/{}.git", row.slug)), "vcs_type": "git", "username": row.org,
                "reponame": row.name, "default_branch": row.default_branch, "branches": {},
                "following": true, "slug": row.slug, "name": row.name, "oss": false, "feature_flags": {},
            })
        })
        .collect();
    Ok(Json(items).into_response())
}

fn lifecycle(status: &str) -> &'static str {
    match status {
        "blocked" | "on_hold" | "queued" => "queued",
        "not_running" => "not_running",
        "running" => "running",
        "not_run" => "not_run",
        _ => "finished",
    }
}

fn outcome(status: &str) -> Option<&str> {
    match status {
        "success" | "failed" | "canceled" | "infrastructure_fail" | "timedout" => Some(status),
        "unauthorized" => Some("failed"),
        _ => None,
    }
}

/// `BuildSummary` of each job.
async fn summaries(app: &App, jobs: &[JobRow]) -> Answer<Vec<Value>> {
    let ids = |of: fn(&JobRow) -> uuid::Uuid| {
        let mut ids: Vec<_> = jobs.iter().map(of).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    let by_id = |id: uuid::Uuid| id;
    let pipelines: HashMap<_, _> = app
        .views
        .pipelines_by_id(&ids(|job| job.pipeline_id))
        .await?
        .into_iter()
        .map(|row| (by_id(row.id), row))
        .collect();
    let workflows: HashMap<_, _> = app
        .views
        .workflows_by_id(&ids(|job| job.workflow_id))
        .await?
        .into_iter()
        .map(|row| (row.id, row))
        .collect();
    let projects: HashMap<_, _> = app
        .views
        .projects_by_id(&ids(|job| job.project_id))
        .await?
        .into_iter()
        .map(|row| (row.id, row))
        .collect();
    Ok(jobs
        .iter()
        .map(|job| {
            let pipeline = pipelines.get(&job.pipeline_id);
            let workflow = workflows.get(&job.workflow_id);
            let project = projects.get(&job.project_id);
            let slug = project.map(|project| project.slug.as_str()).unwrap_or_default();
            let login = pipeline.and_then(|row| row.trigger["actor_login"].as_str()).unwrap_or("unknown");
            let millis = match (job.started_at, job.stopped_at) {
                (Some(start), Some(stop)) => Some((stop - start).num_milliseconds()),
                _ => None,
            };
            let upstream: Vec<_> = job.requires.as_array().map_or(&[][..], Vec::as_slice).iter().map(|edge| &edge["job_id"]).collect();
            json!({
                "build_num": job.number, "build_url": app.url(&format!("/jobs/{}", job.id)),
                "vcs_url": app.url(&format!("/{slug}.git")), "vcs_type": "git",
                "username": project.map(|project| &project.org), "reponame": project.map(|project| &project.name),
                "branch": pipeline.and_then(|row| row.branch.as_deref()),
                "vcs_tag": pipeline.and_then(|row| row.tag.as_deref()),
                "vcs_revision": pipeline.map(|row| &row.revision),
                "subject": pipeline.and_then(|row| row.subject.as_deref()), "body": null,
                "why": pipeline.map(|row| &row.trigger["kind"]), "dont_build": null,
                "status": job.status, "lifecycle": lifecycle(&job.status), "outcome": outcome(&job.status),
                "queued_at": job.queued_at.map(time), "usage_queued_at": job.queued_at.map(time),
                "start_time": job.started_at.map(time), "stop_time": job.stopped_at.map(time),
                "build_time_millis": millis, "committer_name": null, "author_name": null,
                "user": { "login": login, "name": login, "vcs_type": "git", "is_user": true },
                "previous": null, "retry_of": null, "platform": "2.0", "fail_reason": job.reason,
                "canceled": job.status == "canceled", "failed": matches!(job.status.as_str(), "failed" | "timedout" | "infrastructure_fail"),
                "infrastructure_fail": job.status == "infrastructure_fail", "timedout": job.status == "timedout",
                "parallel": job.parallelism,
                "workflows": {
                    "job_name": job.name, "job_id": job.id, "workflow_id": job.workflow_id,
                    "workflow_name": workflow.map(|row| &row.name),
                    "workspace_id": workflow.map(|row| row.rerun_of.unwrap_or(row.id)),
                    "upstream_job_ids": upstream, "upstream_concurrency_map": {},
                },
            })
        })
        .collect())
}

fn action(app: &App, step: &StepRow, parallel: bool) -> Value {
    let millis = step.ended_at.map(|end| (end - step.started_at).num_milliseconds());
    json!({
        "index": step.index, "step": step.number, "step_id": step.id, "name": step.name,
        "type": if step.number >= 101 { "test" } else { "infrastructure" },
        "status": step.status, "start_time": time(step.started_at), "end_time": step.ended_at.map(time),
        "run_time_millis": millis, "bash_command": step.bash_command, "exit_code": step.exit_code,
        "has_output": step.bytes > 0, "output_url": app.url(&format!("/api/v1.1/output/{}", step.id)),
        "allocation_id": "", "failed": matches!(step.status.as_str(), "failed" | "timedout" | "infrastructure_fail"),
        "infrastructure_fail": step.status == "infrastructure_fail", "timedout": step.status == "timedout",
        "canceled": step.status == "canceled", "background": step.background, "parallel": parallel,
        "truncated": step.log_state == "truncated_by_limit", "insignificant": false, "continue": null,
    })
}

/// `Build`.
async fn build(app: &App, caller: &Caller, job: &JobRow) -> Answer<Value> {
    let mut build = summaries(app, std::slice::from_ref(job)).await?.pop().unwrap_or_default();
    let mut steps = app.views.steps_of(&[job.id]).await?;
    // The owner's word on a job that runs: a client that polls sees no older state than the log.
    if steps.is_empty() && job.started_at.is_some() {
        let found = app.ask(caller, &GetSteps { job_id: JobId(job.id) }).await.unwrap_or_default();
        steps = found.into_iter().map(|step| StepRow::from_record(job.id, step)).collect();
    }
    let parallel = job.parallelism > 1;
    let mut grouped: BTreeMap<i32, Vec<&StepRow>> = BTreeMap::new();
    for step in &steps {
        grouped.entry(step.number).or_default().push(step);
    }
    let grouped: Vec<_> = grouped
        .into_values()
        .map(|mut same| {
            same.sort_by_key(|step| step.index);
            let actions: Vec<_> = same.iter().map(|step| action(app, step, parallel)).collect();
            json!({ "name": same[0].name, "actions": actions })
        })
        .collect();
    let has_artifacts = artifacts::any(app, caller, JobId(job.id)).await;
    let settings = GetProjectSettings { id: ProjectId(job.project_id) };
    // The page neither depends on it nor waits for it long.
    let soon = AskOptions { deadline: Duration::from_millis(500), ..AskOptions::default() };
    let settings = app.bus.ask_with(soon, &caller.actor(), &settings).await;
    let ssh_disabled = settings.ok().map(|settings| settings.disable_ssh);
    let more = json!({
        "steps": grouped, "has_artifacts": has_artifacts, "ssh_users": [], "ssh_disabled": ssh_disabled, "job_name": job.name,
        "messages": [], "all_commit_details": [], "pull_requests": [],
        "picard": {
            "executor": job.executor, "resource_class": { "cpu": null, "ram": null, "class": job.resource_class },
            "build_agent": { "image": null, "properties": {} },
        },
    });
    if let (Some(build), Value::Object(more)) = (build.as_object_mut(), more) {
        build.extend(more);
    }
    Ok(build)
}

struct Window {
    limit: i64,
    offset: i64,
    statuses: Option<Vec<String>>,
}

fn window(uri: &Uri) -> Window {
    let number = |name| path::number(uri, name).and_then(|value| i64::try_from(value).ok());
    let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
    let statuses = match path::query(uri, "filter").as_deref() {
        Some("completed") => {
            words(&["success", "failed", "canceled", "timedout", "infrastructure_fail", "unauthorized"])
        }
        Some("successful") => words(&["success"]),
        Some("failed") => words(&["failed", "timedout", "infrastructure_fail"]),
        Some("running") => words(&["running"]),
        _ => None,
    };
    Window {
        limit: number("limit").unwrap_or(30).clamp(1, 100),
        offset: number("offset").unwrap_or(0).max(0),
        statuses,
    }
}

async fn recent(State(app): State<App>, caller: Caller, uri: Uri) -> Answer {
    let orgs: Vec<_> = view::orgs(&app, &caller).await?.iter().map(|org| org.id.uuid()).collect();
    let window = window(&uri);
    let jobs = app
        .views
        .numbered_jobs(None, Some(&orgs), None, window.statuses.as_deref(), window.limit, window.offset)
        .await?;
    Ok(Json(summaries(&app, &jobs).await?).into_response())
}

async fn builds(app: &App, project: &Project, branch: Option<&str>, uri: &Uri) -> Answer {
    let window = window(uri);
    let jobs = app
        .views
        .numbered_jobs(
            Some(project.id.uuid()),
            None,
            branch,
            window.statuses.as_deref(),
            window.limit,
            window.offset,
        )
        .await?;
    Ok(Json(summaries(app, &jobs).await?).into_response())
}

async fn project(
    State(app): State<App>,
    caller: Caller,
    OriginalUri(uri): OriginalUri,
    method: Method,
    bytes: Bytes,
) -> Answer {
    let (reference, rest) =
        path::project(&uri, "/api/v1.1/project/").ok_or_else(|| Fail::not_found("Project"))?;
    let rest: Vec<_> = rest.iter().map(String::as_str).collect();
    let project = view::project(&app, &caller, &reference).await?;
    match (method.as_str(), &rest[..]) {
        ("GET", []) => builds(&app, &project, None, &uri).await,
        ("GET", ["tree", branch @ ..]) if !branch.is_empty() => {
            builds(&app, &project, Some(&branch.join("/")), &uri).await
        }
        ("POST", ["follow"]) => {
            Ok(Json(json!({ "followed": true, "following": true, "first_build": null })).into_response())
        }
        (_, ["checkout-key", rest @ ..]) => {
            ssh_keys::checkout(&app, &caller, &project, (&method, &uri, rest), &bytes, Shape::V1).await
        }
        (_, ["ssh-key"]) => ssh_keys::additional(&app, &caller, &project, &method, &bytes).await,
        (_, ["envvar", rest @ ..]) => variables(&app, &caller, &project, &method, rest, &bytes).await,
        ("GET", [number]) => {
            let job = view::numbered_job(&app, &caller, &project, number).await?;
            Ok(Json(build(&app, &caller, &job).await?).into_response())
        }
        ("GET", [number, "artifacts"]) => {
            let job = view::numbered_job(&app, &caller, &project, number).await?;
            artifacts::list_v1(&app, &caller, JobId(job.id)).await
        }
        ("GET", [number, "tests"]) => {
            let job = view::numbered_job(&app, &caller, &project, number).await?;
            artifacts::tests_v1(&app, &caller, JobId(job.id)).await
        }
        ("POST", [number, "cancel"]) => {
            let job = view::numbered_job(&app, &caller, &project, number).await?;
            v2::cancel(&app, &caller, &job).await?;
            let job = view::job(&app, &caller, JobId(job.id)).await?;
            Ok(Json(build(&app, &caller, &job).await?).into_response())
        }
        ("POST", [number, "retry"]) => {
            let job = view::numbered_job(&app, &caller, &project, number).await?;
            retry(&app, &caller, &job, false).await
        }
        ("POST", [number, "ssh"]) => {
            let job = view::numbered_job(&app, &caller, &project, number).await?;
            retry(&app, &caller, &job, true).await
        }
        _ => Err(Fail::not_found("Route")),
    }
}

/// Variables of a project: as v2 has them, but lists are bare arrays and nothing but name and value is shown.
async fn variables(
    app: &App,
    caller: &Caller,
    project: &Project,
    method: &Method,
    rest: &[&str],
    bytes: &Bytes,
) -> Answer {
    let scope = Scope::Project(project.id);
    app.allow(caller, Permission::WriteProject, project.org_id).await?;
    let shown = |variable: &VariableInfo| json!({ "name": variable.name, "value": variable.masked });
    match (method.as_str(), rest) {
        ("GET", []) => {
            let found = app.ask(caller, &ListVariables { scope }).await?;
            Ok(Json(found.iter().map(shown).collect::<Vec<_>>()).into_response())
        }
        ("POST", []) => {
            let new: v2::NewVariable = v2::body(bytes)?;
            let info = v2::set_variable(app, caller, scope, new.name, &new.value).await?;
            Ok((StatusCode::CREATED, Json(shown(&info))).into_response())
        }
        ("GET", [name]) => {
            let found = app.ask(caller, &ListVariables { scope }).await?;
            let found = found.iter().find(|variable| variable.name == *name);
            Ok(Json(shown(found.ok_or_else(|| Fail::not_found("Environment variable"))?)).into_response())
        }
        ("DELETE", [name]) => {
            app.command(caller, &RemoveVariable { scope, name: (*name).to_owned() }).await?;
            Ok(Json(json!({ "message": "ok" })).into_response())
        }
        _ => Err(Fail::not_found("Route")),
    }
}

/// A job is run again with its workflow: jobs that succeeded are kept when this one did not.
/// With SSH it alone is run, whatever became of it, and can be entered (execution §9).
async fn retry(app: &App, caller: &Caller, job: &JobRow, ssh: bool) -> Answer {
    app.allow(caller, Permission::Rerun, ids::OrgId(job.org_id)).await?;
    let ask = RerunWorkflow {
        id: WorkflowId(job.workflow_id),
        from_failed: !ssh && job.status != "success",
        jobs: ssh.then(|| vec![JobId(job.id)]),
        sparse_tree: false,
        failed_tests: false,
        ssh,
    };
    let state = app.command(caller, &ask).await?;
    app.workflow_seen(state.id, state.version).await;
    let jobs = app.views.jobs_of(&[state.id.uuid()]).await?;
    let again = jobs.iter().find(|new| new.name == job.name).unwrap_or(job);
    let mut build = build(app, caller, again).await?;
    build["retry_of"] = json!(job.number);
    Ok(Json(build).into_response())
}

async fn output(State(app): State<App>, caller: Caller, Path(step): Path<String>) -> Answer {
    let place = logs::place(&app, &caller, &step).await?;
    let (data, cut) = logs::read_all(&app, &caller, place.step.step_id, OUTPUT).await?;
    if data.is_empty() {
        return Ok(Json(json!([])).into_response());
    }
    Ok(Json(json!([{
        "type": "out", "time": time(place.step.started_at),
        "message": String::from_utf8_lossy(&data), "truncated": cut,
    }]))
    .into_response())
}
