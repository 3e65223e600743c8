//! Restrictions of contexts (api-v2 §9), and the one act that opens a restricted context to all again.

use crate::{
    auth::Caller,
    error::{Answer, Fail},
    state::App,
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use contracts::contexts::{
    AddRestriction, GetContext, ListRestrictions, RemoveRestriction, Restriction, RestrictionKind, Unrestrict,
};
use contracts::domain::GetProject;
use ids::ContextId;
use model::permission::Permission;
use serde::Deserialize;
use serde_json::{Value, json};

/// Routes of this module.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/api/v2/context/{id}/restrictions", get(list).post(add))
        .route("/api/v2/context/{id}/restrictions/{restriction}", delete(remove))
        .route("/api/private/context/{id}/unrestrict", post(unrestrict))
}

/// The context, if the caller has the right in its organisation. Whoever may only set values may not widen who gets them.
async fn administered(app: &App, caller: &Caller, id: &str, wanted: Permission) -> Result<ContextId, Fail> {
    let id: ContextId = crate::view::id(id, "Context")?;
    let context = app.ask(caller, &GetContext { id }).await?;
    let org = context.org_id.ok_or_else(|| Fail::not_found("Context"))?;
    app.allow(caller, wanted, org).await?;
    Ok(id)
}

/// A project's restriction shows its name, where it still has one.
async fn shown(app: &App, caller: &Caller, restriction: &Restriction) -> Value {
    let mut shown = json!({
        "id": restriction.id, "context_id": restriction.context_id, "name": restriction.value,
        "restriction_type": restriction.kind.as_str(), "restriction_value": restriction.value,
    });
    if restriction.kind == RestrictionKind::Project {
        shown["project_id"] = restriction.value.clone().into();
        if let Ok(project) = app.ask(caller, &GetProject { reference: restriction.value.clone() }).await {
            shown["name"] = project.name.into();
        }
    }
    shown
}

async fn list(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Answer {
    let context_id = administered(&app, &caller, &id, Permission::WriteContext).await?;
    let found = app.ask(&caller, &ListRestrictions { context_id }).await?;
    let mut items = Vec::with_capacity(found.len());
    for restriction in &found {
        items.push(shown(&app, &caller, restriction).await);
    }
    Ok(Json(json!({ "items": items, "next_page_token": null })).into_response())
}

#[derive(Deserialize)]
struct New {
    restriction_type: Option<String>,
    restriction_value: Option<String>,
    /// How it was written before there were kinds.
    project_id: Option<String>,
}

async fn add(State(app): State<App>, caller: Caller, Path(id): Path<String>, bytes: Bytes) -> Answer {
    let context_id = administered(&app, &caller, &id, Permission::Admin).await?;
    let new: New = crate::v2::body(&bytes)?;
    let (kind, value) = match (new.restriction_type, new.restriction_value, new.project_id) {
        (Some(kind), Some(value), _) => (kind, value),
        (None, _, Some(project)) => ("project".to_owned(), project),
        _ => return Err(Fail::invalid("restriction_type and restriction_value are needed.")),
    };
    let kind = RestrictionKind::parse(&kind)
        .ok_or_else(|| Fail::invalid("restriction_type is one of project, expression, group."))?;
    if kind == RestrictionKind::Project {
        crate::view::project(&app, &caller, &value).await?;
    }
    let made = app.command(&caller, &AddRestriction { context_id, kind, value }).await?;
    Ok((StatusCode::CREATED, Json(shown(&app, &caller, &made).await)).into_response())
}

async fn remove(
    State(app): State<App>,
    caller: Caller,
    Path((id, restriction)): Path<(String, String)>,
) -> Answer {
    let context_id = administered(&app, &caller, &id, Permission::Admin).await?;
    let id = crate::view::id(&restriction, "Restriction")?;
    app.command(&caller, &RemoveRestriction { context_id, id }).await?;
    Ok(said("Context restriction deleted."))
}

async fn unrestrict(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Answer {
    let context_id = administered(&app, &caller, &id, Permission::Admin).await?;
    app.command(&caller, &Unrestrict { context_id }).await?;
    Ok(said("Context unrestricted."))
}

fn said(text: &str) -> Response {
    Json(json!({ "message": text })).into_response()
}
