//! Declared parameters and the arguments bound to them.

use crate::context::Ctx;
use crate::diagnostics::{Span, code, suggest};
use crate::interpolate::{Args, Env};
use crate::scope::Scope;
use crate::yaml::{Map, Node, Value};
use indexmap::IndexMap;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    String,
    Boolean,
    Integer,
    Enum,
    Executor,
    Steps,
    EnvVarName,
}

impl Type {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "string" => Self::String,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "enum" => Self::Enum,
            "executor" => Self::Executor,
            "steps" => Self::Steps,
            "env_var_name" => Self::EnvVarName,
            _ => return None,
        })
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Enum => "enum",
            Self::Executor => "executor",
            Self::Steps => "steps",
            Self::EnvVarName => "env_var_name",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Decl {
    pub ty: Type,
    pub default: Option<Node>,
    pub allowed: Vec<Node>,
    pub span: Span,
}

pub(crate) type Decls = IndexMap<Arc<str>, Decl>;

/// Where parameters are declared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Pipeline,
    Job,
    Command,
    Executor,
}

pub(crate) const RESERVED: &[&str] = &[
    "name",
    "requires",
    "context",
    "type",
    "filters",
    "matrix",
    "pre-steps",
    "post-steps",
    "serial-group",
    "override-with",
];
pub(crate) const DECLARATION_KEYS: &[&str] = &["type", "default", "description", "enum"];

/// Whether `value` is of the declared type; the error is the type's description.
pub(crate) fn accepts(decl: &Decl, value: &Node) -> bool {
    let inner = if let Value::Scoped(_, inner) = &value.value { inner.as_ref() } else { value };
    match decl.ty {
        Type::String => matches!(inner.value, Value::Str(_)),
        Type::Boolean => matches!(inner.value, Value::Bool(_)),
        Type::Integer => matches!(inner.value, Value::Int(_)),
        Type::Enum => decl.allowed.iter().any(|allowed| {
            allowed.same(inner)
                || (inner.text().is_some() && allowed.text().is_some_and(|a| Some(a) == inner.text()))
        }),
        Type::Executor => match &inner.value {
            Value::Str(_) => true,
            Value::Map(map) => map.contains_key("name") || map.len() == 1,
            _ => false,
        },
        Type::Steps => matches!(inner.value, Value::Seq(_)),
        Type::EnvVarName => inner.as_str().is_some_and(|name| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        }),
    }
}

impl Ctx<'_> {
    /// The declarations of an element that is called, read once.
    pub fn declared(&mut self, element: &Arc<Map>, place: Place) -> Arc<Decls> {
        let key = Arc::as_ptr(element);
        if let Some((_, decls)) = self.known_declarations.get(&key) {
            return decls.clone();
        }
        let decls = Arc::new(self.declarations(element, place));
        self.known_declarations.insert(key, (element.clone(), decls.clone()));
        decls
    }

    /// The declarations under `parameters:` of an element.
    pub fn declarations(&mut self, element: &Map, place: Place) -> Decls {
        let mut decls = Decls::new();
        let Some(entry) = element.get("parameters") else { return decls };
        let Some(map) = entry.value.as_map().cloned() else {
            if !entry.value.is_null() {
                self.wrong_type(&entry.value, "`parameters`", "a map of declarations");
            }
            return decls;
        };
        for (name, entry) in map.iter() {
            if let Some(decl) = self.declaration(name, entry.key, &entry.value, place) {
                decls.insert(name.clone(), decl);
            }
        }
        decls
    }

    fn declaration(&mut self, name: &str, key: Span, node: &Node, place: Place) -> Option<Decl> {
        let well_named = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
        if !well_named && place != Place::Pipeline {
            self.sink.error_hint(
                code::PARAMETER_DECLARATION,
                key,
                format!("`{name}` is not a name for a parameter"),
                "start with a letter, then letters, digits, `_`, `-`",
            );
        }
        if place == Place::Job && RESERVED.contains(&name) {
            let message = format!("`{name}` is reserved and cannot be a parameter of a job");
            self.sink.error(code::PARAMETER_DECLARATION, key, message);
        }
        let Some(map) = node.as_map().cloned() else {
            self.wrong_type(node, &format!("the parameter `{name}`"), "a map with `type`");
            return None;
        };
        self.only_keys(&map, DECLARATION_KEYS, "a parameter");
        let Some(entry) = map.get("type") else {
            let message = format!("required key [type] not found in the parameter `{name}`");
            self.sink.error(code::MISSING_KEY, key, message);
            return None;
        };
        let Some(ty) = entry.value.as_str().and_then(|word| Type::parse(word)) else {
            let word = entry.value.shown();
            let types = ["string", "boolean", "integer", "enum", "executor", "steps", "env_var_name"];
            let hint = entry.value.as_str().and_then(|word| suggest(word, types));
            let message = format!("{word} is not a parameter type");
            let hint = hint.unwrap_or_else(|| format!("types: {}", types.join(", ")));
            self.sink.error_hint(code::PARAMETER_DECLARATION, entry.value.span, message, hint);
            return None;
        };
        let misplaced = match place {
            Place::Pipeline => !matches!(ty, Type::String | Type::Boolean | Type::Integer | Type::Enum),
            Place::Executor => matches!(ty, Type::Executor | Type::Steps),
            _ => false,
        };
        if misplaced {
            let message = format!("a parameter of type `{}` cannot be declared here", ty.word());
            self.sink.error(code::PARAMETER_DECLARATION, entry.value.span, message);
        }
        let allowed = match map.get("enum") {
            Some(list) if ty == Type::Enum => match list.value.as_seq() {
                Some(items) if !items.is_empty() => items.to_vec(),
                _ => {
                    self.sink.error(
                        code::PARAMETER_DECLARATION,
                        list.key,
                        "`enum` takes a list with at least one value",
                    );
                    return None;
                }
            },
            Some(list) => {
                self.sink.warning(code::IGNORED, list.key, "`enum` has no effect without `type: enum`");
                Vec::new()
            }
            None if ty == Type::Enum => {
                let message = format!("required key [enum] not found in the parameter `{name}`");
                self.sink.error(code::MISSING_KEY, key, message);
                return None;
            }
            None => Vec::new(),
        };
        // `default:` with nothing behind it is an empty text, or no default for what has no empty value.
        let default =
            map.get("default").map(|e| e.value.clone()).and_then(|node| match (node.is_null(), ty) {
                (false, _) => Some(node),
                (true, Type::String) => Some(Node::str(node.span, "")),
                (true, _) => None,
            });
        if place == Place::Pipeline && default.is_none() {
            let message = format!("required key [default] not found in the pipeline parameter `{name}`");
            self.sink.error(code::MISSING_KEY, key, message);
        }
        let decl = Decl { ty, default, allowed, span: key };
        if let Some(default) = &decl.default {
            let dynamic = default.as_str().is_some_and(|text| text.contains("<<"));
            if !dynamic && !accepts(&decl, default) {
                let message = format!(
                    "Parameter error: default value of parameter '{name}' is {} (type {}): expected type {}",
                    default.shown(),
                    default.kind(),
                    expected(&decl)
                );
                let hint = retype(&decl, default);
                self.sink.add(crate::Severity::Error, code::ARGUMENT_TYPE, default.span, message, hint);
            }
        }
        Some(decl)
    }

    /// Binds arguments. `given` holds each argument with its key's place; `written_in` is the scope of
    /// the caller, `declared_in` that of the element.
    pub fn bind(
        &mut self,
        decls: &Decls,
        given: &[(Arc<str>, Span, Node)],
        written_in: &Arc<Scope>,
        declared_in: &Arc<Scope>,
        call: Span,
    ) -> Option<Args> {
        let mut good = true;
        for (name, key, _) in given {
            if !decls.contains_key(name) {
                let hint = suggest(name, decls.keys().map(AsRef::as_ref));
                let message = format!("Unexpected argument(s): {name}");
                self.sink.add(crate::Severity::Error, code::UNEXPECTED_ARGUMENT, *key, message, hint);
                good = false;
            }
        }
        let mut args = Args::default();
        let mut missing = Vec::new();
        for (name, decl) in decls {
            let (value, scope) = match given.iter().find(|(n, ..)| n == name) {
                Some((_, _, value)) => {
                    // Nothing behind the name is an empty text or an empty list, and so is a pipeline value
                    // that this pipeline does not have.
                    let empty = match (value.is_null(), decl.ty) {
                        (true, Type::String) => Some(Node::str(value.span, "")),
                        (true, Type::Steps) => Some(Node::seq(value.span, Vec::new())),
                        _ => None,
                    };
                    let value = empty.as_ref().unwrap_or(value);
                    if !accepts(decl, value) {
                        self.argument_type(name, decl, value);
                        good = false;
                        continue;
                    }
                    (value.clone(), written_in)
                }
                None => match &decl.default {
                    Some(default) => {
                        let env = Env { pipeline_parameters: !declared_in.is_orb, ..Env::default() };
                        let value = self.interpolate(default, env);
                        // A literal default was checked where it is declared.
                        if default.as_str().is_some_and(|t| t.contains("<<")) && !accepts(decl, &value) {
                            self.argument_type(name, decl, &value);
                            good = false;
                            continue;
                        }
                        (value, declared_in)
                    }
                    None => {
                        missing.push(name.as_ref());
                        continue;
                    }
                },
            };
            if value.height() > 150 {
                self.sink.error(
                    code::SIZE_LIMIT,
                    value.span,
                    format!("the argument `{name}` is nested too deeply"),
                );
                good = false;
                continue;
            }
            args.insert(name.clone(), scoped(decl, value, scope));
        }
        if !missing.is_empty() {
            let message = format!("Missing required argument(s): {}", missing.join(", "));
            self.sink.error(code::MISSING_ARGUMENT, call, message);
            if let Some(decl) = decls.get(missing[0]) {
                self.sink.related("declared here", decl.span);
            }
            good = false;
        }
        good.then_some(args)
    }

    pub fn argument_type(&mut self, name: &str, decl: &Decl, value: &Node) {
        let message = format!(
            "Type error for argument {name}: expected type: {}, actual value: {} (type {})",
            expected(decl),
            value.shown(),
            value.kind()
        );
        self.sink.add(crate::Severity::Error, code::ARGUMENT_TYPE, value.span, message, retype(decl, value));
        self.sink.related("declared here", decl.span);
    }
}

/// How a value becomes one of the declared type, where its quotes make the difference.
fn retype(decl: &Decl, value: &Node) -> Option<String> {
    let scalar = matches!(value.value, Value::Bool(_) | Value::Int(_) | Value::Float(_));
    if scalar && decl.ty == Type::String {
        return Some("quote the value to make it a text".to_owned());
    }
    let bare = value.as_str().map(|text| crate::scalars::plain(text));
    let word = match (decl.ty, bare?) {
        (Type::Boolean, Value::Bool(_)) => "boolean",
        (Type::Integer, Value::Int(_)) => "number",
        _ => return None,
    };
    Some(format!("write the {word} without quotes"))
}

fn expected(decl: &Decl) -> String {
    if decl.ty != Type::Enum {
        return decl.ty.word().to_owned();
    }
    let values: Vec<String> = decl.allowed.iter().map(Node::shown).collect();
    format!("enum ({})", values.join(", "))
}

fn scoped(decl: &Decl, value: Node, scope: &Arc<Scope>) -> Node {
    let wraps = matches!(decl.ty, Type::Steps | Type::Executor) && !matches!(value.value, Value::Scoped(..));
    if wraps {
        return Node { span: value.span, value: Value::Scoped(scope.clone(), Arc::new(value)) };
    }
    value
}
