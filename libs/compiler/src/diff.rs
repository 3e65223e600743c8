//! What differs between two compiled configurations: by meaning, not by text.

use model::plan::{Plan, WorkflowPlan};
use serde::Serialize;
use serde_json::Value;

/// One difference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Where: `main.build.steps[3].command`; the first part is the workflow, the second the job.
    pub path: String,
    /// What happened there.
    pub kind: ChangeKind,
    /// The value that was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// The value that is there now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// The kinds of differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// Only the second has it.
    Added,
    /// Only the first has it.
    Removed,
    /// Both have it, with different values.
    Changed,
}

impl Change {
    /// One line for people.
    pub fn line(&self) -> String {
        let short = |value: &Option<Value>| {
            let text = value.as_ref().map(summary).unwrap_or_default();
            match text.char_indices().nth(100) {
                Some((cut, _)) => format!("{}…", &text[..cut]),
                None => text,
            }
        };
        match self.kind {
            ChangeKind::Added => format!("+ {}: {}", self.path, short(&self.after)),
            ChangeKind::Removed => format!("- {}: {}", self.path, short(&self.before)),
            ChangeKind::Changed => {
                format!("~ {}: {} -> {}", self.path, short(&self.before), short(&self.after))
            }
        }
    }
}

/// A value in a few words: a job by its kind, a step by its name.
fn summary(value: &Value) -> String {
    let field = |key: &str| value.get(key).and_then(Value::as_str);
    if let Some(jobs) = value.get("jobs").and_then(Value::as_array) {
        return format!("a workflow of {} job(s)", jobs.len());
    }
    if let Some(kind) = value.get("kind").and_then(|kind| kind.get("type")).and_then(Value::as_str) {
        return format!("a job of type {kind}");
    }
    match (field("step"), field("name")) {
        (Some(step), Some(name)) => format!("{step} {name:?}"),
        (Some(step), None) => step.to_owned(),
        _ => value.to_string(),
    }
}

/// All differences from `before` to `after`, in the order of the second.
pub fn diff(before: &Plan, after: &Plan) -> Vec<Change> {
    let mut changes = Vec::new();
    let json = |value: &WorkflowPlan| serde_json::to_value(value).unwrap_or_default();
    for old in before.workflows.iter().filter(|w| after.workflows.iter().all(|n| n.name != w.name)) {
        changes.push(change(old.name.clone(), Some(json(old)), None));
    }
    for new in &after.workflows {
        let Some(old) = before.workflows.iter().find(|w| w.name == new.name) else {
            changes.push(change(new.name.clone(), None, Some(json(new))));
            continue;
        };
        jobs(old, new, &mut changes);
        if old.max_auto_reruns != new.max_auto_reruns {
            let path = format!("{}.max_auto_reruns", new.name);
            changes.push(change(path, Some(old.max_auto_reruns.into()), Some(new.max_auto_reruns.into())));
        }
    }
    changes
}

fn jobs(old: &WorkflowPlan, new: &WorkflowPlan, changes: &mut Vec<Change>) {
    let json = |value| serde_json::to_value(value).unwrap_or_default();
    for job in old.jobs.iter().filter(|job| new.jobs.iter().all(|n| n.name != job.name)) {
        changes.push(change(format!("{}.{}", old.name, job.name), Some(json(job)), None));
    }
    for job in &new.jobs {
        let path = format!("{}.{}", new.name, job.name);
        match old.jobs.iter().find(|o| o.name == job.name) {
            None => changes.push(change(path, None, Some(json(job)))),
            Some(old) => values(&path, &json(old), &json(job), changes),
        }
    }
}

fn change(path: String, before: Option<Value>, after: Option<Value>) -> Change {
    let kind = match (&before, &after) {
        (None, _) => ChangeKind::Added,
        (_, None) => ChangeKind::Removed,
        _ => ChangeKind::Changed,
    };
    Change { path, kind, before, after }
}

fn values(path: &str, old: &Value, new: &Value, changes: &mut Vec<Change>) {
    match (old, new) {
        _ if old == new => {}
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                let path = below(path, key);
                match b.get(key) {
                    Some(other) => values(&path, value, other, changes),
                    None => changes.push(change(path, Some(value.clone()), None)),
                }
            }
            for (key, value) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
                changes.push(change(below(path, key), None, Some(value.clone())));
            }
        }
        (Value::Array(a), Value::Array(b)) => list(path, a, b, changes),
        _ => changes.push(change(path.to_owned(), Some(old.clone()), Some(new.clone()))),
    }
}

/// The plan wraps a job's definition: people do not write that level.
fn below(path: &str, key: &str) -> String {
    match key {
        "kind" | "definition" => path.to_owned(),
        _ => format!("{path}.{key}"),
    }
}

/// Lists by their longest common part, so that one step more is one change.
fn list(path: &str, a: &[Value], b: &[Value], changes: &mut Vec<Change>) {
    let prefix = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let rest = a.len().min(b.len()) - prefix;
    let suffix = a.iter().rev().zip(b.iter().rev()).take(rest).take_while(|(x, y)| x == y).count();
    let (old, new) = (&a[prefix..a.len() - suffix], &b[prefix..b.len() - suffix]);
    if old.len() == new.len() {
        for (index, (x, y)) in old.iter().zip(new).enumerate() {
            values(&format!("{path}[{}]", prefix + index), x, y, changes);
        }
        return;
    }
    let common = common(old, new);
    let (mut i, mut j) = (0, 0);
    for (x, y) in common.into_iter().chain([(old.len(), new.len())]) {
        // What lies between two common members is changed where both have it.
        let both = (x - i).min(y - j);
        for k in 0..both {
            values(&format!("{path}[{}]", prefix + j + k), &old[i + k], &new[j + k], changes);
        }
        for (k, value) in old[i + both..x].iter().enumerate() {
            changes.push(change(format!("{path}[{}]", prefix + i + both + k), Some(value.clone()), None));
        }
        for (k, value) in new[j + both..y].iter().enumerate() {
            changes.push(change(format!("{path}[{}]", prefix + j + both + k), None, Some(value.clone())));
        }
        (i, j) = (x + 1, y + 1);
    }
}

/// Pairs of indices of a longest common subsequence.
fn common(a: &[Value], b: &[Value]) -> Vec<(usize, usize)> {
    let width = b.len() + 1;
    let mut length = vec![0u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            length[i * width + j] = if a[i] == b[j] {
                length[(i + 1) * width + j + 1] + 1
            } else {
                length[(i + 1) * width + j].max(length[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if length[(i + 1) * width + j] >= length[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}
