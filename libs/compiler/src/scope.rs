//! Named elements: what a name means in the project and in an inline orb.

use crate::context::{Ctx, MAX_CALLS};
use crate::diagnostics::{Span, code, suggest};
use crate::interpolate::Env;
use crate::params::Place;
use crate::resolve::MAX_ORB_DEPTH;
use crate::yaml::{Entry, Map, Node, Value};
use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The kinds of named elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Job,
    Command,
    Executor,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Command => "command",
            Self::Executor => "executor",
        }
    }

    fn code(self) -> &'static str {
        match self {
            Self::Job => code::UNKNOWN_JOB,
            Self::Command => code::UNKNOWN_COMMAND,
            Self::Executor => code::UNKNOWN_EXECUTOR,
        }
    }
}

/// The elements of the project or of an orb.
#[derive(Default)]
pub(crate) struct Scope {
    jobs: Map,
    commands: Map,
    executors: Map,
    /// Job groups; none in orbs.
    pub groups: Map,
    /// `None`: an orb that cannot be loaded; the file is refused for it already.
    orbs: IndexMap<Arc<str>, Option<Arc<Scope>>>,
    pub is_orb: bool,
    /// What messages call the orb; none for the project and for inline orbs.
    pub label: Option<Arc<str>>,
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scope")
    }
}

/// A found element.
pub(crate) struct Found {
    pub body: Arc<Map>,
    pub key: Span,
    pub scope: Arc<Scope>,
}

pub(crate) const JOB_KEYS: &[&str] = &[
    "type",
    "description",
    "parallelism",
    "auto_rerun_on_infra_fail",
    "macos",
    "resource_class",
    "docker",
    "steps",
    "retention",
    "working_directory",
    "circleci_ip_ranges",
    "machine",
    "environment",
    "executor",
    "shell",
    "parameters",
    "plan_name",
    "validation",
    "key",
];
const JOB_KEYS_2: &[&str] = &["branches"];
pub(crate) const EXECUTOR_KEYS: &[&str] = &[
    "docker",
    "machine",
    "macos",
    "environment",
    "working_directory",
    "shell",
    "resource_class",
    "parameters",
    "description",
];
pub(crate) const COMMAND_KEYS: &[&str] = &["steps", "parameters", "description"];
pub(crate) const ORB_KEYS: &[&str] =
    &["jobs", "commands", "executors", "orbs", "description", "display", "examples", "version", "name"];

impl Scope {
    fn map(&self, kind: Kind) -> &Map {
        match kind {
            Kind::Job => &self.jobs,
            Kind::Command => &self.commands,
            Kind::Executor => &self.executors,
        }
    }

    /// ` in the orb …`, where the elements are not the file's own.
    pub fn in_orb(&self) -> String {
        self.label.as_ref().map_or(String::new(), |label| format!(" in the orb `{label}`"))
    }

    /// The usual case: a definition of this scope or of an orb that it imports.
    fn direct(self: &Arc<Self>, kind: Kind, name: &str) -> Option<Found> {
        let (scope, entry) = match (self.map(kind).get(name), name.split_once('/')) {
            (Some(entry), _) => (self, entry),
            (None, Some((alias, rest))) => {
                let orb = self.orb(alias)?;
                (orb, orb.map(kind).get(rest)?)
            }
            (None, None) => return None,
        };
        Some(Found { body: entry.value.as_map()?.clone(), key: entry.key, scope: scope.clone() })
    }

    /// The node that defines a name of this scope.
    pub fn element(&self, kind: Kind, name: &str) -> Option<&Node> {
        self.map(kind).get(name).map(|e| &e.value)
    }

    /// The names of all jobs and where they stand.
    pub fn job_names(&self) -> impl Iterator<Item = (&Arc<str>, Span)> {
        self.jobs.iter().map(|(name, entry)| (name, entry.key))
    }

    /// The names of one kind.
    pub fn names(&self, kind: Kind) -> impl Iterator<Item = &Arc<str>> {
        self.map(kind).keys()
    }

    /// Where a name of this scope is defined.
    pub fn key(&self, kind: Kind, name: &str) -> Option<Span> {
        self.map(kind).get(name).map(|entry| entry.key)
    }

    /// The orbs that could be had, by their aliases.
    pub fn imported(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Scope>)> {
        self.orbs.iter().filter_map(|(alias, orb)| Some((alias, orb.as_ref()?)))
    }

    /// Every definition that is a map.
    pub fn bodies(&self) -> impl Iterator<Item = (Kind, &Arc<str>, &Arc<Map>)> {
        [Kind::Job, Kind::Command, Kind::Executor].into_iter().flat_map(|kind| {
            self.map(kind).iter().filter_map(move |(name, entry)| Some((kind, name, entry.value.as_map()?)))
        })
    }

    /// The orbs whose definitions stand in the same file.
    pub fn inline_orbs(&self) -> impl Iterator<Item = &Arc<Scope>> {
        self.orbs.values().flatten().filter(|orb| orb.label.is_none())
    }

    /// The orb behind an alias, if it could be had.
    pub fn orb(&self, alias: &str) -> Option<&Arc<Scope>> {
        self.orbs.get(alias)?.as_ref()
    }

    pub fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Whether it defines nothing.
    fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.commands.is_empty() && self.executors.is_empty()
    }

    pub fn has(&self, kind: Kind, name: &str) -> bool {
        self.map(kind).contains_key(name)
    }
}

impl Ctx<'_> {
    /// The scope of the project (or of version 2, where only jobs exist).
    pub fn project_scope(&mut self, root: &Map) -> Arc<Scope> {
        let scope = self.scope(root, false, None, &BTreeMap::new(), 0);
        self.check_shapes(&scope);
        self.check_groups(&scope);
        Arc::new(scope)
    }

    /// The scope of an orb's source. It was checked when it was published; what a job uses of it is checked again.
    pub fn orb_scope(
        &mut self,
        root: &Map,
        label: Arc<str>,
        pins: &BTreeMap<String, String>,
        depth: usize,
    ) -> Arc<Scope> {
        Arc::new(self.scope(root, true, Some(label), pins, depth))
    }

    fn scope(
        &mut self,
        root: &Map,
        is_orb: bool,
        label: Option<Arc<str>>,
        pins: &BTreeMap<String, String>,
        depth: usize,
    ) -> Scope {
        let jobs = self.section(root, "jobs");
        let (commands, executors) = if self.interpolation {
            (self.section(root, "commands"), self.section(root, "executors"))
        } else {
            (Map::default(), Map::default())
        };
        let mut orbs = IndexMap::new();
        for (alias, entry) in self.interpolation.then(|| self.section(root, "orbs")).into_iter().flatten() {
            if alias.contains('/') {
                self.sink.error(code::INVALID_NAME, entry.key, "the name of an orb cannot hold a `/`");
            }
            let orb = self.orb(&alias, &entry, is_orb, pins, depth);
            orbs.insert(alias, orb);
        }
        let groups =
            if self.interpolation && !is_orb { self.section(root, "job-groups") } else { Map::default() };
        Scope { jobs, commands, executors, groups, orbs, is_orb, label }
    }

    fn orb(
        &mut self,
        alias: &str,
        entry: &Entry,
        in_orb: bool,
        pins: &BTreeMap<String, String>,
        depth: usize,
    ) -> Option<Arc<Scope>> {
        match &entry.value.value {
            Value::Map(_) if depth >= MAX_ORB_DEPTH => {
                let message = format!("orbs are nested deeper than {MAX_ORB_DEPTH} levels");
                self.sink.error(code::ORB_LIMIT, entry.key, message);
                None
            }
            Value::Map(body) => {
                self.only_keys(body, ORB_KEYS, "an orb");
                let scope = self.scope(body, true, None, pins, depth + 1);
                self.check_shapes(&scope);
                Some(Arc::new(scope))
            }
            Value::Str(_) => {
                let env = Env { pipeline_parameters: !in_orb, ..Env::default() };
                let reference = self.interpolate(&entry.value, env);
                match reference.as_str() {
                    Some(text) => self.import(&text.clone(), entry.value.span, pins, depth),
                    None => {
                        self.wrong_type(&reference, &format!("the orb `{alias}`"), "a reference or a map");
                        None
                    }
                }
            }
            _ => {
                self.wrong_type(&entry.value, &format!("the orb `{alias}`"), "a reference or a map");
                None
            }
        }
    }

    fn section(&mut self, root: &Map, name: &str) -> Map {
        match root.get(name).map(|e| &e.value) {
            None => Map::default(),
            Some(Node { value: Value::Map(map), .. }) => map.as_ref().clone(),
            Some(node) => {
                if !node.is_null() {
                    self.wrong_type(node, &format!("`{name}`"), "a map");
                }
                Map::default()
            }
        }
    }

    /// What can be said about elements that nothing uses: their keys and declarations.
    fn check_shapes(&mut self, scope: &Scope) {
        let mut job_keys = JOB_KEYS.to_vec();
        if !self.interpolation {
            job_keys.extend(JOB_KEYS_2);
        }
        let kinds: [(Kind, &[&str], Place); 3] = [
            (Kind::Job, &job_keys, Place::Job),
            (Kind::Command, COMMAND_KEYS, Place::Command),
            (Kind::Executor, EXECUTOR_KEYS, Place::Executor),
        ];
        for (kind, keys, place) in kinds {
            for (name, entry) in scope.map(kind) {
                let what = format!("the {} `{name}`", kind.word());
                // The reference service takes any text as a name: `python-3.12`, `test/unit`, `2to3`.
                if let Some(problem) = crate::names::problem(name) {
                    self.sink.error(code::INVALID_NAME, entry.key, problem);
                }
                match &entry.value.value {
                    Value::Map(body) => {
                        let body = body.clone();
                        self.only_keys(&body, keys, &what);
                        self.declarations(&body, place);
                        if kind == Kind::Command && !body.contains_key("steps") {
                            let message = format!("required key [steps] not found in {what}");
                            self.sink.error(code::MISSING_KEY, entry.key, message);
                        }
                    }
                    Value::Str(_) if self.interpolation => {}
                    _ => self.wrong_type(&entry.value, &what, "a map"),
                }
            }
        }
    }

    /// The element that `name` means in `scope`. `None`: unknown, and reported at `at`.
    pub fn find(&mut self, kind: Kind, name: &str, scope: &Arc<Scope>, at: Span) -> Option<Found> {
        if let Some(found) = scope.direct(kind, name) {
            return Some(found);
        }
        let (mut name, mut scope) = (name.to_owned(), scope.clone());
        for _ in 0..MAX_CALLS {
            if let Some(entry) = scope.map(kind).get(name.as_str()) {
                match &entry.value.value {
                    // An element may be the name of an element of an imported orb.
                    Value::Str(other) => {
                        name = other.to_string();
                        continue;
                    }
                    Value::Map(body) => {
                        return Some(Found { body: body.clone(), key: entry.key, scope: scope.clone() });
                    }
                    _ => {
                        self.wrong_type(&entry.value, &format!("the {} `{name}`", kind.word()), "a map");
                        return None;
                    }
                }
            }
            if let Some((alias, rest)) = name.split_once('/') {
                match scope.orbs.get(alias) {
                    Some(Some(orb)) => {
                        let rest = rest.to_owned();
                        scope = orb.clone();
                        if !scope.map(kind).contains_key(rest.as_str()) {
                            let mut message =
                                format!("Cannot find a definition for {} named {name}", kind.word());
                            if scope.is_empty() {
                                // The test of an orb gets its orb while the pipeline runs (`orb-tools`).
                                message.push_str(&format!(": the orb `{alias}` is empty here"));
                                let hint =
                                    format!("import it: `{alias}: namespace/{alias}@1.2.3` below `orbs:`");
                                self.sink.error_hint(code::UNKNOWN_ORB, at, message, hint);
                                return None;
                            }
                            let hint = suggest(&rest, scope.map(kind).keys().map(AsRef::as_ref));
                            self.sink.add(crate::Severity::Error, kind.code(), at, message, hint);
                            return None;
                        }
                        name = rest;
                        continue;
                    }
                    Some(None) => return None,
                    None => {
                        let hint = suggest(alias, scope.orbs.keys().map(AsRef::as_ref));
                        let message = format!(
                            "Cannot find a definition for {} named {name}: no orb `{alias}` is imported",
                            kind.word()
                        );
                        self.sink.add(crate::Severity::Error, code::UNKNOWN_ORB, at, message, hint);
                        return None;
                    }
                }
            }
            let built_in = if kind == Kind::Command { crate::steps::BUILT_IN } else { &[] };
            let known = scope.map(kind).keys().map(AsRef::as_ref).chain(built_in.iter().copied());
            let hint = suggest(&name, known);
            let message = format!("Cannot find a definition for {} named {name}", kind.word());
            self.sink.add(crate::Severity::Error, kind.code(), at, message, hint);
            return None;
        }
        let message = format!("the {} `{name}` is defined by itself", kind.word());
        self.sink.error(code::RECURSIVE_CALL, at, message);
        None
    }
}
