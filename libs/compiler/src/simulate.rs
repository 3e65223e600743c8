//! What would run for an event, and why the rest would not.

use crate::diagnostics::{Diagnostic, Sink, Span};
use crate::input::{Compiled, Input, PipelineValues};
use crate::pattern::Patterns;
use crate::yaml::{self, Map, Node};
use model::plan::JobKind;
use serde::Serialize;
use std::collections::HashSet;

/// What one event would start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Simulation {
    /// All workflows of the file, in file order.
    pub workflows: Vec<SimulatedWorkflow>,
}

/// A workflow and whether it would run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SimulatedWorkflow {
    /// Its name.
    pub name: String,
    /// 1-based line of its key in the file.
    pub line: usize,
    /// Whether it would be created.
    pub runs: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Its jobs, matrix expanded; empty where the workflow is excluded as a whole.
    pub jobs: Vec<SimulatedJob>,
}

/// A job and whether it would run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SimulatedJob {
    /// Its compiled name.
    pub name: String,
    /// 1-based line of its invocation in the file.
    pub line: usize,
    /// `build`, `approval`, …; none for a job that would not run.
    pub kind: Option<&'static str>,
    /// Whether it would be part of the workflow.
    pub runs: bool,
    /// Why not.
    pub reason: Option<String>,
    /// The jobs that it waits for, if it runs.
    pub requires: Vec<String>,
}

/// Compiles `input` and says for every workflow and job whether it would run.
///
/// # Errors
/// The configuration is invalid: all its errors.
pub fn simulate(input: &Input<'_>) -> Result<Simulation, Vec<Diagnostic>> {
    let compiled = crate::compile(input)?;
    let mut sink = Sink::new(input.file, input.source);
    let source = yaml::read(&mut sink, 0);
    let processed = read_processed(&compiled.processed);
    let view = View { input, sink: &sink, source: source.as_ref(), processed: processed.as_ref() };
    Ok(view.simulation(&compiled))
}

/// The compiled text as a tree, without the source that stands behind it.
fn read_processed(text: &str) -> Option<Node> {
    let text = text.split("\n# Original config.yml file:\n").next()?;
    yaml::read(&mut Sink::new("compiled", text), 0)
}

fn get<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    node.as_map()?.get(key).map(|entry| &entry.value)
}

/// Name and options of an entry of `jobs`.
fn invocation(item: &Node) -> Option<(String, Option<&Map>)> {
    match item.as_map() {
        Some(map) => {
            let (name, entry) = map.first()?;
            Some((name.to_string(), entry.value.as_map().map(AsRef::as_ref)))
        }
        None => Some((item.text()?, None)),
    }
}

/// A source beside what became of it.
pub(crate) struct View<'v> {
    pub input: &'v Input<'v>,
    pub sink: &'v Sink,
    pub source: Option<&'v Node>,
    pub processed: Option<&'v Node>,
}

impl View<'_> {
    fn line(&self, span: Span) -> usize {
        self.sink.line(span)
    }

    fn simulation(&self, compiled: &Compiled) -> Simulation {
        let mut workflows = Vec::new();
        let section = self.source.and_then(|root| get(root, "workflows")).and_then(Node::as_map);
        let names: Vec<(String, Span)> = match section {
            Some(map) => map
                .iter()
                .filter(|(name, _)| name.as_ref() != "version")
                .map(|(name, entry)| (name.to_string(), entry.key))
                .collect(),
            None => compiled.plan.workflows.iter().map(|w| (w.name.clone(), Span::default())).collect(),
        };
        for (name, at) in names {
            workflows.push(self.workflow(&name, at, compiled));
        }
        Simulation { workflows }
    }

    fn workflow(&self, name: &str, at: Span, compiled: &Compiled) -> SimulatedWorkflow {
        let line = self.line(at);
        let planned = compiled.plan.workflows.iter().find(|w| w.name == name);
        let items = self
            .processed
            .and_then(|root| get(root, "workflows"))
            .and_then(|workflows| get(workflows, name))
            .and_then(|workflow| get(workflow, "jobs"))
            .and_then(Node::as_seq);
        let Some(items) = items else {
            let reason = Some(self.excluded(name));
            return SimulatedWorkflow { name: name.to_owned(), line, runs: false, reason, jobs: Vec::new() };
        };
        let mut rest = planned.map(|w| w.jobs.as_slice()).unwrap_or_default();
        let mut jobs: Vec<SimulatedJob> = Vec::new();
        let mut dead: HashSet<String> = HashSet::new();
        for item in items.iter() {
            let Some((key, options)) = invocation(item) else { continue };
            // Both lists are in file order, and the plan has some of the jobs only.
            if let Some((job, others)) = rest.split_first().filter(|(job, _)| is_key_of(&key, &job.name)) {
                rest = others;
                jobs.push(SimulatedJob {
                    name: job.name.clone(),
                    line: self.invocation_line(name, &job.name, line),
                    kind: Some(kind_word(&job.kind)),
                    runs: true,
                    reason: None,
                    requires: job.requires.iter().map(|edge| edge.job.clone()).collect(),
                });
            } else {
                let reason = options.and_then(|options| self.filtered(name, &key, options));
                let own_reason = reason.is_some() || self.input.values.tag.is_some();
                let reason = reason.or_else(|| (own_reason && !has_filters(options)).then(no_tag_filter));
                dead.insert(key.clone());
                jobs.push(SimulatedJob {
                    line: self.invocation_line(name, &key, line),
                    name: key,
                    kind: None,
                    runs: false,
                    reason,
                    requires: Vec::new(),
                });
            }
        }
        // What has no reason of its own lacks every job that it requires.
        for (job, item) in jobs.iter_mut().zip(items.iter()) {
            if !job.runs && job.reason.is_none() {
                let words =
                    invocation(item).and_then(|(_, options)| options.map(required)).unwrap_or_default();
                let left_out: Vec<String> = words.into_iter().filter(|word| dead.contains(word)).collect();
                job.reason = Some(format!("every job that it requires is left out: {}", left_out.join(", ")));
            }
        }
        let runs = planned.is_some();
        let reason = (!runs).then(|| "none of its jobs would run".to_owned());
        SimulatedWorkflow { name: name.to_owned(), line, runs, reason, jobs }
    }

    /// Why a workflow is not in the compiled text at all.
    fn excluded(&self, name: &str) -> String {
        let body = self
            .source
            .and_then(|root| get(root, "workflows"))
            .and_then(|workflows| get(workflows, name))
            .and_then(Node::as_map);
        let Some(body) = body else { return "it is not part of the compiled configuration".into() };
        for (key, what) in [("when", "is not true"), ("unless", "is true")] {
            if let Some(entry) = body.get(key) {
                return format!("its `{key}` {what}: {}", self.shown(entry.value.span));
            }
        }
        if body.contains_key("triggers") {
            return "it has `triggers`: it runs on its schedule only".into();
        }
        "it is not part of the compiled configuration".into()
    }

    /// The text of a place, in one line.
    fn shown(&self, span: Span) -> String {
        let text = self.sink.slice(span).split_whitespace().collect::<Vec<_>>().join(" ");
        match text.char_indices().nth(120) {
            Some((cut, _)) => format!("`{}…`", &text[..cut]),
            None => format!("`{text}`"),
        }
    }

    /// Why the filters of a job keep it out; `None` when they let it through.
    fn filtered(&self, workflow: &str, job: &str, options: &Map) -> Option<String> {
        let filters = &options.get("filters")?.value;
        let PipelineValues { branch, tag, .. } = &self.input.values;
        if let Some(expression) = self.filter_expression(workflow, job) {
            return Some(format!("its filter is not true: {expression}"));
        }
        match (tag, branch) {
            (Some(tag), _) => match get(filters, "tags") {
                None => Some(no_tag_filter()),
                Some(tags) => kept_out("tag", "tags", tag, tags, true),
            },
            (None, Some(branch)) => kept_out("branch", "branches", branch, get(filters, "branches")?, false),
            (None, None) => None,
        }
    }

    /// The invocation of the source that became this job.
    fn source_invocation(&self, workflow: &str, job: &str) -> Option<&Node> {
        let items = get(get(get(self.source?, "workflows")?, workflow)?, "jobs")?.as_seq()?;
        let words = |item: &Node| {
            let (reference, options) = invocation(item)?;
            let name = options.and_then(|o| o.get("name")).and_then(|e| e.value.text());
            Some((reference, name))
        };
        let exact = items.iter().find(|item| {
            words(item).is_some_and(|(reference, name)| name.as_deref().unwrap_or(&reference) == job)
        });
        exact.or_else(|| {
            items.iter().find(|item| {
                words(item).is_some_and(|(reference, name)| {
                    let base = name.filter(|name| !name.contains("<<")).unwrap_or(reference);
                    job.strip_prefix(base.as_str()).is_some_and(|tail| tail.starts_with('-'))
                })
            })
        })
    }

    /// Where a part of a workflow is written: `jobs`, the job, the option, as far as they are in the source.
    pub fn written<'p>(&self, workflow: &str, parts: impl Iterator<Item = &'p str>) -> Span {
        let entry = |node: &Node, key: &str| {
            node.as_map().and_then(|map| map.get(key).map(|e| (e.key, e.value.clone())))
        };
        let parts: Vec<&str> = parts.collect();
        let found = self.source.and_then(|root| get(root, "workflows")).and_then(|all| entry(all, workflow));
        let Some((mut at, body)) = found else { return Span::default() };
        if let Some(job) = parts.get(1)
            && let Some(item) = self.source_invocation(workflow, job)
        {
            at = item.span;
            let options =
                item.as_map().and_then(|map| map.first()).and_then(|(_, entry)| entry.value.as_map());
            if let Some(option) = parts.get(2).and_then(|key| options?.get(*key)) {
                at = option.key;
            }
        } else if let Some((key, _)) = parts.first().and_then(|key| entry(&body, key)) {
            at = key;
        }
        at
    }

    fn invocation_line(&self, workflow: &str, job: &str, otherwise: usize) -> usize {
        self.source_invocation(workflow, job).map_or(otherwise, |item| self.line(item.span))
    }

    /// The filter as the author wrote it, if it is an expression.
    fn filter_expression(&self, workflow: &str, job: &str) -> Option<String> {
        let (_, options) = invocation(self.source_invocation(workflow, job)?)?;
        let filters = &options?.get("filters")?.value;
        filters.as_str().map(|_| self.shown(filters.span))
    }
}

fn no_tag_filter() -> String {
    "the pipeline is for a tag, and the job has no `tags` filter".into()
}

fn has_filters(options: Option<&Map>) -> bool {
    options.is_some_and(|options| options.contains_key("filters"))
}

/// Whether the compiled text may call this job `key`: names that several workflows share are numbered there.
fn is_key_of(key: &str, name: &str) -> bool {
    let numbered = |tail: &str| {
        tail.strip_prefix('-').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    key == name || key.strip_prefix(name).is_some_and(numbered)
}

fn required(options: &Map) -> Vec<String> {
    let items = options.get("requires").and_then(|entry| entry.value.as_seq());
    items
        .into_iter()
        .flat_map(|items| items.iter())
        .filter_map(|item| invocation(item).map(|(n, _)| n))
        .collect()
}

fn patterns(node: &Node) -> Vec<String> {
    match node.as_seq() {
        Some(items) => items.iter().filter_map(Node::text).collect(),
        None => node.text().into_iter().collect(),
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('/').and_then(|p| p.strip_suffix('/')) {
        Some(regex) => Patterns::default().matches(regex, name).unwrap_or(false),
        None => pattern == name,
    }
}

/// Why a ref does not pass `only` and `ignore`; `None` when it does.
fn kept_out(kind: &str, key: &str, name: &str, body: &Node, needs_only: bool) -> Option<String> {
    let list = |patterns: &[String]| patterns.iter().map(|p| format!("`{p}`")).collect::<Vec<_>>().join(", ");
    if let Some(only) = get(body, "only").map(patterns) {
        let hit = only.iter().any(|pattern| matches(pattern, name));
        let reason = || format!("the {kind} `{name}` matches none of `{key}: only`: {}", list(&only));
        return (!hit).then(reason);
    }
    if let Some(ignore) = get(body, "ignore").map(patterns) {
        let hit = ignore.iter().find(|pattern| matches(pattern, name))?;
        return Some(format!("the {kind} `{name}` matches `{key}: ignore`: `{hit}`"));
    }
    needs_only.then(|| format!("`{key}` has neither `only` nor `ignore`"))
}

fn kind_word(kind: &JobKind) -> &'static str {
    match kind {
        JobKind::Approval => "approval",
        JobKind::NoOp => "no-op",
        JobKind::Lock => "lock",
        JobKind::Unlock => "unlock",
        JobKind::Build { .. } => "build",
    }
}
