//! A tree as YAML text.

use crate::emit::{is_block, write_text};
use crate::yaml::{Entry, Node, Value};
use std::fmt::Write;
use std::sync::Arc;

/// How it is laid out.
pub(crate) struct Style {
    /// Blanks per level.
    pub indent: usize,
    /// Whether keys are sorted.
    pub sorted: bool,
}

impl Style {
    /// As packed sources look.
    pub const PACKED: Style = Style { indent: 4, sorted: true };
}

/// The text of `node`; it reads back to the same values.
pub(crate) fn write(node: &Node, style: &Style) -> String {
    let mut out = String::new();
    value(&mut out, node, 0, style, Place::Top);
    out
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Top,
    Key,
    Item,
}

fn value(out: &mut String, node: &Node, column: usize, style: &Style, place: Place) {
    let lead = if place == Place::Top { "" } else { " " };
    match &node.value {
        Value::Scoped(_, inner) => value(out, inner, column, style, place),
        Value::Map(map) if map.is_empty() => _ = writeln!(out, "{lead}{{}}"),
        Value::Seq(items) if items.is_empty() => _ = writeln!(out, "{lead}[]"),
        Value::Map(map) => {
            let mut entries: Vec<(&Arc<str>, &Entry)> = map.iter().collect();
            if style.sorted {
                entries.sort_by(|a, b| a.0.cmp(b.0));
            }
            // In a list the first key stands behind the dash, the others below it.
            let column = if place == Place::Item { column + 2 } else { column };
            for (index, (key, entry)) in entries.into_iter().enumerate() {
                match (index, place) {
                    (0, Place::Item) => out.push(' '),
                    (0, Place::Key) => {
                        out.push('\n');
                        pad(out, column);
                    }
                    _ => pad(out, column),
                }
                write_text(out, key);
                out.push(':');
                let deeper = if place == Place::Item { column - 2 } else { column } + style.indent;
                value(out, &entry.value, deeper, style, Place::Key);
            }
        }
        Value::Seq(items) => {
            if place != Place::Top {
                out.push('\n');
            }
            let column = if place == Place::Item { column + style.indent } else { column };
            for item in items.iter() {
                pad(out, column);
                out.push('-');
                value(out, item, column, style, Place::Item);
            }
        }
        Value::Str(text) if is_block(text) => {
            let _ = writeln!(out, "{lead}|{}", if text.ends_with('\n') { "" } else { "-" });
            let column = if place == Place::Item { column + style.indent } else { column };
            for line in text.lines() {
                if !line.is_empty() {
                    pad(out, column.max(1));
                    out.push_str(line);
                }
                out.push('\n');
            }
        }
        Value::Str(text) => {
            out.push_str(lead);
            write_text(out, text);
            out.push('\n');
        }
        Value::Null => _ = writeln!(out, "{lead}null"),
        Value::Float(n) if n.number.is_nan() => _ = writeln!(out, "{lead}.nan"),
        Value::Float(n) if n.number.is_infinite() => {
            let _ = writeln!(out, "{lead}{}.inf", if n.number > 0.0 { "" } else { "-" });
        }
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            let _ = writeln!(out, "{lead}{}", node.text().unwrap_or_default());
        }
    }
}

fn pad(out: &mut String, column: usize) {
    out.extend(std::iter::repeat_n(' ', column));
}
