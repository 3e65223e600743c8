//! Where a value of the compiled form comes from.

use crate::context::Ctx;
use crate::diagnostics::{Diagnostic, Sink, Span, suggest};
use crate::emit;
use crate::input::Input;
use crate::simulate::View;
use crate::values::Values;
use crate::yaml::{Map, Node, Value};
use serde::Serialize;

/// A value and how it came to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The path in the compiled form.
    pub path: String,
    /// The value, as the compiled form shows it.
    pub value: String,
    /// Where it is written.
    pub written: Option<Place>,
    /// What led there, innermost first: commands, the job, the workflow.
    pub calls: Vec<Step>,
    /// What was put into its text.
    pub uses: Vec<Use>,
}

/// A place in a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Shown file name; an orb by what its reference resolved to.
    pub file: String,
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// The line.
    pub text: String,
}

/// A call on the way to the value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What was called: `command: 'install'`.
    pub what: String,
    /// Where.
    pub at: Place,
}

/// A name that was replaced in the value's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Use {
    /// The name, for example `parameters.tag`.
    pub name: String,
    /// What it stood for.
    pub value: String,
    /// Where that is written; none for what the pipeline itself brings.
    pub from: Option<Place>,
}

/// Why there is nothing to explain.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The configuration is invalid; all its errors.
    #[error("the configuration is invalid")]
    Invalid(Vec<Diagnostic>),
    /// The path leads nowhere.
    #[error("the compiled form has no `{path}`{hint}")]
    NotFound {
        /// As far as it was followed, with the part that is missing.
        path: String,
        /// What there is instead.
        hint: String,
    },
}

/// What is written down while a configuration is compiled in order to be explained.
#[derive(Default)]
pub(crate) struct Recorder {
    jobs: Vec<Record>,
}

type Trace = Vec<(String, Span)>;

#[derive(Default)]
struct Record {
    /// For each compiled step the calls that led to it.
    steps: Vec<Trace>,
    uses: Vec<(Span, Trace, String, Node)>,
    /// The calls that led to the job.
    trace: Trace,
}

impl Recorder {
    /// A job is being expanded.
    pub fn start_job(&mut self, trace: &Trace) {
        self.jobs.push(Record { trace: trace.clone(), ..Record::default() });
    }

    /// The job has so many steps now; the last ones came through these calls.
    pub fn steps(&mut self, count: usize, trace: &Trace) {
        if let Some(job) = self.jobs.last_mut() {
            job.steps.resize(count.max(job.steps.len()), trace.clone());
        }
    }

    /// A name in the text at `span` was replaced.
    pub fn used(&mut self, span: Span, name: &str, value: &Node, trace: &Trace) {
        if let Some(job) = self.jobs.last_mut() {
            job.uses.push((span, trace.clone(), name.to_owned(), value.clone()));
        }
    }
}

/// Explains the value at `path` of the compiled form: `jobs.build.steps[2].run.command`,
/// `workflows.main.jobs.deploy.requires`.
///
/// # Errors
/// The configuration is invalid, or has no such value.
pub fn explain(input: &Input<'_>, path: &str) -> Result<Explanation, ExplainError> {
    let sink = Sink::new(input.file, input.source);
    let mut ctx = Ctx::new(sink, Values::new(&input.values), input.orbs);
    ctx.recorder = Some(Box::default());
    let Some((root, workflows)) = crate::workflows_of(&mut ctx, input).filter(|_| !ctx.sink.has_errors())
    else {
        return Err(ExplainError::Invalid(ctx.sink.finish().0));
    };
    let tree = emit::tree(&workflows);
    let (node, parts) = find(&tree, path)?;
    let recorder = ctx.recorder.take().unwrap_or_default();
    let scene = Scene { sink: &ctx.sink };
    let value = shown(node);
    let path = path.to_owned();
    match parts.as_slice() {
        [Part::Key(jobs), Part::Key(key), rest @ ..] if jobs == "jobs" => {
            let mut expanded =
                workflows.iter().flat_map(|workflow| &workflow.shown).filter(|job| job.expanded);
            let index = expanded.position(|job| job.key == *key);
            let record = index.and_then(|index| recorder.jobs.get(index));
            let (calls, uses) = match record {
                Some(record) => scene.of_job(record, node.span, rest),
                None => (Vec::new(), Vec::new()),
            };
            Ok(Explanation { path, value, written: scene.place(node.span), calls, uses })
        }
        [Part::Key(section), Part::Key(workflow), rest @ ..] if section == "workflows" => {
            let source = Node::map(Span::default(), root);
            let view = View { input, sink: &ctx.sink, source: Some(&source), processed: None };
            let written = scene.place(view.written(workflow, rest.iter().filter_map(Part::key)));
            Ok(Explanation { path, value, written, calls: Vec::new(), uses: Vec::new() })
        }
        _ => Ok(Explanation { path, value, written: None, calls: Vec::new(), uses: Vec::new() }),
    }
}

struct Scene<'s> {
    sink: &'s Sink,
}

impl Scene<'_> {
    fn place(&self, span: Span) -> Option<Place> {
        (span.end > 0).then(|| {
            let (file, line, column, text) = self.sink.describe(span);
            Place { file, line, column, text: text.trim_end().to_owned() }
        })
    }

    fn of_job(&self, record: &Record, span: Span, rest: &[Part]) -> (Vec<Step>, Vec<Use>) {
        let trace = match rest {
            [Part::Key(steps), Part::Index(index), ..] if steps == "steps" => {
                record.steps.get(*index).unwrap_or(&record.trace)
            }
            _ => &record.trace,
        };
        let calls = trace.iter().rev().filter_map(|(what, at)| {
            let what = what.strip_prefix("Error calling ").unwrap_or(what).to_owned();
            Some(Step { what, at: self.place(*at)? })
        });
        let mut uses: Vec<Use> = Vec::new();
        for (_, _, name, value) in record.uses.iter().filter(|(at, calls, ..)| {
            // Texts of an executor are replaced inside its own call, which steps are not part of.
            *at == span && (calls == trace || calls.starts_with(trace))
        }) {
            let found = Use { name: name.clone(), value: shown(value), from: self.place(value.span) };
            if !uses.contains(&found) {
                uses.push(found);
            }
        }
        (calls.collect(), uses)
    }
}

/// A value in one line: a text as it is, a collection by its size.
fn shown(node: &Node) -> String {
    match &node.value {
        Value::Seq(items) => format!("a list of {}", items.len()),
        Value::Map(map) => {
            let keys: Vec<&str> = map.keys().map(AsRef::as_ref).take(12).collect();
            format!("a map with {}", keys.join(", "))
        }
        Value::Scoped(_, inner) => shown(inner),
        _ => node.text().unwrap_or_default(),
    }
}

/// A part of a path.
enum Part {
    Key(String),
    Index(usize),
}

impl Part {
    fn key(&self) -> Option<&str> {
        match self {
            Self::Key(key) => Some(key),
            Self::Index(_) => None,
        }
    }
}

/// Follows a path. Names may hold dots and slashes: the longest key that fits is taken.
fn find<'t>(tree: &'t Map, path: &str) -> Result<(&'t Node, Vec<Part>), ExplainError> {
    let mut parts = Vec::new();
    let mut rest = path.trim_matches('.');
    let mut node: Option<&Node> = None;
    while !rest.is_empty() {
        let map = match node {
            None => Some(tree),
            Some(node) => node.as_map().map(AsRef::as_ref),
        };
        let (found, part, length) = match (map, node.and_then(Node::as_seq)) {
            (Some(map), _) => {
                let fits = |key: &str| {
                    rest.strip_prefix(key).is_some_and(|r| r.is_empty() || r.starts_with(['.', '[']))
                };
                let key = map.keys().filter(|key| fits(key)).max_by_key(|key| key.len());
                let Some(key) = key else { return Err(missing(path, rest, map.keys().map(AsRef::as_ref))) };
                (&map[key].value, Part::Key(key.to_string()), key.len())
            }
            (None, Some(items)) => {
                let (word, length) = match rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
                    Some((word, _)) => (word, word.len() + 2),
                    None => {
                        let word = rest.split(['.', '[']).next().unwrap_or(rest);
                        (word, word.len())
                    }
                };
                if let Some((index, item)) = word.parse().ok().and_then(|i: usize| Some((i, items.get(i)?))) {
                    (item, Part::Index(index), length)
                } else {
                    // An entry of `jobs` of a workflow may be named by its job.
                    let named = |item: &&Node| match item.as_map().and_then(|map| map.first()) {
                        Some((name, _)) => rest.starts_with(name.as_ref()),
                        None => item.text().is_some_and(|name| rest.starts_with(&name)),
                    };
                    let Some(item) = items.iter().find(named) else {
                        let what = format!("an index from 0 to {}", items.len().saturating_sub(1));
                        return Err(missing(path, rest, [what.as_str()]));
                    };
                    match item.as_map().and_then(|map| map.first()) {
                        Some((name, entry)) => (&entry.value, Part::Key(name.to_string()), name.len()),
                        None => (
                            item,
                            Part::Key(item.text().unwrap_or_default()),
                            item.text().map_or(0, |t| t.len()),
                        ),
                    }
                }
            }
            (None, None) => return Err(missing(path, rest, [])),
        };
        node = Some(found);
        parts.push(part);
        rest = rest.get(length..).unwrap_or_default().trim_start_matches('.');
    }
    match node {
        Some(node) => Ok((node, parts)),
        None => Err(missing(path, rest, tree.keys().map(AsRef::as_ref))),
    }
}

fn missing<'k>(path: &str, rest: &str, keys: impl IntoIterator<Item = &'k str>) -> ExplainError {
    let keys: Vec<&str> = keys.into_iter().collect();
    let followed = &path[..path.len() - rest.len().min(path.len())];
    let word = rest.split(['.', '[']).next().unwrap_or(rest);
    let hint = match suggest(word, keys.iter().copied()) {
        Some(hint) => format!(": {hint}"),
        None if keys.is_empty() => format!(": `{}` is a single value", followed.trim_end_matches('.')),
        None => format!(": there is {}", keys.iter().take(20).copied().collect::<Vec<_>>().join(", ")),
    };
    ExplainError::NotFound { path: format!("{followed}{word}"), hint }
}
