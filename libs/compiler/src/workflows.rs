//! Workflows (config-language §13): which run, and what their jobs make of the graph.

use crate::context::Ctx;
use crate::diagnostics::{Span, code};
use crate::filters::Filter;
use crate::groups::Group;
use crate::interpolate::Env;
use crate::invocations::Invocation;
use crate::names;
use crate::requires::Edges;
use crate::scope::{Kind, Scope};
use crate::yaml::{Map, Node, Value};
use model::plan::{JobKind, JobPlan, Requirement, WorkflowPlan};
use std::collections::HashSet;
use std::sync::Arc;

/// Keys of a workflow.
pub(crate) const WORKFLOW_KEYS: &[&str] =
    &["jobs", "when", "unless", "triggers", "max_auto_reruns", "description"];
/// Workflows of a pipeline, jobs of one of them, and of all (security §5.2).
const MAX_WORKFLOWS: usize = 100;
const MAX_JOBS: usize = 1000;
const MAX_ALL_JOBS: usize = 4000;

/// A workflow whose jobs are known and not yet named.
pub(crate) struct Draft {
    pub name: String,
    pub at: Span,
    max_auto_reruns: u32,
    pub jobs: Vec<Invocation>,
    pub groups: Vec<Group>,
    /// Words that mean no job at all: matrices of which nothing is left.
    pub empty_matrices: Vec<String>,
    triggers: Option<Node>,
    /// Whether it runs now; a scheduled one waits for its time.
    runs: bool,
}

impl Draft {
    fn new(name: &str, at: Span) -> Self {
        Self {
            name: name.to_owned(),
            at,
            max_auto_reruns: 0,
            jobs: Vec::new(),
            groups: Vec::new(),
            empty_matrices: Vec::new(),
            triggers: None,
            runs: true,
        }
    }
}

/// A compiled workflow, and what the compiled text shows of it.
pub(crate) struct Compiled {
    pub plan: WorkflowPlan,
    pub runs: bool,
    pub triggers: Option<Node>,
    pub shown: Vec<Shown>,
}

/// One job of a workflow as the compiled text shows it.
pub(crate) struct Shown {
    /// Key in the map of jobs.
    pub key: String,
    pub body: Option<Node>,
    /// Whether the body is that of a definition; the nodes around a job group have none.
    pub expanded: bool,
    pub approval: bool,
    /// By their keys.
    pub requires: Vec<Requirement>,
    pub contexts: Vec<String>,
    pub serial_group: Option<String>,
    pub filters: Option<Node>,
}

impl Ctx<'_> {
    /// All workflows that are not excluded by a condition. `schedule`: the one whose time has come.
    pub fn workflows(&mut self, root: &Map, project: &Arc<Scope>, schedule: Option<&str>) -> Vec<Compiled> {
        let section = root.get("workflows").filter(|e| !e.value.is_null());
        self.has_workflows = section.is_some();
        let mut drafts = match section {
            None => self.implicit(root, project).into_iter().collect(),
            Some(section) => match section.value.as_map() {
                Some(map) => self.drafts(map, section.key, project),
                None => {
                    self.wrong_type(&section.value, "`workflows`", "a map");
                    return Vec::new();
                }
            },
        };
        for draft in &mut drafts {
            draft.runs = match schedule {
                None => draft.triggers.is_none(),
                Some(wanted) => draft.triggers.is_some() && draft.name == wanted,
            };
        }
        if !self.interpolation {
            self.twice(&drafts);
        }
        names::assign(&mut drafts);
        drafts.into_iter().map(|draft| self.assemble(draft)).collect()
    }

    /// Version 2 has no way to tell two jobs of one name apart.
    fn twice(&mut self, drafts: &[Draft]) {
        for draft in drafts {
            let mut seen = HashSet::new();
            for job in draft.jobs.iter().filter(|job| !seen.insert(job.base.as_str())) {
                let message = format!("the job `{}` stands twice in the workflow `{}`", job.base, draft.name);
                self.sink.error(code::INVALID_NAME, job.at, message);
            }
        }
    }

    fn drafts(&mut self, map: &Map, at: Span, project: &Arc<Scope>) -> Vec<Draft> {
        let mut drafts: Vec<Draft> = Vec::new();
        let named = || map.iter().filter(|(name, _)| name.as_ref() != "version");
        if named().count() > MAX_WORKFLOWS {
            let message =
                format!("a configuration has at most {MAX_WORKFLOWS} workflows, not {}", named().count());
            self.sink.error(code::SIZE_LIMIT, at, message);
            return drafts;
        }
        let mut total = 0;
        for (name, entry) in named() {
            if let Some(problem) = names::problem(name) {
                self.sink.error(code::INVALID_NAME, entry.key, problem);
            }
            self.sink.trace.push((format!("Error calling workflow: '{name}'"), entry.key));
            drafts.extend(self.workflow(name, entry.key, &entry.value, project));
            self.sink.trace.pop();
            total += drafts.last().map_or(0, |draft| draft.jobs.len());
            if total > MAX_ALL_JOBS {
                let message = format!("the workflows have more than {MAX_ALL_JOBS} jobs together");
                self.sink.error(code::SIZE_LIMIT, entry.key, message);
                break;
            }
        }
        drafts
    }

    /// Without `workflows` the job `build` runs alone.
    fn implicit(&mut self, root: &Map, project: &Arc<Scope>) -> Option<Draft> {
        let at = root.get("jobs").map_or(Span::default(), |e| e.key);
        if !project.has(Kind::Job, "build") {
            if !self.may_be_empty || project.has_jobs() {
                self.sink.error_hint(
                    code::UNKNOWN_JOB,
                    at,
                    "Cannot find a job named `build` to run in the `jobs:` section of your configuration file.",
                    "If you expected a workflow to run, check your config contains a top-level key called 'workflows:'",
                );
            }
            return None;
        }
        let mut draft = Draft::new("workflow", at);
        self.invocation(&Node::str(at, "build"), project, &mut draft);
        // The one place where the old filter of a job counts.
        if let Some(job) = draft.jobs.first_mut()
            && let Some((key, branches)) =
                job.body.as_mut().and_then(|body| Arc::make_mut(body).shift_remove_entry("branches"))
        {
            let filters = Map::from_iter([(key, branches)]);
            job.passes = self.passes(&Filter::Map(&filters), Env::default());
            job.filters = Some(Node::map(at, filters));
        }
        Some(draft)
    }

    fn workflow(&mut self, name: &str, at: Span, node: &Node, project: &Arc<Scope>) -> Option<Draft> {
        let Some(map) = node.as_map() else {
            self.wrong_type(node, &format!("the workflow `{name}`"), "a map");
            return None;
        };
        self.only_keys(map, WORKFLOW_KEYS, "a workflow");
        let env = Env { pipeline_parameters: true, ..Env::default() };
        if let (Some(_), Some(unless)) = (map.get("when"), map.get("unless")) {
            let message = "a workflow has either `when` or `unless`, not both";
            self.sink.error(code::BAD_CONDITION, unless.key, message);
        }
        let when = map.get("when").is_none_or(|e| self.condition(&e.value, env).unwrap_or(true));
        let unless = map.get("unless").is_some_and(|e| self.condition(&e.value, env).unwrap_or(false));
        let mut draft = Draft::new(name, at);
        draft.max_auto_reruns = match map.get("max_auto_reruns").map(|e| self.interpolate(&e.value, env)) {
            None => 0,
            Some(node) => match node.value {
                Value::Int(n @ 1..=5) => n as u32,
                _ => {
                    self.wrong_type(&node, "`max_auto_reruns`", "an integer from 1 to 5");
                    0
                }
            },
        };
        let runs = when && !unless;
        if let Some(entry) = map.get("triggers").filter(|e| !e.value.is_null()) {
            if self.setup {
                let message = "a setup configuration cannot have workflows with `triggers`";
                self.sink.error(code::SETUP, entry.key, message);
            }
            let before = self.schedules.len();
            self.triggers(name, &entry.value);
            if !runs {
                self.schedules.truncate(before);
            }
            draft.triggers = Some(self.interpolate(&entry.value, env));
        }
        let Some(jobs) = map.get("jobs") else {
            let message = format!("required key [jobs] not found in the workflow `{name}`");
            self.sink.error(code::MISSING_KEY, at, message);
            return None;
        };
        let Some(items) = jobs.value.as_seq().filter(|items| !items.is_empty()) else {
            let first = jobs.value.as_map().and_then(|map| map.keys().next());
            let hint = first.map(|job| format!("start each job with a dash and a blank: `- {job}:`"));
            let expected = "a list with at least one job";
            self.wrong_type_hint(&jobs.value, "`jobs` of a workflow", expected, hint);
            return None;
        };
        if !runs {
            return None;
        }
        for item in items.iter() {
            self.invocation(item, project, &mut draft);
            if draft.jobs.len() > MAX_JOBS {
                let message = format!("a workflow holds at most {MAX_JOBS} jobs");
                self.sink.error(code::SIZE_LIMIT, item.span, message);
                return None;
            }
        }
        Some(draft)
    }

    /// Edges and filters: the plan of one workflow.
    fn assemble(&mut self, draft: Draft) -> Compiled {
        self.sink.trace.push((format!("Error calling workflow: '{}'", draft.name), draft.at));
        let edges = self.edges(&draft);
        let order = self.ordered(&draft.jobs, &edges);
        // A job whose every requirement was filtered out does not run either.
        let mut alive = vec![false; draft.jobs.len()];
        for index in order {
            let reached = edges[index].is_empty() || edges[index].keys().any(|upstream| alive[*upstream]);
            alive[index] = draft.jobs[index].passes && reached;
        }
        self.serial_groups(&draft);
        self.sink.trace.pop();
        let names: Vec<(String, String)> =
            draft.jobs.iter().map(|job| (job.name.clone(), job.key.clone())).collect();
        let requirements = |own: &Edges, keep: &dyn Fn(usize) -> bool, name: &dyn Fn(usize) -> String| {
            let kept = own.iter().filter(|(up, _)| keep(**up));
            kept.map(|(up, accepts)| Requirement { job: name(*up), accepts: accepts.clone() }).collect()
        };
        let (mut jobs, mut shown) = (Vec::new(), Vec::new());
        for (index, job) in draft.jobs.into_iter().enumerate() {
            shown.push(Shown {
                key: job.key.clone(),
                approval: matches!(job.kind, Some(JobKind::Approval)) && job.body.is_none(),
                body: job.entry(),
                expanded: job.expanded,
                requires: requirements(&edges[index], &|_| true, &|up| names[up].1.clone()),
                contexts: job.contexts.clone(),
                // A lock and an unlock have their key in their body.
                serial_group: job.serial_group.clone().filter(|_| !holds(job.kind.as_ref())),
                filters: job.filters,
            });
            let (true, Some(kind)) = (alive[index], job.kind) else { continue };
            jobs.push(JobPlan {
                name: job.name,
                kind,
                requires: requirements(&edges[index], &|up| alive[up], &|up| names[up].0.clone()),
                contexts: job.contexts,
                serial_group: job.serial_group,
            });
        }
        let plan = WorkflowPlan { name: draft.name, jobs, max_auto_reruns: draft.max_auto_reruns };
        Compiled { plan, runs: draft.runs, triggers: draft.triggers, shown }
    }

    fn serial_groups(&mut self, draft: &Draft) {
        let mut seen: Vec<&str> = Vec::new();
        for job in &draft.jobs {
            let Some(key) = job.serial_group.as_deref() else { continue };
            if matches!(job.kind, Some(JobKind::Unlock)) {
                continue;
            }
            if seen.contains(&key) {
                let message =
                    format!("the serial group `{key}` stands twice in the workflow `{}`", draft.name);
                self.sink.warning(code::INVALID_VALUE, job.at, message);
            }
            seen.push(key);
        }
    }
}

/// Whether a job takes or gives back the lock of a serial group for others.
fn holds(kind: Option<&JobKind>) -> bool {
    matches!(kind, Some(JobKind::Lock | JobKind::Unlock))
}
