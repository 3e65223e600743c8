//! Job groups (config-language §17.1): a set of jobs between two nodes that do nothing. With a `serial-group` the first
//! one takes the lock, and a third one gives it back when all jobs of the group have ended (§17.2).

use crate::context::Ctx;
use crate::diagnostics::{Span, code};
use crate::interpolate::Env;
use crate::invocations::{Invocation, Options};
use crate::requires::{Edges, STATUSES};
use crate::scope::Scope;
use crate::steps::single;
use crate::workflows::Draft;
use crate::yaml::{Entry, Map, Node};
use model::plan::JobKind;
use model::status::JobStatus;
use std::collections::BTreeSet;
use std::sync::Arc;

pub(crate) const GROUP_KEYS: &[&str] = &["name", "requires", "filters", "serial-group"];

/// One invocation of a group in a workflow.
pub(crate) struct Group {
    /// The word by which it is required.
    pub label: String,
    /// Number of its name space.
    space: usize,
    /// The node before its first jobs, and the one behind its last.
    start: usize,
    pub end: usize,
    /// The node that gives the lock back.
    unlock: Option<usize>,
}

impl Group {
    /// Ties the first and last jobs to the nodes around the group.
    pub fn connect(&self, jobs: &[Invocation], edges: &mut [Edges]) {
        let inner = self.start + 1..self.end;
        let success = || BTreeSet::from([JobStatus::Success]);
        let required: BTreeSet<usize> = inner.clone().flat_map(|i| edges[i].keys().copied()).collect();
        for index in inner.filter(|i| jobs[*i].space == self.space) {
            if edges[index].is_empty() {
                edges[index].insert(self.start, success());
            }
            if !required.contains(&index) {
                edges[self.end].insert(index, success());
            }
        }
        if edges[self.end].is_empty() {
            edges[self.end].insert(self.start, success());
        }
        if let Some(unlock) = self.unlock {
            // Whatever becomes of them: one that fails may leave others running.
            let inner = (self.start + 1..self.end).filter(|i| jobs[*i].space == self.space);
            edges[unlock].extend(inner.map(|index| (index, STATUSES.iter().copied().collect())));
            edges[unlock].insert(self.start, success());
        }
    }
}

impl Ctx<'_> {
    /// The shape of the declared groups, used or not.
    pub fn check_groups(&mut self, scope: &Scope) {
        for (name, entry) in &scope.groups {
            if scope.has(crate::scope::Kind::Job, name) {
                let message = format!("`{name}` is the name of a job and of a job group");
                self.sink.error(code::INVALID_NAME, entry.key, message);
            }
            let Some(body) = entry.value.as_map() else {
                self.wrong_type(&entry.value, &format!("the job group `{name}`"), "a map with `jobs`");
                continue;
            };
            self.only_keys(body, &["jobs"], format!("the job group `{name}`"));
            if body.get("jobs").and_then(|e| e.value.as_seq()).is_none_or(|jobs| jobs.is_empty()) {
                let message = format!("the job group `{name}` needs `jobs`: a list with at least one job");
                self.sink.error(code::MISSING_KEY, entry.key, message);
            }
        }
    }

    /// Puts the jobs of the group `reference` into the workflow.
    pub fn group(
        &mut self,
        reference: &str,
        at: Span,
        options: &Map,
        project: &Arc<Scope>,
        draft: &mut Draft,
    ) {
        for (key, entry) in options {
            if !GROUP_KEYS.contains(&key.as_ref()) {
                let message = format!("extraneous key [{key}] is not permitted in the use of a job group");
                let hint = format!("permitted keys: {}", GROUP_KEYS.join(", "));
                self.sink.error_hint(code::UNKNOWN_KEY, entry.key, message, hint);
            }
        }
        let env = Env { pipeline_parameters: true, ..Env::default() };
        let name = options.get("name").map(|e| self.interpolate(&e.value, env)).and_then(|node| node.text());
        let label = name.clone().unwrap_or_else(|| reference.to_owned());
        if draft.groups.iter().any(|group| group.label == label) {
            let message = format!("the job group `{label}` stands twice in the workflow");
            self.sink.error_hint(code::INVALID_NAME, at, message, "give each its own `name`");
            return;
        }
        let Some(items) = project
            .groups
            .get(reference)
            .and_then(|e| e.value.as_map()?.get("jobs")?.value.as_seq().cloned())
        else {
            return;
        };
        let space = draft.groups.len() + 1;
        let start = draft.jobs.len();
        let options = Options { map: options, env };
        let mut first = Invocation::new(format!("{label}/group-start"), at);
        self.common(&options, &mut first);
        let key = first.serial_group.clone();
        match &key {
            Some(key) => holds(&mut first, at, JobKind::Lock, key),
            None => no_op(&mut first, at),
        }
        let passes = first.passes;
        draft.jobs.push(first);
        for item in items.iter() {
            if self.is_group(item, project) {
                let message = "a job group cannot hold another one";
                self.sink.error(code::UNKNOWN_JOB, item.span, message);
                continue;
            }
            self.invocation(item, project, draft);
        }
        for job in &mut draft.jobs[start + 1..] {
            job.space = space;
            if let Some(name) = &name {
                job.prefix(name);
            }
            // A job without filters of its own goes with its group.
            if job.filters.is_none() {
                job.passes = passes;
            }
        }
        let end = draft.jobs.len();
        let mut last = Invocation::new(format!("{label}/group-end"), at);
        no_op(&mut last, at);
        last.passes = true;
        draft.jobs.push(last);
        let unlock = key.map(|key| {
            let mut unlock = Invocation::new(format!("{label}/unlock"), at);
            holds(&mut unlock, at, JobKind::Unlock, &key);
            unlock.passes = true;
            draft.jobs.push(unlock);
            draft.jobs.len() - 1
        });
        draft.groups.push(Group { label, space, start, end, unlock });
    }

    fn is_group(&self, item: &Node, project: &Scope) -> bool {
        let name = item.as_str().or_else(|| item.as_map().and_then(|map| map.first()).map(|(name, _)| name));
        name.is_some_and(|name| project.groups.contains_key(name))
    }
}

fn no_op(job: &mut Invocation, at: Span) {
    job.kind = Some(JobKind::NoOp);
    job.body = single("type", at, Node::str(at, "no-op")).as_map().cloned();
}

/// The node that takes or gives back the lock of a serial group.
fn holds(job: &mut Invocation, at: Span, kind: JobKind, key: &str) {
    let word = if kind == JobKind::Lock { "lock" } else { "unlock" };
    let text = |text: &str| Entry { key: at, value: Node::str(at, text) };
    let body = Map::from_iter([(Arc::from("type"), text(word)), (Arc::from("key"), text(key))]);
    job.body = Some(Arc::new(body));
    job.serial_group = Some(key.to_owned());
    job.kind = Some(kind);
}
