//! `<< … >>` in scalars.

use crate::context::Ctx;
use crate::diagnostics::{Span, code, suggest};
use crate::expression::{self, Val};
use crate::yaml::{Map, Node, Value};
use indexmap::IndexMap;
use std::borrow::Cow;
use std::sync::Arc;

/// Values by parameter name.
pub(crate) type Args = IndexMap<Arc<str>, Node, foldhash::fast::RandomState>;

/// The names that a text may refer to.
#[derive(Clone, Copy, Default)]
pub(crate) struct Env<'e> {
    /// `parameters.*`; `None` where no element declares any.
    pub params: Option<&'e Args>,
    /// `matrix.*`.
    pub matrix: Option<&'e Args>,
    /// Whether `pipeline.parameters.*` is visible (not inside orbs).
    pub pipeline_parameters: bool,
}

enum Part<'t> {
    Text(Cow<'t, str>),
    /// `<<` that nothing closes: text.
    Open(&'t str),
    Tag(&'t str),
    Section {
        name: &'t str,
        inverted: bool,
        body: Vec<Part<'t>>,
    },
}

/// Appends to a text that is borrowed as long as it is one piece.
fn append<'t>(text: &mut Cow<'t, str>, piece: &'t str) {
    if text.is_empty() {
        *text = Cow::Borrowed(piece);
    } else if !piece.is_empty() {
        text.to_mut().push_str(piece);
    }
}

/// Where the next `>>` is; each part of the text is searched once.
struct Closes<'t> {
    text: &'t str,
    next: Option<usize>,
}

impl Closes<'_> {
    fn after(&mut self, from: usize) -> Option<usize> {
        if self.next.is_some_and(|next| next < from) {
            self.next = self.text[from..].find(">>").map(|i| from + i);
        }
        self.next
    }
}

/// How references begin.
const SCOPES: &[&str] = &["parameters.", "pipeline.", "matrix."];

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// The parts of a text; the error says what is malformed, and which part of the text that is.
fn parse(text: &str) -> Result<Vec<Part<'_>>, (String, String)> {
    let mut stack: Vec<(&str, bool, Vec<Part<'_>>)> = Vec::new();
    let mut parts: Vec<Part<'_>> = Vec::new();
    let mut literal = Cow::Borrowed("");
    let mut rest = text;
    let mut closes = Closes { text, next: text.find(">>") };
    while let Some(found) = rest.find("<<") {
        if rest[..found].ends_with('\\') {
            append(&mut literal, &rest[..found - 1]);
            // The whole run of `<` is protected: `\<<<` is a here-string.
            let run = rest[found..].find(|c| c != '<').unwrap_or(rest.len() - found);
            append(&mut literal, &rest[found..found + run]);
            rest = &rest[found + run..];
            continue;
        }
        append(&mut literal, &rest[..found]);
        rest = &rest[found..];
        let run = rest.find(|c| c != '<').unwrap_or(rest.len());
        let at = text.len() - rest.len();
        let close = if run == 2 { closes.after(at + run).map(|close| close - at) } else { None };
        let nested = rest[run..].find("<<").map(|i| run + i);
        let close = close.filter(|close| nested.is_none_or(|nested| nested >= *close));
        let Some(close) = close else {
            let inner = rest[run..].trim_start();
            if run == 2 && SCOPES.iter().any(|scope| inner.starts_with(scope)) {
                let end = rest.len() - inner.len();
                let name = inner.find(|c: char| !is_name(c)).unwrap_or(inner.len());
                let open = &rest[..end + name];
                return Err((format!("`{open}` is not closed: write `>>` behind the name"), open.to_owned()));
            }
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::Open(&rest[..run]));
            rest = &rest[run..];
            continue;
        };
        let content = rest[2..close].trim();
        rest = &rest[close + 2..];
        if !literal.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut literal)));
        }
        if let Some(name) = content.strip_prefix(['#', '^']) {
            if stack.len() >= 20 {
                return Err(("sections are nested deeper than 20 levels".into(), content.to_owned()));
            }
            stack.push((name.trim(), content.starts_with('^'), std::mem::take(&mut parts)));
        } else if let Some(name) = content.strip_prefix('/') {
            match stack.pop() {
                Some((open, inverted, outer)) if open == name.trim() => {
                    let body = std::mem::replace(&mut parts, outer);
                    parts.push(Part::Section { name: open, inverted, body });
                }
                _ => {
                    let message = format!("the section end `<</{}>>` closes no open section", name.trim());
                    return Err((message, content.to_owned()));
                }
            }
        } else {
            parts.push(Part::Tag(content));
        }
    }
    append(&mut literal, rest);
    if let Some((name, ..)) = stack.pop() {
        return Err((format!("the section `{name}` is not closed"), name.to_owned()));
    }
    if !literal.is_empty() {
        parts.push(Part::Text(literal));
    }
    Ok(parts)
}

/// Whether there may be something to replace.
pub(crate) fn has_tag(text: &str) -> bool {
    text.find('<').is_some_and(|first| text[first..].contains("<<"))
}

fn is_reference(content: &str) -> bool {
    content.starts_with(|c: char| c.is_ascii_alphabetic())
        && content.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '?'))
        && !matches!(content, "true" | "false" | "TRUE" | "FALSE")
}

impl Ctx<'_> {
    /// `node` with all tags replaced. Map keys stay as they are; what has no tag is shared, not copied.
    pub fn interpolate(&mut self, node: &Node, env: Env<'_>) -> Node {
        let replaced = if self.interpolation { self.replaced(node, env) } else { None };
        replaced.unwrap_or_else(|| node.clone())
    }

    /// `None`: nothing to replace.
    fn replaced(&mut self, node: &Node, env: Env<'_>) -> Option<Node> {
        if !self.spend(1, node.span) {
            return None;
        }
        let value = match &node.value {
            Value::Str(text) if has_tag(text) => return Some(self.text(node.span, text, env)),
            Value::Seq(items) => {
                let mut copy: Option<Vec<Node>> = None;
                for (index, item) in items.iter().enumerate() {
                    if let Some(new) = self.replaced(item, env) {
                        copy.get_or_insert_with(|| items.to_vec())[index] = new;
                    }
                }
                Value::Seq(Arc::new(copy?))
            }
            Value::Map(map) => {
                let mut copy: Option<Map> = None;
                for (index, entry) in map.values().enumerate() {
                    if let Some(new) = self.replaced(&entry.value, env) {
                        copy.get_or_insert_with(|| map.as_ref().clone())[index].value = new;
                    }
                }
                Value::Map(Arc::new(copy?))
            }
            _ => return None,
        };
        Some(Node { span: node.span, value })
    }

    fn text(&mut self, span: Span, text: &str, env: Env<'_>) -> Node {
        let null = Node { span, value: Value::Null };
        let parts = match parse(text) {
            Ok(parts) => parts,
            Err((message, part)) => {
                let at = self.sink.narrow(span, &part);
                self.sink.error(code::BAD_INTERPOLATION, at, message);
                return null;
            }
        };
        // One tag alone keeps its type.
        let mut tags = parts.iter().filter(|p| !matches!(p, Part::Text(t) if t.trim().is_empty()));
        if let (Some(Part::Tag(content)), None) = (tags.next(), tags.next()) {
            let value = self.tag(span, content, env).map_or(Value::Null, |found| found.value);
            return Node { span, value };
        }
        let mut out = String::new();
        self.render(span, &parts, env, &mut out);
        Node::str(span, out)
    }

    fn render(&mut self, span: Span, parts: &[Part<'_>], env: Env<'_>, out: &mut String) {
        for part in parts {
            match part {
                Part::Text(text) => {
                    if self.spend_bytes(text.len(), span) {
                        out.push_str(text);
                    }
                }
                Part::Open(text) => {
                    self.open_tag(span, text);
                    if self.spend_bytes(text.len(), span) {
                        out.push_str(text);
                    }
                }
                Part::Tag(content) => {
                    let Some(value) = self.tag(span, content, env) else { continue };
                    match value.text() {
                        Some(text) if self.spend_bytes(text.len(), span) => out.push_str(&text),
                        Some(_) => {}
                        None => {
                            let at = self.sink.narrow(span, content);
                            let message =
                                format!("`{content}` is a {} and cannot stand inside a text", value.kind());
                            self.sink.error(code::BAD_INTERPOLATION, at, message);
                        }
                    }
                }
                Part::Section { name, inverted, body } => {
                    let truthy = self.tag(span, name, env).is_some_and(|value| crate::logic::truthy(&value));
                    if truthy != *inverted {
                        self.render(span, body, env, out);
                    }
                }
            }
        }
    }

    /// Tells of a `<<` that stays as it is. Other readers of the language refuse it.
    fn open_tag(&mut self, span: Span, text: &str) {
        if span.file == 0 {
            let at = self.sink.narrow(span, text);
            let message = format!("`{text}` is not closed by `>>` and is taken as text");
            let hint = format!("write `\\{text}`: the hosted service refuses it otherwise");
            let severity = crate::Severity::Warning;
            self.sink.add(severity, code::BAD_INTERPOLATION, at, message, Some(hint));
        }
    }

    /// The value of what stands between the brackets.
    fn tag(&mut self, span: Span, content: &str, env: Env<'_>) -> Option<Node> {
        if is_reference(content) {
            let found = self.lookup(content, env);
            match (&found, &mut self.recorder) {
                (None, _) => self.unknown_name(self.sink.narrow(span, content), content, env),
                (Some(value), Some(recorder)) => recorder.used(span, content, value, &self.sink.trace),
                _ => {}
            }
            return found;
        }
        let mut unknown = None;
        let result = expression::evaluate_with(content, &self.patterns, &mut |name| {
            let found = self.lookup(name, env).map(|node| to_val(&node));
            if found.is_none() {
                unknown = Some(name.to_owned());
            }
            found
        });
        match result {
            Ok(value) => Some(Node {
                span,
                value: match value {
                    Val::Bool(b) => Value::Bool(b),
                    Val::Int(n) => Value::Int(n),
                    Val::Str(text) | Val::Pattern(text) => Value::Str(text.into()),
                    Val::Undefined => Value::Null,
                },
            }),
            Err(problem) => {
                let at = self.sink.narrow(span, content);
                let shown: String = content.chars().take(60).collect();
                self.sink.error_hint(
                    code::BAD_INTERPOLATION,
                    at,
                    format!("`<< {shown} >>` is neither a reference nor an expression: {problem}"),
                    "write `\\<<` for two literal angle brackets, such as those of a here-document",
                );
                None
            }
        }
    }

    /// The value of a dotted name.
    pub fn lookup(&self, name: &str, env: Env<'_>) -> Option<Node> {
        if let Some(name) = name.strip_prefix("parameters.") {
            return env.params?.get(name).cloned();
        }
        if let Some(name) = name.strip_prefix("matrix.") {
            return env.matrix?.get(name).cloned();
        }
        if let Some(name) = name.strip_prefix("pipeline.parameters.") {
            return if env.pipeline_parameters { self.pipeline_args.get(name).cloned() } else { None };
        }
        self.values.get(name)
    }

    fn unknown_name(&mut self, at: Span, name: &str, env: Env<'_>) {
        if let Some(param) = name.strip_prefix("parameters.") {
            let hint = suggest(param, env.params.into_iter().flat_map(|p| p.keys()).map(AsRef::as_ref));
            let message = format!("Arguments referenced without declared parameters: {param}");
            self.sink.add(crate::Severity::Error, code::UNDECLARED_PARAMETER, at, message, hint);
            return;
        }
        let mut hint = if name.starts_with("pipeline.parameters.") && !env.pipeline_parameters {
            Some("pipeline parameters are not visible inside orbs: pass the value as a parameter".to_owned())
        } else if name.starts_with("pipeline.") {
            let declared: Vec<String> =
                self.pipeline_args.keys().map(|k| format!("pipeline.parameters.{k}")).collect();
            suggest(name, declared.iter().map(String::as_str).chain(self.values.names()))
        } else {
            None
        };
        if hint.is_none() && !name.contains('.') {
            hint =
                Some("write `\\<<` for two literal angle brackets, such as those of a here-document".into());
        }
        let message = format!("Referred to a variable \"{name}\" that does not exist");
        self.sink.add(crate::Severity::Error, code::UNKNOWN_PIPELINE_VALUE, at, message, hint);
    }
}

/// A value as an expression sees it.
pub(crate) fn to_val(node: &Node) -> Val {
    match &node.value {
        Value::Null => Val::Undefined,
        Value::Bool(b) => Val::Bool(*b),
        Value::Int(n) => Val::Int(*n),
        _ => Val::Str(node.text().unwrap_or_default()),
    }
}
