//! The steps of the language, from their compiled form to the plan (config-language §12).

use crate::context::Ctx;
use crate::diagnostics::{Span, code, suggest};
use crate::scalars::duration_secs;
use crate::yaml::{Map, Node, Value};
use model::plan::{CheckoutMethod, RunStep, Step, When};

/// Default of `no_output_timeout`.
const NO_OUTPUT_TIMEOUT: u64 = 600;
/// Longest pause between two attempts of a step.
const MAX_RERUN_DELAY: u64 = 600;
/// Longest command.
const MAX_COMMAND: usize = 256 << 10;

const RUN_KEYS: &[&str] = &[
    "command",
    "name",
    // Published orbs have it.
    "description",
    "shell",
    "environment",
    "background",
    "working_directory",
    "no_output_timeout",
    "when",
    "max_auto_reruns",
    "auto_rerun_delay",
];

/// The keys of a step with a map.
pub(crate) fn keys_of(step: &str) -> &'static [&'static str] {
    match step {
        "run" | "deploy" => RUN_KEYS,
        "checkout" => &["path", "method", "depth", "name", "when"],
        "setup_remote_docker" => &[
            "docker_layer_caching",
            "version",
            "prefer_same_region",
            "reusable",
            "exclusive",
            "name",
            "when",
        ],
        "save_cache" => &["key", "paths", "name", "when"],
        "restore_cache" => &["key", "keys", "name", "when"],
        "store_artifacts" => &["path", "destination", "name", "when"],
        "store_test_results" => &["path", "name", "when"],
        "persist_to_workspace" => &["root", "paths", "name", "when"],
        "attach_workspace" => &["at", "name", "when"],
        "add_ssh_keys" => &["fingerprints", "name", "when"],
        _ => &["name", "when"],
    }
}

/// Whether a step may stand without a map.
fn needs_no_map(step: &str) -> bool {
    matches!(step, "checkout" | "setup_remote_docker" | "add_ssh_keys" | "install_signing_bundle")
}

impl Ctx<'_> {
    /// What a compiled step does. `None` when it is refused (the sink says why), or has no effect here.
    pub fn step(&mut self, step: &Node) -> Option<Step> {
        let empty = Map::default();
        let (name, at, body) = match &step.value {
            Value::Str(name) => (name.as_ref(), step.span, None),
            Value::Map(map) => {
                map.first().map(|(name, entry)| (name.as_ref(), entry.key, Some(&entry.value)))?
            }
            _ => return None,
        };
        let map = match body.filter(|body| !body.is_null()) {
            None if needs_no_map(name) => &empty,
            None => {
                let message = format!("the step `{name}` needs a map with its options");
                let keys = keys_of(name).join(", ");
                self.sink.error_hint(code::STEP_SHAPE, at, message, format!("its keys: {keys}"));
                return None;
            }
            Some(body) => match body.as_map() {
                Some(map) => map,
                None => {
                    self.wrong_type(body, &format!("the step `{name}`"), "a map");
                    return None;
                }
            },
        };
        self.only_step_keys(map, name);
        self.built_in(name, at, map)
    }

    fn built_in(&mut self, name: &str, at: Span, map: &Map) -> Option<Step> {
        match name {
            "run" => self.run(name, at, map).map(Step::Run),
            "deploy" => {
                self.sink.warning(code::IGNORED, at, "the step `deploy` is deprecated: use `run`");
                self.run(name, at, map).map(Step::Deploy)
            }
            "checkout" => {
                let method = self.checkout_method(map);
                let (path, name) = (self.optional_text(map, "path"), self.optional_text(map, "name"));
                Some(Step::Checkout { path, method, name, when: self.when(map, When::OnSuccess) })
            }
            "setup_remote_docker" => {
                self.boolean(map, "prefer_same_region");
                Some(Step::SetupRemoteDocker {
                    docker_layer_caching: self.boolean(map, "docker_layer_caching"),
                    version: self.optional_text(map, "version"),
                    name: self.title(map, "Setup a remote Docker engine"),
                    when: self.when(map, When::OnSuccess),
                })
            }
            "save_cache" => {
                let (key, paths) = (self.required(name, at, map, "key"), self.texts(name, at, map, "paths"));
                let (name, when) = (self.title(map, "Saving Cache"), self.when(map, When::OnSuccess));
                Some(Step::SaveCache { key: key?, paths: paths?, name, when })
            }
            "restore_cache" => self.restore_cache(at, map),
            "store_artifacts" => {
                let (path, destination) =
                    (self.required(name, at, map, "path"), self.optional_text(map, "destination"));
                let (name, when) = (self.title(map, "Uploading artifacts"), self.when(map, When::Always));
                Some(Step::StoreArtifacts { path: path?, destination, name, when })
            }
            "store_test_results" => {
                let path = self.required(name, at, map, "path");
                let (name, when) = (self.title(map, "Uploading test results"), self.when(map, When::Always));
                Some(Step::StoreTestResults { path: path?, name, when })
            }
            "persist_to_workspace" => {
                let (root, paths) =
                    (self.required(name, at, map, "root"), self.texts(name, at, map, "paths"));
                let (name, when) =
                    (self.title(map, "Persisting to workspace"), self.when(map, When::OnSuccess));
                Some(Step::PersistToWorkspace { root: root?, paths: paths?, name, when })
            }
            "attach_workspace" => {
                let folder = self.required(name, at, map, "at");
                let (name, when) = (self.title(map, "Attaching workspace"), self.when(map, When::OnSuccess));
                Some(Step::AttachWorkspace { at: folder?, name, when })
            }
            "add_ssh_keys" => {
                let fingerprints = match map.contains_key("fingerprints") {
                    true => self.texts(name, at, map, "fingerprints")?,
                    false => Vec::new(),
                };
                Some(Step::AddSshKeys {
                    fingerprints,
                    name: self.title(map, "Installing additional ssh keys"),
                    when: self.when(map, When::OnSuccess),
                })
            }
            // Certificates of Apple are kept by the hosted service alone.
            _ => {
                self.sink.warning(code::IGNORED, at, format!("the step `{name}` has no effect"));
                None
            }
        }
    }

    fn restore_cache(&mut self, at: Span, map: &Map) -> Option<Step> {
        let mut keys: Vec<String> = self.optional_text(map, "key").into_iter().collect();
        if map.contains_key("keys") {
            keys.extend(self.texts("restore_cache", at, map, "keys")?);
        }
        if keys.is_empty() {
            self.missing("restore_cache", at, map, "keys");
            return None;
        }
        let (name, when) = (self.title(map, "Restoring Cache"), self.when(map, When::OnSuccess));
        Some(Step::RestoreCache { keys, name, when })
    }

    fn checkout_method(&mut self, map: &Map) -> CheckoutMethod {
        let depth = map.get("depth").filter(|e| !e.value.is_null());
        let Some(entry) = map.get("method").filter(|e| !e.value.is_null()) else {
            if let Some(depth) = depth {
                let message = "`depth` of `checkout` needs `method: shallow`";
                self.sink.error(code::INVALID_VALUE, depth.key, message);
            }
            return CheckoutMethod::Full;
        };
        let method = entry.value.text();
        if let (Some(depth), Some("full" | "blobless")) = (depth, method.as_deref()) {
            let message = "`depth` of `checkout` needs `method: shallow`";
            self.sink.error(code::INVALID_VALUE, depth.key, message);
        }
        match method.as_deref() {
            Some("full") => CheckoutMethod::Full,
            Some("blobless") => CheckoutMethod::Blobless,
            Some("shallow") => {
                let depth = depth.map(|e| (e.value.span, number(&e.value)));
                match depth.map(|(at, number)| (at, number.and_then(|n| u32::try_from(n).ok()))) {
                    Some((_, Some(depth @ 1..))) => CheckoutMethod::Shallow { depth },
                    Some((at, _)) => {
                        let message = "`depth` of `checkout` must be a whole number of at least 1";
                        self.sink.error(code::INVALID_VALUE, at, message);
                        CheckoutMethod::Full
                    }
                    None => {
                        let message = "required key [depth] not found in a `checkout` with `method: shallow`";
                        self.sink.error(code::MISSING_KEY, entry.key, message);
                        CheckoutMethod::Full
                    }
                }
            }
            _ => {
                let message = format!("Checkout method {} is invalid", entry.value.shown());
                let hint = "methods: full, blobless, shallow";
                self.sink.error_hint(code::INVALID_VALUE, entry.value.span, message, hint);
                CheckoutMethod::Full
            }
        }
    }

    fn run(&mut self, step: &str, at: Span, map: &Map) -> Option<RunStep> {
        let command = self.required(step, at, map, "command")?;
        if command.len() > MAX_COMMAND {
            let message =
                format!("the command is {} bytes long; at most {MAX_COMMAND} are accepted", command.len());
            self.sink.error_hint(code::SIZE_LIMIT, at, message, "move it into a script of the repository");
        }
        let first_line = || command.lines().find(|l| !l.trim().is_empty()).unwrap_or(step).trim().to_owned();
        let background = self.boolean(map, "background");
        let (max_auto_reruns, auto_rerun_delay_secs) = self.step_reruns(map, background);
        Some(RunStep {
            name: self.optional_text(map, "name").filter(|n| !n.trim().is_empty()).unwrap_or_else(first_line),
            shell: self.shell(map),
            environment: self.environment(map),
            working_directory: self.optional_text(map, "working_directory"),
            no_output_timeout_secs: self.no_output_timeout(map),
            background,
            when: self.when(map, When::OnSuccess),
            max_auto_reruns,
            auto_rerun_delay_secs,
            command,
        })
    }

    fn no_output_timeout(&mut self, map: &Map) -> u64 {
        let Some(entry) = map.get("no_output_timeout") else { return NO_OUTPUT_TIMEOUT };
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

    /// `max_auto_reruns` and `auto_rerun_delay` in seconds.
    fn step_reruns(&mut self, map: &Map, background: bool) -> (u32, u64) {
        let reruns = map.get("max_auto_reruns").filter(|e| !e.value.is_null());
        let delay = map.get("auto_rerun_delay").filter(|e| !e.value.is_null());
        let Some(reruns) = reruns else {
            if let Some(delay) = delay {
                let message = "`auto_rerun_delay` needs `max_auto_reruns`";
                self.sink.error(code::INVALID_VALUE, delay.key, message);
            }
            return (0, 0);
        };
        if background {
            let message =
                "a step in the background cannot be rerun: `max_auto_reruns` and `background: true`";
            self.sink.error(code::INVALID_VALUE, reruns.key, message);
        }
        let count = match number(&reruns.value) {
            Some(count @ 1..=5) => count as u32,
            _ => {
                self.wrong_type(&reruns.value, "`max_auto_reruns`", "an integer from 1 to 5");
                0
            }
        };
        let delay = delay.map_or(0, |entry| {
            let text = entry.value.text().unwrap_or_default();
            let simple = text.strip_suffix(['s', 'm']).is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
            match duration_secs(&text).filter(|seconds| simple && *seconds <= MAX_RERUN_DELAY) {
                Some(seconds) => seconds,
                None => {
                    let message = format!("{} is not a delay of at most 10 minutes", entry.value.shown());
                    let hint = "write whole seconds or minutes: `30s`, `5m`";
                    self.sink.error_hint(code::INVALID_VALUE, entry.value.span, message, hint);
                    0
                }
            }
        });
        (count, delay)
    }

    fn when(&mut self, map: &Map, default: When) -> When {
        let Some(entry) = map.get("when").filter(|e| !e.value.is_null()) else { return default };
        match entry.value.text().as_deref() {
            Some("on_success") => When::OnSuccess,
            Some("on_fail") => When::OnFail,
            Some("always") => When::Always,
            _ => {
                let message = format!("{} is not one of always, on_success, on_fail", entry.value.shown());
                let words = ["always", "on_success", "on_fail"];
                let hint = entry.value.as_str().and_then(|word| suggest(word, words));
                self.sink.add(crate::Severity::Error, code::INVALID_VALUE, entry.value.span, message, hint);
                default
            }
        }
    }

    fn title(&mut self, map: &Map, default: &str) -> String {
        let own = self.optional_text(map, "name").filter(|name| !name.trim().is_empty());
        own.unwrap_or_else(|| default.to_owned())
    }

    /// Reports a key that a step needs: at the one that stands in its place, if there is one.
    fn missing(&mut self, step: &str, at: Span, map: &Map, key: &str) {
        let message = format!("required key [{key}] not found in the step `{step}`");
        let mut foreign = map.iter().filter(|(name, _)| !keys_of(step).contains(&name.as_ref()));
        match (foreign.next(), foreign.next()) {
            (Some((other, entry)), None) if suggest(other, keys_of(step).iter().copied()).is_none() => {
                let hint = format!("write `{key}` in place of `{other}`");
                self.sink.error_hint(code::MISSING_KEY, entry.key, message, hint);
            }
            _ => self.sink.error(code::MISSING_KEY, at, message),
        }
    }

    fn required(&mut self, step: &str, at: Span, map: &Map, key: &str) -> Option<String> {
        let Some(entry) = map.get(key) else {
            self.missing(step, at, map, key);
            return None;
        };
        let text = entry.value.text().filter(|_| !entry.value.is_null());
        if text.is_none() {
            self.wrong_type(&entry.value, &format!("`{key}`"), "a text");
        }
        text
    }

    /// A list of at least one text.
    fn texts(&mut self, step: &str, at: Span, map: &Map, key: &str) -> Option<Vec<String>> {
        let Some(entry) = map.get(key) else {
            self.missing(step, at, map, key);
            return None;
        };
        // One text is a list of one; many files rely on it.
        let one = std::slice::from_ref(&entry.value);
        let items = match &entry.value.value {
            Value::Seq(items) => items.as_slice(),
            Value::Null | Value::Map(_) => &[],
            _ => one,
        };
        if items.is_empty() {
            self.wrong_type(&entry.value, &format!("`{key}`"), "a list of texts");
            return None;
        }
        let texts: Vec<String> = items.iter().filter_map(Node::text).collect();
        for item in items.iter().filter(|item| item.text().is_none()) {
            self.wrong_type(item, &format!("an entry of `{key}`"), "a text");
        }
        (texts.len() == items.len()).then_some(texts)
    }
}

/// A whole number; a quoted one, or one put together by interpolation, is a number here.
pub(crate) fn number(node: &Node) -> Option<i64> {
    match &node.value {
        Value::Int(n) => Some(*n),
        Value::Str(text) => text.trim().parse().ok(),
        _ => None,
    }
}
