//! The functions that a policy calls.
//!
//! The evaluator finds a function by its whole path alone, and misses an unknown one only when a rule reaches it.
//! So calls through an import (`config.ban_orbs(…)`) are written out before a policy is read, and names that
//! nothing defines are found when the bundle is.

use regex::Regex;
use std::{collections::HashMap, sync::LazyLock};

static IMPORT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?m)^[ \t]*import[ \t]+(data(?:\.\w+)+)(?:[ \t]+as[ \t]+(\w+))?").expect("a fixed pattern")
});

/// Words that may stand before a parenthesis without being functions.
const WORDS: &[&str] =
    &["if", "in", "not", "with", "else", "some", "every", "contains", "set", "print", "as"];

/// A call in a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// As written: `count`, `config.ban_orbs`.
    pub path: String,
    /// Line, from 1.
    pub line: usize,
}

/// The text with calls through imports written out, and all its calls.
pub(crate) fn written_out(text: &str) -> (String, Vec<Call>) {
    let imports: HashMap<&str, &str> = IMPORT
        .captures_iter(text)
        .filter_map(|found| {
            let path = found.get(1)?.as_str();
            let alias = found.get(2).map_or_else(|| path.rsplit('.').next(), |alias| Some(alias.as_str()))?;
            Some((alias, path))
        })
        .collect();
    let mut out = String::with_capacity(text.len());
    let mut calls = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let piece = match first {
            '"' => quoted(rest),
            '`' => rest[1..].find('`').map_or(rest, |end| &rest[..end + 2]),
            '#' => rest.find('\n').map_or(rest, |end| &rest[..end]),
            c if c.is_alphabetic() || c == '_' => {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '.');
                let word = &rest[..end.unwrap_or(rest.len())];
                if rest[word.len()..].starts_with('(') && !WORDS.contains(&word) {
                    let path = match word
                        .split_once('.')
                        .and_then(|(alias, name)| Some((imports.get(alias)?, name)))
                    {
                        Some((import, name)) => format!("{import}.{name}"),
                        None => word.to_owned(),
                    };
                    out.push_str(&path);
                    calls.push(Call { path, line });
                    rest = &rest[word.len()..];
                    continue;
                }
                word
            }
            c => &rest[..c.len_utf8()],
        };
        line += piece.matches('\n').count();
        out.push_str(piece);
        rest = &rest[piece.len()..];
    }
    (out, calls)
}

/// A text in quotes, with its quotes.
fn quoted(text: &str) -> &str {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return &text[..=at],
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_written_out_and_texts_left_alone() {
        let text = "package org\nimport data.circleci.config\nimport data.a.b as c\n\
                    r = config.ban_orbs([\"config.x(\"]) # config.y(\ns { not (1); c.f(`c.g(`); count(x.y) }\n";
        let (out, calls) = written_out(text);
        assert!(out.contains("r = data.circleci.config.ban_orbs([\"config.x(\"]) # config.y(\n"), "{out}");
        assert!(out.contains("data.a.b.f(`c.g(`); count(x.y)"), "{out}");
        let found: Vec<_> = calls.iter().map(|call| (call.path.as_str(), call.line)).collect();
        assert_eq!(found, [("data.circleci.config.ban_orbs", 4), ("data.a.b.f", 5), ("count", 5)]);
    }
}
