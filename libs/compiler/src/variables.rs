//! Environments: maps of variables in all the forms in which they are written.

use crate::context::Ctx;
use crate::diagnostics::{Span, code};
use crate::yaml::{Map, Node, Value};
use std::sync::Arc;

/// Variables of one job, bytes of them all, bytes of one: what a kernel can pass on (security §5.2).
const MAX_VARIABLES: usize = 1000;
const MAX_TOTAL: usize = 1 << 20;
const MAX_VALUE: usize = 120 << 10;

/// Name and value, in order.
pub(crate) type Variables = Vec<(String, String)>;

impl Ctx<'_> {
    /// `environment` of a map. A later entry of the same name wins.
    pub fn environment(&mut self, map: &Map) -> Variables {
        let mut variables = Variables::new();
        let Some(entry) = map.get("environment") else { return variables };
        match &entry.value.value {
            Value::Null => {}
            Value::Map(map) => {
                for (name, variable) in map.iter() {
                    self.variable(name, variable.key, &variable.value, &mut variables);
                }
            }
            Value::Str(text) if text.contains('=') => self.assignment(&entry.value, text, &mut variables),
            Value::Seq(items) => {
                for item in items.iter() {
                    match &item.value {
                        Value::Str(text) if text.contains('=') => self.assignment(item, text, &mut variables),
                        Value::Map(map) => {
                            for (name, variable) in map.iter() {
                                self.variable(name, variable.key, &variable.value, &mut variables);
                            }
                        }
                        _ => self.wrong_type(item, "an entry of `environment`", "`NAME=VALUE` or a map"),
                    }
                }
            }
            _ => self.wrong_type(&entry.value, "`environment`", "a map"),
        }
        let total: usize = variables.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
        if variables.len() > MAX_VARIABLES || total > MAX_TOTAL {
            let message = format!(
                "an environment holds at most {MAX_VARIABLES} variables of {MAX_TOTAL} bytes together, not {} of {total}",
                variables.len()
            );
            self.sink.error(code::SIZE_LIMIT, entry.key, message);
        }
        variables
    }

    /// `NAME=VALUE`.
    fn assignment(&mut self, node: &Node, text: &str, out: &mut Variables) {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        self.variable(name, node.span, &Node::str(node.span, value), out);
    }

    fn variable(&mut self, name: &str, at: Span, value: &Node, out: &mut Variables) {
        if name.is_empty() || name.contains(['=', '\0']) {
            self.sink.error(code::INVALID_NAME, at, format!("`{name}` is not a name for a variable"));
            return;
        }
        let text = match &value.value {
            Value::Float(number) => Some(number.written.to_string()),
            _ => value.text(),
        };
        let Some(text) = text else {
            return self.wrong_type(value, &format!("the variable `{name}`"), "a text");
        };
        if text.contains('\0') {
            self.sink.error(code::INVALID_VALUE, value.span, "a variable cannot hold a NUL character");
        } else if text.len() > MAX_VALUE {
            let message = format!(
                "the variable `{name}` is {} bytes long; at most {MAX_VALUE} are accepted",
                text.len()
            );
            self.sink.error(code::SIZE_LIMIT, value.span, message);
        } else {
            put(out, name.to_owned(), text);
        }
    }
}

impl Ctx<'_> {
    /// The environment of a step, or of anything else, in its final form: a pipeline value that this pipeline
    /// does not have is `<nil>`, and a boolean in the environment of a step is `1` or `0`, where in all others it
    /// is `true` or `false`. `None`: it is in that form already.
    pub fn settled(&self, owner: &Map, of_step: bool) -> Option<Map> {
        let settle = |value: &Node| match value.value {
            Value::Bool(b) if of_step => Some(Value::Int(i64::from(b))),
            Value::Null if self.sink.interpolated(value.span) => Some(Value::Str("<nil>".into())),
            _ => None,
        };
        let variables = owner.get("environment")?.value.as_map()?;
        if !variables.values().any(|variable| settle(&variable.value).is_some()) {
            return None;
        }
        let mut owner = owner.clone();
        if let Some(Value::Map(map)) = owner.get_mut("environment").map(|entry| &mut entry.value.value) {
            for variable in Arc::make_mut(map).values_mut() {
                if let Some(value) = settle(&variable.value) {
                    variable.value.value = value;
                }
            }
        }
        Some(owner)
    }
}

/// Sets a variable: it moves to the end when it was there.
pub(crate) fn put(variables: &mut Variables, name: String, value: String) {
    variables.retain(|(known, _)| *known != name);
    variables.push((name, value));
}
