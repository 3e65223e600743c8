//! Steps: commands put in place, conditions resolved.

use crate::context::{Ctx, MAX_CALLS};
use crate::diagnostics::{Span, code};
use crate::interpolate::Env;
use crate::params::Place;
use crate::scope::{Kind, Scope};
use crate::yaml::{Entry, Map, Node, Value};
use std::sync::Arc;

/// Steps of the language itself.
pub(crate) const BUILT_IN: &[&str] = &[
    "run",
    "checkout",
    "setup_remote_docker",
    "save_cache",
    "restore_cache",
    "deploy",
    "store_artifacts",
    "store_test_results",
    "persist_to_workspace",
    "attach_workspace",
    "add_ssh_keys",
    "install_signing_bundle",
    "when",
    "unless",
    "steps",
];

/// A map of one key.
pub(crate) fn single(key: &str, at: Span, value: Node) -> Node {
    Node::map(at.to(value.span), Map::from_iter([(Arc::from(key), Entry { key: at, value })]))
}

impl Ctx<'_> {
    /// Appends the steps of `node` to `out`. The texts of `node` are already interpolated.
    pub fn expand_steps(&mut self, node: &Node, scope: &Arc<Scope>, out: &mut Vec<Node>) {
        if self.exhausted() {
            return;
        }
        self.depth += 1;
        if self.depth > MAX_CALLS {
            let message = format!("steps are nested deeper than {MAX_CALLS} levels of commands and lists");
            self.sink.error(code::RECURSIVE_CALL, node.span, message);
        } else {
            match &node.value {
                Value::Scoped(written_in, inner) => {
                    // The author of the argument does not call what is being expanded here.
                    let calls = std::mem::take(&mut self.calls);
                    self.expand_steps(inner, written_in, out);
                    self.calls = calls;
                }
                Value::Seq(items) => {
                    for item in items.iter() {
                        self.expand_step(item, scope, out);
                    }
                }
                _ => {
                    let first = node.as_map().and_then(|map| map.keys().next());
                    let hint =
                        first.map(|step| format!("start each step with a dash and a blank: `- {step}:`"));
                    self.wrong_type_hint(node, "`steps`", "a list", hint);
                }
            }
        }
        self.depth -= 1;
    }

    fn expand_step(&mut self, item: &Node, scope: &Arc<Scope>, out: &mut Vec<Node>) {
        if !self.spend(1, item.span) {
            return;
        }
        match &item.value {
            Value::Seq(_) | Value::Scoped(..) => self.expand_steps(item, scope, out),
            Value::Str(name) => self.named_step(name, item.span, None, scope, out),
            Value::Map(map) => match map.first() {
                Some((name, entry)) if map.len() == 1 => {
                    self.named_step(name, entry.key, Some((&entry.value, item)), scope, out);
                }
                Some(_) => self.step_keys(item, map, scope),
                None => self.sink.error(code::STEP_SHAPE, item.span, "a step cannot be an empty map"),
            },
            Value::Null if self.sink.reported_within(item.span) => {}
            _ => {
                let message = format!("a step is a name or a map with one key, not {}", item.kind());
                self.sink.error(code::STEP_SHAPE, item.span, message);
            }
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.steps(out.len(), &self.sink.trace);
        }
    }

    /// `body`: the value behind the name, and the whole step.
    fn named_step(
        &mut self,
        name: &str,
        at: Span,
        body: Option<(&Node, &Node)>,
        scope: &Arc<Scope>,
        out: &mut Vec<Node>,
    ) {
        match (name, body) {
            ("when" | "unless", Some((body, _))) => {
                return self.conditional(name == "when", at, body, scope, out);
            }
            ("steps", Some((body, _))) => return self.expand_steps(body, scope, out),
            ("run", Some((body, whole))) => return self.run_step(name, at, body, whole, out),
            ("when" | "unless" | "steps" | "run", None) => {
                self.sink.error(code::STEP_SHAPE, at, format!("`{name}` needs a value"));
                return;
            }
            _ => {}
        }
        if !scope.has(Kind::Command, name) && BUILT_IN.contains(&name) {
            match body {
                None => out.push(Node::str(at, name)),
                Some((body, whole)) if name == "deploy" => self.run_step(name, at, body, whole, out),
                Some((body, _)) if body.is_null() => out.push(Node::str(at, name)),
                Some((_, whole)) => out.push(whole.clone()),
            }
            return;
        }
        // Old configurations write `save-cache`.
        let underscored = name.replace('-', "_");
        if underscored != name && !scope.has(Kind::Command, name) && BUILT_IN.contains(&underscored.as_str())
        {
            let renamed = body.map(|(body, _)| (body, single(&underscored, at, body.clone())));
            let renamed = renamed.as_ref().map(|(body, whole)| (*body, whole));
            return self.named_step(&underscored, at, renamed, scope, out);
        }
        self.command(name, at, body.map(|(body, _)| body), scope, out);
    }

    /// `run` and `deploy`.
    fn run_step(&mut self, name: &str, at: Span, body: &Node, whole: &Node, out: &mut Vec<Node>) {
        match &body.value {
            Value::Str(_) => out.push(single(name, at, single("command", body.span, body.clone()))),
            Value::Map(map) => out.push(match self.settled(map, true) {
                Some(map) => single(name, at, Node::map(body.span, map)),
                None => whole.clone(),
            }),
            Value::Null if self.sink.reported_within(body.span) => {}
            Value::Null => {
                let message = format!("required key [command] not found in the step `{name}`");
                self.sink.error(code::MISSING_KEY, at, message);
            }
            _ => self.wrong_type(body, &format!("`{name}`"), "a text or a map"),
        }
    }

    fn conditional(&mut self, wanted: bool, at: Span, body: &Node, scope: &Arc<Scope>, out: &mut Vec<Node>) {
        let Some(map) = body.as_map().cloned() else {
            self.wrong_type(body, "the step `when`", "a map with `condition` and `steps`");
            return;
        };
        self.only_keys(&map, &["condition", "steps"], "a conditional step");
        for key in ["condition", "steps"] {
            if !map.contains_key(key) {
                self.sink.error(
                    code::MISSING_KEY,
                    at,
                    format!("required key [{key}] not found in a conditional step"),
                );
            }
        }
        let (Some(condition), Some(steps)) = (map.get("condition"), map.get("steps")) else { return };
        match self.logic(&condition.value) {
            Some(holds) if holds == wanted => match steps.value.value {
                Value::Seq(_) | Value::Scoped(..) => self.expand_steps(&steps.value, scope, out),
                _ => self.expand_step(&steps.value, scope, out),
            },
            _ => {}
        }
    }

    fn command(
        &mut self,
        name: &str,
        at: Span,
        body: Option<&Node>,
        scope: &Arc<Scope>,
        out: &mut Vec<Node>,
    ) {
        let Some(found) = self.find(Kind::Command, name, scope, at) else { return };
        let definition = found.body.clone();
        // The place of the definition tells it from all others.
        let call = found.key;
        if self.calls.contains(&call) {
            self.sink.error(code::RECURSIVE_CALL, at, format!("the command `{name}` calls itself"));
            return;
        }
        let Some(given) = self.given(name, body) else { return };
        let decls = self.declared(&definition, Place::Command);
        let Some(args) = self.bind(&decls, &given, scope, &found.scope, at) else { return };
        let Some(steps) = definition.get("steps") else { return };
        self.sink.trace.push((format!("Error calling command: '{name}'{}", found.scope.in_orb()), at));
        self.calls.push(call);
        let env = Env { params: Some(&args), matrix: None, pipeline_parameters: !found.scope.is_orb };
        let steps = self.interpolate(&steps.value, env);
        self.expand_steps(&steps, &found.scope, out);
        self.calls.pop();
        self.sink.trace.pop();
    }

    /// The arguments of a call as a list.
    pub fn given(&mut self, name: &str, body: Option<&Node>) -> Option<Vec<(Arc<str>, Span, Node)>> {
        match body.map(|b| (&b.value, b)) {
            None | Some((Value::Null, _)) => Some(Vec::new()),
            Some((Value::Map(map), _)) => {
                Some(map.iter().map(|(k, e)| (k.clone(), e.key, e.value.clone())).collect())
            }
            Some((_, body)) => {
                self.wrong_type(body, &format!("the arguments of `{name}`"), "a map");
                None
            }
        }
    }
}
