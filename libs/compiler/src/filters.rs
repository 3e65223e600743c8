//! Whether a job runs for the branch or tag of the pipeline.

use crate::context::Ctx;
use crate::diagnostics::code;
use crate::interpolate::Env;
use crate::yaml::{Map, Node, Value};

/// Patterns of one list (security §5.2).
const MAX_PATTERNS: usize = 100;

/// `filters` of one invocation.
pub(crate) enum Filter<'n> {
    None,
    /// The map form, interpolated.
    Map(&'n Map),
    /// The expression form, or what an interpolation made of it.
    Condition(&'n Node),
}

impl Ctx<'_> {
    /// Whether the pipeline's ref passes. All patterns are checked, whichever ref it is.
    pub fn passes(&mut self, filter: &Filter<'_>, env: Env<'_>) -> bool {
        let map = match filter {
            Filter::None => return self.refs.tag.is_none(),
            Filter::Condition(node) if node.as_seq().is_some() => {
                self.wrong_type(node, "`filters`", "a map with `branches` or `tags`, or an expression");
                return true;
            }
            Filter::Condition(node) => return self.condition(node, env).unwrap_or(true),
            Filter::Map(map) => map,
        };
        self.only_keys(map, &["branches", "tags"], "`filters`");
        let (branch, tag) = (self.refs.branch.clone(), self.refs.tag.clone());
        let is_tag = tag.is_some();
        let branch = self.ref_filter(map, "branches", branch.as_deref());
        let tag = self.ref_filter(map, "tags", tag.as_deref());
        if is_tag { tag.unwrap_or(false) } else { branch.unwrap_or(true) }
    }

    /// `None`: there is no filter of this kind.
    pub fn ref_filter(&mut self, map: &Map, key: &str, name: Option<&str>) -> Option<bool> {
        let entry = map.get(key)?;
        let Some(body) = entry.value.as_map().cloned() else {
            if !entry.value.is_null() {
                let hint = format!("write `only:` below `{key}:`, and the patterns below that");
                let what = format!("`{key}`");
                self.wrong_type_hint(&entry.value, &what, "a map with `only` or `ignore`", Some(hint));
            }
            return None;
        };
        self.only_keys(&body, &["only", "ignore"], format!("`{key}`"));
        let only = body.get("only").map(|e| self.any_pattern(&e.value, name));
        let ignore = body.get("ignore").map(|e| self.any_pattern(&e.value, name));
        // `only` is considered first, and alone.
        only.or(ignore.map(|hit| !hit))
    }

    fn any_pattern(&mut self, node: &Node, name: Option<&str>) -> bool {
        let items = match &node.value {
            Value::Seq(items) => items.to_vec(),
            Value::Null => return false,
            _ => vec![node.clone()],
        };
        if items.len() > MAX_PATTERNS {
            let message = format!("a filter has at most {MAX_PATTERNS} patterns, not {}", items.len());
            self.sink.error(code::SIZE_LIMIT, node.span, message);
            return false;
        }
        let mut hit = false;
        for item in &items {
            let Some(text) = item.text() else {
                self.wrong_type(item, "a pattern", "a text");
                continue;
            };
            let result = match text.strip_prefix('/').and_then(|t| t.strip_suffix('/')) {
                Some(regex) => match name {
                    Some(name) => self.patterns.matches(regex, name),
                    None => self.patterns.check(regex).map(|()| false),
                },
                None => Ok(Some(text.as_str()) == name),
            };
            match result {
                Ok(matched) => hit |= matched,
                Err(message) => self.sink.error(code::BAD_PATTERN, item.span, message),
            }
        }
        hit
    }
}
