//! What `pipeline.…` means in a pipeline's configuration (config-language §20).

use crate::{State, fetch::PATH};
use bus::once::Failure;
use compiler::PipelineValues;
use contracts::{
    Refusal, Request,
    domain::Project,
    pipelines::{GetPipelineValues, Trigger, Vcs},
};
use ids::PipelineId;
use serde_json::{Map, Value, json};
use sqlx::{Row, types::Json};
use std::collections::BTreeMap;

/// What a pipeline's values come from.
pub(crate) struct Facts<'a> {
    pub(crate) id: PipelineId,
    pub(crate) number: i64,
    pub(crate) project: &'a Project,
    pub(crate) vcs: &'a Vcs,
    pub(crate) trigger: &'a Trigger,
    pub(crate) base_revision: Option<&'a str>,
}

/// The values for the compiler.
pub(crate) fn of(state: &State, facts: &Facts<'_>) -> PipelineValues {
    let Facts { id, number, project, vcs, trigger, base_revision } = facts;
    let url = format!("{}/git/{}/{}.git", state.git_url, project.org, project.name);
    let event = if trigger.kind == "webhook" { "push" } else { trigger.kind.as_str() };
    let mut more = BTreeMap::new();
    let mut set = |name: &str, value: Value| drop(more.insert(format!("pipeline.{name}"), value));
    if let Some(branch) = &vcs.branch {
        set("git.branch.is_default", json!(*branch == project.default_branch));
    }
    set("git.repo_url", json!(url));
    set("git.repo_owner", json!(project.org));
    set("git.repo_name", json!(project.name));
    set("git.repo_id", json!(project.id));
    set("config.file_path", json!(PATH));
    set("config.repository.name", json!(project.name));
    set("config.repository.url", json!(url));
    set("config.sha", json!(vcs.revision));
    set("trigger.received_at", json!(trigger.received_at));
    set("trigger.type", json!(trigger.kind));
    set("event.name", json!(event));
    set("event.action", json!(event));
    PipelineValues {
        id: id.to_string(),
        number: *number,
        project_slug: project.slug.clone(),
        project_type: "git".to_owned(),
        git_url: url,
        branch: vcs.branch.clone(),
        tag: vcs.tag.clone(),
        revision: vcs.revision.clone(),
        base_revision: base_revision.map(str::to_owned),
        trigger_source: trigger.kind.clone(),
        more,
    }
}

/// All values that are not null, by their whole names.
pub(crate) fn map(values: PipelineValues) -> Map<String, Value> {
    let mut map = Map::new();
    let fields = [
        ("id", json!(values.id)),
        ("number", json!(values.number)),
        ("project.git_url", json!(values.git_url)),
        ("project.slug", json!(values.project_slug)),
        ("project.type", json!(values.project_type)),
        ("git.branch", json!(values.branch)),
        ("git.tag", json!(values.tag)),
        ("git.revision", json!(values.revision)),
        ("git.base_revision", json!(values.base_revision)),
        ("trigger_source", json!(values.trigger_source)),
    ];
    for (name, value) in fields {
        map.insert(format!("pipeline.{name}"), value);
    }
    map.extend(values.more);
    map.retain(|_, value| !value.is_null());
    map
}

pub(crate) async fn get(
    state: &State,
    _: &Request,
    ask: GetPipelineValues,
) -> Result<Map<String, Value>, Failure> {
    let row = sqlx::query(
        "SELECT number, project, vcs, trigger, base_revision FROM pipelines.pipelines WHERE id = $1",
    )
    .bind(ask.id.uuid())
    .fetch_optional(state.store.pool())
    .await?
    .ok_or_else(|| Refusal::not_found("Pipeline"))?;
    let base_revision: Option<String> = row.try_get("base_revision")?;
    let facts = Facts {
        id: ask.id,
        number: row.try_get("number")?,
        project: &row.try_get::<Json<Project>, _>("project")?.0,
        vcs: &row.try_get::<Json<Vcs>, _>("vcs")?.0,
        trigger: &row.try_get::<Json<Trigger>, _>("trigger")?.0,
        base_revision: base_revision.as_deref(),
    };
    Ok(map(of(state, &facts)))
}
