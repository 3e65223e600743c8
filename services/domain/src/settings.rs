//! Settings of projects. Who may change them is asked by the edge, as for everything of a project.

use crate::State;
use bus::once::{Begun, Failure, Once};
use contracts::{
    NewEvent, Refusal, Request,
    domain::{ChangeProjectSettings, GetProjectSettings, ProjectSettings, ProjectSettingsChanged},
};
use eventstore::Key;
use ids::OrgId;
use sqlx::types::Json;
use uuid::Uuid;

/// Settings of a project.
pub(crate) async fn get(
    state: &State,
    _request: &Request,
    ask: GetProjectSettings,
) -> Result<ProjectSettings, Failure> {
    let found: Option<Json<ProjectSettings>> =
        sqlx::query_scalar("SELECT settings FROM domain.projects WHERE id = $1")
            .bind(ask.id.uuid())
            .fetch_optional(state.store.pool())
            .await?;
    Ok(found.ok_or_else(|| Refusal::not_found("Project"))?.0)
}

/// Changes what is named. A change to what is already so is no event.
pub(crate) async fn change(
    state: &State,
    request: &Request,
    ask: ChangeProjectSettings,
) -> Result<ProjectSettings, Failure> {
    let mut once = match Once::begin(&state.store, request, &[Key::new("project", ask.id.uuid())]).await? {
        Begun::Answered(answer) => return Ok(answer),
        Begun::New(once) => once,
    };
    let found: Option<(Uuid, Json<ProjectSettings>)> =
        sqlx::query_as("SELECT org_id, settings FROM domain.projects WHERE id = $1")
            .bind(ask.id.uuid())
            .fetch_optional(once.tx.conn())
            .await?;
    let (org, Json(old)) = found.ok_or_else(|| Refusal::not_found("Project"))?;
    let settings = ProjectSettings {
        autocancel_builds: ask.autocancel_builds.unwrap_or(old.autocancel_builds),
        disable_ssh: ask.disable_ssh.unwrap_or(old.disable_ssh),
    };
    if settings != old {
        sqlx::query("UPDATE domain.projects SET settings = $2 WHERE id = $1")
            .bind(ask.id.uuid())
            .bind(Json(&settings))
            .execute(once.tx.conn())
            .await?;
        let body = ProjectSettingsChanged { project_id: ask.id, settings: settings.clone() };
        let event = NewEvent::new("project", ask.id.uuid(), request.actor.clone(), &body)
            .in_project(OrgId(org), ask.id)
            .caused_by(request.id);
        once.tx.append(&[event]).await?;
    }
    once.commit(settings).await
}
