//! Logic statements of `when` and `unless`. Their texts are already interpolated.

use crate::context::Ctx;
use crate::diagnostics::{code, suggest};
use crate::expression;
use crate::interpolate::{Env, to_val};
use crate::scope::Kind;
use crate::yaml::{Node, Value};

const OPERATORS: &[&str] = &["and", "or", "not", "equal", "matches"];

/// Falsy: false, null, 0, NaN, the empty string.
pub(crate) fn truthy(node: &Node) -> bool {
    match &node.value {
        Value::Null | Value::Bool(false) | Value::Int(0) => false,
        Value::Float(n) => !n.number.is_nan() && n.number != 0.0,
        Value::Str(text) => !text.is_empty(),
        _ => true,
    }
}

/// Levels of `and`, `or` and `not` (config-language §7).
const MAX_LEVELS: usize = 100;

/// Equality of type and value. An argument that names an executor equals that name, and a map that is the same
/// as the executor's definition.
fn equal(a: &Node, b: &Node) -> bool {
    if a.same(b) {
        return true;
    }
    let (scope, reference, other) = match (&a.value, &b.value) {
        (Value::Scoped(scope, reference), _) => (scope, reference, b),
        (_, Value::Scoped(scope, reference)) => (scope, reference, a),
        _ => return false,
    };
    let definition = reference.as_str().and_then(|name| scope.peek(Kind::Executor, name));
    definition.is_some_and(|map| Node { span: other.span, value: Value::Map(map) }.same(other))
}

impl Ctx<'_> {
    /// The truth of a statement; `None` when it is malformed (the sink says why).
    pub fn logic(&mut self, node: &Node) -> Option<bool> {
        self.logic_at(node, 1)
    }

    fn logic_at(&mut self, node: &Node, level: usize) -> Option<bool> {
        if level > MAX_LEVELS {
            let message = format!("conditions are nested deeper than {MAX_LEVELS} levels");
            self.sink.error(code::BAD_CONDITION, node.span, message);
            return None;
        }
        let map = match &node.value {
            Value::Map(map) => map.clone(),
            Value::Seq(_) => {
                self.sink.error(
                    code::BAD_CONDITION,
                    node.span,
                    "a list is not a condition: use `and:` or `or:`",
                );
                return None;
            }
            Value::Scoped(..) => return Some(true),
            _ => return Some(truthy(node)),
        };
        let Some((operator, entry)) = map.first().filter(|_| map.len() == 1) else {
            let operator = map.iter().find(|(k, _)| OPERATORS.contains(&k.as_ref()));
            if let Some((name, entry)) = operator {
                let message =
                    format!("the condition `{name}` stands in a map with other keys: one operator per map");
                self.sink.error(code::BAD_CONDITION, entry.key, message);
                return None;
            }
            return Some(!map.is_empty());
        };
        match operator.as_ref() {
            "and" | "or" | "equal" => {
                let items = entry.value.as_seq().filter(|items| !items.is_empty()).cloned();
                let Some(items) = items else {
                    let message = format!("`{operator}` takes a list with at least one element");
                    self.sink.error(code::BAD_CONDITION, entry.key, message);
                    return None;
                };
                if operator.as_ref() == "equal" {
                    return Some(items.windows(2).all(|pair| equal(&pair[0], &pair[1])));
                }
                // Every part is looked at, so that all their mistakes are reported.
                let parts: Vec<Option<bool>> =
                    items.iter().map(|item| self.logic_at(item, level + 1)).collect();
                let parts: Option<Vec<bool>> = parts.into_iter().collect();
                parts.map(|p| {
                    if operator.as_ref() == "and" { p.iter().all(|b| *b) } else { p.iter().any(|b| *b) }
                })
            }
            "not" => self.logic_at(&entry.value, level + 1).map(|b| !b),
            "matches" => {
                let body = entry.value.as_map().cloned();
                let pattern = body.as_ref().and_then(|b| b.get("pattern")).and_then(|e| e.value.text());
                let value = body.as_ref().and_then(|b| b.get("value")).and_then(|e| e.value.text());
                let (Some(pattern), Some(value)) = (pattern, value) else {
                    let message = "`matches` takes a map with `pattern` and `value`, both texts";
                    self.sink.error(code::BAD_CONDITION, entry.key, message);
                    return None;
                };
                let matched = self.patterns.matches(&pattern, &value);
                matched.map_err(|message| self.sink.error(code::BAD_PATTERN, entry.key, message)).ok()
            }
            other => {
                let message =
                    format!("`{other}` is not a condition operator: the map is a literal and always true");
                let hint = suggest(other, OPERATORS.iter().copied());
                self.sink.add(crate::Severity::Warning, code::LITERAL_CONDITION, entry.key, message, hint);
                Some(true)
            }
        }
    }

    /// A condition of a workflow, or an expression filter: a text without `<<` is an expression.
    pub fn condition(&mut self, node: &Node, env: Env<'_>) -> Option<bool> {
        if let Some(text) = node.as_str()
            && !text.contains("<<")
            && !text.is_empty()
        {
            let result = expression::evaluate_with(text, &self.patterns, &mut |name| {
                self.lookup(name, env).map(|node| to_val(&node))
            });
            return match result {
                Ok(value) => Some(value.truthy()),
                Err(problem) => {
                    let message = format!("in the expression `{}`: {problem}", text.trim());
                    self.sink.error(code::BAD_EXPRESSION, node.span, message);
                    None
                }
            };
        }
        let node = self.interpolate(node, env);
        self.logic(&node)
    }
}
