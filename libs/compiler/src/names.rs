//! Names of compiled jobs (config-language §23): all workflows share one map of jobs.

use crate::invocations::Invocation;
use crate::workflows::Draft;
use crate::yaml::{Map, Node, Value};
use indexmap::IndexMap;
use std::collections::{HashMap, HashSet};

/// Where an invocation is: its workflow and its place there.
type Place = (usize, usize);

/// Gives every invocation its name in the workflow and its key in the compiled text.
///
/// Invocations that share a base name and are all the same job keep it, one in each workflow. All others of
/// that name are numbered in the order of the file.
pub(crate) fn assign(drafts: &mut [Draft]) {
    let mut by_base: IndexMap<String, Vec<Place>> = IndexMap::new();
    for (w, draft) in drafts.iter().enumerate() {
        for (j, job) in draft.jobs.iter().enumerate() {
            by_base.entry(job.base.clone()).or_default().push((w, j));
        }
    }
    let (shared, numbered): (Vec<_>, Vec<_>) =
        by_base.into_iter().partition(|(_, places)| one_job(drafts, places));
    let mut taken: HashSet<String> = shared.into_iter().map(|(base, _)| base).collect();
    for (base, places) in numbered {
        let mut in_workflow: HashMap<usize, usize> = HashMap::new();
        for (w, _) in &places {
            *in_workflow.entry(*w).or_default() += 1;
        }
        let mut number = 1;
        for (w, j) in places {
            let alone = in_workflow[&w] == 1;
            let job = &mut drafts[w].jobs[j];
            // An approval has no entry in the map of jobs.
            if alone && job.body.is_none() {
                continue;
            }
            while !taken.insert(format!("{base}-{number}")) {
                number += 1;
            }
            job.key = format!("{base}-{number}");
            if !(alone && job.explicit) {
                job.name = job.key.clone();
            }
        }
    }
}

/// Whether these can share a name: one in each workflow, and the same job in all.
fn one_job(drafts: &[Draft], places: &[Place]) -> bool {
    if places.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return false;
    }
    let mut bodies = places.iter().filter_map(|(w, j)| drafts[*w].jobs[*j].body.as_ref());
    let Some(first) = bodies.next() else { return true };
    bodies.all(|body| same(first, body))
}

fn same(a: &Map, b: &Map) -> bool {
    a.len() == b.len() && a.iter().all(|(key, entry)| b.get(key).is_some_and(|e| e.value.same(&entry.value)))
}

/// Longest name (security §5.2).
const MAX_NAME: usize = 128;

/// Why a text cannot be the name of a job or workflow.
pub(crate) fn problem(name: &str) -> Option<String> {
    let length = name.chars().count();
    if name.trim().is_empty() {
        return Some("a name cannot be empty".into());
    }
    if length > MAX_NAME {
        return Some(format!("a name is at most {MAX_NAME} characters long, not {length}"));
    }
    // Characters that turn the writing direction make a name look like another one.
    let hidden = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    name.contains(hidden).then(|| "a name cannot hold invisible control characters".into())
}

impl Invocation {
    /// The value of the compiled text's map of jobs.
    pub fn entry(&self) -> Option<Node> {
        self.body.as_ref().map(|body| Node { span: self.at, value: Value::Map(body.clone()) })
    }
}
