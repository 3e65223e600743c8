//! From a compiled body to what an agent runs.

use crate::context::Ctx;
use crate::diagnostics::{Span, code};
use crate::scalars::duration_secs;
use crate::steps::BUILT_IN;
use crate::yaml::{Map, Node, Value};
use model::plan::{CheckoutMethod, Container, Executor, JobDefinition, JobKind, RunStep, Step, When};

/// Default of `no_output_timeout`.
const NO_OUTPUT_TIMEOUT: u64 = 600;
const MAX_PARALLELISM: i64 = 1000;

const RUN_KEYS: &[&str] = &[
    "command",
    "name",
    "shell",
    "environment",
    "background",
    "working_directory",
    "no_output_timeout",
    "when",
    "max_auto_reruns",
    "auto_rerun_delay",
];

impl Ctx<'_> {
    /// What a compiled body runs. `None` when it is refused (the sink says why).
    pub fn lower(&mut self, name: &str, at: Span, body: &Map) -> Option<JobKind> {
        match body.get("type").map(|e| (&e.value, e.value.text())) {
            None => {}
            Some((node, word)) => match word.as_deref() {
                Some("build") => {}
                Some("approval") => return Some(JobKind::Approval),
                Some("no-op") => return Some(JobKind::NoOp),
                Some(other @ ("release" | "lock" | "unlock")) => {
                    self.sink.not_supported(node.span, &format!("a job of type `{other}`"));
                    return None;
                }
                _ => {
                    let message = format!("{} is not a type of job", node.shown());
                    self.sink.error(code::INVALID_VALUE, node.span, message);
                    return None;
                }
            },
        }
        for key in ["retention", "branches", "plan_name", "validation", "key"] {
            match body.get(key) {
                Some(entry) if key == "branches" && self.has_workflows => {
                    self.sink.warning(
                        code::IGNORED,
                        entry.key,
                        "`branches` of a job has no effect beside `workflows`",
                    );
                }
                Some(entry) => self.sink.not_supported(entry.key, &format!("`{key}` of a job")),
                None => {}
            }
        }
        if let Some(entry) = body.get("circleci_ip_ranges")
            && !matches!(entry.value.value, Value::Bool(false))
        {
            self.sink.not_supported(entry.key, "`circleci_ip_ranges`");
        }
        let mut environment = Vec::new();
        let mut shell = self.optional_text(body, "shell");
        let mut resource_class = self.optional_text(body, "resource_class").unwrap_or_default();
        let executor = self.executor_kind(name, at, body, &mut environment, &mut shell, &mut resource_class);
        for (key, value) in self.environment(body) {
            environment.retain(|(k, _)| *k != key);
            environment.push((key, value));
        }
        let parallelism = self.parallelism(body);
        let steps = match body.get("steps").and_then(|e| e.value.as_seq().cloned()) {
            Some(steps) => steps.iter().filter_map(|step| self.step(step)).collect(),
            None => Vec::new(),
        };
        if body.get("steps").and_then(|e| e.value.as_seq()).is_some_and(|s| s.is_empty()) {
            self.sink.warning(code::IGNORED, at, format!("the job `{name}` has no steps"));
        }
        let working_directory =
            self.optional_text(body, "working_directory").unwrap_or_else(|| "~/project".to_owned());
        let definition = JobDefinition {
            executor: executor?,
            resource_class,
            environment,
            working_directory,
            shell,
            parallelism,
            steps,
            continues: false,
        };
        Some(JobKind::Build { definition: Box::new(definition) })
    }

    fn executor_kind(
        &mut self,
        name: &str,
        at: Span,
        body: &Map,
        environment: &mut Vec<(String, String)>,
        shell: &mut Option<String>,
        resource_class: &mut String,
    ) -> Option<Executor> {
        if let Some(entry) = body.get("macos") {
            self.sink.not_supported(entry.key, "the executor `macos`");
            return None;
        }
        let machine =
            body.get("machine").filter(|e| !matches!(e.value.value, Value::Bool(false) | Value::Null));
        if let (Some(machine), Some(docker)) = (machine, body.get("docker")) {
            let message = format!("the job `{name}` has two executors: `docker` and `machine`");
            self.sink.error(code::NO_EXECUTOR, machine.key, message);
            self.sink.related("the other one", docker.key);
            return None;
        }
        if let Some(docker) = body.get("docker") {
            return self.docker(docker.key, &docker.value, environment);
        }
        let Some(machine) = machine else {
            let message = format!(
                "A job must have one of `docker`, `machine`, `macos` or `executor`: the job `{name}` has none"
            );
            self.sink.error(code::NO_EXECUTOR, at, message);
            return None;
        };
        match &machine.value.value {
            Value::Bool(true) => Some(Executor::Machine { image: None }),
            Value::Str(image) => Some(Executor::Machine { image: Some(image.to_string()) }),
            Value::Map(map) => {
                let map = map.clone();
                let keys = [
                    "image",
                    "docker_layer_caching",
                    "resource_class",
                    "shell",
                    "enabled",
                    "reusable",
                    "exclusive",
                ];
                self.only_keys(&map, &keys, "`machine`");
                self.refuse_layer_caching(&map);
                if let Some(own) = self.optional_text(&map, "shell") {
                    shell.get_or_insert(own);
                }
                if let Some(own) = self.optional_text(&map, "resource_class")
                    && resource_class.is_empty()
                {
                    *resource_class = own;
                }
                for key in ["reusable", "exclusive"] {
                    if let Some(entry) = map.get(key) {
                        self.sink.warning(code::IGNORED, entry.key, format!("`{key}` has no effect"));
                    }
                }
                if let Some(entry) = map.get("enabled")
                    && !matches!(entry.value.value, Value::Bool(true))
                {
                    self.wrong_type(&entry.value, "`enabled`", "true");
                }
                Some(Executor::Machine { image: self.optional_text(&map, "image") })
            }
            _ => {
                self.wrong_type(&machine.value, "`machine`", "true, an image or a map");
                None
            }
        }
    }

    fn docker(&mut self, at: Span, node: &Node, environment: &mut Vec<(String, String)>) -> Option<Executor> {
        let Some(items) = node.as_seq().filter(|items| !items.is_empty()).cloned() else {
            self.sink.error(code::WRONG_TYPE, at, "`docker` takes a list with at least one image");
            return None;
        };
        let mut images = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let Some(map) = item.as_map().cloned() else {
                self.wrong_type(item, "an entry of `docker`", "a map with `image`");
                continue;
            };
            let keys = [
                "image",
                "name",
                "entrypoint",
                "command",
                "user",
                "environment",
                "auth",
                "aws_auth",
                "gcp_auth",
            ];
            self.only_keys(&map, &keys, "an entry of `docker`");
            for (key, entry) in map.iter() {
                let primary_environment = key.as_ref() == "environment" && index == 0;
                if keys.contains(&key.as_ref()) && key.as_ref() != "image" && !primary_environment {
                    self.sink.not_supported(entry.key, &format!("`{key}` of a docker image"));
                }
            }
            if index == 0 {
                // The primary container's environment is what its steps see.
                environment.extend(self.environment(&map));
            }
            match map.get("image") {
                None => self.sink.error(
                    code::MISSING_KEY,
                    item.span,
                    "required key [image] not found in an entry of `docker`",
                ),
                Some(entry) => match entry.value.text().filter(|t| !t.trim().is_empty()) {
                    Some(image) => images.push(image),
                    None => self.wrong_type(&entry.value, "`image`", "a text"),
                },
            }
        }
        let containers =
            images.into_iter().map(|image| Container { image, ..Container::default() }).collect::<Vec<_>>();
        (containers.len() == items.len()).then_some(Executor::Docker { containers })
    }

    fn refuse_layer_caching(&mut self, map: &Map) {
        if let Some(entry) = map.get("docker_layer_caching")
            && !matches!(entry.value.value, Value::Bool(false) | Value::Null)
        {
            self.sink.not_supported(entry.key, "`docker_layer_caching`");
        }
    }

    fn parallelism(&mut self, body: &Map) -> u32 {
        let Some(entry) = body.get("parallelism") else { return 1 };
        // A quoted number, or one put together by interpolation, is a number here.
        let number = match &entry.value.value {
            Value::Int(n) => Some(*n),
            Value::Str(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number.filter(|n| (1..=MAX_PARALLELISM).contains(n)).and_then(|n| u32::try_from(n).ok()) {
            Some(number) => number,
            None => {
                let what = format!("an integer from 1 to {MAX_PARALLELISM}");
                self.wrong_type(&entry.value, "`parallelism`", &what);
                1
            }
        }
    }

    fn optional_text(&mut self, map: &Map, key: &str) -> Option<String> {
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

    fn environment(&mut self, map: &Map) -> Vec<(String, String)> {
        let Some(entry) = map.get("environment") else { return Vec::new() };
        let mut pairs: Vec<(String, String)> = Vec::new();
        let mut put = |ctx: &mut Self, name: &str, at: Span, value: &Node| {
            let text = value.text();
            let bad = name.is_empty() || name.contains(['=', '\0']);
            match text {
                _ if bad => {
                    ctx.sink.error(code::INVALID_NAME, at, format!("`{name}` is not a name for a variable"))
                }
                Some(text) if text.contains('\0') => {
                    ctx.sink.error(code::INVALID_VALUE, value.span, "a variable cannot hold a NUL character");
                }
                Some(text) => {
                    pairs.retain(|(k, _)| k != name);
                    pairs.push((name.to_owned(), text));
                }
                None => ctx.wrong_type(value, &format!("the variable `{name}`"), "a text"),
            }
        };
        match &entry.value.value {
            Value::Null => {}
            Value::Map(map) => map.iter().for_each(|(name, e)| put(self, name, e.key, &e.value)),
            Value::Str(text) if text.contains('=') => {
                let (name, value) = text.split_once('=').unwrap_or((text, ""));
                put(self, name, entry.value.span, &Node::str(entry.value.span, value));
            }
            Value::Seq(items) => {
                for item in items.iter() {
                    match &item.value {
                        Value::Str(text) if text.contains('=') => {
                            let (name, value) = text.split_once('=').unwrap_or((text, ""));
                            put(self, name, item.span, &Node::str(item.span, value));
                        }
                        Value::Map(map) => map.iter().for_each(|(name, e)| put(self, name, e.key, &e.value)),
                        _ => self.wrong_type(item, "an entry of `environment`", "`NAME=VALUE` or a map"),
                    }
                }
            }
            _ => self.wrong_type(&entry.value, "`environment`", "a map"),
        }
        pairs
    }

    fn step(&mut self, step: &Node) -> Option<Step> {
        let (name, at, body) = match &step.value {
            Value::Str(name) => (name.clone(), step.span, None),
            Value::Map(map) => {
                let (name, entry) = map.first()?;
                (name.clone(), entry.key, Some(&entry.value))
            }
            _ => return None,
        };
        match name.as_ref() {
            "run" => self.run(at, body?.as_map()?).map(Step::Run),
            "checkout" => self.checkout(body),
            name if BUILT_IN.contains(&name) => {
                self.sink.not_supported(at, &format!("the step `{name}`"));
                None
            }
            _ => None,
        }
    }

    fn checkout(&mut self, body: Option<&Node>) -> Option<Step> {
        let Some(body) = body else {
            return Some(Step::Checkout { path: None, method: CheckoutMethod::Full, name: None });
        };
        let Some(map) = body.as_map().cloned() else {
            self.wrong_type(body, "`checkout`", "a map");
            return None;
        };
        self.only_keys(&map, &["path", "method", "depth", "name", "when"], "the step `checkout`");
        for key in ["depth", "when", "name"] {
            if let Some(entry) = map.get(key) {
                self.sink.not_supported(entry.key, &format!("`{key}` of `checkout`"));
            }
        }
        if let Some(entry) = map.get("method") {
            match entry.value.text().as_deref() {
                // The files are the same; only what is fetched differs.
                Some("full" | "blobless") => {}
                Some("shallow") => self.sink.not_supported(entry.value.span, "the checkout method `shallow`"),
                _ => {
                    let message = format!("Checkout method {} is invalid", entry.value.shown());
                    self.sink.error(code::INVALID_VALUE, entry.value.span, message);
                }
            }
        }
        Some(Step::Checkout {
            path: self.optional_text(&map, "path"),
            method: CheckoutMethod::Full,
            name: None,
        })
    }

    fn run(&mut self, at: Span, map: &Map) -> Option<RunStep> {
        self.only_keys(map, RUN_KEYS, "the step `run`");
        for key in ["max_auto_reruns", "auto_rerun_delay"] {
            if let Some(entry) = map.get(key) {
                self.sink.not_supported(entry.key, &format!("`{key}` of `run`"));
            }
        }
        let Some(command) = map.get("command") else {
            self.sink.error(code::MISSING_KEY, at, "required key [command] not found in the step `run`");
            return None;
        };
        let Some(script) = command.value.text() else {
            self.wrong_type(&command.value, "`command`", "a text");
            return None;
        };
        let name = self.optional_text(map, "name").filter(|n| !n.trim().is_empty());
        let first_line = || script.lines().find(|l| !l.trim().is_empty()).unwrap_or("run").trim().to_owned();
        let no_output_timeout_secs = match map.get("no_output_timeout") {
            None => NO_OUTPUT_TIMEOUT,
            Some(entry) => {
                match entry.value.text().as_deref().map(|text| (text.parse::<u64>(), duration_secs(text))) {
                    Some((_, Some(seconds))) => seconds,
                    // Seen in the wild, and accepted by the reference service.
                    Some((Ok(seconds @ 1..=31_536_000), None)) => {
                        let message = format!("{seconds} has no unit and is taken as seconds");
                        self.sink.warning(code::INVALID_VALUE, entry.value.span, message);
                        seconds
                    }
                    _ => {
                        let message = format!("{} is not a duration", entry.value.shown());
                        let hint = "write a number and a unit: `90s`, `20m`, `1h30m`";
                        self.sink.error_hint(code::INVALID_VALUE, entry.value.span, message, hint);
                        NO_OUTPUT_TIMEOUT
                    }
                }
            }
        };
        let background = match map.get("background").map(|e| &e.value) {
            None => false,
            Some(node) => match &node.value {
                Value::Bool(b) => *b,
                Value::Null => false,
                _ => {
                    self.wrong_type(node, "`background`", "a boolean");
                    false
                }
            },
        };
        let when = match map.get("when") {
            None => When::OnSuccess,
            Some(entry) => match entry.value.text().as_deref() {
                Some("on_success") => When::OnSuccess,
                Some("on_fail") => When::OnFail,
                Some("always") => When::Always,
                _ => {
                    let message =
                        format!("{} is not one of always, on_success, on_fail", entry.value.shown());
                    self.sink.error(code::INVALID_VALUE, entry.value.span, message);
                    When::OnSuccess
                }
            },
        };
        Some(RunStep {
            name: name.unwrap_or_else(first_line),
            shell: self.optional_text(map, "shell"),
            environment: self.environment(map),
            working_directory: self.optional_text(map, "working_directory"),
            no_output_timeout_secs,
            background,
            when,
            command: script,
            ..RunStep::default()
        })
    }
}
