//! Where a name is defined.

use super::structure::Element;
use super::walk::Symbol;
use super::{Document, range};
use crate::diagnostics::Span;
use crate::input::Input;
use crate::scope::Scope;
use crate::yaml::Value;
use std::ops::Range;
use std::sync::Arc;

/// A place in the file itself, or in an orb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What the reference to the orb resolved to, and the orb's text; none for the file itself.
    pub orb: Option<(String, Arc<str>)>,
    /// In bytes.
    pub range: Range<usize>,
}

/// The definition of the name at `offset`: of a job, a command, an executor, a job group, a parameter, an orb, an
/// anchor or a name given in a workflow.
pub fn definition(input: &Input<'_>, offset: usize) -> Option<Target> {
    let document = Document::read(input)?;
    let symbol = &document.at(offset)?.symbol;
    if let Symbol::Orb(path) = symbol
        && let Some(text) = document.orb(path).and_then(|orb| document.text_of(orb))
    {
        return Some(Target { orb: Some(text), range: 0..0 });
    }
    if let Some(span) = document.defined(symbol) {
        return Some(Target { orb: None, range: range(span) });
    }
    let span = match symbol {
        Symbol::Element(element) => document.place_of(element)?,
        Symbol::Parameter(Some(element), name) => {
            let scope = document.orb(&element.orb)?;
            let body = scope.peek(element.kind, &element.name)?;
            body.get("parameters")?.value.as_map()?.get(name)?.key
        }
        _ => return None,
    };
    Some(document.target(span))
}

impl Document {
    /// The key under which an element is defined.
    pub(super) fn place_of(&self, element: &Element) -> Option<Span> {
        self.orb(&element.orb)?.key(element.kind, &element.name)
    }

    fn target(&self, span: Span) -> Target {
        let orb = (span.file > 0).then(|| {
            let (name, ..) = self.sink.describe(span);
            (name, self.sink.source(span.file))
        });
        Target { orb, range: range(span) }
    }

    /// Name and text of an orb that has a source of its own.
    fn text_of(&self, orb: &Scope) -> Option<(String, Arc<str>)> {
        let label = orb.label.as_ref()?;
        let file = self.sink.file_named(label)?;
        Some((label.to_string(), self.sink.source(file)))
    }

    /// What the key of an orb's alias says: its reference.
    pub(super) fn reference_of(&self, path: &str) -> Option<Arc<str>> {
        let alias = path.split('/').next()?;
        let entry = self.root.get("orbs")?.value.as_map()?.get(alias)?;
        if let Value::Str(text) = &entry.value.value { Some(text.clone()) } else { None }
    }
}
