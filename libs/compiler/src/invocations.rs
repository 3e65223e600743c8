//! Jobs of a workflow (config-language §14): from an entry of its list to a node of the graph.

use crate::context::Ctx;
use crate::diagnostics::{Span, code};
use crate::filters::Filter;
use crate::interpolate::{Args, Env};
use crate::matrix::matrix_name;
use crate::names;
use crate::params::Place;
use crate::requires::Required;
use crate::scope::{Kind, Scope};
use crate::workflows::Draft;
use crate::yaml::{Entry, Map, Node, Value};
use model::plan::JobKind;
use std::sync::Arc;

/// Keys of an invocation that are no arguments.
pub(crate) const INVOCATION_KEYS: &[&str] = &[
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
/// Contexts that one configuration names (security §5.2), and characters of a serial group's key.
const MAX_CONTEXTS: usize = 100;
const MAX_SERIAL_GROUP: usize = 512;

/// One node of a workflow.
pub(crate) struct Invocation {
    pub at: Span,
    /// The name before numbers are added.
    pub base: String,
    /// The name in the workflow.
    pub name: String,
    /// The key in the compiled text.
    pub key: String,
    /// Whether the author gave the name.
    pub explicit: bool,
    /// The word by which all jobs of a matrix are required.
    pub alias: Option<String>,
    /// 0, or the number of the job group in which it is.
    pub space: usize,
    /// Bytes of the names that say only in which group it is.
    prefix: usize,
    pub requires: Vec<Required>,
    pub contexts: Vec<String>,
    pub serial_group: Option<String>,
    pub kind: Option<JobKind>,
    pub body: Option<Arc<Map>>,
    /// Whether the body is that of a definition.
    pub expanded: bool,
    pub filters: Option<Node>,
    /// Whether the pipeline's ref passes the filters.
    pub passes: bool,
}

impl Invocation {
    pub fn new(base: String, at: Span) -> Self {
        Self {
            at,
            name: base.clone(),
            key: base.clone(),
            base,
            explicit: false,
            alias: None,
            space: 0,
            prefix: 0,
            requires: Vec::new(),
            contexts: Vec::new(),
            serial_group: None,
            kind: None,
            body: None,
            expanded: false,
            filters: None,
            passes: false,
        }
    }

    /// Puts the name of a group before its own.
    pub fn prefix(&mut self, group: &str) {
        self.prefix = group.len() + 1;
        self.base = format!("{group}/{}", self.base);
        (self.name, self.key) = (self.base.clone(), self.base.clone());
    }

    /// A name of it as the jobs of its own group write it.
    pub fn local<'n>(&self, name: &'n str) -> &'n str {
        name.get(self.prefix..).unwrap_or(name)
    }
}

/// The options of an invocation, and the names that their texts may refer to.
pub(crate) struct Options<'o> {
    pub map: &'o Map,
    pub env: Env<'o>,
}

impl Ctx<'_> {
    /// Adds what an entry of `jobs` stands for.
    pub fn invocation(&mut self, item: &Node, project: &Arc<Scope>, draft: &mut Draft) {
        let empty = Map::default();
        let (reference, at, options) = match &item.value {
            Value::Str(name) => (name, item.span, &empty),
            Value::Map(map) if map.len() == 1 => {
                let Some((name, entry)) = map.first() else { return };
                let options = match &entry.value.value {
                    Value::Null => &empty,
                    Value::Map(options) => options.as_ref(),
                    _ => {
                        self.wrong_type(&entry.value, &format!("the options of the job `{name}`"), "a map");
                        return;
                    }
                };
                (name, entry.key, options)
            }
            Value::Map(map) => {
                let is_job = |name: &str| project.peek(Kind::Job, name).is_some();
                let job = map.keys().find(|name| is_job(name)).or(map.keys().next());
                let foreign =
                    map.iter().find(|(name, _)| job != Some(*name) && !is_job(name)).or(map.get_index(1));
                let message = format!(
                    "maximum size: [1], found: [{}]: a job of a workflow is a map with one key",
                    map.len()
                );
                let hint = match (job, foreign) {
                    (Some(job), Some((key, _))) => {
                        format!("indent `{key}:` further, so that it stands below `{job}:`")
                    }
                    _ => "name a job".to_owned(),
                };
                self.sink.error_hint(
                    code::STEP_SHAPE,
                    foreign.map_or(item.span, |(_, e)| e.key),
                    message,
                    hint,
                );
                return;
            }
            _ => return self.wrong_type(item, "a job of a workflow", "a name or a map with one key"),
        };
        self.sink.trace.push((format!("Error calling job: '{reference}'"), at));
        let env = Env { pipeline_parameters: true, ..Env::default() };
        if project.groups.contains_key(reference) && !project.has(Kind::Job, reference) {
            self.group(reference, at, options, project, draft);
        } else if let Some(matrix) = options.get("matrix") {
            if let Some(matrix) = self.matrix(matrix.key, &matrix.value) {
                let alias = matrix.alias.unwrap_or_else(|| reference.to_string());
                if matrix.combinations.is_empty() {
                    draft.empty_matrices.push(alias.clone());
                }
                for combination in &matrix.combinations {
                    let options = Options { map: options, env: Env { matrix: Some(combination), ..env } };
                    if let Some(mut job) = self.invoke(reference, at, &options, project) {
                        job.alias = Some(alias.clone());
                        draft.jobs.push(job);
                    }
                }
            }
        } else {
            draft.jobs.extend(self.invoke(reference, at, &Options { map: options, env }, project));
        }
        self.sink.trace.pop();
    }

    fn option(&mut self, options: &Options<'_>, key: &str) -> Option<Node> {
        options.map.get(key).map(|e| self.interpolate(&e.value, options.env))
    }

    fn invoke(
        &mut self,
        reference: &str,
        at: Span,
        options: &Options<'_>,
        project: &Arc<Scope>,
    ) -> Option<Invocation> {
        if self.exhausted() {
            return None;
        }
        // A matrix may vary the name itself.
        let varied = options.env.matrix.and_then(|args| args.get("name").cloned());
        let mut job = match self.option(options, "name").or(varied) {
            None => {
                let name = options.env.matrix.map(|args| matrix_name(reference, args));
                Invocation::new(name.unwrap_or_else(|| reference.to_owned()), at)
            }
            Some(node) => {
                let name = node.text().unwrap_or_default();
                if let Some(problem) = names::problem(&name) {
                    self.sink.error(code::INVALID_NAME, node.span, problem);
                }
                Invocation { explicit: true, ..Invocation::new(name, at) }
            }
        };
        self.common(options, &mut job);
        job.contexts = self.option(options, "context").map(|node| self.contexts(&node)).unwrap_or_default();
        match self.option(options, "type") {
            Some(node) if node.as_str().is_some_and(|t| t.as_ref() == "approval") => {
                let varied = options.env.matrix;
                let own = options.map.iter().filter(|(k, _)| varied.is_none_or(|m| !m.contains_key(*k)));
                let own: Map = own.map(|(k, e)| (k.clone(), e.clone())).collect();
                self.only_keys(&own, INVOCATION_KEYS, "an approval");
                job.kind = Some(JobKind::Approval);
                return Some(job);
            }
            Some(node) => {
                let message =
                    format!("a job of a workflow can only be of type `approval`, not {}", node.shown());
                self.sink.error(code::INVALID_VALUE, node.span, message);
            }
            None => {}
        }
        // Without a body the file is refused; the node stays, so that its name is known to others.
        self.definition(reference, options, project, &mut job);
        Some(job)
    }

    /// What jobs and job groups have in common.
    pub fn common(&mut self, options: &Options<'_>, job: &mut Invocation) {
        job.requires = self.option(options, "requires").map(|node| self.requires(&node)).unwrap_or_default();
        job.serial_group = self.option(options, "serial-group").and_then(|node| self.serial_group(&node));
        let raw = options.map.get("filters").filter(|e| !e.value.is_null());
        let filters = raw.map(|e| match e.value.as_map() {
            Some(_) => self.interpolate(&e.value, options.env),
            None => e.value.clone(),
        });
        let filter = match &filters {
            None => Filter::None,
            Some(node) => node.as_map().map_or(Filter::Condition(node), |map| Filter::Map(map)),
        };
        let passes = self.passes(&filter, options.env);
        job.passes = passes;
        job.filters =
            filters.map(|node| if node.as_map().is_some() { node } else { decided(node.span, passes) });
    }

    fn definition(
        &mut self,
        reference: &str,
        options: &Options<'_>,
        project: &Arc<Scope>,
        job: &mut Invocation,
    ) -> Option<()> {
        let replaced = self.override_with(options, project);
        let reference = replaced.as_deref().unwrap_or(reference);
        let found = self.find(Kind::Job, reference, project, job.at)?;
        let decls = self.declared(&found.body, Place::Job);
        let matrix = options.env.matrix;
        let given = self.arguments(options, matrix);
        let args = self.bind(&decls, &given, project, &found.scope, job.at)?;
        let pre = self.option(options, "pre-steps");
        let post = self.option(options, "post-steps");
        job.expanded = true;
        let body = self.expand_job(reference, &found, &args, project, pre.as_ref(), post.as_ref())?;
        job.kind = self.lower(reference, found.key, &body);
        if let (Some(JobKind::Lock | JobKind::Unlock), Some(entry)) = (&job.kind, body.get("key")) {
            job.serial_group = self.serial_group(&entry.value);
        }
        job.body = Some(Arc::new(body));
        Some(())
    }

    fn arguments(&mut self, options: &Options<'_>, matrix: Option<&Args>) -> Vec<(Arc<str>, Span, Node)> {
        let varied = matrix.into_iter().flatten().filter(|(name, _)| name.as_ref() != "name");
        let mut given: Vec<_> =
            varied.map(|(name, value)| (name.clone(), value.span, value.clone())).collect();
        for (name, entry) in options.map {
            if matrix.is_some_and(|m| m.contains_key(name)) {
                let message = format!("the argument `{name}` is a parameter of the matrix as well");
                self.sink.error(code::BAD_MATRIX, entry.key, message);
            } else if !INVOCATION_KEYS.contains(&name.as_ref()) {
                given.push((name.clone(), entry.key, self.interpolate(&entry.value, options.env)));
            }
        }
        given
    }

    /// The job of an orb that takes the place of the local one, if the orb has it.
    fn override_with(&mut self, options: &Options<'_>, project: &Arc<Scope>) -> Option<String> {
        let node = self.option(options, "override-with")?;
        let Some((alias, name)) = node.as_str().and_then(|text| text.split_once('/')) else {
            self.wrong_type(&node, "`override-with`", "the name of a job of an orb (`alias/job`)");
            return None;
        };
        project.orb(alias)?.has(Kind::Job, name).then(|| format!("{alias}/{name}"))
    }

    fn serial_group(&mut self, node: &Node) -> Option<String> {
        let key = node.text().unwrap_or_default();
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-');
        let problem = if key.trim().is_empty() {
            "it is empty".to_owned()
        } else if key.chars().count() > MAX_SERIAL_GROUP {
            format!("it is longer than {MAX_SERIAL_GROUP} characters")
        } else if let Some(c) = key.chars().find(|c| !allowed(*c)) {
            format!("it holds `{c}`; letters, digits and `. _ / -` are permitted")
        } else {
            return Some(key);
        };
        let message = format!("{} is not the key of a serial group: {problem}", node.shown());
        self.sink.error(code::INVALID_VALUE, node.span, message);
        None
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
        for name in &contexts {
            if self.all_contexts.insert(name.clone()) && self.all_contexts.len() == MAX_CONTEXTS + 1 {
                let message = format!("a configuration names at most {MAX_CONTEXTS} contexts");
                self.sink.error(code::SIZE_LIMIT, node.span, message);
            }
        }
        contexts
    }
}

/// An expression is decided when the file is compiled: as a map it lets every ref through, or none.
fn decided(at: Span, passes: bool) -> Node {
    let every = crate::steps::single(if passes { "only" } else { "ignore" }, at, Node::str(at, "/.*/"));
    let entry = || Entry { key: at, value: every.clone() };
    Node::map(at, Map::from_iter([(Arc::from("branches"), entry()), (Arc::from("tags"), entry())]))
}
