//! Another name for a job, a command, an executor or a parameter, wherever it stands.

use super::structure::Element;
use super::walk::{Occurrence, Role, Symbol};
use super::{Document, range};
use crate::input::Input;
use crate::params::RESERVED;
use crate::scope::Kind;
use crate::steps::BUILT_IN;
use crate::{Diagnostic, compile};
use std::ops::Range;

/// Why a name cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenameError {
    /// Nothing at the place has a name that this file gives.
    #[error("only jobs, commands, executors, parameters and names of this file can be renamed")]
    Nothing,
    /// The new name cannot be used.
    #[error("`{0}` cannot be the new name: {1}")]
    Name(String, &'static str),
    /// A place means several things.
    #[error(
        "line {0} belongs to several elements by a YAML alias, so its names cannot be changed for one of them"
    )]
    Shared(usize),
    /// The file compiles, and would not with the new name.
    #[error("the file would not compile any more, because the name is put together elsewhere: {0}")]
    Breaks(String),
}

/// The place of the name at `offset`, if it can be changed.
pub fn renameable(input: &Input<'_>, offset: usize) -> Option<Range<usize>> {
    let document = Document::read(input)?;
    let found = document.at(offset)?;
    document.can_change(&found.symbol).then(|| range(found.span))
}

/// All places at which the name at `offset` stands: each is to hold `new` instead.
///
/// # Errors
/// It is no name that can be changed, or not to this one.
pub fn rename(input: &Input<'_>, offset: usize, new: &str) -> Result<Vec<Range<usize>>, RenameError> {
    let document = Document::read(input).ok_or(RenameError::Nothing)?;
    let symbol = document.at(offset).ok_or(RenameError::Nothing)?.symbol.clone();
    if !document.can_change(&symbol) {
        return Err(RenameError::Nothing);
    }
    if let Some(problem) = document.problem(&symbol, new) {
        return Err(RenameError::Name(new.to_owned(), problem));
    }
    let mut places: Vec<&Occurrence> =
        document.occurrences.iter().filter(|found| found.symbol == symbol && found.span.file == 0).collect();
    places.sort_by_key(|found| found.span);
    places.dedup_by_key(|found| found.span);
    let shared = |place: &&&Occurrence| {
        document.occurrences.iter().any(|other| other.span == place.span && other.symbol != symbol)
    };
    if let Some(place) = places.iter().find(shared) {
        return Err(RenameError::Shared(document.sink.line(place.span)));
    }
    let places: Vec<Range<usize>> = places.into_iter().map(|found| range(found.span)).collect();
    still_compiles(input, &places, new)?;
    Ok(places)
}

/// A name may be made of a parameter, or of a matrix: then it stands nowhere as such.
fn still_compiles(input: &Input<'_>, places: &[Range<usize>], new: &str) -> Result<(), RenameError> {
    if compile(input).is_err() {
        return Ok(());
    }
    let mut source = input.source.to_owned();
    for place in places.iter().rev() {
        source.replace_range(place.clone(), new);
    }
    match compile(&Input { source: &source, ..input.clone() }) {
        Ok(_) => Ok(()),
        Err(errors) => Err(RenameError::Breaks(errors.first().map(Diagnostic::one_line).unwrap_or_default())),
    }
}

impl Document {
    /// Whether the name is given in this file, and may be another one.
    fn can_change(&self, symbol: &Symbol) -> bool {
        let kind = match symbol {
            Symbol::Element(_) | Symbol::Group(_) | Symbol::Parameter(..) | Symbol::Invocation(..) => true,
            Symbol::Orb(_) | Symbol::Value(_) | Symbol::Anchor(_) => false,
        };
        let defined = |found: &Occurrence| {
            found.role == Role::Definition && found.symbol == *symbol && found.span.file == 0
        };
        kind && self.occurrences.iter().any(defined)
    }

    fn problem(&self, symbol: &Symbol, new: &str) -> Option<&'static str> {
        let spaced = !matches!(symbol, Symbol::Parameter(..));
        let well_named = new.starts_with(|c: char| c.is_ascii_alphabetic())
            && new
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-') || (spaced && c == ' '))
            && !new.ends_with(' ');
        if !well_named {
            return Some("it starts with a letter and holds letters, digits, `_` and `-`");
        }
        let taken = match symbol {
            Symbol::Element(Element { orb, kind, name }) => {
                let step = new.replace('-', "_");
                if *kind == Kind::Command && BUILT_IN.contains(&step.as_str()) {
                    return Some("it is a step of the language");
                }
                let alone = orb.is_empty() && !self.root.contains_key("workflows");
                if *kind == Kind::Job && alone && name.as_ref() == "build" {
                    return Some("without `workflows` the job `build` runs because of its name");
                }
                let other = Element { orb: orb.clone(), kind: *kind, name: new.into() };
                self.defined(&Symbol::Element(other)).is_some()
                    || (*kind == Kind::Job && self.defined(&Symbol::Group(new.into())).is_some())
            }
            Symbol::Group(_) => {
                let job = Element { orb: String::new(), kind: Kind::Job, name: new.into() };
                self.defined(&Symbol::Group(new.into())).is_some()
                    || self.defined(&Symbol::Element(job)).is_some()
            }
            Symbol::Parameter(owner, _) => {
                let of_job = owner.as_ref().is_some_and(|owner| owner.kind != Kind::Command);
                if of_job && RESERVED.contains(&new) {
                    return Some("it is a key of the language");
                }
                self.defined(&Symbol::Parameter(owner.clone(), new.into())).is_some()
            }
            Symbol::Invocation(place, _) => {
                self.defined(&Symbol::Invocation(place.clone(), new.into())).is_some()
            }
            Symbol::Orb(_) | Symbol::Value(_) | Symbol::Anchor(_) => false,
        };
        taken.then_some("something else has it")
    }
}
