//! The compiler, away from the threads that serve requests, within a time limit.

use crate::{State, create::New, fetch::PATH, orbs, orbs::Shelf, values};
use anyhow::Context;
use compiler::{Diagnostic, Input, PipelineValues};
use contracts::{Refusal, pipelines::PipelineError};
use ids::{OrgId, PipelineId};
use model::plan::{JobKind, Plan};
use serde_json::{Map, Value};
use sqlx::PgConnection;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::timeout;

/// Longest compile. The delivery's transaction is open meanwhile.
const LIMIT: Duration = Duration::from_secs(3);
/// How often orbs are read and the compiler asked again: once for each level of orbs that import orbs, which the
/// compiler bounds, and once for a reference that became known on the way.
const PASSES: usize = 8;
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

/// A compiled configuration, or what is wrong with it.
pub(crate) type Found = Result<(Plan, String), Vec<Diagnostic>>;

/// An [`Input`] that owns what it needs.
#[derive(Clone)]
pub(crate) struct Job {
    pub(crate) file: Arc<str>,
    pub(crate) source: Arc<str>,
    pub(crate) parameters: Map<String, Value>,
    pub(crate) inherited: Map<String, Value>,
    pub(crate) values: PipelineValues,
    pub(crate) continuation: bool,
}

impl Job {
    /// Owns what an input borrows; its orbs are left out.
    pub(crate) fn of(input: &Input<'_>) -> Self {
        Self {
            file: input.file.into(),
            source: input.source.into(),
            parameters: input.parameters.clone(),
            inherited: input.inherited_parameters.clone(),
            values: input.values.clone(),
            continuation: input.continuation,
        }
    }

    /// The configuration of a repository.
    pub(crate) fn new(source: &str, parameters: Map<String, Value>, values: PipelineValues) -> Self {
        Self { parameters, values, ..Self::of(&Input::new(PATH, source)) }
    }
}

/// Compiles a new pipeline's configuration. An `Err` is a fault of ours, never the author's.
pub(crate) async fn compile(
    state: &State,
    conn: &mut PgConnection,
    id: PipelineId,
    number: i64,
    new: &New,
) -> anyhow::Result<Outcome> {
    let source = match &new.source {
        Ok(source) => source,
        Err(error) => return Ok(Outcome { errors: vec![error.clone()], ..Outcome::default() }),
    };
    let values = values::of(state, &new.facts(id, number));
    let job = Job::new(source, new.parameters.clone(), values);
    Ok(outcome(with_orbs(conn, &Shelf::default(), &[new.project.org_id], job).await?))
}

/// What a pipeline makes of a compile.
pub(crate) fn outcome(found: Option<Found>) -> Outcome {
    match found {
        None => Outcome { errors: vec![too_long()], ..Outcome::default() },
        Some(Err(found)) => Outcome { errors: errors(&found), ..Outcome::default() },
        Some(Ok((mut plan, compiled))) => {
            if plan.setup {
                hand_keys(&mut plan);
            }
            Outcome { plan: Some(plan), errors: Vec::new(), compiled }
        }
    }
}

/// Jobs of a setup configuration are handed the pipeline's continuation key.
fn hand_keys(plan: &mut Plan) {
    for job in plan.workflows.iter_mut().flat_map(|workflow| &mut workflow.jobs) {
        if let JobKind::Build { definition } = &mut job.kind {
            definition.continues = true;
        }
    }
}

/// Refuses parameters that the configuration does not declare or whose values do not fit. What else is wrong
/// with the configuration is the pipeline's to say: these are the findings that only the parameters cause.
pub(crate) async fn check_parameters(state: &State, new: &New) -> anyhow::Result<Result<(), Refusal>> {
    let (Ok(source), false) = (&new.source, new.parameters.is_empty()) else { return Ok(Ok(())) };
    let values = values::of(state, &new.facts(PipelineId::new(), 0));
    let job = Job::new(source, new.parameters.clone(), values);
    let mut conn = state.store.pool().acquire().await?;
    misfits(&mut conn, new.project.org_id, job).await
}

/// The findings that a job's parameters alone cause, as a refusal.
pub(crate) async fn misfits(
    conn: &mut PgConnection,
    org: OrgId,
    job: Job,
) -> anyhow::Result<Result<(), Refusal>> {
    let shelf = Shelf::default();
    let bare = Job { parameters: Map::new(), ..job.clone() };
    let Some(Err(with)) = with_orbs(conn, &shelf, &[org], job).await? else { return Ok(Ok(())) };
    let without = match with_orbs(conn, &shelf, &[org], bare).await? {
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

/// Compiles with orbs of the registry: what the compiler asks for in vain is read, and it is asked again.
/// `None`: it took too long.
pub(crate) async fn with_orbs(
    conn: &mut PgConnection,
    shelf: &Shelf,
    orgs: &[OrgId],
    job: Job,
) -> anyhow::Result<Option<Found>> {
    let work = async {
        for _ in 0..PASSES {
            let found = run(job.clone(), shelf.clone()).await?;
            let missing = shelf.missing();
            if missing.is_empty() {
                return Ok(Some(found));
            }
            for reference in missing {
                let orb = orbs::resolve(conn, &reference, orgs).await?;
                shelf.put(reference, orb);
            }
        }
        Ok(None)
    };
    timeout(LIMIT, work).await.unwrap_or(Ok(None))
}

async fn run(job: Job, shelf: Shelf) -> anyhow::Result<Found> {
    let work = tokio::task::spawn_blocking(move || {
        let input = Input {
            parameters: &job.parameters,
            inherited_parameters: &job.inherited,
            values: job.values,
            orbs: &shelf,
            continuation: job.continuation,
            schedule: None,
            ..Input::new(&job.file, &job.source)
        };
        compiler::compile(&input).map(|compiled| (compiled.plan, compiled.processed))
    });
    work.await.context("the compiler panicked")
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

pub(crate) fn too_long() -> PipelineError {
    let message = format!("{PATH}: compiling took longer than {} s", LIMIT.as_secs());
    PipelineError { kind: "config".to_owned(), message }
}

fn cut(message: &str) -> String {
    if message.chars().count() <= MAX_MESSAGE {
        return message.to_owned();
    }
    message.chars().take(MAX_MESSAGE).chain(['…']).collect()
}
