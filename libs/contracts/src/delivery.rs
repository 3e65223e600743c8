//! Pushes and webhooks; owner: `api`.

use crate::{ask, domain::Project, event};
use ids::DeliveryId;
use serde::{Deserialize, Serialize};

/// A branch or tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GitRef {
    /// `refs/heads/…`
    Branch(String),
    /// `refs/tags/…`
    Tag(String),
}

/// A push was accepted. Personal part: `{"subject": commit subject, "message": whole message, "author": name}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeliveryReceived {
    /// Its id; aggregate kind `delivery`.
    pub delivery_id: DeliveryId,
    /// Project.
    pub project: Project,
    /// What was pushed.
    pub reference: GitRef,
    /// Commit before, if the ref existed.
    pub before: Option<String>,
    /// Commit after.
    pub revision: String,
    /// Whether the head commit's message says `[skip ci]` or `[ci skip]` (execution §2).
    pub skip: bool,
    /// Whether the pusher asked for no pipeline: `git push -o ci.skip`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_pipeline: bool,
}
event!(DeliveryReceived, "delivery.received", 1);

/// What became of a delivery.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "snake_case")]
pub enum Decision {
    /// Not decided yet.
    Pending,
    /// A pipeline.
    Pipeline {
        /// Its id.
        id: ids::PipelineId,
        /// Its number.
        number: i64,
    },
    /// No pipeline.
    Skipped {
        /// Why.
        reason: String,
    },
}

/// Asks `pipelines` what became of a delivery; waits up to `wait_ms` for the decision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GetDecision {
    /// Which.
    pub delivery_id: DeliveryId,
    /// How long to wait.
    pub wait_ms: u64,
}
ask!(query GetDecision, "pipelines", "delivery.decision", Decision);
