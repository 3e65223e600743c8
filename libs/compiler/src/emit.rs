//! The compiled configuration as text.

use crate::diagnostics::Span;
use crate::orbs::UsedOrb;
use crate::scalars;
use crate::workflows::{Compiled, Shown};
use crate::yaml::{Entry, Map, Node, Value};
use std::fmt::Write;
use std::sync::Arc;

const AT: Span = Span { file: 0, start: 0, end: 0 };

fn entry(value: Node) -> Entry {
    Entry { key: AT, value }
}

/// The compiled form of `workflows` as a tree.
pub(crate) fn tree(workflows: &[Compiled]) -> Map {
    let mut jobs = Map::default();
    let mut shown_workflows = Map::default();
    for workflow in workflows {
        for job in &workflow.shown {
            if let Some(body) = &job.body {
                jobs.insert(job.key.as_str().into(), entry(body.clone()));
            }
        }
        let list = workflow.shown.iter().map(invocation).collect();
        let mut body = Map::from_iter([(Arc::from("jobs"), entry(Node::seq(AT, list)))]);
        if let Some(triggers) = &workflow.triggers {
            body.insert("triggers".into(), entry(triggers.clone()));
        }
        if workflow.plan.max_auto_reruns > 0 {
            let reruns = Value::Int(i64::from(workflow.plan.max_auto_reruns));
            body.insert("max_auto_reruns".into(), entry(Node { span: AT, value: reruns }));
        }
        shown_workflows.insert(workflow.plan.name.as_str().into(), entry(Node::map(AT, body)));
    }
    let two = || entry(Node { span: AT, value: Value::Int(2) });
    shown_workflows.insert("version".into(), two());
    Map::from_iter([
        (Arc::from("version"), two()),
        (Arc::from("jobs"), entry(Node::map(AT, jobs))),
        (Arc::from("workflows"), entry(Node::map(AT, shown_workflows))),
    ])
}

/// The compiled form of `workflows`, with the source behind it.
pub(crate) fn emit(workflows: &[Compiled], orbs: &[UsedOrb], source: &str) -> String {
    let root = tree(workflows);
    let mut out = String::new();
    for orb in orbs.iter().filter(|orb| orb.direct) {
        let _ = writeln!(out, "# Orb '{}' resolved to '{}'", orb.reference, orb.resolved);
    }
    write_map(&mut out, &root, 0);
    out.push_str("\n# Original config.yml file:\n");
    for line in source.lines() {
        out.push_str("# ");
        out.push_str(line);
        out.push('\n');
    }
    out
}

fn invocation(job: &Shown) -> Node {
    let mut options = Map::default();
    if job.approval {
        options.insert("type".into(), entry(Node::str(AT, "approval")));
    }
    if !job.requires.is_empty() {
        let list = job.requires.iter().map(|r| {
            let statuses: Vec<Node> = r.accepts.iter().map(|s| Node::str(AT, s.as_str())).collect();
            if r.accepts.len() == 1 && r.accepts.contains(&model::status::JobStatus::Success) {
                return Node::str(AT, r.job.as_str());
            }
            Node::map(AT, Map::from_iter([(Arc::from(r.job.as_str()), entry(Node::seq(AT, statuses)))]))
        });
        options.insert("requires".into(), entry(Node::seq(AT, list.collect())));
    }
    if !job.contexts.is_empty() {
        let list = job.contexts.iter().map(|c| Node::str(AT, c.as_str())).collect();
        options.insert("context".into(), entry(Node::seq(AT, list)));
    }
    if let Some(key) = &job.serial_group {
        options.insert("serial-group".into(), entry(Node::str(AT, key.as_str())));
    }
    if let Some(filters) = &job.filters {
        options.insert("filters".into(), entry(filters.clone()));
    }
    if options.is_empty() {
        return Node::str(AT, job.key.as_str());
    }
    Node::map(AT, Map::from_iter([(Arc::from(job.key.as_str()), entry(Node::map(AT, options)))]))
}

fn indent(out: &mut String, level: usize) {
    out.extend(std::iter::repeat_n("  ", level));
}

fn write_map(out: &mut String, map: &Map, level: usize) {
    for (index, (key, entry)) in map.iter().enumerate() {
        // The first key of a map in a list stands behind the dash.
        if index > 0 || out.is_empty() || out.ends_with('\n') {
            indent(out, level);
        }
        write_text(out, key);
        out.push(':');
        write_value(out, &entry.value, level, false);
    }
}

fn write_value(out: &mut String, node: &Node, level: usize, in_list: bool) {
    match &node.value {
        Value::Scoped(_, inner) => write_value(out, inner, level, in_list),
        Value::Map(map) if map.is_empty() => out.push_str(" {}\n"),
        Value::Seq(items) if items.is_empty() => out.push_str(" []\n"),
        Value::Map(map) => {
            out.push(if in_list { ' ' } else { '\n' });
            write_map(out, map, level + 1);
        }
        Value::Seq(items) => {
            out.push('\n');
            // A list stands below its key; in a list it stands one level deeper.
            let level = if in_list { level + 1 } else { level };
            for item in items.iter() {
                indent(out, level);
                out.push('-');
                write_value(out, item, level, true);
            }
        }
        Value::Str(text) if is_block(text) => {
            out.push_str(if text.ends_with('\n') { " |\n" } else { " |-\n" });
            for line in text.lines() {
                if !line.is_empty() {
                    indent(out, level + 1);
                    out.push_str(line);
                }
                out.push('\n');
            }
        }
        Value::Str(text) => {
            out.push(' ');
            write_text(out, text);
            out.push('\n');
        }
        Value::Null => out.push_str(" null\n"),
        Value::Float(n) if n.number.is_nan() => out.push_str(" .nan\n"),
        Value::Float(n) if n.number.is_infinite() => {
            out.push_str(if n.number > 0.0 { " .inf\n" } else { " -.inf\n" });
        }
        _ => {
            let _ = writeln!(out, " {}", node.text().unwrap_or_default());
        }
    }
}

/// Whether a literal block holds the text exactly.
pub(crate) fn is_block(text: &str) -> bool {
    text.contains('\n')
        && text.trim_end_matches('\n').contains('\n')
        && !text.starts_with([' ', '\n'])
        && !text.ends_with("\n\n")
        && text.chars().all(|c| {
            c == '\n' || (!c.is_control() && !matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}'))
        })
        && text.lines().all(|line| line.is_empty() || !line.trim().is_empty())
}

/// Whether a character may stand anywhere in a plain scalar.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b" _-./:+=@$^*()".contains(&byte)
}

pub(crate) fn write_text(out: &mut String, text: &str) {
    let bytes = text.as_bytes();
    // What begins with a digit other readers take for a number or a date, `y` and `n` for booleans.
    let plain = bytes.first().is_some_and(|b| b.is_ascii_alphabetic() || b"_/.$".contains(b))
        && bytes.iter().all(|b| is_plain(*b))
        && !matches!(bytes.last(), Some(b' ' | b':'))
        && !text.contains(": ")
        && !matches!(text, "y" | "Y" | "n" | "N")
        && matches!(scalars::plain(text), Value::Str(_));
    if plain {
        out.push_str(text);
    } else {
        out.push_str(&serde_json::Value::from(text).to_string());
    }
}
