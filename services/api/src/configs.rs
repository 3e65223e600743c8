//! Configurations without a repository: continuing a pipeline, compiling what an editor holds, and the values that a
//! pipeline was compiled with (api-v2 §2, §17).

use crate::{
    auth::Caller,
    error::{Answer, Fail},
    state::App,
    view::{self, id},
};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bus::AskOptions;
use contracts::{
    Actor,
    pipelines::{CompileConfig, CompileReply, ContinuationClaims, ContinuePipeline, GetPipelineValues},
};
use ids::{OrgId, PipelineId};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Largest configuration, and largest parameters of a continuation, in bytes (security §5).
const CONFIG: usize = 1 << 20;
const PARAMETERS: usize = 512 << 10;
/// Largest body: a configuration may be escaped character by character.
pub const BODY: usize = 8 << 20;
/// How long an answer is waited for: the compiler has a limit of its own below it.
const WAIT: Duration = Duration::from_secs(10);

/// The routes.
pub fn routes() -> Router<App> {
    Router::new()
        .route("/api/v2/pipeline/continue", post(go_on))
        .route("/api/v2/pipeline/{id}/values", get(values))
        .route("/api/v2/compile-config-with-defaults", post(compile_route))
        .layer(DefaultBodyLimit::max(BODY))
}

async fn values(State(app): State<App>, caller: Caller, Path(pipeline): Path<String>) -> Answer {
    let id = id::<PipelineId>(&pipeline, "Pipeline")?;
    view::pipeline(&app, &caller, id).await?;
    Ok(Json(app.ask(&caller, &GetPipelineValues { id }).await?).into_response())
}

#[derive(Deserialize)]
struct Continuation {
    #[serde(rename = "continuation-key", alias = "continuation_key")]
    key: String,
    configuration: String,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
}

/// The key is what opens it: jobs have no token (api-v2 §2).
async fn go_on(State(app): State<App>, bytes: Bytes) -> Answer {
    let body: Continuation = serde_json::from_slice(&bytes)
        .map_err(|error| Fail::invalid(format!("the body cannot be read: {error}")))?;
    let claims: ContinuationClaims = app
        .keys
        .open_claims(ContinuationClaims::PURPOSE, body.key.trim())
        .ok_or_else(|| Fail::new(StatusCode::NOT_FOUND, "not_found", "The continuation key is not valid."))?;
    let parameters = body.parameters.unwrap_or_default();
    check_parameters(&parameters)?;
    within("configuration", body.configuration.len(), CONFIG)?;
    within("parameters", serde_json::to_vec(&parameters).map_or(usize::MAX, |text| text.len()), PARAMETERS)?;
    let ask = ContinuePipeline {
        id: claims.pipeline_id,
        configuration: app.send(body.configuration).await?,
        parameters,
    };
    let options = AskOptions { deadline: WAIT, ..AskOptions::default() };
    let view = app.bus.ask_with(options, &Actor::service("api"), &ask).await.map_err(|error| {
        let mut fail = Fail::from(error);
        // Clients of this route know 400 for whatever is wrong with the pipeline's state.
        if ["not_in_setup", "expired"].contains(&fail.code.as_str()) {
            fail.status = StatusCode::BAD_REQUEST;
        }
        fail
    })?;
    tracing::info!(pipeline = %view.id, state = view.state, "continued");
    Ok(Json(json!({ "message": "Continued." })).into_response())
}

fn within(what: &str, size: usize, limit: usize) -> Result<(), Fail> {
    if size <= limit {
        return Ok(());
    }
    let message = format!("The {what} has {size} bytes; at most {limit} are allowed.");
    Err(Fail::new(StatusCode::UNPROCESSABLE_ENTITY, "limit_reached", message))
}

/// Pipeline parameters of a trigger or a continuation (config-language §28).
pub fn check_parameters(parameters: &Map<String, Value>) -> Result<(), Fail> {
    if parameters.len() > 100 {
        return Err(Fail::invalid("At most 100 pipeline parameters are allowed."));
    }
    for (name, value) in parameters {
        let fits = name.chars().count() <= 128
            && match value {
                Value::String(text) => text.chars().count() <= 512,
                Value::Bool(_) | Value::Number(_) => true,
                _ => false,
            };
        if !fits {
            return Err(Fail::invalid(format!(
                "Parameter {name:.128} is not a text of at most 512 characters, a number or a boolean, or its name has more than 128 characters."
            )));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct CompileBody {
    config_yaml: String,
    #[serde(default)]
    options: Option<CompileOptions>,
}

#[derive(Default, Deserialize)]
struct CompileOptions {
    owner_id: Option<String>,
    pipeline_parameters: Option<Map<String, Value>>,
    pipeline_values: Option<Map<String, Value>>,
}

/// A client probes with an empty body and takes anything but an error for a server that it does not know.
async fn compile_route(State(app): State<App>, caller: Caller, bytes: Bytes) -> Answer {
    if bytes.trim_ascii().is_empty() {
        return Err(Fail::invalid("The body is empty: send {\"config_yaml\": \"…\"}."));
    }
    let body: CompileBody = serde_json::from_slice(&bytes)
        .map_err(|error| Fail::invalid(format!("the body cannot be read: {error}")))?;
    let options = body.options.unwrap_or_default();
    let ask = Compile {
        owner: options.owner_id,
        parameters: options.pipeline_parameters.unwrap_or_default(),
        values: options.pipeline_values.unwrap_or_default(),
    };
    let (output, errors) = compile(&app, &caller, body.config_yaml.clone(), ask).await?;
    Ok(compiled_json(&body.config_yaml, &output, &errors))
}

fn compiled_json(source: &str, output: &str, errors: &[String]) -> Response {
    let valid = errors.is_empty();
    let errors: Vec<Value> = errors.iter().map(|message| json!({ "message": message })).collect();
    Json(json!({
        "valid": valid, "source-yaml": source, "output-yaml": output,
        "errors": if valid { Value::Null } else { Value::Array(errors) },
    }))
    .into_response()
}

/// How a text is compiled without a pipeline.
#[derive(Default)]
pub struct Compile {
    /// Organisation whose private orbs it uses; none: all of the caller's.
    pub owner: Option<String>,
    /// Pipeline parameters by name.
    pub parameters: Map<String, Value>,
    /// Pipeline values by name.
    pub values: Map<String, Value>,
}

/// Compiles a configuration. The answer is its compiled form, or why it is not valid.
pub async fn compile(
    app: &App,
    caller: &Caller,
    source: String,
    how: Compile,
) -> Result<(String, Vec<String>), Fail> {
    let size = source.len();
    if size > CONFIG {
        // As the compiler would say it: the answer is a finding, not a failure of the route.
        return Ok((
            String::new(),
            vec![format!("the configuration has {size} bytes; at most {CONFIG} are allowed")],
        ));
    }
    let orgs = orgs(app, caller, how.owner.as_deref()).await?;
    let ask = CompileConfig {
        source: app.send(source).await?,
        parameters: how.parameters,
        values: how.values,
        orgs,
    };
    let options = AskOptions { deadline: WAIT, ..AskOptions::default() };
    reply(app, app.bus.ask_with(options, &caller.actor(), &ask).await?).await
}

/// The parts of a compile's answer.
pub async fn reply(app: &App, reply: CompileReply) -> Result<(String, Vec<String>), Fail> {
    Ok((app.receive(reply.output).await?, reply.errors))
}

/// The caller's organisations, or the one that it names by id or slug.
pub async fn orgs(app: &App, caller: &Caller, owner: Option<&str>) -> Result<Vec<OrgId>, Fail> {
    let all = view::orgs(app, caller).await?;
    let Some(owner) = owner.filter(|owner| !owner.is_empty()) else {
        return Ok(all.into_iter().map(|org| org.id).collect());
    };
    let found = all.into_iter().find(|org| {
        org.id.to_string().eq_ignore_ascii_case(owner) || owner.rsplit('/').next() == Some(org.name.as_str())
    });
    Ok(vec![found.ok_or_else(|| Fail::not_found("Organization"))?.id])
}
