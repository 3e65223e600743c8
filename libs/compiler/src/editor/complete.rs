//! What may stand at a place.

use super::Document;
use super::hover::declared;
use super::structure::{Element, Structure};
use super::walk::{CURSOR, Seen};
use super::words::{meaning, step};
use crate::input::Input;
use crate::scope::{Kind, Scope};
use crate::steps::BUILT_IN;
use crate::values;
use crate::yaml::{self, Map};
use std::ops::Range;

/// What a candidate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CandidateKind {
    /// A key of the language, or a step of it.
    Key,
    /// A word that the language has for a value.
    Word,
    /// A job or a job group.
    Job,
    /// A command.
    Command,
    /// An executor.
    Executor,
    /// A parameter.
    Parameter,
    /// A value of the pipeline.
    Value,
    /// A YAML anchor.
    Anchor,
}

/// Something that may stand at the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What would be written.
    pub text: String,
    /// What it is.
    pub kind: CandidateKind,
    /// What it means, in Markdown; may be empty.
    pub about: String,
    /// The bytes in whose place it would be written: the begun word.
    pub range: Range<usize>,
}

/// What may stand at `offset`, where a word may have been begun. The file need not be whole.
pub fn complete(input: &Input<'_>, offset: usize) -> Vec<Candidate> {
    let Some(before) = input.source.get(..offset) else { return Vec::new() };
    let in_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let start =
        before.rfind(|c| !in_word(c)).map_or(0, |i| i + before[i..].chars().next().map_or(1, char::len_utf8));
    let range = start..offset;
    let line = &before[before.rfind('\n').map_or(0, |i| i + 1)..];
    if before[..start].ends_with('*') && matches!(before[..start - 1].chars().next_back(), Some(' ' | '\n')) {
        return anchors(before, start, &range);
    }
    let Some((document, seen)) = look(input, offset) else { return Vec::new() };
    let mut found = Found { range, candidates: Vec::new(), document: &document };
    let open = line.rfind("<<").is_some_and(|open| !line[open..].contains(">>"));
    let expression = matches!(seen.structure, Structure::Condition | Structure::Filters);
    if open || (expression && before[start..].contains('.')) {
        found.names(&seen);
    } else {
        found.at(&seen);
    }
    found.candidates
}

/// Reads the file with a mark at the place. A line that is being written is seldom YAML: it is tried as a key, as
/// a value, and without what follows.
fn look(input: &Input<'_>, offset: usize) -> Option<(Document, Seen)> {
    let (before, after) = input.source.split_at(offset);
    let rest = after.find('\n').map_or("", |end| &after[end..]);
    let tail = after.split('\n').next().unwrap_or_default();
    // What has been opened in this line and is not closed.
    let line = &before[before.rfind('\n').map_or(0, |i| i + 1)..];
    let mut close = String::new();
    for c in line.chars() {
        match c {
            '{' => close.insert(0, '}'),
            '[' => close.insert(0, ']'),
            '}' | ']' if close.starts_with(c) => _ = close.remove(0),
            _ => {}
        }
    }
    let quote = ["\"", "'"].into_iter().find(|quote| line.matches(*quote).count() % 2 == 1).unwrap_or("");
    let endings = [
        format!("{CURSOR}{after}"),
        format!("{CURSOR}: {after}"),
        format!("{CURSOR}{tail}: {rest}"),
        format!("{CURSOR}{quote}{close}{rest}"),
        format!("{CURSOR}: {close}{rest}"),
        format!("{CURSOR}{quote}{close}\n"),
        format!("{CURSOR}: {close}\n"),
    ];
    endings.iter().find_map(|ending| {
        let source = format!("{before}{ending}");
        let mut document = Document::read(&Input { source: &source, ..input.clone() })?;
        let seen = document.seen.take()?;
        Some((document, seen))
    })
}

fn anchors(before: &str, start: usize, range: &Range<usize>) -> Vec<Candidate> {
    // What is unfinished would hide those before it.
    let mut names: Vec<&str> = Vec::new();
    let source = &before[..start - 1];
    let defined = yaml::anchors(source).into_iter().filter(|(_, _, defines)| *defines);
    for (span, ..) in defined {
        let name = &source[span.start as usize..span.end as usize];
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let candidate = |name: &str| Candidate {
        text: name.to_owned(),
        kind: CandidateKind::Anchor,
        about: String::new(),
        range: range.clone(),
    };
    names.into_iter().map(candidate).collect()
}

struct Found<'d> {
    range: Range<usize>,
    candidates: Vec<Candidate>,
    document: &'d Document,
}

impl Found<'_> {
    fn add(&mut self, text: impl Into<String>, kind: CandidateKind, about: impl Into<String>) {
        let (text, about, range) = (text.into(), about.into(), self.range.clone());
        if !text.contains(CURSOR) {
            self.candidates.push(Candidate { text, kind, about, range });
        }
    }

    fn at(&mut self, seen: &Seen) {
        let structure = &seen.structure;
        let free = |key: &str| !seen.present.iter().any(|present| present.as_ref() == key);
        for word in structure.words() {
            self.add(*word, CandidateKind::Word, "");
        }
        for key in structure.keys().iter().filter(|key| free(key)) {
            self.add(*key, CandidateKind::Key, meaning(structure, key).unwrap_or_default());
        }
        match structure {
            Structure::Step => {
                for name in BUILT_IN {
                    self.add(*name, CandidateKind::Key, step(name).unwrap_or_default());
                }
                self.elements(&seen.scope, Kind::Command, CandidateKind::Command);
            }
            Structure::Executor => self.elements(&seen.scope, Kind::Executor, CandidateKind::Executor),
            Structure::Invocations => {
                self.elements(&seen.scope, Kind::Job, CandidateKind::Job);
                for name in seen.scope.groups.keys() {
                    self.add(name.as_ref(), CandidateKind::Job, "");
                }
            }
            Structure::Requires | Structure::Required => {
                for label in &seen.labels {
                    self.add(label.as_str(), CandidateKind::Job, "");
                }
            }
            Structure::Arguments(element)
            | Structure::ExecutorArguments(element)
            | Structure::Invocation(Some(element))
            | Structure::MatrixParameters(Some(element)) => {
                for (name, about) in self.parameters(element) {
                    if free(&name) {
                        self.add(name, CandidateKind::Parameter, about);
                    }
                }
            }
            _ => {}
        }
    }

    /// Elements of the scope and of the orbs that it imports.
    fn elements(&mut self, scope: &Scope, kind: Kind, word: CandidateKind) {
        for name in scope.names(kind) {
            self.add(name.as_ref(), word, about(scope, kind, name));
        }
        for (alias, orb) in scope.imported() {
            for name in orb.names(kind) {
                self.add(format!("{alias}/{name}"), word, about(orb, kind, name));
            }
        }
    }

    fn parameters(&self, element: &Element) -> Vec<(String, String)> {
        let body = self.document.orb(&element.orb).and_then(|scope| scope.peek(element.kind, &element.name));
        let map = body.and_then(|body| body.get("parameters")?.value.as_map().cloned());
        map.map(|map| listed(&map)).unwrap_or_default()
    }

    /// What may be put in between `<<` and `>>`.
    fn names(&mut self, seen: &Seen) {
        for (prefix, element) in [("parameters", &seen.owner), ("matrix", &seen.matrix)] {
            let parameters = element.as_ref().map(|element| self.parameters(element));
            for (name, about) in parameters.into_iter().flatten() {
                self.add(format!("{prefix}.{name}"), CandidateKind::Parameter, about);
            }
        }
        let pipeline = self.document.root.get("parameters").and_then(|entry| entry.value.as_map().cloned());
        for (name, about) in pipeline.iter().flat_map(|map| listed(map)) {
            self.add(format!("pipeline.parameters.{name}"), CandidateKind::Parameter, about);
        }
        for name in values::KNOWN {
            self.add(*name, CandidateKind::Value, "");
        }
    }
}

fn about(scope: &Scope, kind: Kind, name: &str) -> String {
    let description = scope.peek(kind, name).and_then(|body| body.get("description")?.value.text());
    description.unwrap_or_default()
}

fn listed(parameters: &Map) -> Vec<(String, String)> {
    let one = |entry: &crate::yaml::Entry| entry.value.as_map().map(|map| declared(map)).unwrap_or_default();
    let about = |entry| one(entry).trim_start_matches(": ").to_owned();
    parameters.iter().map(|(name, entry)| (name.to_string(), about(entry))).collect()
}
