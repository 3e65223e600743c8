//! A job with its arguments: the executor merged in, the steps expanded.

use crate::context::{Ctx, MAX_CALLS};
use crate::diagnostics::{Span, code};
use crate::interpolate::{Args, Env};
use crate::params::Place;
use crate::scalars;
use crate::scope::{Found, Kind, Scope};
use crate::yaml::{Entry, Map, Node, Value};
use std::sync::Arc;

const KINDS: &[&str] = &["docker", "machine", "macos"];

impl Ctx<'_> {
    /// The compiled body of a job: plain values, no references.
    pub fn expand_job(
        &mut self,
        name: &str,
        found: &Found,
        args: &Args,
        project: &Arc<Scope>,
        pre: Option<&Node>,
        post: Option<&Node>,
    ) -> Option<Map> {
        if let Some(recorder) = &mut self.recorder {
            recorder.start_job(&self.sink.trace);
        }
        let definition = found.body.clone();
        let env = Env { params: Some(args), matrix: None, pipeline_parameters: !found.scope.is_orb };
        let mut own = Map::default();
        for (key, entry) in definition.iter() {
            if !matches!(key.as_ref(), "parameters" | "description") {
                let value = self.interpolate(&entry.value, env);
                own.insert(key.clone(), Entry { key: entry.key, value });
            }
        }
        let mut body = match own.shift_remove("executor") {
            Some(entry) => self.executor(&entry.value, &found.scope, 0)?,
            None => Map::default(),
        };
        merge(&mut body, own);
        if let Some(settled) = self.settled(&body, false) {
            body = settled;
        }
        self.xcode(&mut body);
        let steps_at = body.get("steps").map(|e| e.key);
        let mut steps = Vec::new();
        if let Some(pre) = pre {
            self.expand_steps(pre, project, &mut steps);
        }
        match body.get("steps").map(|e| e.value.clone()) {
            Some(own) => self.expand_steps(&own, &found.scope, &mut steps),
            None if !self.is_build(&body) => {}
            None => {
                let message = format!("required key [steps] not found in the job `{name}`");
                self.sink.error(code::MISSING_KEY, found.key, message);
            }
        }
        if let Some(post) = post {
            self.expand_steps(post, project, &mut steps);
        }
        let key = steps_at.unwrap_or(found.key);
        body.shift_remove("steps");
        if self.is_build(&body) {
            body.insert("steps".into(), Entry { key, value: Node::seq(key, steps) });
        }
        Some(body)
    }

    /// A version of Xcode is text, even where it looks like a number: `11.10` is not `11.1`.
    fn xcode(&self, body: &mut Map) {
        let Some(Value::Map(macos)) = body.get_mut("macos").map(|entry| &mut entry.value.value) else {
            return;
        };
        let Some(version) = macos.get("xcode").map(|entry| entry.value.clone()) else { return };
        let number = matches!(version.value, Value::Float(_) | Value::Int(_));
        let written = self.sink.slice(version.span).trim();
        let literal = scalars::plain(written);
        let literal = Node { span: version.span, value: literal }.same(&version);
        let text = if literal { Some(written.to_owned()) } else { version.text() };
        if let (true, Some(text)) = (number, text)
            && let Some(entry) = Arc::make_mut(macos).get_mut("xcode")
        {
            entry.value = Node::str(version.span, text);
        }
    }

    fn is_build(&self, body: &Map) -> bool {
        body.get("type").is_none_or(|e| e.value.as_str().is_some_and(|t| t.as_ref() == "build"))
    }

    /// The keys that an executor gives to its job.
    fn executor(&mut self, reference: &Node, scope: &Arc<Scope>, depth: usize) -> Option<Map> {
        if depth > MAX_CALLS {
            return None;
        }
        match &reference.value {
            Value::Scoped(written_in, inner) => self.executor(inner, written_in, depth + 1),
            Value::Str(name) => self.executor_named(name, reference.span, Vec::new(), scope),
            Value::Map(map) => match map.get("name").map(|e| &e.value) {
                Some(Node { value: Value::Str(name), span }) => {
                    let given = map.iter().filter(|(k, _)| k.as_ref() != "name");
                    let given = given.map(|(k, e)| (k.clone(), e.key, e.value.clone())).collect();
                    self.executor_named(name, *span, given, scope)
                }
                // `executor: {name: << parameters.e >>}`
                Some(inner @ Node { value: Value::Scoped(..), .. }) if map.len() == 1 => {
                    self.executor(inner, scope, depth + 1)
                }
                None if map.len() == 1 => {
                    let (name, entry) = map.first()?;
                    let given = self.given(name, Some(&entry.value))?;
                    self.executor_named(name, entry.key, given, scope)
                }
                _ => {
                    let message = "required key [name] not found in the reference to an executor";
                    self.sink.error(code::MISSING_KEY, reference.span, message);
                    None
                }
            },
            _ => {
                self.wrong_type(reference, "`executor`", "a name or a map with `name`");
                None
            }
        }
    }

    fn executor_named(
        &mut self,
        name: &str,
        at: Span,
        given: Vec<(Arc<str>, Span, Node)>,
        scope: &Arc<Scope>,
    ) -> Option<Map> {
        let found = self.find(Kind::Executor, name, scope, at)?;
        let definition = found.body.clone();
        let decls = self.declared(&definition, Place::Executor);
        let args = self.bind(&decls, &given, scope, &found.scope, at)?;
        let env = Env { params: Some(&args), matrix: None, pipeline_parameters: !found.scope.is_orb };
        self.sink.trace.push((format!("Error calling executor: '{name}'{}", found.scope.in_orb()), at));
        let mut body = Map::default();
        for (key, entry) in definition.iter() {
            if !matches!(key.as_ref(), "parameters" | "description") {
                let value = self.interpolate(&entry.value, env);
                body.insert(key.clone(), Entry { key: entry.key, value });
            }
        }
        self.sink.trace.pop();
        Some(body)
    }
}

/// Puts the keys of a job over those of its executor.
fn merge(body: &mut Map, own: Map) {
    let owns_kind = own.iter().any(|(k, e)| {
        // `machine: false` names no kind.
        KINDS.contains(&k.as_ref()) && !matches!(e.value.value, Value::Bool(false) | Value::Null)
    });
    if owns_kind {
        body.retain(|key, _| !KINDS.contains(&key.as_ref()));
    }
    for (key, mut entry) in own {
        let both = (key.as_ref() == "environment").then(|| body.get("environment")).flatten();
        if let Some((Value::Map(base), Value::Map(over))) = both.map(|b| (&b.value.value, &entry.value.value))
        {
            let mut merged = base.as_ref().clone();
            merged.extend(over.iter().map(|(k, e)| (k.clone(), e.clone())));
            entry.value = Node::map(entry.value.span, merged);
        }
        body.insert(key, entry);
    }
}
