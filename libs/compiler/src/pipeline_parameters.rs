//! Pipeline parameters (config-language §4.3): declared at the top of the file, given by whoever triggers it.

use crate::Severity;
use crate::context::Ctx;
use crate::data::json;
use crate::diagnostics::{Span, code, suggest};
use crate::interpolate::Args;
use crate::params::{Place, accepts};
use crate::yaml::{Float, Map, Node, Value};
use serde::Serialize;
use serde_json::Value as Json;
use std::sync::Arc;

/// Parameters of one request, characters of a name and of a text (config-language §28).
const MAX_GIVEN: usize = 100;
const MAX_NAME: usize = 128;
const MAX_TEXT: usize = 512;

/// A declared pipeline parameter and what it is in this pipeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PipelineParameter {
    /// Name, without `pipeline.parameters.`.
    pub name: String,
    /// `string`, `boolean`, `integer` or `enum`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The values of an `enum`.
    #[serde(rename = "enum", skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<Json>,
    /// What it is when nobody gives a value.
    pub default: Json,
    /// What it is here.
    pub value: Json,
}

impl Ctx<'_> {
    /// Reads the declarations and binds what was given. What is only inherited counts where it is declared and
    /// not given. `bounded`: the values come from a request, whose sizes are limited.
    pub fn pipeline_parameters(
        &mut self,
        root: &Map,
        given: &serde_json::Map<String, Json>,
        inherited: &serde_json::Map<String, Json>,
        bounded: bool,
    ) {
        let decls = self.declarations(root, Place::Pipeline);
        let at = root.get("parameters").map_or(Span::default(), |e| e.key);
        if bounded {
            self.sizes_of(given, at);
        }
        let mut args = Args::default();
        let inherited = inherited
            .iter()
            .filter(|(name, _)| !given.contains_key(name.as_str()) && decls.contains_key(name.as_str()));
        for (name, value) in given.iter().chain(inherited) {
            match decls.get(name.as_str()) {
                None => {
                    let hint = suggest(name, decls.keys().map(AsRef::as_ref));
                    let message = format!("Unexpected argument(s): {name}");
                    self.sink.add(Severity::Error, code::UNEXPECTED_ARGUMENT, at, message, hint);
                }
                Some(decl) => {
                    let value = from_json(value, decl.span);
                    if !accepts(decl, &value) {
                        self.argument_type(name, decl, &value);
                    }
                    args.insert(name.as_str().into(), value);
                }
            }
        }
        for (name, decl) in &decls {
            let null = || Node { span: decl.span, value: Value::Null };
            let default = decl.default.clone().unwrap_or_else(null);
            let value = args.entry(name.clone()).or_insert_with(|| default.clone());
            self.parameters.push(PipelineParameter {
                name: name.to_string(),
                kind: decl.ty.word(),
                allowed: decl.allowed.iter().map(json).collect(),
                default: json(&default),
                value: json(value),
            });
        }
        // A broken declaration still declares a name: its uses are not mistakes of their own.
        for (name, entry) in
            root.get("parameters").and_then(|e| e.value.as_map()).into_iter().flat_map(|m| m.iter())
        {
            let null = Node { span: entry.key, value: Value::Null };
            args.entry(name.clone()).or_insert(null);
        }
        self.pipeline_args = args;
    }

    fn sizes_of(&mut self, given: &serde_json::Map<String, Json>, at: Span) {
        if given.len() > MAX_GIVEN {
            let message = format!("a pipeline takes at most {MAX_GIVEN} parameters, not {}", given.len());
            self.sink.error(code::SIZE_LIMIT, at, message);
        }
        for (name, value) in given {
            let (name_length, length) =
                (name.chars().count(), value.as_str().map_or(0, |text| text.chars().count()));
            if name_length > MAX_NAME {
                let message = format!(
                    "the name of a parameter is {name_length} characters long; at most {MAX_NAME} are accepted"
                );
                self.sink.error(code::SIZE_LIMIT, at, message);
            } else if length > MAX_TEXT {
                let message = format!(
                    "the value of the parameter `{name}` is {length} characters long; at most {MAX_TEXT} are accepted"
                );
                self.sink.error(code::SIZE_LIMIT, at, message);
            }
        }
    }
}

fn from_json(value: &Json, span: Span) -> Node {
    let value = match value {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => match n.as_i64() {
            Some(n) => Value::Int(n),
            None => Value::Float(Float::new(n.as_f64().unwrap_or(f64::NAN), &n.to_string())),
        },
        Json::String(text) => Value::Str(text.as_str().into()),
        // No pipeline parameter takes a collection: an empty one fails the type check.
        Json::Array(_) => Value::Seq(Arc::default()),
        Json::Object(_) => Value::Map(Arc::default()),
    };
    Node { span, value }
}
