//! From a compiled body to what an agent runs.

use crate::builtin::number;
use crate::context::Ctx;
use crate::diagnostics::{Span, code, suggest};
use crate::variables::put;
use crate::yaml::{Map, Node, Value};
use model::plan::{JobDefinition, JobKind};

/// Tasks of one job, and its steps (security §5.2).
const MAX_PARALLELISM: i64 = 512;
const MAX_STEPS: usize = 500;

const TYPES: &[&str] = &["build", "approval", "no-op", "release", "lock", "unlock"];

impl Ctx<'_> {
    /// What a compiled body runs. `None` when it is refused (the sink says why).
    pub fn lower(&mut self, name: &str, at: Span, body: &Map) -> Option<JobKind> {
        match self.job_type(name, at, body)? {
            "build" => {}
            "approval" => return Some(JobKind::Approval),
            "release" => {
                self.release(at, body);
                return Some(JobKind::NoOp);
            }
            "no-op" => {
                if let Some(steps) = body.get("steps") {
                    let message = "the steps of a job of type `no-op` do not run";
                    self.sink.warning(code::IGNORED, steps.key, message);
                }
                return Some(JobKind::NoOp);
            }
            "lock" => return Some(JobKind::Lock),
            _ => return Some(JobKind::Unlock),
        }
        self.odd_keys(body);
        let place = self.place(name, at, body);
        let shell = self.shell(body);
        let resource_class = self.optional_text(body, "resource_class");
        let parallelism = self.parallelism(body);
        let own = self.environment(body);
        let steps = self.job_steps(name, at, body);
        let working_directory =
            self.optional_text(body, "working_directory").unwrap_or_else(|| "~/project".to_owned());
        let place = place?;
        let mut environment = place.environment;
        for (name, value) in own {
            put(&mut environment, name, value);
        }
        let definition = JobDefinition {
            executor: place.executor,
            resource_class: resource_class.or(place.resource_class).unwrap_or_default(),
            environment,
            working_directory,
            shell: shell.or(place.shell),
            parallelism,
            steps,
            continues: self.setup,
            auto_rerun_on_infra_fail: self.reruns_when_lost(body),
            cache_days: self.cache_days(body),
        };
        Some(JobKind::Build { definition: Box::new(definition) })
    }

    fn job_type(&mut self, name: &str, at: Span, body: &Map) -> Option<&'static str> {
        let Some(entry) = body.get("type") else { return Some("build") };
        let word = entry.value.text().unwrap_or_default();
        let found = TYPES.iter().find(|known| **known == word);
        if found.is_none() {
            let message = format!("{} is not a type of job", entry.value.shown());
            let hint = suggest(&word, TYPES.iter().copied())
                .unwrap_or_else(|| format!("types: {}", TYPES.join(", ")));
            self.sink.error_hint(code::INVALID_VALUE, entry.value.span, message, hint);
            return None;
        }
        if matches!(word.as_str(), "lock" | "unlock")
            && body.get("key").and_then(|e| e.value.text()).is_none_or(|key| key.trim().is_empty())
        {
            let message = format!("required key [key] not found in the job `{name}` of type `{word}`");
            self.sink.error(code::MISSING_KEY, at, message);
        }
        found.copied()
    }

    fn release(&mut self, at: Span, body: &Map) {
        if self.optional_text(body, "plan_name").is_none_or(|plan| plan.trim().is_empty()) {
            let message = "required key [plan_name] not found in a job of type `release`";
            self.sink.error(code::MISSING_KEY, at, message);
        }
        self.sink.warning(code::IGNORED, at, "a job of type `release` succeeds at once");
    }

    /// Keys of a job that change nothing here, or that stand in the wrong place.
    fn odd_keys(&mut self, body: &Map) {
        if let Some(entry) = body.get("branches").filter(|_| self.has_workflows) {
            let message = "`branches` of a job has no effect beside `workflows`";
            self.sink.warning(code::IGNORED, entry.key, message);
        }
        for key in ["plan_name", "validation", "key"] {
            if let Some(entry) = body.get(key) {
                let message = format!("extraneous key [{key}] is not permitted in a job that runs steps");
                self.sink.error(code::UNKNOWN_KEY, entry.key, message);
            }
        }
        if self.boolean(body, "circleci_ip_ranges")
            && let Some(entry) = body.get("circleci_ip_ranges")
        {
            self.sink.warning(code::IGNORED, entry.key, "`circleci_ip_ranges` has no effect");
        }
    }

    /// `retention.caches`: whole days.
    fn cache_days(&mut self, body: &Map) -> Option<u32> {
        let node = &body.get("retention").filter(|e| !e.value.is_null())?.value;
        let Some(map) = node.as_map() else {
            self.wrong_type(node, "`retention`", "a map with `caches`");
            return None;
        };
        self.only_keys(map, &["caches"], "`retention`");
        let entry = map.get("caches")?;
        let days =
            entry.value.as_str().and_then(|text| text.strip_suffix('d')).filter(|d| !d.starts_with('0'));
        let digits = days.filter(|days| days.bytes().all(|byte| byte.is_ascii_digit()));
        let days = digits.and_then(|days| days.parse().ok()).filter(|days| *days <= 30);
        if days.is_none() {
            let message = format!(
                "{} does not match pattern ^([1-9]|[12][0-9]|30)d$: caches are kept from 1 to 30 days",
                entry.value.shown()
            );
            self.sink.error_hint(code::INVALID_VALUE, entry.value.span, message, "write for example `7d`");
        }
        days
    }

    fn reruns_when_lost(&mut self, body: &Map) -> u32 {
        let Some(entry) = body.get("auto_rerun_on_infra_fail").filter(|e| !e.value.is_null()) else {
            return 0;
        };
        let good = number(&entry.value).filter(|count| (0..=5).contains(count));
        good.and_then(|count| u32::try_from(count).ok()).unwrap_or_else(|| {
            self.wrong_type(&entry.value, "`auto_rerun_on_infra_fail`", "an integer from 0 to 5");
            0
        })
    }

    fn job_steps(&mut self, name: &str, at: Span, body: &Map) -> Vec<model::plan::Step> {
        let Some(steps) = body.get("steps").and_then(|e| e.value.as_seq()) else { return Vec::new() };
        if steps.is_empty() {
            self.sink.warning(code::IGNORED, at, format!("the job `{name}` has no steps"));
        }
        if steps.len() > MAX_STEPS {
            let message = format!("a job has at most {MAX_STEPS} steps; `{name}` has {}", steps.len());
            self.sink.error(code::SIZE_LIMIT, at, message);
            return Vec::new();
        }
        steps.iter().filter_map(|step| self.step(step)).collect()
    }

    fn parallelism(&mut self, body: &Map) -> u32 {
        let Some(entry) = body.get("parallelism") else { return 1 };
        let good = number(&entry.value).filter(|n| (1..=MAX_PARALLELISM).contains(n));
        match good.and_then(|n| u32::try_from(n).ok()) {
            Some(number) => number,
            None => {
                let what = format!("an integer from 1 to {MAX_PARALLELISM}");
                self.wrong_type(&entry.value, "`parallelism`", &what);
                1
            }
        }
    }

    /// A text that may be absent or null.
    pub fn optional_text(&mut self, map: &Map, key: &str) -> Option<String> {
        let entry = map.get(key)?;
        if entry.value.is_null() {
            return None;
        }
        let text = entry.value.text();
        if text.is_none() {
            self.wrong_type(&entry.value, &format!("`{key}`"), "a text");
        }
        text
    }

    /// `shell`: a line, or a list of its words.
    pub fn shell(&mut self, map: &Map) -> Option<String> {
        let words = map.get("shell").and_then(|e| e.value.as_seq());
        match words.map(|words| words.iter().map(Node::text).collect::<Option<Vec<String>>>()) {
            Some(Some(words)) => shlex::try_join(words.iter().map(String::as_str)).ok(),
            _ => self.optional_text(map, "shell"),
        }
    }

    /// A boolean that may be absent or null.
    pub fn boolean(&mut self, map: &Map, key: &str) -> bool {
        let Some(entry) = map.get(key) else { return false };
        match &entry.value.value {
            Value::Bool(b) => *b,
            Value::Null => false,
            _ => {
                self.wrong_type(&entry.value, &format!("`{key}`"), "a boolean");
                false
            }
        }
    }
}
