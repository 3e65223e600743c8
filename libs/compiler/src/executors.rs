//! Where a job runs: `docker`, `machine` and `macos` with all their keys (config-language §11).

use crate::context::Ctx;
use crate::diagnostics::{Span, code};
use crate::variables::{Variables, put};
use crate::yaml::{Map, Node, Value};
use model::plan::{Container, Executor, RegistryAuth};

/// Keys of an entry of `docker`.
pub(crate) const CONTAINER_KEYS: &[&str] =
    &["image", "name", "entrypoint", "command", "user", "environment", "auth", "aws_auth", "gcp_auth"];
/// Keys of `machine`.
pub(crate) const MACHINE_KEYS: &[&str] =
    &["image", "docker_layer_caching", "resource_class", "shell", "enabled", "reusable", "exclusive"];
/// Keys of `macos`.
pub(crate) const MACOS_KEYS: &[&str] = &["xcode", "resource_class", "shell", "code_signing"];
/// Keys of `aws_auth`.
pub(crate) const AWS_KEYS: &[&str] = &["aws_access_key_id", "aws_secret_access_key", "oidc_role_arn"];
/// Keys of `gcp_auth`.
pub(crate) const GCP_KEYS: &[&str] =
    &["oidc_service_account", "workload_identity_pool", "workload_identity_provider"];
/// Keys of `auth`.
pub(crate) const BASIC_KEYS: &[&str] = &["username", "password"];
/// Containers of one job.
const MAX_CONTAINERS: usize = 50;

/// What the executor's kind says about the whole job.
pub(crate) struct Place {
    pub executor: Executor,
    /// Of the primary container: what its steps see as well.
    pub environment: Variables,
    pub shell: Option<String>,
    pub resource_class: Option<String>,
}

impl Place {
    fn new(executor: Executor) -> Self {
        Self { executor, environment: Variables::new(), shell: None, resource_class: None }
    }
}

fn named(body: &Map, kind: &str) -> Option<(Span, Node)> {
    // `machine: false` names no kind: it comes about by parameters.
    let entry = body.get(kind).filter(|e| !matches!(e.value.value, Value::Bool(false) | Value::Null))?;
    Some((entry.key, entry.value.clone()))
}

impl Ctx<'_> {
    /// The one executor of a compiled job. `None` when it is refused (the sink says why).
    pub fn place(&mut self, job: &str, at: Span, body: &Map) -> Option<Place> {
        let kinds = ["docker", "machine", "macos"].map(|kind| (kind, named(body, kind)));
        let mut found = kinds.into_iter().filter_map(|(kind, found)| found.map(|found| (kind, found)));
        let Some((kind, (key, node))) = found.next() else {
            let message = format!(
                "A job must have one of `docker`, `machine`, `macos` or `executor`: the job `{job}` has none"
            );
            self.sink.error_hint(
                code::NO_EXECUTOR,
                at,
                message,
                "add for example `docker: [{image: cimg/base:stable}]`",
            );
            return None;
        };
        if let Some((other, (other_key, _))) = found.next() {
            let message = format!("the job `{job}` has two executors: `{kind}` and `{other}`");
            self.sink.error(code::NO_EXECUTOR, other_key, message);
            self.sink.related("the other one", key);
            return None;
        }
        match kind {
            "docker" => self.docker(key, &node),
            "machine" => self.machine(&node),
            _ => self.macos(key, &node),
        }
    }

    fn machine(&mut self, node: &Node) -> Option<Place> {
        match &node.value {
            Value::Bool(true) => Some(Place::new(Executor::Machine { image: None })),
            Value::Str(image) => Some(Place::new(Executor::Machine { image: Some(image.to_string()) })),
            Value::Map(map) => {
                self.only_keys(map, MACHINE_KEYS, "`machine`");
                // A machine of one's own keeps what its engine has built in any case.
                self.boolean(map, "docker_layer_caching");
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
                let mut place = Place::new(Executor::Machine { image: self.optional_text(map, "image") });
                place.shell = self.shell(map);
                place.resource_class = self.optional_text(map, "resource_class");
                Some(place)
            }
            _ => {
                self.wrong_type(node, "`machine`", "true, an image or a map");
                None
            }
        }
    }

    fn macos(&mut self, at: Span, node: &Node) -> Option<Place> {
        let Some(map) = node.as_map() else {
            self.wrong_type(node, "`macos`", "a map with `xcode`");
            return None;
        };
        self.only_keys(map, MACOS_KEYS, "`macos`");
        let Some(xcode) = self.optional_text(map, "xcode").filter(|version| !version.trim().is_empty())
        else {
            if map.get("xcode").is_none_or(|e| e.value.is_null()) {
                self.sink.error(code::MISSING_KEY, at, "required key [xcode] not found in `macos`");
            }
            return None;
        };
        if let Some(entry) = map.get("code_signing") {
            self.sink.warning(code::IGNORED, entry.key, "`code_signing` has no effect");
        }
        let mut place = Place::new(Executor::Macos { xcode });
        place.shell = self.shell(map);
        place.resource_class = self.optional_text(map, "resource_class");
        Some(place)
    }

    fn docker(&mut self, at: Span, node: &Node) -> Option<Place> {
        let Some(items) = node.as_seq().filter(|items| !items.is_empty()) else {
            let message = "`docker` takes a list with at least one image";
            let first = node.as_map().and_then(|map| map.first());
            match first {
                Some((key, entry)) => {
                    let key = key.trim_start_matches('-');
                    let hint = format!("start the image with a dash and a blank: `- {key}: …`");
                    self.sink.error_hint(code::WRONG_TYPE, entry.key, message, hint);
                }
                None => self.sink.error_hint(code::WRONG_TYPE, at, message, "write `- image: …` below it"),
            }
            return None;
        };
        if items.len() > MAX_CONTAINERS {
            let message = format!("a job has at most {MAX_CONTAINERS} containers, not {}", items.len());
            self.sink.error(code::SIZE_LIMIT, at, message);
            return None;
        }
        let containers: Vec<Container> = items.iter().filter_map(|item| self.container(item)).collect();
        if containers.len() != items.len() {
            return None;
        }
        // The primary's environment stays with its container: below all that the job is given (execution §11.1).
        Some(Place::new(Executor::Docker { containers }))
    }

    fn container(&mut self, item: &Node) -> Option<Container> {
        let Some(map) = item.as_map() else {
            self.wrong_type(item, "an entry of `docker`", "a map with `image`");
            return None;
        };
        self.only_keys(map, CONTAINER_KEYS, "an entry of `docker`");
        let Some(entry) = map.get("image") else {
            let message = "required key [image] not found in an entry of `docker`";
            self.sink.error(code::MISSING_KEY, item.span, message);
            return None;
        };
        let Some(image) = entry.value.text().filter(|text| !text.trim().is_empty()) else {
            self.wrong_type(&entry.value, "`image`", "a text");
            return None;
        };
        Some(Container {
            image,
            name: self.optional_text(map, "name"),
            entrypoint: self.words(map, "entrypoint"),
            command: self.words(map, "command"),
            user: self.optional_text(map, "user"),
            environment: self.environment(map),
            auth: self.registry_auth(map),
        })
    }

    /// A command line: a list of words, or a text that is split as a shell would.
    fn words(&mut self, map: &Map, key: &str) -> Option<Vec<String>> {
        let entry = map.get(key).filter(|e| !e.value.is_null())?;
        if let Some(items) = entry.value.as_seq() {
            let words: Vec<String> = items.iter().filter_map(Node::text).collect();
            if words.len() != items.len() {
                self.wrong_type(&entry.value, &format!("`{key}`"), "a text or a list of texts");
            }
            return Some(words);
        }
        let Some(text) = entry.value.text() else {
            self.wrong_type(&entry.value, &format!("`{key}`"), "a text or a list of texts");
            return None;
        };
        let words = shlex::split(&text);
        if words.is_none() {
            let message = format!("`{key}` holds a quote that is not closed");
            self.sink.error(code::INVALID_VALUE, entry.value.span, message);
        }
        words
    }

    fn registry_auth(&mut self, map: &Map) -> Option<RegistryAuth> {
        let mut found = None;
        for (key, allowed) in [("auth", BASIC_KEYS), ("aws_auth", AWS_KEYS), ("gcp_auth", GCP_KEYS)] {
            let Some(entry) = map.get(key).filter(|e| !e.value.is_null()) else { continue };
            let Some(auth) = entry.value.as_map() else {
                self.wrong_type(&entry.value, &format!("`{key}`"), "a map");
                continue;
            };
            self.only_keys(auth, allowed, format!("`{key}`"));
            let mut values = Variables::new();
            for name in auth.keys() {
                if let Some(value) = self.optional_text(auth, name) {
                    put(&mut values, name.to_string(), value);
                }
            }
            let value = |name: &str| values.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
            found = match key {
                "aws_auth" => Some(RegistryAuth::Aws { values }),
                "gcp_auth" => Some(RegistryAuth::Gcp { values }),
                _ => match (value("username"), value("password")) {
                    (Some(username), Some(password)) => Some(RegistryAuth::Basic { username, password }),
                    _ => {
                        let message = "`auth` needs `username` and `password`";
                        self.sink.error(code::MISSING_KEY, entry.key, message);
                        None
                    }
                },
            };
        }
        found
    }
}
