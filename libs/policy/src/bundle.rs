//! A set of policy files that were read together.

use crate::{
    Decision,
    calls::{self, Call},
};
use regex::Regex;
use regorus::{Engine, unstable::BUILTINS, utils::limits::ExecutionTimerConfig};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::LazyLock,
    time::Duration,
};

/// Largest bundle in bytes (api-v2 §15).
pub const MAX_BYTES: usize = 2_621_440;
/// Longest evaluation.
const LIMIT: Duration = Duration::from_secs(1);
/// Characters of a policy's name.
const MAX_NAME: usize = 80;
const HELPERS: [(&str, &str); 2] = [
    ("circleci/utils.rego", include_str!("helpers/utils.rego")),
    ("circleci/config.rego", include_str!("helpers/config.rego")),
];

static NAME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"^policy_name\s*(?:\[\s*"([^"]*)"\s*\]|contains\s+"([^"]*)")"#).expect("a fixed pattern")
});
static OLD_BRANCH: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\bdata\.meta\.branch\b").expect("a fixed pattern"));

/// Why files are no bundle: one message per file and problem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct BundleError(pub Vec<String>);

/// One policy of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What its first rule, `policy_name["…"]`, says.
    pub name: String,
    /// Its text.
    pub content: String,
}

/// Policies that decide together.
#[derive(Clone, Debug)]
pub struct Bundle {
    policies: BTreeMap<String, Policy>,
    engine: Engine,
}

impl Bundle {
    /// Reads a bundle from its files: path → text.
    ///
    /// # Errors
    /// A file is no Rego, is not of package `org`, does not begin with `policy_name["…"]`, or shares its name with
    /// another; all of them at once.
    pub fn parse(files: &BTreeMap<String, String>) -> Result<Self, BundleError> {
        let size: usize = files.values().map(String::len).sum();
        if size > MAX_BYTES {
            return Err(BundleError(vec![format!(
                "the bundle has {size} bytes; at most {MAX_BYTES} are allowed"
            )]));
        }
        let mut problems = Vec::new();
        let mut engine = engine();
        let mut policies: BTreeMap<String, Policy> = BTreeMap::new();
        let mut called: Vec<(&str, Vec<Call>)> = Vec::new();
        for (path, text) in files {
            match read(&mut engine, path, text) {
                Err(problem) => problems.push(problem),
                Ok((policy, calls)) => {
                    called.push((path, calls));
                    if let Some(other) = policies.insert(policy.name.clone(), policy) {
                        problems
                            .push(format!("{path}: another file declares the policy \"{}\" too", other.name));
                    }
                }
            }
        }
        for (path, text) in HELPERS {
            let (text, _) = calls::written_out(text);
            if let Err(error) = engine.add_policy(path.to_owned(), text) {
                problems.push(format!("{path}: {error:#}"));
            }
        }
        let functions = functions(&mut engine);
        for (path, calls) in called {
            let unknown = |call: &&Call| {
                let known = functions.contains(&call.path) || BUILTINS.contains_key(call.path.as_str());
                !known && !functions.contains(&format!("data.org.{}", call.path))
            };
            for call in calls.iter().filter(unknown) {
                problems.push(format!("{path}:{}: there is no function `{}`", call.line, call.path));
            }
        }
        if !problems.is_empty() {
            return Err(BundleError(problems));
        }
        let bundle = Self { policies, engine };
        // What the evaluator finds wrong before it begins, it finds with any query.
        if !bundle.policies.is_empty() {
            bundle
                .eval("data.org.policy_name", &json!({}), &json!({}))
                .map_err(|error| BundleError(vec![error]))?;
        }
        Ok(bundle)
    }

    /// Its policies by name.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values()
    }

    /// Decides about a configuration: `input` is its source as data with the compiled one under `_compiled_`,
    /// `meta` becomes `data.meta`. What goes wrong is a decision too: [`crate::Status::Error`].
    pub fn decide(&self, input: &Value, meta: &Value) -> Decision {
        if self.policies.is_empty() {
            return Decision::pass();
        }
        match self.eval("data.org", input, meta) {
            Err(error) => Decision::error(error),
            Ok(org) => Decision::of(&org).unwrap_or_else(Decision::error),
        }
    }

    /// The value of a query, null when it is undefined.
    ///
    /// # Errors
    /// The query or a policy fails, or takes too long; the text says why.
    pub fn eval(&self, query: &str, input: &Value, meta: &Value) -> Result<Value, String> {
        let failed = |error: &dyn std::fmt::Display| format!("the policies cannot be evaluated: {error}");
        let mut engine = self.engine.clone();
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: LIMIT,
            check_interval: NonZeroU32::new(1024).expect("not zero"),
        });
        engine.set_input(regorus::Value::from(input.clone()));
        engine.add_data(regorus::Value::from(json!({ "meta": meta }))).map_err(|error| failed(&error))?;
        let results = engine.eval_query(query.to_owned(), false).map_err(|error| failed(&error))?;
        let mut values = Vec::new();
        for expression in results.result.iter().flat_map(|result| &result.expressions) {
            if expression.value != regorus::Value::Undefined {
                values.push(serde_json::to_value(&expression.value).map_err(|error| failed(&error))?);
            }
        }
        Ok(match values.len() {
            0 => Value::Null,
            1 => values.remove(0),
            _ => Value::Array(values),
        })
    }
}

fn engine() -> Engine {
    let mut engine = Engine::new();
    // The language of these policies is that of OPA before 1.0: `rule["x"] { … }` without `if` and `contains`.
    engine.set_rego_v0(true);
    // A built-in that fails is undefined, as in OPA, and not the end of the evaluation.
    engine.set_strict_builtin_errors(false);
    engine
}

/// Adds one file to the engine after looking at what every policy must have.
fn read(engine: &mut Engine, path: &str, text: &str) -> Result<(Policy, Vec<Call>), String> {
    let (written, calls) = calls::written_out(text);
    let package =
        engine.add_policy(path.to_owned(), written).map_err(|error| format!("{path}: {error:#}"))?;
    if package != "data.org" {
        let name = package.strip_prefix("data.").unwrap_or(&package);
        return Err(format!("{path}: the package is `{name}`; a policy's package is `org`"));
    }
    if OLD_BRANCH.is_match(text) {
        return Err(format!("{path}: `data.meta.branch` is always undefined; use `data.meta.vcs.branch`"));
    }
    let first = engine
        .get_modules()
        .last()
        .and_then(|module| module.policy.first().map(|rule| rule.span().text().to_owned()))
        .unwrap_or_default();
    let name = NAME
        .captures(&first)
        .and_then(|found| found.get(1).or(found.get(2)))
        .map(|name| name.as_str().to_owned())
        .ok_or_else(|| format!("{path}: the first rule must be `policy_name[\"…\"]`"))?;
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(word) {
        return Err(format!(
            "{path}: the policy's name \"{name:.100}\" must have 1 to {MAX_NAME} letters, digits and underscores"
        ));
    }
    Ok((Policy { name, content: text.to_owned() }, calls))
}

/// Whole paths of the functions that all files define.
fn functions(engine: &mut Engine) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for module in engine.get_modules() {
        let package = module.package.refr.span().text().to_owned();
        for rule in &module.policy {
            let text = rule.span().text();
            let name = text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            if text[name.len()..].starts_with('(') {
                found.insert(format!("data.{package}.{name}"));
            }
        }
    }
    found
}
