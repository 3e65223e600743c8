//! Look-ups with access checks that every API shares. What the caller may not see is not there.

use crate::{
    auth::Caller,
    error::Fail,
    path,
    state::App,
    store::{JobRow, PipelineFilter, PipelineRow, ProjectRow, WorkflowRow},
};
use contracts::{
    domain::{GetProject, ListOrgs, Org, Project},
    pipelines::GetPipeline,
};
use ids::{JobId, OrgId, PipelineId, WorkflowId};
use model::permission::Permission;
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use uuid::Uuid;

/// Rows of a page.
pub const PAGE: i64 = 20;

/// An id in a path; anything else names nothing.
pub fn id<T: FromStr>(text: &str, what: &str) -> Result<T, Fail> {
    text.parse().map_err(|_| Fail::not_found(what))
}

/// The project with this reference: from the view, else from its owner.
pub async fn project(app: &App, caller: &Caller, reference: &str) -> Result<Project, Fail> {
    let missing = |fail: Fail| fail.hidden_as(Fail::not_found("Project"));
    let row: Option<ProjectRow> =
        match Uuid::parse_str(reference).ok().or_else(|| path::short_project(reference)) {
            Some(id) => app.views.project(id).await?,
            None => app.views.project_by_slug(reference).await?,
        };
    let project = match row {
        Some(row) => row.into(),
        None => app
            .ask(caller, &GetProject { reference: reference.to_owned() })
            .await
            .map_err(|error| missing(error.into()))?,
    };
    app.allow(caller, Permission::Read, project.org_id).await.map_err(missing)?;
    Ok(project)
}

async fn visible<T>(
    app: &App,
    caller: &Caller,
    row: Option<T>,
    org: impl Fn(&T) -> Uuid,
    what: &str,
) -> Result<T, Fail> {
    let row = row.ok_or_else(|| Fail::not_found(what))?;
    app.allow(caller, Permission::Read, OrgId(org(&row)))
        .await
        .map_err(|fail| fail.hidden_as(Fail::not_found(what)))?;
    Ok(row)
}

/// A pipeline by id. One that the view does not have yet is asked of its owner.
pub async fn pipeline(app: &App, caller: &Caller, id: PipelineId) -> Result<PipelineRow, Fail> {
    let mut row = app.views.pipeline(id).await?;
    if row.is_none() {
        row = match app.ask(caller, &GetPipeline { id }).await {
            Ok(view) => Some(PipelineRow {
                id: view.id.uuid(),
                project_id: view.project.id.uuid(),
                org_id: view.project.org_id.uuid(),
                slug: view.project.slug,
                number: view.number,
                state: view.state,
                errors: serde_json::to_value(view.errors).unwrap_or_default(),
                trigger: serde_json::to_value(view.trigger).unwrap_or_default(),
                revision: view.vcs.revision,
                branch: view.vcs.branch,
                tag: view.vcs.tag,
                subject: view.subject,
                created_at: view.created_at,
                changed_at: view.created_at,
            }),
            // The view is all that there is.
            Err(_) => None,
        };
    }
    visible(app, caller, row, |row| row.org_id, "Pipeline").await
}

/// A workflow by id.
pub async fn workflow(app: &App, caller: &Caller, id: WorkflowId) -> Result<WorkflowRow, Fail> {
    let row = app.caught_up(|| app.views.workflow(id)).await?;
    visible(app, caller, row, |row| row.org_id, "Workflow").await
}

/// A job by id.
pub async fn job(app: &App, caller: &Caller, id: JobId) -> Result<JobRow, Fail> {
    let row = app.caught_up(|| app.views.job(id)).await?;
    visible(app, caller, row, |row| row.org_id, "Job").await
}

/// A job by its project's reference and its number.
pub async fn numbered_job(
    app: &App,
    caller: &Caller,
    project: &Project,
    number: &str,
) -> Result<JobRow, Fail> {
    let number: i64 = id(number, "Job")?;
    let row = app.caught_up(|| app.views.job_by_number(project.id.uuid(), number)).await?;
    visible(app, caller, row, |row| row.org_id, "Job").await
}

/// Organisations of the caller.
pub async fn orgs(app: &App, caller: &Caller) -> Result<Vec<Org>, Fail> {
    Ok(app.ask(caller, &ListOrgs {}).await?)
}

/// Where the next page of pipelines begins. Sealed, and good only for this caller and this list.
#[derive(Serialize, Deserialize)]
struct Cursor {
    list: String,
    user: Uuid,
    time: ids::Timestamp,
    id: Uuid,
}

fn list_of(filter: &PipelineFilter) -> String {
    format!("{:?}/{:?}/{:?}", filter.project, filter.branch, filter.actor)
}

/// A page of pipelines, newest first, and the token of the next one.
pub async fn pipelines(
    app: &App,
    caller: &Caller,
    mut filter: PipelineFilter,
    token: Option<&str>,
    limit: i64,
) -> Result<(Vec<PipelineRow>, Option<String>), Fail> {
    let list = list_of(&filter);
    if let Some(token) = token.filter(|token| !token.is_empty()) {
        let cursor = app
            .keys
            .open_claims::<Cursor>("page", token)
            .filter(|cursor| cursor.list == list && cursor.user == caller.user.id.uuid())
            .ok_or_else(|| {
                Fail::new(http::StatusCode::BAD_REQUEST, "bad_cursor", "the page token is not of this list")
            })?;
        filter.before = Some((cursor.time, cursor.id));
    }
    let mut rows = app.views.pipelines(&filter, limit + 1).await?;
    let more = rows.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    if more {
        rows.pop();
    }
    let next = rows.last().filter(|_| more).map(|row| cursor(app, caller, &list, row));
    Ok((rows, next))
}

fn cursor(app: &App, caller: &Caller, list: &str, row: &PipelineRow) -> String {
    let cursor =
        Cursor { list: list.to_owned(), user: caller.user.id.uuid(), time: row.created_at, id: row.id };
    app.keys.seal_claims("page", &cursor)
}

/// The cursor after one row of a list.
pub fn cursor_after(app: &App, caller: &Caller, filter: &PipelineFilter, row: &PipelineRow) -> String {
    cursor(app, caller, &list_of(filter), row)
}
