//! What all passes share.

use crate::diagnostics::{Sink, Span, code, suggest};
use crate::explain::Recorder;
use crate::interpolate::Args;
use crate::orbs::OrbSource;
use crate::params::Decls;
use crate::pattern::Patterns;
use crate::pipeline_parameters::PipelineParameter;
use crate::resolve::Imports;
use crate::values::Values;
use crate::yaml::{Map, Node};
use model::plan::Schedule;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Values that one compile may produce: commands that call commands multiply.
const MAX_WORK: usize = 1_000_000;
/// Bytes that one compile may produce by interpolation.
const MAX_BYTES: usize = 64 << 20;
/// Nested calls and lists of steps.
pub(crate) const MAX_CALLS: usize = 40;

/// The ref of the pipeline: a branch or a tag.
#[derive(Default)]
pub(crate) struct Refs {
    pub branch: Option<String>,
    pub tag: Option<String>,
}

pub(crate) struct Ctx<'a> {
    pub sink: Sink,
    /// Where orbs come from, and those that came.
    pub orbs: &'a dyn OrbSource,
    pub imports: Imports,
    pub values: Values,
    pub pipeline_args: Args,
    /// What the file declares of them.
    pub parameters: Vec<PipelineParameter>,
    pub refs: Refs,
    pub patterns: Patterns,
    /// Schedules that hold for the pipeline's branch.
    pub schedules: Vec<Schedule>,
    /// Declarations by the place of their element in memory, which is kept.
    pub known_declarations: HashMap<*const Map, (Arc<Map>, Arc<Decls>)>,
    /// Every context that a job names.
    pub all_contexts: HashSet<String>,
    /// False for version 2, where `<<` is text.
    pub interpolation: bool,
    /// The commands being expanded, by the places of their definitions.
    pub calls: Vec<Span>,
    /// Nested calls and lists of steps at the present place.
    pub depth: usize,
    /// Whether it is a setup configuration.
    pub setup: bool,
    /// Whether the file has `workflows`.
    pub has_workflows: bool,
    /// Whether a file without jobs is good: it ends a pipeline that a setup configuration began.
    pub may_be_empty: bool,
    /// Keeps what led to each value, where that is asked for.
    pub recorder: Option<Box<Recorder>>,
    work: usize,
    bytes: usize,
}

impl<'a> Ctx<'a> {
    pub fn new(sink: Sink, values: Values, orbs: &'a dyn OrbSource) -> Self {
        let pipeline_args = Args::default();
        Self {
            sink,
            orbs,
            imports: Imports::default(),
            values,
            pipeline_args,
            parameters: Vec::new(),
            refs: Refs::default(),
            patterns: Patterns::default(),
            schedules: Vec::new(),
            known_declarations: HashMap::new(),
            all_contexts: HashSet::new(),
            interpolation: true,
            calls: Vec::new(),
            depth: 0,
            setup: false,
            has_workflows: false,
            may_be_empty: false,
            recorder: None,
            work: 0,
            bytes: 0,
        }
    }

    /// Counts produced values; false when the limit is reached.
    pub fn spend(&mut self, nodes: usize, span: Span) -> bool {
        self.work = self.work.saturating_add(nodes);
        if self.work > MAX_WORK {
            if self.work - nodes <= MAX_WORK {
                self.sink.error(
                    code::SIZE_LIMIT,
                    span,
                    "the configuration grows too large when it is expanded",
                );
            }
            return false;
        }
        true
    }

    /// Counts produced text; false when the limit is reached.
    pub fn spend_bytes(&mut self, bytes: usize, span: Span) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_BYTES {
            if self.bytes - bytes <= MAX_BYTES {
                self.sink.error(
                    code::SIZE_LIMIT,
                    span,
                    "the configuration grows too large when it is expanded",
                );
            }
            return false;
        }
        true
    }

    /// Whether a limit was reached: nothing more is expanded then.
    pub fn exhausted(&self) -> bool {
        self.work > MAX_WORK || self.bytes > MAX_BYTES
    }

    /// Reports every key of `map` that is not one of `allowed`.
    pub fn only_keys(&mut self, map: &Map, allowed: &[&str], place: impl std::fmt::Display) {
        for (key, entry) in map {
            if !allowed.contains(&key.as_ref()) {
                let hint = suggest(key, allowed.iter().copied())
                    .unwrap_or_else(|| format!("permitted keys: {}", allowed.join(", ")));
                let message = format!("extraneous key [{key}] is not permitted in {place}");
                // Version 2 was always lax about keys that it does not know.
                let lax = if self.interpolation { crate::Severity::Error } else { crate::Severity::Warning };
                self.sink.add(lax, code::UNKNOWN_KEY, entry.key, message, Some(hint));
            }
        }
    }

    /// Reports the keys that a step of the language does not know. The reference service passes over those of
    /// all steps but `run`: many files give `restore_cache` the `paths` of its `save_cache`. One that looks like a
    /// slip is an error all the same.
    pub fn only_step_keys(&mut self, map: &Map, step: &str) {
        let allowed = crate::builtin::keys_of(step);
        if matches!(step, "run" | "deploy") {
            return self.only_keys(map, allowed, format_args!("the step `{step}`"));
        }
        let absent = || allowed.iter().copied().filter(|key| !map.contains_key(*key));
        let (slips, foreign): (Map, Map) = map
            .iter()
            .filter(|(key, _)| !allowed.contains(&key.as_ref()))
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .partition(|(key, _)| suggest(key, absent()).is_some());
        self.only_keys(&slips, allowed, format_args!("the step `{step}`"));
        for (key, entry) in &foreign {
            let message = format!("the key `{key}` of the step `{step}` has no effect");
            let hint = format!("permitted keys: {}", allowed.join(", "));
            self.sink.add(crate::Severity::Warning, code::UNKNOWN_KEY, entry.key, message, Some(hint));
        }
    }

    pub fn wrong_type(&mut self, node: &Node, what: &str, expected: &str) {
        self.wrong_type_hint(node, what, expected, None);
    }

    /// `hint`: what to write instead.
    pub fn wrong_type_hint(&mut self, node: &Node, what: &str, expected: &str, hint: Option<String>) {
        // A broken interpolation leaves null behind.
        if node.is_null() && self.sink.reported_within(node.span) {
            return;
        }
        let message = format!("{what} must be {expected}, not {}", described(node));
        self.sink.add(crate::Severity::Error, code::WRONG_TYPE, node.span, message, hint);
    }
}

fn described(node: &Node) -> String {
    match node.value {
        crate::yaml::Value::Null => "null".into(),
        crate::yaml::Value::Seq(ref items) if items.is_empty() => "an empty list".into(),
        _ if node.text().is_some() => format!("the {} {}", node.kind(), node.shown()),
        _ => format!("a {}", node.kind()),
    }
}
