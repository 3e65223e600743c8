//! What kind of file a YAML file is, and the check of an orb's source.

use crate::diagnostics::{Diagnostic, Sink};
use crate::input::Input;
use crate::orbs::{OrbError, OrbRef, OrbSource, OrbText, UsedOrb};
use crate::yaml::{self, Map, Node, Value};
use std::fmt::Write;

/// The kinds of YAML files in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole configuration.
    Configuration,
    /// The source of an orb: elements and no workflow.
    Orb,
    /// A part of something, or something else.
    Other,
}

/// The name under which an orb is checked; nobody sees it.
const CHECKED: &str = "checked/orb@0.0.0";

/// What `source` is. A file that cannot be read is taken for what its lines look like.
pub fn kind(source: &str) -> Kind {
    let has = |key: &str| source.lines().any(|line| line.starts_with(key));
    let mut sink = Sink::new("", source);
    let Some(root) = yaml::read(&mut sink, 0) else {
        return if has("version:") { Kind::Configuration } else { Kind::Other };
    };
    let Some(map) = root.as_map() else { return Kind::Other };
    let version = map.get("version").and_then(|entry| entry.value.text());
    if !matches!(version.as_deref(), Some("2" | "2.0" | "2.1")) {
        return Kind::Other;
    }
    let section = |name: &str| map.get(name).is_some_and(|entry| !entry.value.is_null());
    let builds =
        map.get("jobs").and_then(|jobs| jobs.value.as_map()).is_some_and(|jobs| jobs.contains_key("build"));
    if version.as_deref() != Some("2.1") || section("workflows") || section("setup") || builds {
        return Kind::Configuration;
    }
    let elements = ["commands", "executors", "examples", "display", "description"];
    if elements.into_iter().any(section) { Kind::Orb } else { Kind::Configuration }
}

/// Checks the source of an orb: its shape, and every element that can be used without arguments.
///
/// # Errors
/// All errors of the source.
pub fn orb(input: &Input<'_>) -> Result<(Vec<Diagnostic>, Vec<UsedOrb>), Vec<Diagnostic>> {
    let mut sink = Sink::new(input.file, input.source);
    let root = yaml::read(&mut sink, 0);
    let Some(map) = root.as_ref().and_then(Node::as_map) else {
        // The finding of a use says the same in the words of the compiler.
        return compile(input, "").map(|_| (Vec::new(), Vec::new()));
    };
    let mut steps = String::new();
    for name in callable(map, "commands") {
        let _ = write!(steps, "\n      - checked/{name}");
    }
    let mut jobs = String::new();
    for name in callable(map, "executors") {
        let _ = write!(jobs, "\n  in-{name}: {{executor: checked/{name}, steps: [checkout]}}");
    }
    let mut invoked: Vec<String> =
        callable(map, "executors").into_iter().map(|name| format!("in-{name}")).collect();
    invoked.extend(callable(map, "jobs").into_iter().map(|name| format!("checked/{name}")));
    let use_of_all = format!(
        "  checked-commands:\n    machine: true\n    steps:\n      - checkout{steps}{jobs}\nworkflows:\n  w:\n    jobs: [checked-commands{}]\n",
        invoked.iter().map(|name| format!(", {name}")).collect::<String>()
    );
    compile(input, &use_of_all)
}

fn compile(input: &Input<'_>, jobs: &str) -> Result<(Vec<Diagnostic>, Vec<UsedOrb>), Vec<Diagnostic>> {
    let source = Checked { orb: input };
    let jobs = if jobs.is_empty() {
        "  checked-commands: {machine: true, steps: [checkout]}\nworkflows:\n  w:\n    jobs: [checked-commands]\n"
    } else {
        jobs
    };
    let text = format!("version: 2.1\norbs:\n  checked: {CHECKED}\njobs:\n{jobs}");
    let wrapped = Input { orbs: &source, values: input.values.clone(), ..Input::new("the check", &text) };
    // The wrapper is not the author's: places in it are no help.
    let own = |mut finding: Diagnostic| {
        finding.related.retain(|related| related.file != "the check");
        finding
    };
    match crate::compile(&wrapped) {
        Ok(compiled) => {
            let used = compiled.orbs.into_iter().filter(|orb| orb.reference != CHECKED).collect();
            Ok((compiled.warnings.into_iter().filter(|w| w.file != "the check").map(own).collect(), used))
        }
        Err(errors) => Err(errors.into_iter().map(own).collect()),
    }
}

/// Names of a section whose elements need no argument.
fn callable(root: &Map, section: &str) -> Vec<String> {
    let Some(elements) = root.get(section).and_then(|entry| entry.value.as_map()) else { return Vec::new() };
    let needs_nothing = |body: &Node| {
        let parameters = body.as_map().and_then(|body| body.get("parameters")).and_then(|p| p.value.as_map());
        let optional = |p: &Node| p.as_map().is_none_or(|declaration| declaration.contains_key("default"));
        parameters.is_none_or(|parameters| parameters.values().all(|p| optional(&p.value)))
    };
    let is_element = |body: &Node| matches!(body.value, Value::Map(_) | Value::Str(_));
    let named = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    elements
        .iter()
        .filter(|(name, entry)| named(name) && is_element(&entry.value) && needs_nothing(&entry.value))
        .map(|(name, _)| name.to_string())
        .collect()
}

/// The orb that is checked, and behind it where its own orbs come from.
struct Checked<'c> {
    orb: &'c Input<'c>,
}

impl OrbSource for Checked<'_> {
    fn fetch(&self, reference: &OrbRef) -> Result<OrbText, OrbError> {
        if reference.to_string() == CHECKED {
            return Ok(OrbText::new(self.orb.file, self.orb.source, CHECKED));
        }
        self.orb.orbs.fetch(reference)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_files() {
        let cases = [
            ("version: 2.1\nworkflows: {}\n", Kind::Configuration),
            ("version: 2\njobs: {}\n", Kind::Configuration),
            ("version: 2.1\ncommands: {}\n", Kind::Orb),
            ("version: 2.1\ncommands: {}\njobs: {build: {}}\n", Kind::Configuration),
            ("steps: []\n", Kind::Other),
            ("version: 3\n", Kind::Other),
            ("version: 2.1\njobs: [\n", Kind::Configuration),
            ("- 1\n", Kind::Other),
        ];
        for (source, expected) in cases {
            assert_eq!(kind(source), expected, "{source}");
        }
    }

    #[test]
    fn an_orb_is_checked_in_its_own_lines() {
        let good = "version: 2.1\ncommands:\n  a: {steps: [checkout]}\n  b: {parameters: {x: {type: string}}, steps: [{run: << parameters.x >>}]}\nexecutors:\n  e: {docker: [{image: a}]}\njobs:\n  j: {executor: e, steps: [a]}\n";
        assert_eq!(orb(&Input::new("orb.yml", good)), Ok((Vec::new(), Vec::new())));
        let bad = "version: 2.1\ncommands:\n  a:\n    steps:\n      - chekout\n";
        let errors = orb(&Input::new("orb.yml", bad)).expect_err("unknown command");
        assert_eq!(
            (errors[0].code, errors[0].file.as_str(), errors[0].line),
            ("unknown-command", "orb.yml", 5)
        );
        let broken = orb(&Input::new("orb.yml", "commands: [\n")).expect_err("no YAML");
        assert_eq!((broken[0].code, broken[0].file.as_str()), ("yaml-syntax", "orb.yml"));
    }
}
