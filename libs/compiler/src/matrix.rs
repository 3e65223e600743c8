//! `matrix` of an invocation (config-language §16).

use crate::context::Ctx;
use crate::diagnostics::{Span, code};
use crate::interpolate::{Args, Env};
use crate::yaml::{Map, Node};
use std::sync::Arc;

/// Combinations of one matrix, counted before they are built (security §5.2).
const MAX_COMBINATIONS: usize = 1000;

/// An expanded matrix.
pub(crate) struct Matrix {
    /// One for each job.
    pub combinations: Vec<Args>,
    /// The word by which all its jobs are required.
    pub alias: Option<String>,
}

impl Ctx<'_> {
    /// All combinations of a matrix, in the order of their names: by the parameters in alphabetical order.
    pub fn matrix(&mut self, key: Span, node: &Node) -> Option<Matrix> {
        let env = Env { pipeline_parameters: true, ..Env::default() };
        let node = self.interpolate(node, env);
        let Some(map) = node.as_map() else {
            self.wrong_type(&node, "`matrix`", "a map with `parameters`");
            return None;
        };
        self.only_keys(map, &["parameters", "exclude", "alias"], "`matrix`");
        let Some(parameters) = map.get("parameters").and_then(|e| e.value.as_map()).filter(|m| !m.is_empty())
        else {
            self.sink.error(code::BAD_MATRIX, key, "`matrix` needs `parameters`: a map of lists");
            return None;
        };
        let combinations = self.combinations(parameters)?;
        let combinations = match map.get("exclude").filter(|e| !e.value.is_null()) {
            None => combinations,
            Some(exclude) => self.without(combinations, &exclude.value, parameters)?,
        };
        let alias = map.get("alias").and_then(|e| e.value.text());
        Some(Matrix { combinations, alias })
    }

    fn combinations(&mut self, parameters: &Map) -> Option<Vec<Args>> {
        let mut lists: Vec<(&Arc<str>, &Arc<Vec<Node>>)> = Vec::with_capacity(parameters.len());
        let mut count = 1usize;
        for (name, entry) in parameters.iter() {
            let Some(items) = entry.value.as_seq() else {
                self.wrong_type(&entry.value, &format!("the matrix parameter `{name}`"), "a list");
                return None;
            };
            count = count.saturating_mul(items.len());
            lists.push((name, items));
        }
        if count > MAX_COMBINATIONS {
            let at = parameters.first().map_or(Span::default(), |(_, e)| e.key);
            let message =
                format!("the matrix has {count} combinations; at most {MAX_COMBINATIONS} are accepted");
            self.sink.error(code::BAD_MATRIX, at, message);
            return None;
        }
        lists.sort_by_key(|(name, _)| *name);
        let mut combinations = vec![Args::default()];
        for (name, items) in lists {
            let with = |c: &Args, item: &Node| {
                let mut c = c.clone();
                c.insert(name.clone(), item.clone());
                c
            };
            combinations = combinations.iter().flat_map(|c| items.iter().map(move |i| with(c, i))).collect();
        }
        Some(combinations)
    }

    /// Leaves out what equals an entry of `exclude` in every parameter.
    fn without(&mut self, mut all: Vec<Args>, exclude: &Node, parameters: &Map) -> Option<Vec<Args>> {
        let Some(items) = exclude.as_seq() else {
            self.wrong_type(exclude, "`exclude`", "a list of maps");
            return None;
        };
        for item in items.iter() {
            let Some(excluded) = item.as_map() else {
                self.wrong_type(item, "an entry of `exclude`", "a map");
                continue;
            };
            for (name, entry) in excluded.iter() {
                if !parameters.contains_key(name) {
                    let message = format!("`{name}` is not a parameter of this matrix");
                    self.sink.error(code::BAD_MATRIX, entry.key, message);
                }
            }
            if excluded.len() < parameters.len() {
                let message = "an entry of `exclude` that does not name every parameter excludes nothing";
                self.sink.warning(code::IGNORED, item.span, message);
            }
            all.retain(|c| {
                excluded.len() != c.len()
                    || !c.iter().all(|(k, v)| excluded.get(k).is_some_and(|e| e.value.same(v)))
            });
        }
        Some(all)
    }
}

/// `job-a-1`: the values in the order of their parameters' names.
pub(crate) fn matrix_name(reference: &str, args: &Args) -> String {
    let mut parts: Vec<(&str, String)> =
        args.iter().map(|(name, value)| (name.as_ref(), shown_value(value))).collect();
    parts.sort();
    let words = std::iter::once(reference.to_owned()).chain(parts.into_iter().map(|(_, text)| text));
    words.collect::<Vec<_>>().join("-")
}

fn shown_value(value: &Node) -> String {
    match value.as_map().and_then(|map| map.get("name")) {
        Some(name) => name.value.text().unwrap_or_default(),
        None => value.text().unwrap_or_else(|| value.kind().to_owned()),
    }
}
