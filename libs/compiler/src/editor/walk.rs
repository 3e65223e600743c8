//! Goes over a file once and writes down which names stand where, and which keys.

use super::structure::{Element, Structure};
use crate::diagnostics::{Sink, Span};
use crate::invocations::INVOCATION_KEYS;
use crate::scope::{Kind, Scope};
use crate::steps::BUILT_IN;
use crate::yaml::{Map, Node, Value};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Stands where the cursor is while completions are looked for: no file holds it.
pub(super) const CURSOR: char = '\u{e0b5}';

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Symbol {
    Element(Element),
    Group(Arc<str>),
    /// The aliases that lead to an orb.
    Orb(String),
    /// Of the pipeline, or of an element.
    Parameter(Option<Element>, Arc<str>),
    /// A name that is given in a workflow or in a group.
    Invocation(Arc<str>, Arc<str>),
    /// `pipeline.…`, as the language has it.
    Value(Arc<str>),
    Anchor(usize),
}

/// Where the name stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Definition,
    Reference,
    /// The key of an argument; its value stands there.
    Argument(Span),
}

#[derive(Clone, Debug)]
pub(super) struct Occurrence {
    pub span: Span,
    pub symbol: Symbol,
    pub role: Role,
}

/// A key of the language, and of what.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub span: Span,
    pub structure: Structure,
    pub name: Arc<str>,
}

/// What is at the cursor.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub structure: Structure,
    /// Keys that stand beside it already.
    pub present: Vec<Arc<str>>,
    /// The element whose parameters are in reach.
    pub owner: Option<Element>,
    /// The job whose matrix is in reach.
    pub matrix: Option<Element>,
    pub scope: Arc<Scope>,
    /// What the jobs of the workflow are called.
    pub labels: Vec<String>,
}

pub(super) struct Walk<'d> {
    pub sink: &'d Sink,
    scope: Arc<Scope>,
    /// The aliases that lead to the orb that is being walked; empty for the file itself.
    orb: String,
    owner: Option<Element>,
    matrix: Option<Element>,
    labels: HashMap<String, Symbol>,
    pub occurrences: Vec<Occurrence>,
    pub keys: Vec<Key>,
    pub seen: Option<Seen>,
}

/// `alias` inside the orb that `path` leads to.
pub(super) fn join(path: &str, alias: &str) -> String {
    if path.is_empty() { alias.to_owned() } else { format!("{path}/{alias}") }
}

impl<'d> Walk<'d> {
    pub fn new(sink: &'d Sink, scope: Arc<Scope>) -> Self {
        Self {
            sink,
            scope,
            orb: String::new(),
            owner: None,
            matrix: None,
            labels: HashMap::new(),
            occurrences: Vec::new(),
            keys: Vec::new(),
            seen: None,
        }
    }

    fn add(&mut self, span: Span, symbol: Symbol, role: Role) {
        self.occurrences.push(Occurrence { span, symbol, role });
    }

    /// What `node` holds, which is `structure`.
    pub fn value(&mut self, node: &Node, structure: &Structure) {
        match &node.value {
            Value::Str(text) => {
                if text.contains(CURSOR) {
                    self.see(structure, Vec::new());
                }
                self.text(node, text, structure);
                let whole = matches!(structure, Structure::Condition | Structure::Filters);
                self.names_in(node.span, whole);
            }
            Value::Seq(items) => match structure {
                Structure::Invocations => items.iter().for_each(|item| self.invocation(item)),
                _ => {
                    let entry = structure.entry();
                    items.iter().for_each(|item| self.value(item, &entry));
                }
            },
            Value::Map(map) => self.map(map, structure),
            _ => {}
        }
    }

    fn see(&mut self, structure: &Structure, present: Vec<Arc<str>>) {
        let mut labels: Vec<String> = self.labels.keys().cloned().collect();
        labels.sort();
        self.seen = Some(Seen {
            structure: structure.clone(),
            present,
            owner: self.owner.clone(),
            matrix: self.matrix.clone(),
            scope: self.scope.clone(),
            labels,
        });
    }

    /// A text that is a name at this place.
    fn text(&mut self, node: &Node, text: &str, structure: &Structure) {
        match structure {
            Structure::Step => self.step_name(node.span, text),
            Structure::Executor => _ = self.reference(node.span, Kind::Executor, text),
            Structure::Required => self.required(node.span, text),
            Structure::Element(element) => _ = self.reference(node.span, element.kind, text),
            Structure::Orb => self.add(node.span, Symbol::Orb(self.orb.clone()), Role::Reference),
            _ => {}
        }
    }

    fn map(&mut self, map: &Arc<Map>, structure: &Structure) {
        for (key, entry) in map.iter() {
            if key.contains(CURSOR) {
                let present = map.keys().filter(|other| *other != key).cloned().collect();
                self.see(structure, present);
            }
            let value = &entry.value;
            match structure {
                Structure::Elements(kind) => {
                    let element = Element { orb: self.orb.clone(), kind: *kind, name: key.clone() };
                    self.define(entry.key, key, Symbol::Element(element.clone()));
                    let before = self.owner.replace(element.clone());
                    self.value(value, &Structure::Element(element));
                    self.owner = before;
                }
                Structure::Groups => {
                    self.define(entry.key, key, Symbol::Group(key.clone()));
                    self.jobs_of(&format!("job-groups/{key}"), value);
                    self.value(value, &Structure::Group);
                }
                Structure::Workflows if key.as_ref() == "version" => {}
                Structure::Workflows => {
                    self.jobs_of(key, value);
                    self.value(value, &Structure::Workflow);
                    self.labels.clear();
                }
                Structure::Orbs => self.orb(key, entry.key, value),
                Structure::Declarations(owner) => {
                    self.define(entry.key, key, Symbol::Parameter(owner.clone(), key.clone()));
                    self.value(value, &Structure::Declaration);
                }
                Structure::Declaration if key.as_ref() == "default" => {
                    self.key(entry.key, structure, key);
                    let below = of_type(declared_type(map));
                    self.value(value, &below);
                }
                Structure::Step => self.step(entry.key, key, value),
                Structure::Arguments(element) => self.argument(entry.key, key, value, element),
                Structure::ExecutorArguments(element) if key.as_ref() != "name" => {
                    self.argument(entry.key, key, value, element);
                }
                Structure::MatrixParameters(Some(job)) => self.argument(entry.key, key, value, job),
                Structure::Invocation(Some(job)) if !INVOCATION_KEYS.contains(&key.as_ref()) => {
                    self.argument(entry.key, key, value, job);
                }
                Structure::Executor => return self.executor(map),
                Structure::Required => {
                    self.required(entry.key, key);
                    self.value(value, &structure.below(key));
                }
                _ => {
                    self.key(entry.key, structure, key);
                    self.value(value, &structure.below(key));
                }
            }
        }
    }

    fn key(&mut self, span: Span, structure: &Structure, name: &Arc<str>) {
        self.keys.push(Key { span, structure: structure.clone(), name: name.clone() });
    }

    fn define(&mut self, span: Span, name: &str, symbol: Symbol) {
        let span = self.sink.narrow(span, name);
        self.add(span, symbol, Role::Definition);
    }

    fn orb(&mut self, alias: &str, at: Span, value: &Node) {
        let path = join(&self.orb, alias);
        self.define(at, alias, Symbol::Orb(path.clone()));
        let inner = self.scope.orb(alias).cloned();
        let scope = inner.map_or(self.scope.clone(), |inner| inner);
        let (before, outer) = (std::mem::replace(&mut self.orb, path), self.scope.clone());
        self.scope = scope;
        self.value(value, &Structure::Orb);
        (self.orb, self.scope) = (before, outer);
    }

    /// The element that a name means here.
    fn resolve(&self, kind: Kind, name: &str) -> Element {
        let own = || Element { orb: self.orb.clone(), kind, name: name.into() };
        match name.split_once('/') {
            Some((alias, rest)) if !self.scope.has(kind, name) => {
                Element { orb: join(&self.orb, alias), kind, name: rest.into() }
            }
            _ => own(),
        }
    }

    /// A name of an element at `span`.
    fn reference(&mut self, span: Span, kind: Kind, name: &str) -> Element {
        let element = self.resolve(kind, name);
        if name.contains("<<") {
            return element;
        }
        let span = self.sink.narrow(span, name);
        let mut start = span.start;
        if element.orb != self.orb
            && let Some((alias, _)) = name.split_once('/')
        {
            let end = span.start + u32::try_from(alias.len()).unwrap_or(0);
            self.add(Span { end, ..span }, Symbol::Orb(element.orb.clone()), Role::Reference);
            start = end + 1;
        }
        self.add(Span { start, ..span }, Symbol::Element(element.clone()), Role::Reference);
        element
    }

    fn built_in(&self, name: &str) -> Option<Arc<str>> {
        let name = name.replace('-', "_");
        (BUILT_IN.contains(&name.as_str()) && !self.scope.has(Kind::Command, &name)).then(|| name.into())
    }

    fn step_name(&mut self, span: Span, name: &str) {
        match self.built_in(name) {
            Some(name) => self.key(span, &Structure::Step, &name),
            None => _ = self.reference(span, Kind::Command, name),
        }
    }

    fn step(&mut self, span: Span, name: &str, value: &Node) {
        let below = match self.built_in(name) {
            Some(name) => {
                self.key(span, &Structure::Step, &name);
                match name.as_ref() {
                    "steps" => Structure::Steps,
                    "when" | "unless" => Structure::Conditional,
                    _ => Structure::StepOptions(name),
                }
            }
            None => Structure::Arguments(self.reference(span, Kind::Command, name)),
        };
        self.value(value, &below);
    }

    /// The definition of an element, if it can be had.
    fn definition(&self, element: &Element) -> Option<Arc<Map>> {
        let inside = element.orb.strip_prefix(self.orb.as_str())?.trim_start_matches('/');
        let mut scope = &self.scope;
        for alias in inside.split('/').filter(|alias| !alias.is_empty()) {
            scope = scope.orb(alias)?;
        }
        scope.peek(element.kind, &element.name)
    }

    fn argument(&mut self, at: Span, name: &Arc<str>, value: &Node, element: &Element) {
        let span = self.sink.narrow(at, name);
        let symbol = Symbol::Parameter(Some(element.clone()), name.clone());
        self.add(span, symbol, Role::Argument(value.span));
        let definition = self.definition(element);
        let declaration =
            definition.as_ref().and_then(|body| body.get("parameters")?.value.as_map()?.get(name));
        let declared = declaration.and_then(|entry| entry.value.as_map()).map(|map| declared_type(map));
        let below = of_type(declared.unwrap_or_default());
        match (&below, &value.value) {
            // A matrix has a list of arguments.
            (Structure::Executor, Value::Seq(items)) => {
                items.iter().for_each(|item| self.value(item, &below));
            }
            _ => self.value(value, &below),
        }
    }

    /// A reference to an executor with its arguments.
    fn executor(&mut self, map: &Arc<Map>) {
        match map.get("name").map(|entry| (entry, entry.value.as_str())) {
            Some((entry, Some(name))) => {
                self.key(entry.key, &Structure::Executor, &"name".into());
                let element = self.reference(entry.value.span, Kind::Executor, name);
                if name.contains(CURSOR) {
                    self.see(&Structure::Executor, Vec::new());
                }
                self.names_in(entry.value.span, false);
                self.map(&without_name(map), &Structure::ExecutorArguments(element));
            }
            Some(_) => {}
            None => {
                if let (1, Some((name, entry))) = (map.len(), map.first()) {
                    let element = self.reference(entry.key, Kind::Executor, name);
                    self.value(&entry.value, &Structure::Arguments(element));
                }
            }
        }
    }

    /// What the jobs of a workflow, or of a group, are called by those that require them.
    fn jobs_of(&mut self, place: &str, workflow: &Node) {
        self.labels.clear();
        let jobs = workflow.as_map().and_then(|map| map.get("jobs")).and_then(|entry| entry.value.as_seq());
        for item in jobs.into_iter().flat_map(|jobs| jobs.iter()) {
            let (name, options) = match &item.value {
                Value::Str(name) => (name, None),
                Value::Map(map) => match map.first() {
                    Some((name, entry)) => (name, entry.value.as_map()),
                    None => continue,
                },
                _ => continue,
            };
            let option =
                |key: &str| options.and_then(|map| map.get(key)).and_then(|entry| entry.value.as_str());
            let matrix = options.and_then(|map| map.get("matrix")).and_then(|entry| entry.value.as_map());
            let alias = matrix.and_then(|map| map.get("alias")).and_then(|entry| entry.value.as_str());
            let given = |label: &Arc<str>| Symbol::Invocation(place.into(), label.clone());
            if let Some(label) = option("name").filter(|label| !label.contains("<<")) {
                self.labels.insert(label.to_string(), given(label));
            } else if option("type").is_some() {
                self.labels.insert(name.to_string(), given(name));
            } else if let Some(alias) = alias {
                self.labels.insert(alias.to_string(), given(alias));
            } else if self.is_group(name) {
                self.labels.entry(name.to_string()).or_insert(Symbol::Group(name.clone()));
            } else {
                let job = Symbol::Element(self.resolve(Kind::Job, name));
                self.labels.entry(name.to_string()).or_insert(job);
            }
        }
    }

    fn is_group(&self, name: &str) -> bool {
        self.scope.groups.contains_key(name) && !self.scope.has(Kind::Job, name)
    }

    fn required(&mut self, span: Span, name: &str) {
        // A job of a matrix, or one that stands twice, has more behind its own name: `test-3.12`.
        let own =
            |label: &&String| name.strip_prefix(label.as_str()).is_some_and(|rest| rest.starts_with('-'));
        let known = match self.labels.contains_key(name) {
            true => Some(name),
            false => self.labels.keys().filter(own).max_by_key(|label| label.len()).map(String::as_str),
        };
        let Some((label, symbol)) = known.and_then(|label| self.labels.get_key_value(label)) else { return };
        let (label, symbol) = (label.clone(), symbol.clone());
        let mut span = self.sink.narrow(span, name);
        span.end = span.start + u32::try_from(label.len()).unwrap_or(0);
        match symbol {
            Symbol::Element(_) => _ = self.reference(span, Kind::Job, &label),
            symbol if label == name => self.add(span, symbol, Role::Reference),
            _ => {}
        }
    }

    /// An entry of `jobs`.
    fn invocation(&mut self, item: &Node) {
        match &item.value {
            Value::Str(name) => {
                if name.contains(CURSOR) {
                    self.see(&Structure::Invocations, Vec::new());
                }
                self.invoked(item.span, name);
            }
            Value::Map(map) => {
                for (name, entry) in map.iter() {
                    if name.contains(CURSOR) {
                        self.see(&Structure::Invocations, Vec::new());
                    }
                    let options = entry.value.as_map();
                    let approval = options.is_some_and(|options| options.contains_key("type"));
                    let structure = if approval {
                        if let Some(symbol) = self.labels.get(name.as_ref()).cloned() {
                            self.define(entry.key, name, symbol);
                        }
                        Structure::Invocation(None)
                    } else {
                        self.invoked(entry.key, name)
                    };
                    let given = |key: &str| Some(options?.get(key)?.value.clone());
                    let matrix =
                        given("matrix").and_then(|node| node.as_map()?.get("alias").map(|e| e.value.clone()));
                    for label in given("name").into_iter().chain(matrix) {
                        let symbol = label.as_str().and_then(|text| self.labels.get(text.as_ref())).cloned();
                        if let (Some(symbol @ Symbol::Invocation(..)), Some(text)) = (symbol, label.as_str())
                        {
                            self.define(label.span, text, symbol);
                        }
                    }
                    self.matrix = match &structure {
                        Structure::Invocation(job) => job.clone(),
                        _ => None,
                    };
                    self.value(&entry.value, &structure);
                    self.matrix = None;
                }
            }
            _ => {}
        }
    }

    fn invoked(&mut self, span: Span, name: &Arc<str>) -> Structure {
        if self.is_group(name) {
            let span = self.sink.narrow(span, name);
            self.add(span, Symbol::Group(name.clone()), Role::Reference);
            return Structure::GroupInvocation;
        }
        Structure::Invocation(Some(self.reference(span, Kind::Job, name)))
    }

    /// Names in the text at a place: those between `<<` and `>>`, or all where the `whole` text is an expression.
    fn names_in(&mut self, span: Span, whole: bool) {
        let text = self.sink.slice(span);
        let mut found = Vec::new();
        if whole {
            words(text, 0..text.len(), &mut found);
        } else {
            let mut from = 0;
            while let Some(open) = text[from..].find("<<").map(|i| from + i + 2) {
                let close = text[open..].find(">>").map_or(text.len(), |i| open + i);
                words(text, open..close, &mut found);
                from = close;
            }
        }
        for (start, word) in found {
            let (prefix, symbol) = if let Some(name) = word.strip_prefix("pipeline.parameters.") {
                ("pipeline.parameters.", Some(Symbol::Parameter(None, name.into())))
            } else if word.starts_with("pipeline.") {
                ("", Some(Symbol::Value(word.as_str().into())))
            } else if let Some(name) = word.strip_prefix("parameters.") {
                let owner = self.owner.clone();
                ("parameters.", owner.map(|owner| Symbol::Parameter(Some(owner), name.into())))
            } else if let Some(name) = word.strip_prefix("matrix.") {
                let job = self.matrix.clone();
                ("matrix.", job.map(|job| Symbol::Parameter(Some(job), name.into())))
            } else {
                continue;
            };
            let short = |offset: usize| u32::try_from(offset).unwrap_or(0);
            let (from, to) = (start + prefix.len(), start + word.len());
            let at = Span { file: span.file, start: span.start + short(from), end: span.start + short(to) };
            if let Some(symbol) = symbol.filter(|_| from < to) {
                self.add(at, symbol, Role::Reference);
            }
        }
    }
}

/// Words with dots in a part of a text.
fn words(text: &str, part: Range<usize>, found: &mut Vec<(usize, String)>) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let mut rest = &text[part.clone()];
    let mut at = part.start;
    while let Some(start) = rest.find(is_word) {
        let word = &rest[start..];
        let length = word.find(|c| !is_word(c)).unwrap_or(word.len());
        found.push((at + start, word[..length].trim_end_matches(['.', '-']).to_owned()));
        at += start + length;
        rest = &rest[start + length..];
    }
}

fn declared_type(declaration: &Map) -> &str {
    declaration.get("type").and_then(|entry| entry.value.as_str()).map_or("", AsRef::as_ref)
}

fn of_type(word: &str) -> Structure {
    match word {
        "steps" => Structure::Steps,
        "executor" => Structure::Executor,
        "boolean" => Structure::Word(&["true", "false"]),
        _ => Structure::Free,
    }
}

fn without_name(map: &Map) -> Arc<Map> {
    Arc::new(
        map.iter().filter(|(key, _)| key.as_ref() != "name").map(|(k, e)| (k.clone(), e.clone())).collect(),
    )
}
