//! The configuration language: from the text of `.circleci/config.yml` to a checked plan.
//!
//! Pure: no files, no clock, no network. What the language has and this compiler does not run is
//! refused with a place, never ignored.

mod context;
mod diagnostics;
mod emit;
mod expression;
mod filters;
mod interpolate;
mod jobs;
mod logic;
mod lower;
mod params;
mod pattern;
mod scalars;
mod scope;
mod steps;
mod values;
mod workflows;
mod yaml;

pub use diagnostics::{Diagnostic, Related, Severity, code};

use context::Ctx;
use diagnostics::{Sink, Span};
use model::plan::Plan;
use values::Values;
use yaml::{Map, Value};

/// Keys of the top level. Others are where authors keep their anchors.
const TOP_LEVEL: &[&str] =
    &["version", "setup", "orbs", "parameters", "commands", "executors", "jobs", "job-groups", "workflows"];
/// The largest compiled configuration.
const MAX_PROCESSED: usize = 8 << 20;

/// What is compiled.
pub struct Input<'a> {
    /// The file name to show, for example `.circleci/config.yml`.
    pub file: &'a str,
    /// Its text.
    pub source: &'a str,
    /// Pipeline parameters that the trigger gave.
    pub parameters: &'a serde_json::Map<String, serde_json::Value>,
    /// What `pipeline.…` means.
    pub values: PipelineValues,
}

/// What is known about the pipeline before it is compiled.
#[derive(Default, Clone, Debug)]
pub struct PipelineValues {
    /// `pipeline.id`.
    pub id: String,
    /// `pipeline.number`.
    pub number: i64,
    /// `pipeline.project.slug`.
    pub project_slug: String,
    /// `pipeline.project.git_url`.
    pub git_url: String,
    /// `pipeline.project.type`.
    pub project_type: String,
    /// `pipeline.git.branch`; none for a tag.
    pub branch: Option<String>,
    /// `pipeline.git.tag`; none for a branch.
    pub tag: Option<String>,
    /// `pipeline.git.revision`.
    pub revision: String,
    /// `pipeline.git.base_revision`.
    pub base_revision: Option<String>,
    /// `pipeline.trigger_source`.
    pub trigger_source: String,
}

/// What a configuration means for one trigger.
#[derive(Debug)]
pub struct Compiled {
    /// The workflows that run, without the jobs that filters remove.
    pub plan: Plan,
    /// The compiled configuration as text, with all jobs and their filters.
    pub processed: String,
    /// What should be looked at although it runs.
    pub warnings: Vec<Diagnostic>,
}

/// Compiles one configuration.
///
/// # Errors
/// All errors of the file, in the order of their places.
pub fn compile(input: &Input<'_>) -> Result<Compiled, Vec<Diagnostic>> {
    let sink = Sink::new(input.file, input.source);
    let mut ctx = Ctx::new(sink, Values::new(&input.values));
    let compiled = run(&mut ctx, input);
    let failed = ctx.sink.has_errors();
    let (errors, warnings) = ctx.sink.finish();
    match compiled {
        Some((plan, processed)) if !failed => Ok(Compiled { plan, processed, warnings }),
        _ => Err(errors),
    }
}

fn run(ctx: &mut Ctx<'_>, input: &Input<'_>) -> Option<(Plan, String)> {
    let root = yaml::read(&mut ctx.sink)?;
    let Some(map) = root.as_map().cloned() else {
        ctx.wrong_type(&root, "the configuration", "a map");
        return None;
    };
    ctx.interpolation = version(ctx, &map)?;
    top_level(ctx, &map);
    if ctx.interpolation {
        ctx.pipeline_parameters(&map, input.parameters);
    } else if let Some((name, _)) = input.parameters.iter().next() {
        let message = format!("Unexpected argument(s): {name}: version 2 has no parameters");
        ctx.sink.error(code::UNEXPECTED_ARGUMENT, Span::default(), message);
    }
    let project = ctx.project_scope(&map);
    let workflows = ctx.workflows(&map, &project, &input.values);
    if ctx.sink.has_errors() {
        return None;
    }
    let processed = emit::emit(&workflows, input.source);
    if processed.len() > MAX_PROCESSED + input.source.len() {
        ctx.sink.error(code::SIZE_LIMIT, Span::default(), "A compiled config YAML must be at most 8MB");
        return None;
    }
    // A workflow in which no job passes its filters is not created.
    let workflows = workflows.into_iter().map(|w| w.plan).filter(|plan| !plan.jobs.is_empty()).collect();
    Some((Plan { workflows, setup: false }, processed))
}

/// Whether the version interpolates (2.1); `None` for an unknown version.
fn version(ctx: &mut Ctx<'_>, map: &Map) -> Option<bool> {
    let entry = map.get("version");
    let interpolates = match entry.map(|e| &e.value.value) {
        Some(Value::Int(2)) => Some(false),
        Some(Value::Float(n)) if *n == 2.0 => Some(false),
        Some(Value::Float(n)) if *n == 2.1 => Some(true),
        Some(Value::Str(text)) => match text.as_ref() {
            "2" | "2.0" => Some(false),
            "2.1" => Some(true),
            _ => None,
        },
        _ => None,
    };
    if interpolates.is_none() {
        let at = entry.map_or(Span::default(), |e| e.value.span);
        let hint = "write `version: 2.1` at the top of the file";
        ctx.sink.error_hint(
            code::UNSUPPORTED_VERSION,
            at,
            "Unsupported or missing workflows config version",
            hint,
        );
    }
    interpolates
}

fn top_level(ctx: &mut Ctx<'_>, map: &Map) {
    for (key, entry) in map {
        let value = &entry.value.value;
        match key.as_ref() {
            "setup" if ctx.interpolation => match value {
                Value::Bool(false) | Value::Null => {}
                Value::Bool(true) => {
                    ctx.sink.not_supported(entry.key, "a setup configuration (`setup: true`)")
                }
                _ => ctx.wrong_type(&entry.value, "`setup`", "a boolean"),
            },
            "job-groups" if ctx.interpolation => {
                if !entry.value.is_null() && entry.value.as_map().is_none_or(|m| !m.is_empty()) {
                    ctx.sink.not_supported(entry.key, "`job-groups`");
                }
            }
            "experimental" | "notify" | "build_agent" => {
                ctx.sink.warning(code::IGNORED, entry.key, format!("`{key}` has no effect"));
            }
            key if TOP_LEVEL.contains(&key) => {}
            key => {
                // Unknown keys hold anchors; one that looks like a known key is more likely a slip.
                if let Some(hint) = diagnostics::suggest(key, TOP_LEVEL.iter().copied())
                    && map.keys().all(|k| !hint.contains(&format!("`{k}`")))
                {
                    let message = format!("`{key}` is not a key of the configuration and is ignored");
                    ctx.sink.add(Severity::Warning, code::UNKNOWN_KEY, entry.key, message, Some(hint));
                }
            }
        }
    }
}
