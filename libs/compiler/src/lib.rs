//! The configuration language: from the text of `.circleci/config.yml` to a checked plan.
//!
//! Pure: no files, no clock, no network. What the language has and this compiler does not run is
//! refused with a place, never ignored.
//!
//! ```
//! use gantry_compiler::{Input, compile};
//! let source = "version: 2.1\njobs: {build: {machine: true, steps: [checkout]}}\n";
//! let compiled = compile(&Input::new("config.yml", source)).unwrap();
//! assert_eq!(compiled.plan.workflows[0].jobs[0].name, "build");
//! ```
//!
//! **Orbs.** Sources of orbs come in through [`OrbSource`]: `fetch` is given an [`OrbRef`] (registry or URL) and
//! answers with the text, what the reference resolved to, a digest and the references that were frozen when the
//! orb was published. It is called once for each reference of a compile; equal digests are read once.
//! [`OrbVersion::pick`] chooses among published versions. [`Compiled::orbs`] lists what was used, for lock files.
//!
//! **Places.** A finding in an orb has the orb as its `file` (`circleci/node@5.1.1`) and carries its text, so
//! that [`Diagnostic::render`] shows the right lines; `related` holds the calls that led there, innermost first,
//! each with its own file and text.

mod builtin;
pub mod check;
mod context;
mod data;
mod diagnostics;
pub mod diff;
pub mod editor;
mod emit;
mod executors;
pub mod explain;
mod expression;
mod filters;
mod fix;
pub mod format;
pub mod graph;
mod groups;
mod input;
mod interpolate;
mod invocations;
mod jobs;
mod logic;
mod lower;
mod matrix;
mod names;
mod orbs;
pub mod pack;
mod params;
mod pattern;
mod pipeline_parameters;
mod requires;
mod resolve;
mod restriction;
mod review;
pub mod sarif;
mod scalars;
mod schedules;
mod schema;
mod scope;
pub mod simulate;
mod steps;
mod syntax;
mod values;
mod variables;
mod workflows;
mod yaml;
mod yaml_text;

pub use data::data;
pub use diagnostics::{Diagnostic, Related, Severity, SourceText, code};
pub use fix::{Fix, Fixed, fix};
pub use input::{Compiled, Input, PipelineValues};
pub use orbs::{BadOrbRef, NoOrbs, OrbError, OrbRef, OrbSource, OrbText, OrbVersion, Published, UsedOrb};
pub use pipeline_parameters::PipelineParameter;
pub use restriction::{Fact, MAX_RESTRICTION, restriction_holds};

use context::{Ctx, Refs};
use diagnostics::{Sink, Span};
use model::plan::Plan;
use values::Values;
use yaml::{Map, Value};

/// Keys of the top level. Others are where authors keep their anchors.
const TOP_LEVEL: &[&str] =
    &["version", "setup", "orbs", "parameters", "commands", "executors", "jobs", "job-groups", "workflows"];
/// The largest compiled configuration.
const MAX_PROCESSED: usize = 8 << 20;

/// Compiles one configuration.
///
/// # Errors
/// All errors of the file, in the order of their places.
pub fn compile(input: &Input<'_>) -> Result<Compiled, Vec<Diagnostic>> {
    let sink = Sink::new(input.file, input.source);
    let mut ctx = Ctx::new(sink, Values::new(&input.values), input.orbs);
    ctx.may_be_empty = input.continuation;
    ctx.refs = Refs { branch: input.values.branch.clone(), tag: input.values.tag.clone() };
    let compiled = run(&mut ctx, input);
    let failed = ctx.sink.has_errors();
    let (errors, warnings) = ctx.sink.finish();
    match compiled {
        Some((plan, processed)) if !failed => {
            Ok(Compiled { plan, processed, warnings, orbs: ctx.imports.used, parameters: ctx.parameters })
        }
        _ => Err(errors),
    }
}

/// The top level of the file and its compiled workflows.
fn workflows_of(ctx: &mut Ctx<'_>, input: &Input<'_>) -> Option<(Map, Vec<workflows::Compiled>)> {
    let root = yaml::read(&mut ctx.sink, 0)?;
    let Some(map) = root.as_map().cloned() else {
        ctx.wrong_type(&root, "the configuration", "a map");
        return None;
    };
    ctx.interpolation = version(ctx, &map)?;
    ctx.setup = top_level(ctx, &map, input.continuation);
    if ctx.interpolation {
        ctx.pipeline_parameters(&map, input.parameters, input.inherited_parameters, !input.continuation);
        if let Some(agent) = map.get("build_agent") {
            let env = interpolate::Env { pipeline_parameters: true, ..interpolate::Env::default() };
            ctx.interpolate(&agent.value, env);
        }
    } else if let Some((name, _)) = input.parameters.iter().next() {
        let message = format!("Unexpected argument(s): {name}: version 2 has no parameters");
        ctx.sink.error(code::UNEXPECTED_ARGUMENT, Span::default(), message);
    }
    let project = ctx.project_scope(&map);
    let workflows = ctx.workflows(&map, &project, input.schedule);
    ctx.check_document(&map, &project);
    Some((map.as_ref().clone(), workflows))
}

fn run(ctx: &mut Ctx<'_>, input: &Input<'_>) -> Option<(Plan, String)> {
    let (map, workflows) = workflows_of(ctx, input)?;
    if ctx.sink.has_errors() {
        return None;
    }
    let processed = emit::emit(&workflows, &ctx.imports.used, input.source);
    if processed.len() > MAX_PROCESSED + input.source.len() {
        ctx.sink.error(code::SIZE_LIMIT, Span::default(), "A compiled config YAML must be at most 8MB");
        return None;
    }
    // A workflow in which no job passes its filters is not created.
    let workflows: Vec<_> =
        workflows.into_iter().filter(|w| w.runs && !w.plan.jobs.is_empty()).map(|w| w.plan).collect();
    if ctx.setup
        && let [_, second, ..] = workflows.as_slice()
    {
        let at = workflow_key(&map, &second.name);
        let message = "only one workflow may run in a setup configuration: another one runs as well";
        ctx.sink.error_hint(code::SETUP, at, message, "give all but one a `when` that excludes it");
        return None;
    }
    let schedules = std::mem::take(&mut ctx.schedules);
    Some((Plan { workflows, setup: ctx.setup, schedules }, processed))
}

/// Whether the version interpolates (2.1); `None` for an unknown version.
fn version(ctx: &mut Ctx<'_>, map: &Map) -> Option<bool> {
    let entry = map.get("version");
    let interpolates = match entry.map(|e| &e.value.value) {
        Some(Value::Int(2)) => Some(false),
        Some(Value::Float(n)) if n.number == 2.0 => Some(false),
        Some(Value::Float(n)) if n.number == 2.1 => Some(true),
        Some(Value::Str(text)) => match text.as_ref() {
            "2" | "2.0" => Some(false),
            "2.1" => Some(true),
            _ => None,
        },
        _ => None,
    };
    if interpolates.is_none() {
        let at = entry.map_or(Span::default(), |e| e.value.span);
        let message = "Unsupported or missing workflows config version";
        let near = map.iter().filter(|_| entry.is_none());
        let near = near.filter_map(|(key, e)| Some((e.key, diagnostics::suggest(key, ["version"])?))).next();
        let (at, hint) =
            near.unwrap_or_else(|| (at, "write `version: 2.1` at the top of the file".to_owned()));
        ctx.sink.error_hint(code::UNSUPPORTED_VERSION, at, message, hint);
    }
    interpolates
}

fn workflow_key(map: &Map, name: &str) -> Span {
    let workflows = map.get("workflows").and_then(|e| e.value.as_map());
    workflows.and_then(|w| w.get(name)).map_or(Span::default(), |e| e.key)
}

/// Whether it is a setup configuration.
fn top_level(ctx: &mut Ctx<'_>, map: &Map, continuation: bool) -> bool {
    let mut setup = false;
    for (key, entry) in map {
        let value = &entry.value.value;
        match key.as_ref() {
            "setup" if ctx.interpolation => match value {
                Value::Bool(false) | Value::Null => {}
                Value::Bool(true) if continuation => {
                    let message = "a pipeline cannot be continued with another setup configuration";
                    ctx.sink.error(code::SETUP, entry.key, message);
                }
                Value::Bool(true) => setup = true,
                _ => ctx.wrong_type(&entry.value, "`setup`", "a boolean"),
            },
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
    setup
}
