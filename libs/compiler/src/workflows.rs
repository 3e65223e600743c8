//! Workflows: invocations, matrices, names, filters and the graph.

use crate::PipelineValues;
use crate::context::Ctx;
use crate::diagnostics::{Span, code, suggest};
use crate::filters::Filter;
use crate::interpolate::{Args, Env};
use crate::params::Place;
use crate::scope::{Kind, Scope};
use crate::yaml::{Entry, Map, Node, Value};
use indexmap::IndexMap;
use model::plan::{JobKind, JobPlan, Requirement, WorkflowPlan};
use model::status::JobStatus;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

const WORKFLOW_KEYS: &[&str] = &["jobs", "when", "unless", "triggers", "max_auto_reruns", "description"];
const INVOCATION_KEYS: &[&str] = &[
    "name",
    "requires",
    "context",
    "type",
    "filters",
    "matrix",
    "pre-steps",
    "post-steps",
    "serial-group",
    "override-with",
];
const STATUSES: &[JobStatus] =
    &[JobStatus::Success, JobStatus::Failed, JobStatus::Canceled, JobStatus::Unauthorized, JobStatus::NotRun];
const MAX_COMBINATIONS: usize = 1000;
const MAX_JOBS: usize = 5000;

/// One node of a workflow before its name is final.
struct Invocation {
    at: Span,
    /// The name before numbers are added.
    base: String,
    name: String,
    /// The word by which all jobs of a matrix are required.
    group: Option<String>,
    requires: Vec<Required>,
    contexts: Vec<String>,
    kind: Option<JobKind>,
    body: Option<Map>,
    filters: Option<Node>,
    passes: bool,
}

struct Required {
    word: String,
    at: Span,
    accepts: BTreeSet<JobStatus>,
}

/// A compiled workflow, and what the compiled text shows of it.
pub(crate) struct Compiled {
    pub plan: WorkflowPlan,
    pub shown: Vec<Shown>,
}

/// One job of a workflow as the compiled text shows it.
pub(crate) struct Shown {
    pub name: String,
    pub body: Option<Map>,
    pub approval: bool,
    pub requires: Vec<Requirement>,
    pub contexts: Vec<String>,
    pub filters: Option<Node>,
}

impl Ctx<'_> {
    /// All workflows that run for this trigger.
    pub fn workflows(&mut self, root: &Map, project: &Arc<Scope>, values: &PipelineValues) -> Vec<Compiled> {
        let section = root.get("workflows").filter(|e| !e.value.is_null());
        self.has_workflows = section.is_some();
        let Some(section) = section else { return self.implicit(root, project, values) };
        let Some(map) = section.value.as_map().cloned() else {
            self.wrong_type(&section.value, "`workflows`", "a map");
            return Vec::new();
        };
        let mut compiled = Vec::new();
        for (name, entry) in map.iter().filter(|(name, _)| name.as_ref() != "version") {
            self.sink.trace.push((format!("Error calling workflow: '{name}'"), entry.key));
            compiled.extend(self.workflow(name, entry.key, &entry.value, project, values));
            self.sink.trace.pop();
        }
        compiled
    }

    /// Without `workflows` the job `build` runs alone.
    fn implicit(&mut self, root: &Map, project: &Arc<Scope>, values: &PipelineValues) -> Vec<Compiled> {
        let at = root.get("jobs").map_or(Span::default(), |e| e.key);
        if !project.has(Kind::Job, "build") {
            if self.may_be_empty && !project.has_jobs() {
                return Vec::new();
            }
            self.sink.error_hint(
                code::UNKNOWN_JOB,
                at,
                "Cannot find a job named `build` to run in the `jobs:` section of your configuration file.",
                "If you expected a workflow to run, check your config contains a top-level key called 'workflows:'",
            );
            return Vec::new();
        }
        let mut invocations = Vec::new();
        self.invocation(&Node::str(at, "build"), project, values, &mut invocations);
        self.assemble("workflow", at, 0, invocations).into_iter().collect()
    }

    fn workflow(
        &mut self,
        name: &str,
        at: Span,
        node: &Node,
        project: &Arc<Scope>,
        values: &PipelineValues,
    ) -> Option<Compiled> {
        let Some(map) = node.as_map().cloned() else {
            self.wrong_type(node, &format!("the workflow `{name}`"), "a map");
            return None;
        };
        self.only_keys(&map, WORKFLOW_KEYS, "a workflow");
        let env = Env { pipeline_parameters: true, ..Env::default() };
        if let Some(entry) = map.get("triggers").filter(|e| !e.value.is_null()) {
            self.sink.not_supported(entry.key, "a workflow with `triggers`");
        }
        if let (Some(_), Some(unless)) = (map.get("when"), map.get("unless")) {
            self.sink.error(
                code::BAD_CONDITION,
                unless.key,
                "a workflow has either `when` or `unless`, not both",
            );
        }
        let when = map.get("when").is_none_or(|e| self.condition(&e.value, env).unwrap_or(true));
        let unless = map.get("unless").is_some_and(|e| self.condition(&e.value, env).unwrap_or(false));
        let reruns = match map.get("max_auto_reruns").map(|e| self.interpolate(&e.value, env)) {
            None => 0,
            Some(node) => match node.value {
                Value::Int(n @ 1..=5) => n as u32,
                _ => {
                    self.wrong_type(&node, "`max_auto_reruns`", "an integer from 1 to 5");
                    0
                }
            },
        };
        let Some(jobs) = map.get("jobs") else {
            let message = format!("required key [jobs] not found in the workflow `{name}`");
            self.sink.error(code::MISSING_KEY, at, message);
            return None;
        };
        let Some(items) = jobs.value.as_seq().filter(|items| !items.is_empty()).cloned() else {
            self.wrong_type(&jobs.value, "`jobs` of a workflow", "a list with at least one job");
            return None;
        };
        if !when || unless {
            return None;
        }
        let mut invocations = Vec::new();
        for item in items.iter() {
            self.invocation(item, project, values, &mut invocations);
            if invocations.len() > MAX_JOBS {
                self.sink.error(
                    code::SIZE_LIMIT,
                    item.span,
                    format!("a workflow holds at most {MAX_JOBS} jobs"),
                );
                return None;
            }
        }
        self.assemble(name, at, reruns, invocations)
    }

    fn invocation(
        &mut self,
        item: &Node,
        project: &Arc<Scope>,
        values: &PipelineValues,
        out: &mut Vec<Invocation>,
    ) {
        let (reference, at, options) = match &item.value {
            Value::Str(name) => (name.clone(), item.span, Map::new()),
            Value::Map(map) if map.len() == 1 => {
                let Some((name, entry)) = map.first() else { return };
                let options = match &entry.value.value {
                    Value::Null => Map::new(),
                    Value::Map(options) => options.as_ref().clone(),
                    _ => {
                        self.wrong_type(&entry.value, &format!("the options of the job `{name}`"), "a map");
                        return;
                    }
                };
                (name.clone(), entry.key, options)
            }
            Value::Map(map) => {
                let first = map.first().map_or("", |(name, _)| name.as_ref());
                let message = format!(
                    "maximum size: [1], found: [{}]: a job of a workflow is a map with one key",
                    map.len()
                );
                self.sink.error_hint(
                    code::STEP_SHAPE,
                    item.span,
                    message,
                    format!("indent what belongs to `{first}:` further"),
                );
                return;
            }
            _ => return self.wrong_type(item, "a job of a workflow", "a name or a map with one key"),
        };
        for key in ["serial-group", "override-with"] {
            if let Some(entry) = options.get(key) {
                self.sink.not_supported(entry.key, &format!("`{key}`"));
            }
        }
        self.sink.trace.push((format!("Error calling job: '{reference}'"), at));
        match options.get("matrix").map(|e| (e.key, e.value.clone())) {
            None => out.extend(self.invoke(&reference, at, &options, None, project, values)),
            Some((key, matrix)) => {
                if let Some((combinations, alias)) = self.matrix(key, &matrix) {
                    let group = alias.unwrap_or_else(|| reference.to_string());
                    for combination in &combinations {
                        let matrix = Some((combination, group.as_str()));
                        out.extend(self.invoke(&reference, at, &options, matrix, project, values));
                    }
                }
            }
        }
        self.sink.trace.pop();
    }

    /// All combinations of a matrix, the first parameter varying slowest, and its alias.
    fn matrix(&mut self, key: Span, node: &Node) -> Option<(Vec<Args>, Option<String>)> {
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
        let mut combinations = vec![Args::new()];
        for (name, entry) in parameters.iter() {
            let Some(items) = entry.value.as_seq() else {
                self.wrong_type(&entry.value, &format!("the matrix parameter `{name}`"), "a list");
                return None;
            };
            if combinations.len().saturating_mul(items.len()) > MAX_COMBINATIONS {
                let message = format!("the matrix has more than {MAX_COMBINATIONS} combinations");
                self.sink.error(code::BAD_MATRIX, entry.key, message);
                return None;
            }
            combinations = combinations
                .iter()
                .flat_map(|c| {
                    items.iter().map(|item| {
                        let mut c = c.clone();
                        c.insert(name.clone(), item.clone());
                        c
                    })
                })
                .collect();
        }
        if let Some(exclude) = map.get("exclude").filter(|e| !e.value.is_null()) {
            let Some(items) = exclude.value.as_seq() else {
                self.wrong_type(&exclude.value, "`exclude`", "a list of maps");
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
                combinations.retain(|c| {
                    excluded.len() != c.len()
                        || !c.iter().all(|(k, v)| excluded.get(k).is_some_and(|e| e.value.same(v)))
                });
            }
        }
        let alias = map.get("alias").and_then(|e| e.value.text());
        Some((combinations, alias))
    }

    fn invoke(
        &mut self,
        reference: &str,
        at: Span,
        options: &Map,
        matrix: Option<(&Args, &str)>,
        project: &Arc<Scope>,
        values: &PipelineValues,
    ) -> Option<Invocation> {
        if self.exhausted() {
            return None;
        }
        let env = Env { params: None, matrix: matrix.map(|m| m.0), pipeline_parameters: true };
        let value = |ctx: &mut Self, key: &str| options.get(key).map(|e| ctx.interpolate(&e.value, env));
        // A matrix may vary the name itself.
        let varied = matrix.and_then(|(args, _)| args.get("name").cloned());
        let base = match value(self, "name").or(varied) {
            None => match matrix {
                None => reference.to_owned(),
                Some((args, _)) => matrix_name(reference, args),
            },
            Some(node) => match node.text().filter(|t| !t.trim().is_empty()) {
                Some(name) => name,
                None => {
                    self.sink.error(code::INVALID_NAME, node.span, "the name of a job cannot be empty");
                    reference.to_owned()
                }
            },
        };
        let requires = value(self, "requires").map(|node| self.requires(&node)).unwrap_or_default();
        let contexts = value(self, "context").map(|node| self.contexts(&node)).unwrap_or_default();
        let filters_raw = options.get("filters").filter(|e| !e.value.is_null());
        let filters = filters_raw.map(|e| match e.value.as_map() {
            Some(_) => self.interpolate(&e.value, env),
            None => e.value.clone(),
        });
        let filter = match &filters {
            None => Filter::None,
            Some(node) => node.as_map().map_or(Filter::Condition(node), |map| Filter::Map(map)),
        };
        let passes = self.passes(&filter, values, env);
        let mut invocation = Invocation {
            at,
            name: base.clone(),
            base,
            group: matrix.map(|m| m.1.to_owned()),
            requires,
            contexts,
            kind: None,
            body: None,
            filters: filters
                .map(|node| if node.as_map().is_some() { node } else { decided(node.span, passes) }),
            passes,
        };
        match value(self, "type") {
            Some(node) if node.as_str().is_some_and(|t| t.as_ref() == "approval") => {
                invocation.kind = Some(JobKind::Approval);
                return Some(invocation);
            }
            Some(node) => {
                let message =
                    format!("a job of a workflow can only be of type `approval`, not {}", node.shown());
                self.sink.error(code::INVALID_VALUE, node.span, message);
            }
            None => {}
        }
        self.job_of(reference, options, env, matrix.map(|m| m.0), project, &mut invocation);
        // Without a body the file is refused; the node stays, so that its name is known to others.
        Some(invocation)
    }

    fn job_of(
        &mut self,
        reference: &str,
        options: &Map,
        env: Env<'_>,
        matrix: Option<&Args>,
        project: &Arc<Scope>,
        invocation: &mut Invocation,
    ) -> Option<()> {
        let found = self.find(Kind::Job, reference, project, invocation.at)?;
        let definition = found.body.clone();
        let decls = self.declarations(&definition, Place::Job);
        let mut given: Vec<(Arc<str>, Span, Node)> = Vec::new();
        for (name, value) in matrix.into_iter().flatten().filter(|(name, _)| name.as_ref() != "name") {
            given.push((name.clone(), value.span, value.clone()));
        }
        for (name, entry) in options {
            let clash = matrix.is_some_and(|m| m.contains_key(name));
            if clash {
                let message = format!("the argument `{name}` is a parameter of the matrix as well");
                self.sink.error(code::BAD_MATRIX, entry.key, message);
            } else if !INVOCATION_KEYS.contains(&name.as_ref()) {
                given.push((name.clone(), entry.key, self.interpolate(&entry.value, env)));
            }
        }
        let args = self.bind(&decls, &given, project, &found.scope, invocation.at)?;
        let pre = options.get("pre-steps").map(|e| self.interpolate(&e.value, env));
        let post = options.get("post-steps").map(|e| self.interpolate(&e.value, env));
        let body = self.expand_job(reference, &found, &args, project, pre.as_ref(), post.as_ref())?;
        invocation.kind = self.lower(reference, found.key, &body);
        invocation.body = Some(body);
        Some(())
    }

    fn requires(&mut self, node: &Node) -> Vec<Required> {
        let Some(items) = node.as_seq() else {
            if !node.is_null() {
                self.wrong_type(node, "`requires`", "a list of jobs");
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
                _ => match item.text().filter(|t| !t.is_empty()) {
                    Some(word) => {
                        list.push(Required {
                            word,
                            at: item.span,
                            accepts: BTreeSet::from([JobStatus::Success]),
                        });
                    }
                    None => self.wrong_type(
                        item,
                        "an entry of `requires`",
                        "a job, or a map of one job to its statuses",
                    ),
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

    fn contexts(&mut self, node: &Node) -> Vec<String> {
        let items = match &node.value {
            Value::Null => return Vec::new(),
            Value::Seq(items) => items.to_vec(),
            _ => vec![node.clone()],
        };
        let mut contexts: Vec<String> = Vec::new();
        for item in &items {
            match item.text() {
                // What an expression leaves empty names no context.
                Some(name) if name.is_empty() => {}
                Some(name) if contexts.contains(&name) => {}
                Some(name) => contexts.push(name),
                None => self.wrong_type(item, "a context", "a name"),
            }
        }
        contexts
    }

    /// Names, edges, filters: the plan of one workflow; `None` when nothing of it runs.
    fn assemble(&mut self, name: &str, at: Span, reruns: u32, mut jobs: Vec<Invocation>) -> Option<Compiled> {
        number(&mut jobs);
        let edges = self.edges(name, &jobs);
        self.cycles(&jobs, &edges);
        // A job whose every requirement was filtered out does not run either; in any order of the file.
        let mut alive: Vec<bool> = jobs.iter().map(|job| job.passes).collect();
        loop {
            let dead = (0..jobs.len()).find(|i| {
                alive[*i] && !edges[*i].is_empty() && edges[*i].keys().all(|upstream| !alive[*upstream])
            });
            match dead {
                Some(i) => alive[i] = false,
                None => break,
            }
        }
        let names: Vec<String> = jobs.iter().map(|job| job.name.clone()).collect();
        let (mut plans, mut shown) = (Vec::new(), Vec::new());
        for (index, job) in jobs.into_iter().enumerate() {
            let requirement = |(up, accepts): (&usize, &BTreeSet<JobStatus>)| Requirement {
                job: names[*up].clone(),
                accepts: accepts.clone(),
            };
            shown.push(Shown {
                name: job.name.clone(),
                approval: matches!(job.kind, Some(JobKind::Approval)) && job.body.is_none(),
                requires: edges[index].iter().map(requirement).collect(),
                contexts: job.contexts.clone(),
                filters: job.filters,
                body: job.body,
            });
            let (true, Some(kind)) = (alive[index], job.kind) else { continue };
            let requires = edges[index].iter().filter(|(up, _)| alive[**up]).map(requirement).collect();
            plans.push(JobPlan {
                name: job.name,
                kind,
                requires,
                contexts: job.contexts,
                serial_group: None,
            });
        }
        let _ = at;
        let plan = WorkflowPlan { name: name.to_owned(), jobs: plans, max_auto_reruns: reruns };
        Some(Compiled { plan, shown })
    }

    /// For every job its upstream jobs with the accepted statuses.
    fn edges(&mut self, workflow: &str, jobs: &[Invocation]) -> Vec<IndexMap<usize, BTreeSet<JobStatus>>> {
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        let mut by_group: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut by_base: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, job) in jobs.iter().enumerate() {
            by_name.insert(&job.name, index);
            by_base.entry(&job.base).or_default().push(index);
            if let Some(group) = &job.group {
                by_group.entry(group).or_default().push(index);
            }
        }
        let mut edges = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.iter().enumerate() {
            let mut own: IndexMap<usize, BTreeSet<JobStatus>> = IndexMap::new();
            for required in &job.requires {
                let word = required.word.as_str();
                let upstream = if let Some(found) = by_name.get(word) {
                    vec![*found]
                } else if let Some(found) = by_group.get(word) {
                    found.clone()
                } else {
                    let others: Vec<usize> = by_base
                        .get(word)
                        .into_iter()
                        .flatten()
                        .copied()
                        .filter(|other| *other != index)
                        .collect();
                    if others.len() != 1 {
                        self.bad_requires(workflow, job, required, others.len(), jobs);
                        continue;
                    }
                    others
                };
                for up in upstream {
                    own.entry(up).or_default().extend(required.accepts.iter().copied());
                }
            }
            edges.push(own);
        }
        edges
    }

    fn bad_requires(
        &mut self,
        workflow: &str,
        job: &Invocation,
        required: &Required,
        others: usize,
        jobs: &[Invocation],
    ) {
        let message = format!(
            "Job '{}' requires '{}', which is the name of {others} other jobs in workflow '{workflow}'",
            job.name, required.word
        );
        if others == 0 {
            let hint = suggest(&required.word, jobs.iter().map(|j| j.name.as_str()));
            self.sink.add(crate::Severity::Error, code::UNKNOWN_REQUIRES, required.at, message, hint);
        } else {
            let hint = "You can give a job within a workflow an explicit name by adding a name key";
            self.sink.error_hint(code::AMBIGUOUS_REQUIRES, required.at, message, hint);
        }
    }

    fn cycles(&mut self, jobs: &[Invocation], edges: &[IndexMap<usize, BTreeSet<JobStatus>>]) {
        let mut reached: HashSet<usize> = HashSet::new();
        let mut downstream: Vec<Vec<usize>> = vec![Vec::new(); jobs.len()];
        let mut open: Vec<usize> = edges.iter().map(IndexMap::len).collect();
        for (index, own) in edges.iter().enumerate() {
            own.keys().for_each(|up| downstream[*up].push(index));
        }
        let mut ready: Vec<usize> = (0..jobs.len()).filter(|i| open[*i] == 0).collect();
        while let Some(index) = ready.pop() {
            reached.insert(index);
            for down in &downstream[index] {
                open[*down] -= 1;
                if open[*down] == 0 {
                    ready.push(*down);
                }
            }
        }
        let Some(start) = (0..jobs.len()).find(|i| !reached.contains(i)) else { return };
        // Upstream from any unreached job the walk comes round: that is the cycle.
        let mut path: Vec<usize> = vec![start];
        let mut at = start;
        let cycle = loop {
            let Some(next) = edges[at].keys().copied().find(|up| !reached.contains(up)) else { return };
            if let Some(from) = path.iter().position(|seen| *seen == next) {
                break path.split_off(from);
            }
            path.push(next);
            at = next;
        };
        let mut words: Vec<&str> = cycle.iter().map(|i| jobs[*i].name.as_str()).collect();
        words.push(words[0]);
        let first = &jobs[cycle[0]];
        let span = first.requires.iter().map(|r| r.at).next().unwrap_or(first.at);
        let message = format!("the jobs require each other in a circle: {}", words.join(" requires "));
        self.sink.error(code::REQUIRES_CYCLE, span, message);
        for index in cycle.iter().skip(1).take(10) {
            self.sink.related(format!("the job `{}`", jobs[*index].name), jobs[*index].at);
        }
    }
}

/// `job-a-1`: the values in the order of their parameters' names.
fn matrix_name(reference: &str, args: &Args) -> String {
    let mut parts: Vec<(&str, String)> =
        args.iter().map(|(name, value)| (name.as_ref(), shown_value(value))).collect();
    parts.sort();
    std::iter::once(reference.to_owned())
        .chain(parts.into_iter().map(|(_, text)| text))
        .collect::<Vec<_>>()
        .join("-")
}

fn shown_value(value: &Node) -> String {
    match value.as_map().and_then(|map| map.get("name")) {
        Some(name) => name.value.text().unwrap_or_default(),
        None => value.text().unwrap_or_else(|| value.kind().to_owned()),
    }
}

/// An expression is decided when the file is compiled: as a map it lets every ref through, or none.
fn decided(at: Span, passes: bool) -> Node {
    let every = crate::steps::single(if passes { "only" } else { "ignore" }, at, Node::str(at, "/.*/"));
    let entry = || Entry { key: at, value: every.clone() };
    Node::map(at, Map::from_iter([(Arc::from("branches"), entry()), (Arc::from("tags"), entry())]))
}

/// Numbers the jobs that share a name.
fn number(jobs: &mut [Invocation]) {
    let mut count: HashMap<String, usize> = HashMap::new();
    for job in jobs.iter() {
        *count.entry(job.base.clone()).or_default() += 1;
    }
    let mut taken: HashSet<String> =
        count.iter().filter(|(_, n)| **n == 1).map(|(name, _)| name.clone()).collect();
    let mut next: HashMap<String, usize> = HashMap::new();
    for job in jobs.iter_mut() {
        if count.get(&job.base).is_none_or(|n| *n == 1) {
            continue;
        }
        let number = next.entry(job.base.clone()).or_insert(1);
        while !taken.insert(format!("{}-{number}", job.base)) {
            *number += 1;
        }
        job.name = format!("{}-{number}", job.base);
        *number += 1;
    }
}
