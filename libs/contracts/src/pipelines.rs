//! Pipelines; owner: `pipelines`.

use crate::{ask, domain::Project, event, text::Text};
use ids::{OrgId, PipelineId, Timestamp, UserId};
use model::plan::Plan;
use serde::{Deserialize, Serialize};

/// The revision that is built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcs {
    /// Commit.
    pub revision: String,
    /// Branch, on branch pipelines.
    pub branch: Option<String>,
    /// Tag, on tag pipelines.
    pub tag: Option<String>,
}

/// What made a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    /// `webhook` (pushes), `api`, …
    pub kind: String,
    /// Who, if known.
    pub actor: Option<UserId>,
    /// Their login, if known.
    pub actor_login: Option<String>,
    /// When the trigger arrived.
    pub received_at: Timestamp,
}

/// A message about a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineError {
    /// `config`, `config-fetch`, `plan`, `other` …
    #[serde(rename = "type")]
    pub kind: String,
    /// Text with file:line:col.
    pub message: String,
}

/// A pipeline came into being: planned or errored. Personal part: `{"subject": …}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PipelineCreated {
    /// Its id; aggregate kind `pipeline`.
    pub pipeline_id: PipelineId,
    /// Project.
    pub project: Project,
    /// Dense per project, from 1.
    pub number: i64,
    /// What made it.
    pub trigger: Trigger,
    /// Revision.
    pub vcs: Vcs,
    /// Whether the plan is a setup configuration's: one of its jobs continues the pipeline, and until then its
    /// state is `setup` (config-language §19).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub setup: bool,
    /// Empty: it compiled.
    pub errors: Vec<PipelineError>,
    /// The plan, when below 64 KiB; a larger one is the blob `plans/<digest>`.
    pub plan: Option<Plan>,
    /// SHA-256 (hex) of the plan's JSON.
    pub plan_digest: Option<String>,
}
event!(PipelineCreated, "pipeline.created", 1);

/// A pipeline in state `setup` was continued: its second configuration is planned, or errored, and it never
/// continues again. The body is that of `pipeline.created` with the second plan and its errors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PipelineContinued(pub PipelineCreated);
event!(PipelineContinued, "pipeline.continued", 1);

/// Public state of a pipeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PipelineView {
    /// Its id.
    pub id: PipelineId,
    /// Its number.
    pub number: i64,
    /// `created`, `errored` …
    pub state: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// What it says.
    pub errors: Vec<PipelineError>,
    /// Project.
    pub project: Project,
    /// Revision.
    pub vcs: Vcs,
    /// Commit subject.
    pub subject: Option<String>,
    /// What made it.
    pub trigger: Trigger,
}

/// Makes a pipeline for a branch (default: the project's) or tag with parameters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TriggerPipeline {
    /// Project.
    pub project: Project,
    /// Branch.
    pub branch: Option<String>,
    /// Tag; not together with a branch.
    pub tag: Option<String>,
    /// Pipeline parameters by name.
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// Login of the actor.
    pub actor_login: Option<String>,
}
ask!(TriggerPipeline, "pipelines", "pipeline.trigger", PipelineView);

/// One pipeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetPipeline {
    /// Which.
    pub id: PipelineId,
}
ask!(query GetPipeline, "pipelines", "pipeline.get", PipelineView);

/// Source and compiled configuration of a pipeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetPipelineConfig {
    /// Which.
    pub id: PipelineId,
}
ask!(query GetPipelineConfig, "pipelines", "pipeline.config", PipelineConfig);

/// Source and compiled configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PipelineConfig {
    /// As in the repository, or as the setup phase gave it.
    pub source: Text,
    /// As compiled.
    pub compiled: Text,
    /// The setup configuration, of a pipeline that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<SetupConfig>,
}

/// Source and compiled form of a setup configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetupConfig {
    /// As in the repository.
    pub source: Text,
    /// As compiled.
    pub compiled: Text,
}

/// The pipeline values of a pipeline by their whole names (config-language §20).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetPipelineValues {
    /// Which.
    pub id: PipelineId,
}
ask!(query GetPipelineValues, "pipelines", "pipeline.values", serde_json::Map<String, serde_json::Value>);

/// Continues a pipeline in state `setup` with its second configuration (config-language §19). Whoever asks has shown
/// the pipeline's continuation key. Refused `invalid` for parameters that conflict, `not_found` or `not_in_setup`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContinuePipeline {
    /// Which.
    pub id: PipelineId,
    /// The second configuration.
    pub configuration: Text,
    /// Pipeline parameters by name.
    pub parameters: serde_json::Map<String, serde_json::Value>,
}
ask!(ContinuePipeline, "pipelines", "pipeline.continue", PipelineView);

/// What a job of a setup configuration shows to continue its pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContinuationClaims {
    /// Which pipeline.
    pub pipeline_id: PipelineId,
}

impl ContinuationClaims {
    /// The purpose under which the key is signed.
    pub const PURPOSE: &'static str = "continuation";
}

/// Compiles a configuration without a pipeline.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompileConfig {
    /// Its text.
    pub source: Text,
    /// Pipeline parameters by name.
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// Pipeline values by name, with or without `pipeline.` in front.
    pub values: serde_json::Map<String, serde_json::Value>,
    /// Organisations whose private orbs it may use.
    pub orgs: Vec<OrgId>,
}
ask!(CompileConfig, "pipelines", "config.compile", CompileReply);

/// What became of a text that was compiled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompileReply {
    /// After all expansion; empty with errors.
    pub output: Text,
    /// Why it is not valid; empty: it is.
    pub errors: Vec<String>,
}
