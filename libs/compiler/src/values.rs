//! What `pipeline.…` names mean.

use crate::PipelineValues;
use crate::diagnostics::Span;
use crate::yaml::{Node, Value};
use std::collections::HashMap;

/// The names of the language (config-language §20), but the families below.
pub(crate) const KNOWN: &[&str] = &[
    "pipeline.id",
    "pipeline.number",
    "pipeline.name",
    "pipeline.definition.id",
    "pipeline.integration_source",
    "pipeline.project.git_url",
    "pipeline.project.type",
    "pipeline.project.slug",
    "pipeline.git.branch",
    "pipeline.git.branch.is_default",
    "pipeline.git.tag",
    "pipeline.git.revision",
    "pipeline.git.base_revision",
    "pipeline.git.repo_url",
    "pipeline.git.repo_id",
    "pipeline.git.repo_owner",
    "pipeline.git.repo_name",
    "pipeline.git.commit.url",
    "pipeline.git.commit.subject",
    "pipeline.git.commit.body",
    "pipeline.git.commit.author_login",
    "pipeline.config.repository.name",
    "pipeline.config.repository.url",
    "pipeline.config.file_path",
    "pipeline.config.ref",
    "pipeline.config.sha",
    "pipeline.trigger.received_at",
    "pipeline.trigger.id",
    "pipeline.trigger.type",
    "pipeline.trigger_source",
    "pipeline.schedule.name",
    "pipeline.schedule.id",
    "pipeline.event.name",
    "pipeline.event.action",
    "pipeline.trigger_parameters.webhook.body",
];

/// Families of names: what a provider sends differs from event to event.
const KNOWN_PREFIXES: &[&str] = &[
    "pipeline.event.github.",
    "pipeline.event.context.",
    "pipeline.trigger_parameters.circleci.",
    "pipeline.trigger_parameters.github_app.",
    "pipeline.trigger_parameters.gitlab.",
    "pipeline.deploy.",
];

/// Whether the language has this name.
pub(crate) fn is_known(name: &str) -> bool {
    KNOWN.contains(&name) || KNOWN_PREFIXES.iter().any(|p| name.len() > p.len() && name.starts_with(p))
}

/// The pipeline values of one compile.
pub(crate) struct Values(HashMap<String, Value>);

impl Values {
    pub fn new(given: &PipelineValues) -> Self {
        let text = |text: &str| Value::Str(text.into());
        let option = |value: &Option<String>| value.as_deref().map_or(Value::Null, text);
        let or_null = |value: &str| if value.is_empty() { Value::Null } else { text(value) };
        let fields = [
            ("pipeline.id", text(&given.id)),
            ("pipeline.number", Value::Int(given.number)),
            ("pipeline.project.git_url", text(&given.git_url)),
            ("pipeline.project.slug", text(&given.project_slug)),
            ("pipeline.project.type", or_null(&given.project_type)),
            ("pipeline.git.branch", option(&given.branch)),
            ("pipeline.git.tag", option(&given.tag)),
            ("pipeline.git.revision", text(&given.revision)),
            ("pipeline.git.base_revision", option(&given.base_revision)),
            ("pipeline.trigger_source", or_null(&given.trigger_source)),
        ];
        let mut values: HashMap<String, Value> =
            fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        for (name, value) in given.more.iter().filter(|(name, _)| is_known(name)) {
            let value = match value {
                serde_json::Value::Bool(b) => Value::Bool(*b),
                serde_json::Value::Number(n) => n.as_i64().map_or_else(|| text(&n.to_string()), Value::Int),
                serde_json::Value::String(s) => text(s),
                _ => Value::Null,
            };
            values.insert(name.clone(), value);
        }
        Self(values)
    }

    /// The value; null for a known name without one; `None` for an unknown name.
    pub fn get(&self, name: &str) -> Option<Node> {
        let value = self.0.get(name).cloned().or(is_known(name).then_some(Value::Null))?;
        Some(Node { span: Span::default(), value })
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        KNOWN.iter().copied()
    }
}
