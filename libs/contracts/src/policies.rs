//! Config policies; owner: `pipelines` (config-language §26, api-v2 §15).

use crate::{ask, event, text::Text};
use ids::{OrgId, PipelineId, PolicyBundleId, PolicyDecisionId, ProjectId, Timestamp, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// An organisation's bundle was replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyBundlePushed {
    /// Whose; aggregate kind `policies`, with the organisation's id.
    pub org_id: OrgId,
    /// Id of the new bundle.
    pub bundle_id: PolicyBundleId,
    /// SHA-256 (hex) of each policy by name.
    pub policies: BTreeMap<String, String>,
}
event!(PolicyBundlePushed, "policy.bundle_pushed", 1);

/// Policies decide about pipelines from now on, or no longer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicySettingsChanged {
    /// Whose.
    pub org_id: OrgId,
    /// Whether they decide.
    pub enabled: bool,
}
event!(PolicySettingsChanged, "policy.settings_changed", 1);

/// A policy of a bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyView {
    /// What its `policy_name` rule says.
    pub name: String,
    /// Its text.
    pub content: Text,
    /// Since when it has this text.
    pub created_at: Timestamp,
    /// Who pushed it.
    pub created_by: Option<UserId>,
}

/// The bundle of an organisation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetPolicyBundle {
    /// Whose.
    pub org_id: OrgId,
    /// The one of this decision instead of the current one.
    pub decision: Option<PolicyDecisionId>,
}
ask!(query GetPolicyBundle, "pipelines", "policy.bundle", Vec<PolicyView>);

/// Replaces the bundle of an organisation, or only says what would change. Refused `invalid`, `too_large`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PushPolicyBundle {
    /// Whose.
    pub org_id: OrgId,
    /// JSON: path → text of each file.
    pub files: Text,
    /// Change nothing.
    pub dry: bool,
}
ask!(PushPolicyBundle, "pipelines", "policy.push", BundleChanges);

/// Names of policies by what becomes of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleChanges {
    /// New ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub created: Vec<String>,
    /// With another text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modified: Vec<String>,
    /// Gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<String>,
}

/// Whether policies decide about an organisation's pipelines.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetPolicySettings {
    /// Whose.
    pub org_id: OrgId,
}
ask!(query GetPolicySettings, "pipelines", "policy.settings", bool);

/// Lets policies decide, or not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetPolicySettings {
    /// Whose.
    pub org_id: OrgId,
    /// Whether they decide.
    pub enabled: bool,
}
ask!(SetPolicySettings, "pipelines", "policy.set_settings", bool);

/// Decides about a configuration with the organisation's bundle; the answer is a decision as api-v2 §1 shows it.
/// Refused `invalid` when the input is no YAML.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DecidePolicy {
    /// Whose bundle.
    pub org_id: OrgId,
    /// YAML: the source with the compiled configuration under `_compiled_`.
    pub input: Text,
    /// `data.meta`.
    pub metadata: Value,
}
ask!(DecidePolicy, "pipelines", "policy.decide", Value);

/// Decisions of an organisation, newest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ListPolicyDecisions {
    /// Whose.
    pub org_id: Option<OrgId>,
    /// This one only.
    #[serde(default)]
    pub id: Option<PolicyDecisionId>,
    /// `PASS`, `SOFT_FAIL`, `HARD_FAIL` or `ERROR`.
    #[serde(default)]
    pub status: Option<String>,
    /// Made after this.
    #[serde(default)]
    pub after: Option<Timestamp>,
    /// Made before this.
    #[serde(default)]
    pub before: Option<Timestamp>,
    /// About pipelines of this branch.
    #[serde(default)]
    pub branch: Option<String>,
    /// About pipelines of this project.
    #[serde(default)]
    pub project_id: Option<ProjectId>,
    /// About pipelines with this number.
    #[serde(default)]
    pub build_number: Option<i64>,
    /// How many are left out first.
    #[serde(default)]
    pub offset: i64,
}
ask!(query ListPolicyDecisions, "pipelines", "policy.decisions", Vec<PolicyDecisionView>);

/// A decision that was made about a pipeline or asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyDecisionView {
    /// Its id.
    pub id: PolicyDecisionId,
    /// When.
    pub created_at: Timestamp,
    /// Milliseconds that it took.
    pub time_taken_ms: i64,
    /// As api-v2 §1 shows it.
    pub decision: Value,
    /// `data.meta`.
    pub metadata: Value,
    /// SHA-512 (hex) of each policy by name.
    pub policies: BTreeMap<String, String>,
    /// The pipeline, if it was about one.
    pub pipeline_id: Option<PipelineId>,
}
