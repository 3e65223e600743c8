//! Orbs from outside of the file: references are resolved, sources read once, work bounded.

use crate::Severity;
use crate::context::Ctx;
use crate::diagnostics::{Span, code};
use crate::orbs::{OrbError, OrbRef, OrbText, UsedOrb};
use crate::scope::Scope;
use crate::yaml;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Orbs of one compile, those of orbs included (security §5.2).
const MAX_ORBS: usize = 50;
/// Orbs that import orbs.
pub(crate) const MAX_ORB_DEPTH: usize = 5;
/// Bytes of one source, and of all together.
const MAX_ORB: usize = 1 << 20;
const MAX_ORBS_BYTES: usize = 8 << 20;

/// The orbs that one compile has read.
#[derive(Default)]
pub(crate) struct Imports {
    /// In the order of their first use.
    pub used: Vec<UsedOrb>,
    /// `None`: cannot be had; reported where it was first asked for.
    by_reference: HashMap<String, Option<Arc<Scope>>>,
    by_digest: HashMap<String, Arc<Scope>>,
    /// Digests of the orbs whose imports are being read.
    open: Vec<String>,
    bytes: usize,
}

impl Ctx<'_> {
    /// The elements of the orb that `written` means. `pins` are the frozen references of the orb that
    /// imports it. `None` when it cannot be had (the sink says why).
    pub fn import(
        &mut self,
        written: &str,
        at: Span,
        pins: &BTreeMap<String, String>,
        depth: usize,
    ) -> Option<Arc<Scope>> {
        let exact = pins.get(written).map_or(written, String::as_str).trim();
        if let Some(known) = self.imports.by_reference.get(exact) {
            if let Some(used) = self.imports.used.iter_mut().find(|used| used.reference == written) {
                used.direct |= depth == 0;
            }
            return known.clone();
        }
        let scope = self.import_new(written, exact, at, depth);
        self.imports.by_reference.insert(exact.to_owned(), scope.clone());
        scope
    }

    fn import_new(&mut self, written: &str, exact: &str, at: Span, depth: usize) -> Option<Arc<Scope>> {
        let reference: OrbRef = match exact.parse() {
            Ok(reference) => reference,
            Err(problem) => {
                let message = format!("`{exact}` is not a reference to an orb");
                // What a parameter leaves incomplete is not a slip of the pen: there is no such orb.
                let dynamic = self.sink.interpolated(at);
                let code = if dynamic { code::ORB_NOT_FOUND } else { code::ORB_REFERENCE };
                self.sink.error_hint(code, at, message, problem.to_string());
                return None;
            }
        };
        if self.imports.by_reference.len() >= MAX_ORBS {
            let message = format!("a configuration uses at most {MAX_ORBS} orbs, those of orbs included");
            self.sink.error(code::ORB_LIMIT, at, message);
            return None;
        }
        if depth > MAX_ORB_DEPTH {
            let message = format!("orbs import orbs more than {MAX_ORB_DEPTH} levels deep");
            self.sink.error(code::ORB_LIMIT, at, message);
            return None;
        }
        let orb = match self.orbs.fetch(&reference) {
            Ok(orb) => orb,
            Err(error) => {
                self.no_orb(&reference, at, error);
                return None;
            }
        };
        self.imports.used.push(UsedOrb {
            reference: written.to_owned(),
            resolved: orb.resolved.clone(),
            digest: orb.digest.clone(),
            direct: depth == 0,
        });
        if let Some(known) = self.imports.by_digest.get(&orb.digest) {
            return Some(known.clone());
        }
        if self.imports.open.contains(&orb.digest) {
            self.sink.error(code::ORB_LIMIT, at, format!("the orb `{reference}` imports itself"));
            return None;
        }
        self.imports.bytes += orb.text.len();
        if orb.text.len() > MAX_ORB || self.imports.bytes > MAX_ORBS_BYTES {
            let message = format!(
                "the orb `{}` is {} bytes long; at most {MAX_ORB} for one and {MAX_ORBS_BYTES} for all together",
                orb.resolved,
                orb.text.len()
            );
            self.sink.error(code::ORB_LIMIT, at, message);
            return None;
        }
        self.sink.trace.push((format!("Importing the orb `{reference}`"), at));
        let scope = self.read_orb(orb, at, depth);
        self.sink.trace.pop();
        scope
    }

    fn read_orb(&mut self, orb: OrbText, at: Span, depth: usize) -> Option<Arc<Scope>> {
        let file = self.sink.add_file(orb.resolved.as_str().into(), orb.text);
        let root = yaml::read(&mut self.sink, file)?;
        let Some(map) = root.as_map().cloned() else {
            let message = format!("the source of the orb `{}` is not a map", orb.resolved);
            self.sink.error(code::WRONG_TYPE, at, message);
            return None;
        };
        self.imports.open.push(orb.digest.clone());
        let scope = self.orb_scope(&map, orb.resolved.as_str().into(), &orb.pins, depth + 1);
        self.imports.open.pop();
        self.imports.by_digest.insert(orb.digest, scope.clone());
        Some(scope)
    }

    fn no_orb(&mut self, reference: &OrbRef, at: Span, error: OrbError) {
        let (code, message, hint) = match error {
            OrbError::NotFound(hint) => {
                let message = match reference {
                    OrbRef::Registry { .. } => format!(
                        "Cannot find {reference} in the orb registry. Check that the namespace, orb name and \
                         version are correct."
                    ),
                    OrbRef::Url(url) => format!("Cannot find an orb at {url}"),
                };
                (code::ORB_NOT_FOUND, message, hint)
            }
            OrbError::Forbidden(why) => {
                (code::ORB_UNAVAILABLE, format!("the orb `{reference}` may not be used: {why}"), None)
            }
            OrbError::Unavailable(why) => {
                (code::ORB_UNAVAILABLE, format!("the orb `{reference}` could not be read: {why}"), None)
            }
        };
        self.sink.add(Severity::Error, code, at, message, hint);
    }
}
