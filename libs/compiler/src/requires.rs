//! `requires`: what it says, which jobs it means, and whether the graph has an order (config-language §14).

use crate::Severity;
use crate::context::Ctx;
use crate::diagnostics::{Span, code, suggest};
use crate::invocations::Invocation;
use crate::workflows::Draft;
use crate::yaml::{Node, Value};
use indexmap::IndexMap;
use model::status::JobStatus;
use std::collections::{BTreeSet, HashMap};

pub(crate) const STATUSES: &[JobStatus] =
    &[JobStatus::Success, JobStatus::Failed, JobStatus::Canceled, JobStatus::Unauthorized, JobStatus::NotRun];
/// Edges of one workflow (security §5.2).
const MAX_EDGES: usize = 10_000;

/// One entry of `requires`.
pub(crate) struct Required {
    pub word: String,
    pub at: Span,
    pub accepts: BTreeSet<JobStatus>,
}

/// The upstream jobs of one job, by their places in the workflow, with the accepted statuses.
pub(crate) type Edges = IndexMap<usize, BTreeSet<JobStatus>>;

/// The names that jobs of one group, or of the workflow itself, can require.
#[derive(Default)]
struct Names<'d> {
    by_name: HashMap<&'d str, usize>,
    by_alias: HashMap<&'d str, Vec<usize>>,
    by_base: HashMap<&'d str, Vec<usize>>,
}

impl Ctx<'_> {
    /// The entries of `requires`.
    pub fn requires(&mut self, node: &Node) -> Vec<Required> {
        let Some(items) = node.as_seq() else {
            if !node.is_null() {
                let hint = node.as_str().map(|job| format!("write a list: `requires: [{job}]`"));
                self.wrong_type_hint(node, "`requires`", "a list of jobs", hint);
            }
            return Vec::new();
        };
        let mut list: Vec<Required> = Vec::new();
        for item in items.iter() {
            match &item.value {
                Value::Map(map) if map.len() == 1 => {
                    let Some((word, entry)) = map.first() else { continue };
                    let accepts = self.statuses(&entry.value);
                    list.push(Required { word: word.to_string(), at: entry.key, accepts });
                }
                _ => match item.text().filter(|text| !text.is_empty()) {
                    Some(word) => {
                        let accepts = BTreeSet::from([JobStatus::Success]);
                        list.push(Required { word, at: item.span, accepts });
                    }
                    None => {
                        let what = "a job, or a map of one job to its statuses";
                        self.wrong_type(item, "an entry of `requires`", what);
                    }
                },
            }
        }
        list
    }

    fn statuses(&mut self, node: &Node) -> BTreeSet<JobStatus> {
        let items = node.as_seq().map_or_else(|| vec![node.clone()], |items| items.to_vec());
        let mut accepts = BTreeSet::new();
        for item in &items {
            let word = item.text().unwrap_or_default();
            if word == "terminal" {
                accepts.extend(STATUSES);
                continue;
            }
            match STATUSES.iter().find(|s| s.as_str() == word) {
                Some(status) => {
                    accepts.insert(*status);
                }
                None => {
                    let words = STATUSES.iter().map(|s| s.as_str()).chain(["terminal"]);
                    let hint = suggest(&word, words.clone())
                        .unwrap_or_else(|| format!("statuses: {}", words.collect::<Vec<_>>().join(", ")));
                    let message = format!("{} is not a status that a job can end with", item.shown());
                    self.sink.error_hint(code::INVALID_VALUE, item.span, message, hint);
                }
            }
        }
        if items.is_empty() {
            self.sink.error(code::INVALID_VALUE, node.span, "a list of statuses cannot be empty");
        }
        accepts
    }

    /// For every job its upstream jobs.
    pub fn edges(&mut self, draft: &Draft) -> Vec<Edges> {
        let mut spaces: HashMap<usize, Names<'_>> = HashMap::new();
        for (index, job) in draft.jobs.iter().enumerate() {
            let names = spaces.entry(job.space).or_default();
            names.by_name.insert(job.local(&job.name), index);
            names.by_base.entry(job.local(&job.base)).or_default().push(index);
            if let Some(alias) = &job.alias {
                names.by_alias.entry(alias).or_default().push(index);
            }
        }
        for alias in &draft.empty_matrices {
            spaces.entry(0).or_default().by_alias.entry(alias).or_default();
        }
        for group in &draft.groups {
            spaces.entry(0).or_default().by_alias.entry(&group.label).or_default().push(group.end);
        }
        let mut edges = Vec::with_capacity(draft.jobs.len());
        let mut total = 0;
        for (index, job) in draft.jobs.iter().enumerate() {
            let mut own = Edges::new();
            for required in &job.requires {
                let Some(upstream) = self.upstream(draft, index, required, &spaces[&job.space]) else {
                    continue;
                };
                for up in upstream {
                    own.entry(up).or_default().extend(required.accepts.iter().copied());
                }
            }
            total += own.len();
            edges.push(own);
        }
        if total > MAX_EDGES {
            let message = format!(
                "the workflow `{}` has {total} requirements; at most {MAX_EDGES} are accepted",
                draft.name
            );
            self.sink.error(code::SIZE_LIMIT, draft.at, message);
        }
        for group in &draft.groups {
            group.connect(&draft.jobs, &mut edges);
        }
        edges
    }

    /// The jobs that one entry means. `None`: none, and reported.
    fn upstream(
        &mut self,
        draft: &Draft,
        index: usize,
        required: &Required,
        names: &Names<'_>,
    ) -> Option<Vec<usize>> {
        let word = required.word.as_str();
        if let Some(found) = names.by_name.get(word) {
            return Some(vec![*found]);
        }
        if let Some(found) = names.by_alias.get(word) {
            return Some(found.clone());
        }
        let others = names.by_base.get(word).into_iter().flatten().copied();
        let others: Vec<usize> = others.filter(|other| *other != index).collect();
        if others.len() == 1 {
            return Some(others);
        }
        let job = &draft.jobs[index];
        let message = format!(
            "Job '{}' requires '{word}', which is the name of {} other jobs in workflow '{}'",
            job.name,
            others.len(),
            draft.name
        );
        if others.is_empty() {
            let inner =
                draft.jobs.iter().any(|other| other.space != job.space && other.local(&other.name) == word);
            let hint = match inner {
                true => {
                    Some("a job of a group cannot be required from outside: require the group".to_owned())
                }
                false => suggest(word, names.by_name.keys().copied()),
            };
            self.sink.add(Severity::Error, code::UNKNOWN_REQUIRES, required.at, message, hint);
        } else {
            let hint = "You can give a job within a workflow an explicit name by adding a name key";
            self.sink.error_hint(code::AMBIGUOUS_REQUIRES, required.at, message, hint);
        }
        None
    }

    /// The jobs in an order in which every job comes after those that it requires; those on a circle, which is
    /// reported, are missing.
    pub fn ordered(&mut self, jobs: &[Invocation], edges: &[Edges]) -> Vec<usize> {
        let mut downstream: Vec<Vec<usize>> = vec![Vec::new(); jobs.len()];
        let mut open: Vec<usize> = edges.iter().map(IndexMap::len).collect();
        for (index, own) in edges.iter().enumerate() {
            own.keys().for_each(|up| downstream[*up].push(index));
        }
        let mut order: Vec<usize> = (0..jobs.len()).filter(|i| open[*i] == 0).collect();
        let mut next = 0;
        while let Some(index) = order.get(next).copied() {
            next += 1;
            for down in &downstream[index] {
                open[*down] -= 1;
                if open[*down] == 0 {
                    order.push(*down);
                }
            }
        }
        if order.len() < jobs.len() {
            let mut reached = vec![false; jobs.len()];
            order.iter().for_each(|i| reached[*i] = true);
            self.circle(jobs, edges, &reached);
        }
        order
    }

    fn circle(&mut self, jobs: &[Invocation], edges: &[Edges], reached: &[bool]) {
        let Some(start) = reached.iter().position(|reached| !reached) else { return };
        // Upstream from any unreached job the walk comes round: that is the circle.
        let mut path: Vec<usize> = vec![start];
        let mut at = start;
        let circle = loop {
            let Some(next) = edges[at].keys().copied().find(|up| !reached[*up]) else { return };
            if let Some(from) = path.iter().position(|seen| *seen == next) {
                break path.split_off(from);
            }
            path.push(next);
            at = next;
        };
        let mut words: Vec<&str> = circle.iter().map(|i| jobs[*i].name.as_str()).collect();
        words.push(words[0]);
        let first = &jobs[circle[0]];
        // The entry of the first job that leads into the circle, as far as the names say.
        let entry = first.requires.iter().find(|r| words.get(1) == Some(&r.word.as_str()));
        let span = entry.or(first.requires.first()).map_or(first.at, |r| r.at);
        let shown = |names: &[&str]| names.iter().take(20).copied().collect::<Vec<_>>().join(" requires ");
        let message = if reached.iter().any(|reached| *reached) {
            let unreached: Vec<&str> =
                (0..jobs.len()).filter(|i| !reached[*i]).take(20).map(|i| jobs[i].name.as_str()).collect();
            format!("The following jobs are unreachable: {}.", unreached.join(", "))
        } else {
            "At least one job in the workflow must have no dependencies.".to_owned()
        };
        let message = format!("{message} The jobs require each other in a circle: {}", shown(&words));
        let hint = format!("take `{}` out of the `requires` of `{}`", words[1], words[0]);
        self.sink.error_hint(code::REQUIRES_CYCLE, span, message, hint);
        for index in circle.iter().skip(1).take(10) {
            self.sink.related(format!("the job `{}`", jobs[*index].name), jobs[*index].at);
        }
    }
}
