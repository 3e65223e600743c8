//! A configuration as plain data: what policies look at, and what is read of a file without compiling it.

use crate::Diagnostic;
use crate::diagnostics::Sink;
use crate::yaml::{self, Node, Value};
use serde_json::Value as Json;

/// Reads YAML by the rules of the language (YAML 1.1 scalars, merge keys, anchors; config-language §1) as data.
/// Nothing is interpolated, and numbers that JSON does not have are text.
///
/// ```
/// let data = gantry_compiler::data("config.yml", "a: &a {on: 017}\nb: {<<: *a, c: [yes]}\n").unwrap();
/// assert_eq!(data["b"]["c"][0], true);
/// ```
///
/// # Errors
/// It is no YAML, or more than its limits allow.
pub fn data(file: &str, source: &str) -> Result<Json, Vec<Diagnostic>> {
    let mut sink = Sink::new(file, source);
    let root = yaml::read(&mut sink, 0);
    let failed = sink.has_errors();
    let (errors, _) = sink.finish();
    match root {
        Some(root) if !failed => Ok(json(&root)),
        _ => Err(errors),
    }
}

/// The depth of a tree is bounded where it is read.
pub(crate) fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => Json::from(*value),
        Value::Float(value) => serde_json::Number::from_f64(value.number)
            .map_or_else(|| Json::from(value.number.to_string()), Json::Number),
        Value::Str(text) => Json::from(text.as_ref()),
        Value::Seq(items) => Json::Array(items.iter().map(json).collect()),
        Value::Map(map) => {
            Json::Object(map.iter().map(|(key, entry)| (key.to_string(), json(&entry.value))).collect())
        }
        Value::Scoped(_, inner) => json(inner),
    }
}
