//! The event for which a configuration is compiled.

use crate::{Exit, Failure};
use clap::{Args, ValueEnum};
use compiler::PipelineValues;
use serde_json::{Map, Value, json};

/// What starts a pipeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// A pushed branch or, with --tag, a pushed tag
    #[default]
    Push,
    /// A pull request
    PullRequest,
    /// The API or the command line
    Api,
    /// A schedule
    Schedule,
}

/// Options of every command that compiles.
#[derive(Args, Clone, Debug, Default)]
#[group(skip)]
pub(super) struct Options {
    /// What starts the pipeline
    #[arg(long, value_enum, default_value_t)]
    event: Kind,
    /// Branch of the pipeline [default: main]
    #[arg(long, conflicts_with = "tag")]
    branch: Option<String>,
    /// Tag of the pipeline, instead of a branch
    #[arg(long)]
    tag: Option<String>,
    /// A pipeline parameter, NAME=VALUE; booleans and numbers are read as such; may be repeated
    #[arg(long = "param", value_name = "NAME=VALUE")]
    parameters: Vec<String>,
    /// A pipeline value, for example pipeline.git.commit.subject=Fix; may be repeated
    #[arg(long = "value", value_name = "NAME=VALUE")]
    values: Vec<String>,
}

impl Options {
    /// `pipeline.…` of the event.
    pub fn values(&self) -> Result<PipelineValues, Failure> {
        let (name, source) = match self.event {
            Kind::Push => ("push", "webhook"),
            Kind::PullRequest => ("pull_request", "webhook"),
            Kind::Api => ("api", "api"),
            Kind::Schedule => ("schedule", "scheduled_pipeline"),
        };
        let branch = match (&self.tag, &self.branch) {
            (Some(_), _) => None,
            (None, Some(branch)) => Some(branch.clone()),
            (None, None) => Some("main".to_owned()),
        };
        let mut values = PipelineValues {
            id: "00000000-0000-4000-8000-000000000000".to_owned(),
            number: 1,
            branch,
            tag: self.tag.clone(),
            revision: "0000000000000000000000000000000000000000".to_owned(),
            trigger_source: source.to_owned(),
            ..PipelineValues::default()
        };
        values.more.insert("pipeline.event.name".to_owned(), json!(name));
        for (name, value) in pairs(&self.values, "--value")? {
            let full = if name.starts_with("pipeline.") { name } else { format!("pipeline.{name}") };
            values.more.insert(full, value);
        }
        Ok(values)
    }

    /// Pipeline parameters that are given.
    pub fn parameters(&self) -> Result<Map<String, Value>, Failure> {
        Ok(pairs(&self.parameters, "--param")?.into_iter().collect())
    }
}

fn pairs(list: &[String], flag: &str) -> Result<Vec<(String, Value)>, Failure> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), typed(value))),
        _ => Err(Failure::new(Exit::Usage, format!("{flag} takes NAME=VALUE, not `{text}`"))),
    };
    list.iter().map(pair).collect()
}

/// Booleans and integers as such; a text in double quotes is a text, whatever stands in it.
fn typed(text: &str) -> Value {
    if let Some(inner) = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
        return Value::from(inner);
    }
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => text.parse::<i64>().map_or_else(|_| Value::from(text), Value::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_types() {
        assert_eq!(typed("true"), json!(true));
        assert_eq!(typed("12"), json!(12));
        assert_eq!(typed("\"12\""), json!("12"));
        assert_eq!(typed("a=b"), json!("a=b"));
        assert!(pairs(&["novalue".to_owned()], "--param").is_err());
    }
}
