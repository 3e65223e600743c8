//! What an editor asks about a place in a configuration, or in an orb: what a name means, where it is defined, what
//! may stand there, and where else it has to change with it.
//!
//! Pure like the rest: places are offsets in bytes, orbs come from the [`Input`]. A file that is half written is the
//! usual case, so nothing here needs one that compiles.

mod complete;
mod define;
mod hover;
mod rename;
mod structure;
mod walk;
mod words;

pub use complete::{Candidate, CandidateKind, complete};
pub use define::{Target, definition};
pub use hover::{Hover, hover};
pub use rename::{RenameError, rename, renameable};

use crate::context::{Ctx, Refs};
use crate::diagnostics::{Sink, Span};
use crate::input::Input;
use crate::scope::Scope;
use crate::values::Values;
use crate::yaml::{self, Map};
use std::ops::Range;
use std::sync::Arc;
use structure::Structure;
use walk::{Key, Occurrence, Role, Seen, Symbol, Walk};

/// A file that could be read as YAML, and the names in it.
struct Document {
    sink: Sink,
    root: Arc<Map>,
    scope: Arc<Scope>,
    occurrences: Vec<Occurrence>,
    keys: Vec<Key>,
    seen: Option<Seen>,
}

impl Document {
    /// `None`: it is no YAML, or no map.
    fn read(input: &Input<'_>) -> Option<Self> {
        let mut sink = Sink::new(input.file, input.source);
        let root = yaml::read(&mut sink, 0)?;
        let map = root.as_map()?.clone();
        let anchors = yaml::anchors(input.source);
        let mut ctx = Ctx::new(sink, Values::new(&input.values), input.orbs);
        ctx.refs = Refs { branch: input.values.branch.clone(), tag: input.values.tag.clone() };
        ctx.pipeline_parameters(&map, input.parameters, input.inherited_parameters, false);
        let scope = ctx.project_scope(&map);
        let mut walk = Walk::new(&ctx.sink, scope.clone());
        walk.value(&root, &Structure::Root);
        let (mut occurrences, keys, seen) = (walk.occurrences, walk.keys, walk.seen);
        occurrences.extend(anchors.into_iter().map(|(span, id, defines)| Occurrence {
            span,
            symbol: Symbol::Anchor(id),
            role: if defines { Role::Definition } else { Role::Reference },
        }));
        Some(Self { sink: ctx.sink, root: map, scope, occurrences, keys, seen })
    }

    /// The innermost name at an offset.
    fn at(&self, offset: usize) -> Option<&Occurrence> {
        let here = self.occurrences.iter().filter(|found| touches(found.span, offset));
        here.min_by_key(|found| found.span.end - found.span.start)
    }

    /// The place that defines a name in this file.
    fn defined(&self, symbol: &Symbol) -> Option<Span> {
        let defines = |found: &&Occurrence| found.role == Role::Definition && found.symbol == *symbol;
        self.occurrences.iter().find(defines).map(|found| found.span)
    }

    /// The orb that aliases lead to.
    fn orb(&self, path: &str) -> Option<&Arc<Scope>> {
        path.split('/')
            .filter(|alias| !alias.is_empty())
            .try_fold(&self.scope, |scope, alias| scope.orb(alias))
    }
}

/// Whether a place of the file itself holds an offset; one right behind it counts.
fn touches(span: Span, offset: usize) -> bool {
    span.file == 0 && (span.start as usize..=span.end as usize).contains(&offset)
}

fn range(span: Span) -> Range<usize> {
    span.start as usize..span.end as usize
}
