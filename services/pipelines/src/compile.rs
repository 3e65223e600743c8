//! The compiler, away from the threads that serve requests, within a time limit.

use crate::{State, create::New, fetch::PATH};
use anyhow::Context;
use compiler::{Diagnostic, Input, PipelineValues};
use contracts::{Refusal, pipelines::PipelineError};
use ids::PipelineId;
use model::plan::Plan;
use serde_json::{Map, Value};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::timeout;

/// Longest compile. The delivery's transaction is open meanwhile.
const LIMIT: Duration = Duration::from_secs(3);
/// Findings that a pipeline shows, and characters of each: an event has a size.
const MAX_ERRORS: usize = 50;
const MAX_MESSAGE: usize = 1000;

/// What became of a configuration.
#[derive(Default)]
pub(crate) struct Outcome {
    /// What runs; none with errors.
    pub(crate) plan: Option<Plan>,
    /// Why nothing runs.
    pub(crate) errors: Vec<PipelineError>,
    /// The configuration after all expansion.
    pub(crate) compiled: String,
}

type Found = Result<(Plan, String), Vec<Diagnostic>>;

/// Compiles a new pipeline's configuration. An `Err` is a fault of ours, never the author's.
pub(crate) async fn compile(
    state: &State,
    id: PipelineId,
    number: i64,
    new: &New,
) -> anyhow::Result<Outcome> {
    let source = match &new.source {
        Ok(source) => source,
        Err(error) => return Ok(Outcome { errors: vec![error.clone()], ..Outcome::default() }),
    };
    let values = values(state, &id.to_string(), number, new);
    Ok(match run(source, new.parameters.clone(), values).await? {
        None => Outcome { errors: vec![too_long()], ..Outcome::default() },
        Some(Ok((plan, compiled))) => Outcome { plan: Some(plan), errors: Vec::new(), compiled },
        Some(Err(found)) => Outcome { errors: errors(&found), ..Outcome::default() },
    })
}

/// Refuses parameters that the configuration does not declare or whose values do not fit. What else is wrong
/// with the configuration is the pipeline's to say: these are the findings that only the parameters cause.
pub(crate) async fn check_parameters(state: &State, new: &New) -> anyhow::Result<Result<(), Refusal>> {
    let (Ok(source), false) = (&new.source, new.parameters.is_empty()) else { return Ok(Ok(())) };
    let values = || values(state, "", 0, new);
    let Some(Err(with)) = run(source, new.parameters.clone(), values()).await? else { return Ok(Ok(())) };
    let without = match run(source, Map::new(), values()).await? {
        Some(Err(found)) => found.iter().map(|each| each.message.clone()).collect(),
        _ => HashSet::new(),
    };
    use compiler::code::{ARGUMENT_TYPE, UNEXPECTED_ARGUMENT};
    let caused: Vec<&str> = with
        .iter()
        .filter(|each| [ARGUMENT_TYPE, UNEXPECTED_ARGUMENT].contains(&each.code))
        .map(|each| each.message.as_str())
        .filter(|message| !without.contains(*message))
        .collect();
    if caused.is_empty() { Ok(Ok(())) } else { Ok(Err(Refusal::new("invalid", cut(&caused.join("; "))))) }
}

fn values(state: &State, id: &str, number: i64, new: &New) -> PipelineValues {
    PipelineValues {
        id: id.to_owned(),
        number,
        project_slug: new.project.slug.clone(),
        project_type: "git".to_owned(),
        git_url: format!("{}/git/{}/{}.git", state.git_url, new.project.org, new.project.name),
        branch: new.vcs.branch.clone(),
        tag: new.vcs.tag.clone(),
        revision: new.vcs.revision.clone(),
        base_revision: new.before.clone(),
        trigger_source: new.trigger.kind.clone(),
        ..PipelineValues::default()
    }
}

/// `None`: it took too long.
async fn run(
    source: &str,
    parameters: Map<String, Value>,
    values: PipelineValues,
) -> anyhow::Result<Option<Found>> {
    let source: Arc<str> = source.into();
    let work = tokio::task::spawn_blocking(move || {
        let input = Input { parameters: &parameters, values, ..Input::new(PATH, &source) };
        compiler::compile(&input).map(|compiled| (compiled.plan, compiled.processed))
    });
    match timeout(LIMIT, work).await {
        Err(_) => Ok(None),
        Ok(done) => Ok(Some(done.context("the compiler panicked")?)),
    }
}

fn errors(found: &[Diagnostic]) -> Vec<PipelineError> {
    let mut errors: Vec<PipelineError> = found
        .iter()
        .take(MAX_ERRORS)
        .map(|each| PipelineError { kind: "config".to_owned(), message: cut(&each.one_line()) })
        .collect();
    if found.len() > MAX_ERRORS {
        let message = format!("{PATH}: {} more findings are not shown", found.len() - MAX_ERRORS);
        errors.push(PipelineError { kind: "config".to_owned(), message });
    }
    errors
}

fn too_long() -> PipelineError {
    let message = format!("{PATH}: compiling took longer than {} s", LIMIT.as_secs());
    PipelineError { kind: "config".to_owned(), message }
}

fn cut(message: &str) -> String {
    if message.chars().count() <= MAX_MESSAGE {
        return message.to_owned();
    }
    message.chars().take(MAX_MESSAGE).chain(['…']).collect()
}
