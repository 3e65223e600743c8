//! Config policies (api-v2 §15). Errors are `{"error"}` here.

use crate::{auth::Caller, configs, error::Fail, path, state::App, v2::time};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::get,
};
use contracts::policies::{
    DecidePolicy, GetPolicyBundle, GetPolicySettings, ListPolicyDecisions, PolicyDecisionView, PolicyView,
    PushPolicyBundle, SetPolicySettings,
};
use ids::{OrgId, PolicyDecisionId, ProjectId, Timestamp};
use model::permission::Permission;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

/// Refuses in the form of these routes.
struct Refused(Fail);

impl<E: Into<Fail>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Fail { status, code, message, .. } = self.0;
        let status = if code == "too_large" { StatusCode::PAYLOAD_TOO_LARGE } else { status };
        (status, Json(json!({ "error": message }))).into_response()
    }
}

type Answer<T = Response> = Result<T, Refused>;

/// Routes below `/api/v2/owner`.
pub fn routes() -> Router<App> {
    const BASE: &str = "/api/v2/owner/{owner}/context/{context}";
    Router::new()
        .route(&format!("{BASE}/policy-bundle"), get(bundle).post(push))
        .route(&format!("{BASE}/policy-bundle/{{name}}"), get(one_policy))
        .route(&format!("{BASE}/decision"), get(decisions).post(decide))
        .route(&format!("{BASE}/decision/settings"), get(settings).patch(set_settings))
        .route(&format!("{BASE}/decision/{{id}}"), get(decision))
        .route(&format!("{BASE}/decision/{{id}}/policy-bundle"), get(decision_bundle))
        .layer(DefaultBodyLimit::max(configs::BODY))
}

/// The organisation of the path, if the caller may do this there.
async fn owner(
    app: &App,
    caller: &Caller,
    owner: &str,
    context: &str,
    permission: Permission,
) -> Answer<OrgId> {
    if context != "config" {
        return Err(Fail::not_found("Policy context").into());
    }
    let org = configs::orgs(app, caller, Some(owner)).await?[0];
    app.allow(caller, permission, org).await?;
    Ok(org)
}

fn body<T: DeserializeOwned>(bytes: &Bytes) -> Answer<T> {
    Ok(serde_json::from_slice(bytes)
        .map_err(|error| Fail::invalid(format!("the body cannot be read: {error}")))?)
}

async fn policy_json(app: &App, policy: PolicyView) -> Answer<(String, Value)> {
    let content = app.receive(policy.content).await?;
    let json = json!({
        "name": policy.name, "content": content, "created_at": time(policy.created_at),
        "created_by": policy.created_by,
    });
    Ok((policy.name, json))
}

async fn bundle_json(app: &App, policies: Vec<PolicyView>) -> Answer<Map<String, Value>> {
    let mut all = Map::new();
    for policy in policies {
        let (name, json) = policy_json(app, policy).await?;
        all.insert(name, json);
    }
    Ok(all)
}

async fn bundle(
    State(app): State<App>,
    caller: Caller,
    Path((org, context)): Path<(String, String)>,
) -> Answer {
    let org_id = owner(&app, &caller, &org, &context, Permission::Read).await?;
    let found = app.ask(&caller, &GetPolicyBundle { org_id, decision: None }).await?;
    Ok(Json(bundle_json(&app, found).await?).into_response())
}

async fn one_policy(
    State(app): State<App>,
    caller: Caller,
    Path((org, context, name)): Path<(String, String, String)>,
) -> Answer {
    let org_id = owner(&app, &caller, &org, &context, Permission::Read).await?;
    let found = app.ask(&caller, &GetPolicyBundle { org_id, decision: None }).await?;
    let mut all = bundle_json(&app, found).await?;
    let policy = all.remove(&name).ok_or_else(|| Fail::not_found(&format!("Policy {name}")))?;
    Ok(Json(policy).into_response())
}

#[derive(Deserialize)]
struct Push {
    policies: Map<String, Value>,
}

async fn push(
    State(app): State<App>,
    caller: Caller,
    Path((org, context)): Path<(String, String)>,
    uri: Uri,
    bytes: Bytes,
) -> Answer {
    let org_id = owner(&app, &caller, &org, &context, Permission::Admin).await?;
    let push: Push = body(&bytes)?;
    let dry = path::query(&uri, "dry").is_some_and(|dry| dry != "false");
    let files = app.send(Value::Object(push.policies).to_string()).await?;
    let changes = app.ask(&caller, &PushPolicyBundle { org_id, files, dry }).await?;
    let status = if dry { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(changes)).into_response())
}

#[derive(Deserialize)]
struct Decide {
    input: String,
    #[serde(default)]
    metadata: Value,
}

async fn decide(
    State(app): State<App>,
    caller: Caller,
    Path((org, context)): Path<(String, String)>,
    bytes: Bytes,
) -> Answer {
    let org_id = owner(&app, &caller, &org, &context, Permission::Read).await?;
    let Decide { input, metadata } = body(&bytes)?;
    let ask = DecidePolicy { org_id, input: app.send(input).await?, metadata };
    Ok(Json(app.ask(&caller, &ask).await?).into_response())
}

fn decision_json(decision: PolicyDecisionView) -> Value {
    json!({
        "id": decision.id, "created_at": time(decision.created_at), "time_taken_ms": decision.time_taken_ms,
        "decision": decision.decision, "metadata": decision.metadata, "policies": decision.policies,
        "pipeline_id": decision.pipeline_id,
    })
}

async fn decisions(
    State(app): State<App>,
    caller: Caller,
    Path((org, context)): Path<(String, String)>,
    uri: Uri,
) -> Answer {
    let org_id = owner(&app, &caller, &org, &context, Permission::Read).await?;
    let given = |name: &str| path::query(&uri, name).filter(|value| !value.is_empty());
    let moment = |name: &str| -> Answer<Option<Timestamp>> {
        let parsed = given(name).map(|at| at.parse::<Timestamp>()).transpose();
        Ok(parsed.map_err(|error| Fail::invalid(format!("{name}: {error}")))?)
    };
    let number = |name: &str| -> Answer<Option<i64>> {
        let parsed = given(name).map(|text| text.parse::<i64>()).transpose();
        Ok(parsed.map_err(|error| Fail::invalid(format!("{name}: {error}")))?)
    };
    let project_id = given("project_id").map(|id| id.parse::<ProjectId>()).transpose();
    let ask = ListPolicyDecisions {
        org_id: Some(org_id),
        id: None,
        status: given("status").map(|status| status.to_uppercase()),
        after: moment("after")?,
        before: moment("before")?,
        branch: given("branch"),
        project_id: project_id.map_err(|error| Fail::invalid(format!("project_id: {error}")))?,
        build_number: number("build_number")?,
        offset: number("offset")?.unwrap_or_default(),
    };
    let found = app.ask(&caller, &ask).await?;
    Ok(Json(found.into_iter().map(decision_json).collect::<Vec<_>>()).into_response())
}

async fn decision(
    State(app): State<App>,
    caller: Caller,
    Path((org, context, id)): Path<(String, String, String)>,
) -> Answer {
    let org_id = owner(&app, &caller, &org, &context, Permission::Read).await?;
    let id = id.parse::<PolicyDecisionId>().map_err(|_| Fail::not_found("Decision"))?;
    let ask = ListPolicyDecisions { org_id: Some(org_id), id: Some(id), ..ListPolicyDecisions::default() };
    let found = app.ask(&caller, &ask).await?.into_iter().next();
    Ok(Json(decision_json(found.ok_or_else(|| Fail::not_found("Decision"))?)).into_response())
}

async fn decision_bundle(
    State(app): State<App>,
    caller: Caller,
    Path((org, context, id)): Path<(String, String, String)>,
) -> Answer {
    let org_id = owner(&app, &caller, &org, &context, Permission::Read).await?;
    let id = id.parse::<PolicyDecisionId>().map_err(|_| Fail::not_found("Decision"))?;
    let found = app.ask(&caller, &GetPolicyBundle { org_id, decision: Some(id) }).await?;
    Ok(Json(bundle_json(&app, found).await?).into_response())
}

async fn settings(
    State(app): State<App>,
    caller: Caller,
    Path((org, context)): Path<(String, String)>,
) -> Answer {
    let org_id = owner(&app, &caller, &org, &context, Permission::Read).await?;
    let enabled = app.ask(&caller, &GetPolicySettings { org_id }).await?;
    Ok(Json(json!({ "enabled": enabled })).into_response())
}

#[derive(Deserialize)]
struct Settings {
    enabled: bool,
}

async fn set_settings(
    State(app): State<App>,
    caller: Caller,
    Path((org, context)): Path<(String, String)>,
    bytes: Bytes,
) -> Answer {
    let org_id = owner(&app, &caller, &org, &context, Permission::Admin).await?;
    let Settings { enabled } = body(&bytes)?;
    let enabled = app.command(&caller, &SetPolicySettings { org_id, enabled }).await?;
    Ok(Json(json!({ "enabled": enabled })).into_response())
}
