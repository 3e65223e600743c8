//! What the word at a place means.

use super::structure::Element;
use super::walk::{Role, Symbol};
use super::words::meaning;
use super::{Document, range, touches};
use crate::input::Input;
use crate::scope::Kind;
use crate::yaml::{Map, Node, Value};
use std::fmt::Write;
use std::ops::Range;

/// Arguments that are listed; more help nobody.
const MAX_ARGUMENTS: usize = 8;

/// An explanation in Markdown, and of which bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hover {
    /// Markdown.
    pub text: String,
    /// In bytes.
    pub range: Range<usize>,
}

/// What the name or key at `offset` means, and where its value comes from.
pub fn hover(input: &Input<'_>, offset: usize) -> Option<Hover> {
    let document = Document::read(input)?;
    if let Some(found) = document.at(offset) {
        let text = document.about(&found.symbol)?;
        return Some(Hover { text, range: range(found.span) });
    }
    let here = |span| touches(span, offset);
    let key =
        document.keys.iter().filter(|key| here(key.span)).min_by_key(|key| key.span.end - key.span.start)?;
    let text = format!("`{}`: {}", key.name, meaning(&key.structure, &key.name)?);
    Some(Hover { text, range: range(key.span) })
}

impl Document {
    fn about(&self, symbol: &Symbol) -> Option<String> {
        match symbol {
            Symbol::Element(element) => self.about_element(element),
            Symbol::Parameter(owner, name) => self.about_parameter(owner.as_ref(), name),
            Symbol::Orb(path) => self.about_orb(path),
            Symbol::Group(name) => Some(format!("**job group** `{name}`")),
            Symbol::Invocation(place, name) => Some(format!("`{name}`: a job of `{place}`")),
            Symbol::Value(name) => {
                Some(format!("`{name}`: a value of the pipeline, put in when the configuration is compiled."))
            }
            Symbol::Anchor(_) => {
                let line = self.sink.line(self.defined(symbol)?);
                Some(format!("An anchor of YAML, at line {line}."))
            }
        }
    }

    fn about_element(&self, element: &Element) -> Option<String> {
        let Element { orb, kind, name } = element;
        let scope = self.orb(orb)?;
        let body = scope.peek(*kind, name)?;
        let mut text = format!("**{}** `{name}`", kind.word());
        match (&scope.label, orb.is_empty()) {
            (Some(label), _) => _ = write!(text, " of the orb `{label}`"),
            (None, false) => _ = write!(text, " of the orb `{orb}`"),
            (None, true) => {}
        }
        paragraph(&mut text, described(&body));
        let parameters = body.get("parameters").and_then(|entry| entry.value.as_map());
        for (index, (name, entry)) in parameters.into_iter().flat_map(|map| map.iter()).enumerate() {
            text.push_str(if index == 0 { "\n\nParameters:\n\n" } else { "\n" });
            let _ = write!(text, "- `{name}`");
            if let Some(map) = entry.value.as_map() {
                text.push_str(&declared(map));
            }
        }
        Some(text)
    }

    fn about_parameter(&self, owner: Option<&Element>, name: &str) -> Option<String> {
        let section = match owner {
            None => self.root.get("parameters")?.value.as_map()?.clone(),
            Some(Element { orb, kind, name }) => {
                self.orb(orb)?.peek(*kind, name)?.get("parameters")?.value.as_map()?.clone()
            }
        };
        let entry = section.get(name)?;
        let mut text = format!("**parameter** `{name}`");
        match owner {
            None => text.push_str(" of the pipeline"),
            Some(owner) => _ = write!(text, " of the {} `{}`", owner.kind.word(), owner.name),
        }
        text.push_str(&entry.value.as_map().map(|map| declared(map)).unwrap_or_default());
        let (file, line, ..) = self.sink.describe(entry.key);
        let _ = write!(text, "\n\nDeclared at {file}:{line}.");
        let symbol = Symbol::Parameter(owner.cloned(), name.into());
        let given = self.occurrences.iter().filter(|found| found.symbol == symbol);
        let mut given: Vec<_> = given
            .filter_map(
                |found| if let Role::Argument(value) = found.role { Some((found.span, value)) } else { None },
            )
            .collect();
        given.dedup();
        for (span, value) in given.iter().take(MAX_ARGUMENTS) {
            let shown = self.sink.slice(*value).trim_end().lines().next().unwrap_or_default();
            let _ = write!(text, "\n- `{shown}` is given at line {}", self.sink.line(*span));
        }
        if given.len() > MAX_ARGUMENTS {
            let _ = write!(text, "\n- and at {} more places", given.len() - MAX_ARGUMENTS);
        }
        Some(text)
    }

    fn about_orb(&self, path: &str) -> Option<String> {
        let Some(scope) = self.orb(path) else {
            let reference = self.reference_of(path)?;
            return Some(format!("**orb** `{reference}`, which cannot be had here"));
        };
        let mut text = match &scope.label {
            Some(label) => format!("**orb** `{label}`"),
            None => format!("**orb** `{path}`, defined in this file"),
        };
        for kind in [Kind::Job, Kind::Command, Kind::Executor] {
            let names: Vec<String> = scope.names(kind).map(|name| format!("`{name}`")).collect();
            if !names.is_empty() {
                let _ = write!(text, "\n\n{}s: {}", kind.word(), names.join(", "));
            }
        }
        Some(text)
    }
}

fn paragraph(text: &mut String, more: Option<String>) {
    if let Some(more) = more.filter(|more| !more.trim().is_empty()) {
        let _ = write!(text, "\n\n{}", more.trim());
    }
}

fn described(body: &Map) -> Option<String> {
    body.get("description")?.value.text()
}

/// Type, default and description of a declaration.
pub(super) fn declared(declaration: &Map) -> String {
    let mut text = String::new();
    let of = |key: &str| declaration.get(key).map(|entry| &entry.value);
    if let Some(ty) = of("type").and_then(Node::text) {
        let _ = write!(text, ": {ty}");
    }
    if let Some(Value::Seq(items)) = of("enum").map(|node| &node.value) {
        let items: Vec<String> = items.iter().filter_map(Node::text).collect();
        let _ = write!(text, " ({})", items.join(", "));
    }
    match of("default") {
        None => text.push_str(", required"),
        Some(node) => match node.text() {
            Some(value) => _ = write!(text, ", `{value}` by default"),
            None => _ = write!(text, ", a {} by default", node.kind()),
        },
    }
    if let Some(description) = described(declaration) {
        let _ = write!(text, ". {}", description.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    text
}
