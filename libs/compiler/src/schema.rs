//! The shape of the whole document, used or not (config-language §21, step 3).
//!
//! What runs is checked while it is expanded, with the calls that led to it. This pass finds foreign keys and
//! arguments in what does not run: definitions that nobody uses, workflows that a condition excludes, branches
//! of conditional steps.

use crate::context::Ctx;
use crate::diagnostics::{Span, code, suggest};
use crate::executors::{AWS_KEYS, BASIC_KEYS, CONTAINER_KEYS, GCP_KEYS, MACHINE_KEYS, MACOS_KEYS};
use crate::invocations::INVOCATION_KEYS;
use crate::scope::{Kind, Scope};
use crate::steps::BUILT_IN;
use crate::workflows::WORKFLOW_KEYS;
use crate::yaml::{Map, Node, Value};
use std::sync::Arc;

impl Ctx<'_> {
    /// Checks every known structure of the file.
    pub fn check_document(&mut self, root: &Map, project: &Scope) {
        self.elements(project);
        let mut seen = std::collections::HashMap::new();
        for (name, at) in project.job_names() {
            if let Some(other) = seen.insert(name.to_lowercase(), at) {
                let message = format!("`{name}` differs from the name of another job only in its case");
                self.sink.warning(code::INVALID_NAME, at, message);
                self.sink.related("the other one", other);
            }
        }
        for (_, entry) in &project.groups {
            if let Some(jobs) = entry.value.as_map().and_then(|group| group.get("jobs")) {
                self.invocation_shapes(&jobs.value, project);
            }
        }
        let workflows = root.get("workflows").and_then(|e| e.value.as_map());
        for (_, entry) in
            workflows.into_iter().flat_map(|map| map.iter()).filter(|(k, _)| k.as_ref() != "version")
        {
            let Some(workflow) = entry.value.as_map() else { continue };
            self.only_keys(workflow, WORKFLOW_KEYS, "a workflow");
            if let Some(jobs) = workflow.get("jobs") {
                self.invocation_shapes(&jobs.value, project);
            }
        }
    }

    fn elements(&mut self, scope: &Scope) {
        for (kind, name, body) in scope.bodies() {
            if kind != Kind::Command {
                self.place_shape(body);
            }
            if let Some(executor) = body.get("executor").filter(|_| kind == Kind::Job) {
                self.executor_shape(&executor.value, scope);
            }
            if let Some(retention) = body.get("retention").and_then(|e| e.value.as_map()) {
                self.only_keys(retention, &["caches"], "`retention`");
            }
            if let Some(steps) = body.get("steps") {
                self.sink.trace.push((format!("In the {} `{name}`", kind.word()), steps.key));
                self.step_shapes(&steps.value, scope);
                self.sink.trace.pop();
            }
        }
        for orb in scope.inline_orbs() {
            self.elements(orb);
        }
    }

    fn place_shape(&mut self, body: &Map) {
        let containers = body.get("docker").and_then(|e| e.value.as_seq());
        for container in containers.into_iter().flat_map(|list| list.iter()).filter_map(Node::as_map) {
            self.only_keys(container, CONTAINER_KEYS, "an entry of `docker`");
            for (key, allowed) in [("auth", BASIC_KEYS), ("aws_auth", AWS_KEYS), ("gcp_auth", GCP_KEYS)] {
                if let Some(auth) = container.get(key).and_then(|e| e.value.as_map()) {
                    self.only_keys(auth, allowed, format!("`{key}`"));
                }
            }
        }
        for (key, allowed) in [("machine", MACHINE_KEYS), ("macos", MACOS_KEYS)] {
            if let Some(map) = body.get(key).and_then(|e| e.value.as_map()) {
                self.only_keys(map, allowed, format!("`{key}`"));
            }
        }
    }

    fn executor_shape(&mut self, reference: &Node, scope: &Scope) {
        let Some(map) = reference.as_map() else { return };
        if let Some(name) = map.get("name").and_then(|e| e.value.as_str()) {
            self.argument_shapes(Kind::Executor, name, map, &["name"], scope);
        }
    }

    /// Arguments that the element does not declare. An element that cannot be found has been reported, or is not used.
    fn argument_shapes(&mut self, kind: Kind, name: &str, given: &Map, known: &[&str], scope: &Scope) {
        let Some(body) = scope.peek(kind, name) else { return };
        let declared = body.get("parameters").and_then(|e| e.value.as_map());
        for (argument, entry) in given {
            let declaration = declared.and_then(|map| map.get(argument));
            if declaration.is_none() && !known.contains(&argument.as_ref()) {
                let names = declared.into_iter().flat_map(|map| map.keys()).map(AsRef::as_ref);
                let hint = suggest(argument, names.chain(known.iter().copied()));
                self.unexpected(argument, entry.key, hint);
            }
            let ty = declaration.and_then(|e| e.value.as_map()).and_then(|map| map.get("type"));
            if ty.and_then(|e| e.value.as_str()).is_some_and(|ty| ty.as_ref() == "steps") {
                self.step_shapes(&entry.value, scope);
            }
        }
    }

    fn unexpected(&mut self, argument: &str, at: Span, hint: Option<String>) {
        let message = format!("Unexpected argument(s): {argument}");
        self.sink.add(crate::Severity::Error, code::UNEXPECTED_ARGUMENT, at, message, hint);
    }

    fn step_shapes(&mut self, node: &Node, scope: &Scope) {
        match &node.value {
            Value::Seq(items) => items.iter().for_each(|item| self.step_shapes(item, scope)),
            Value::Map(map) if map.len() > 1 => self.step_keys(node, map, scope),
            Value::Map(map) => {
                let Some((name, entry)) = map.first() else { return };
                let body = entry.value.as_map();
                match (name.as_ref(), body) {
                    ("steps", _) => self.step_shapes(&entry.value, scope),
                    ("when" | "unless", Some(body)) => {
                        self.only_keys(body, &["condition", "steps"], "a conditional step");
                        if let Some(steps) = body.get("steps") {
                            self.step_shapes(&steps.value, scope);
                        }
                    }
                    (name, Some(body)) if name == "run" || is_built_in(name, scope) => {
                        let name = name.replace('-', "_");
                        self.only_step_keys(body, &name);
                    }
                    (name, Some(body)) => self.argument_shapes(Kind::Command, name, body, &[], scope),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// A step of several keys: the one that names no step is the one in the wrong place.
    pub fn step_keys(&mut self, item: &Node, map: &Map, scope: &Scope) {
        let names_step = |name: &str| {
            name == "run" || is_built_in(name, scope) || scope.peek(Kind::Command, name).is_some()
        };
        let step = map.keys().find(|name| names_step(name)).or(map.keys().next());
        let foreign = map.iter().find(|(name, _)| !names_step(name));
        let message =
            format!("maximum size: [1], found: [{}]: a step is a map with exactly one key", map.len());
        let (Some(step), Some((foreign, entry))) = (step, foreign) else {
            // Two steps in one map.
            let second = map.get_index(1).map_or(item.span, |(_, e)| e.key);
            let hint = "start each step with `-`";
            return self.sink.error_hint(code::STEP_SHAPE, second, message, hint);
        };
        let hint = format!("indent `{foreign}:` further, so that it stands below `{step}:`, or take it out");
        self.sink.error_hint(code::STEP_SHAPE, entry.key, message, hint);
    }

    fn invocation_shapes(&mut self, jobs: &Node, project: &Scope) {
        for item in jobs.as_seq().into_iter().flat_map(|items| items.iter()) {
            let Some((name, entry)) = item.as_map().filter(|map| map.len() == 1).and_then(|map| map.first())
            else {
                continue;
            };
            let Some(options) = entry.value.as_map() else { continue };
            self.filter_shapes(options);
            // With a job that cannot be found its steps mean nothing.
            let found = project.peek(Kind::Job, name).is_some();
            for key in ["pre-steps", "post-steps"] {
                if let Some(steps) = options.get(key).filter(|_| found) {
                    self.step_shapes(&steps.value, project);
                }
            }
            if let Some(matrix) = options.get("matrix").and_then(|e| e.value.as_map()) {
                self.only_keys(matrix, &["parameters", "exclude", "alias"], "`matrix`");
                if let Some(parameters) = matrix.get("parameters").and_then(|e| e.value.as_map())
                    && !options.contains_key("type")
                {
                    self.argument_shapes(Kind::Job, name, parameters, &["name"], project);
                }
            }
            if options.contains_key("type") {
                self.only_keys(options, INVOCATION_KEYS, "an approval");
            } else if !project.groups.contains_key(name) && !options.contains_key("override-with") {
                self.argument_shapes(Kind::Job, name, options, INVOCATION_KEYS, project);
            }
        }
    }

    fn filter_shapes(&mut self, options: &Map) {
        let Some(filters) = options.get("filters").and_then(|e| e.value.as_map()) else { return };
        self.only_keys(filters, &["branches", "tags"], "`filters`");
        for key in ["branches", "tags"] {
            if let Some(refs) = filters.get(key).and_then(|e| e.value.as_map()) {
                self.only_keys(refs, &["only", "ignore"], format!("`{key}`"));
            }
        }
    }
}

/// Whether a name means a step of the language in this scope.
fn is_built_in(name: &str, scope: &Scope) -> bool {
    let known = BUILT_IN.contains(&name) || BUILT_IN.contains(&name.replace('-', "_").as_str());
    known && !scope.has(Kind::Command, name)
}

impl Scope {
    /// The definition that a name means, without a word when there is none.
    pub fn peek(&self, kind: Kind, name: &str) -> Option<Arc<Map>> {
        let (mut scope, mut name) = (self, name);
        for _ in 0..crate::context::MAX_CALLS {
            match scope.element(kind, name) {
                Some(Node { value: Value::Map(body), .. }) => return Some(body.clone()),
                Some(Node { value: Value::Str(other), .. }) => name = other,
                Some(_) => return None,
                None => {
                    let (alias, rest) = name.split_once('/')?;
                    scope = scope.orb(alias)?.as_ref();
                    name = rest;
                    scope.element(kind, name)?;
                }
            }
        }
        None
    }
}
