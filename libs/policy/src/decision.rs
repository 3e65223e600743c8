//! What a bundle says about one configuration.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// Whether a pipeline may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// No rule is violated.
    Pass,
    /// Rules are violated that do not block.
    SoftFail,
    /// A rule is violated that blocks.
    HardFail,
    /// The bundle could not decide: that blocks too.
    Error,
}

impl Status {
    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::SoftFail => "SOFT_FAIL",
            Self::HardFail => "HARD_FAIL",
            Self::Error => "ERROR",
        }
    }
}

/// A rule that is violated, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Violation {
    /// Name of the rule.
    pub rule: String,
    /// What the rule says.
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.reason)
    }
}

/// A decision; lists are sorted, and empty ones are left out (api-v2 §1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether it may run.
    pub status: Status,
    /// Why nothing could be decided; with [`Status::Error`] only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Rules that `enable_rule` names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub enabled_rules: Vec<String>,
    /// Violations of enabled rules that `hard_fail` names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hard_failures: Vec<Violation>,
    /// Violations of the other enabled rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub soft_failures: Vec<Violation>,
}

impl Decision {
    /// Nothing is violated.
    pub fn pass() -> Self {
        Self {
            status: Status::Pass,
            reason: None,
            enabled_rules: Vec::new(),
            hard_failures: Vec::new(),
            soft_failures: Vec::new(),
        }
    }

    /// Nothing could be decided.
    pub fn error(reason: impl Into<String>) -> Self {
        Self { status: Status::Error, reason: Some(reason.into()), ..Self::pass() }
    }

    /// Whether the pipeline must not run.
    pub fn blocks(&self) -> bool {
        matches!(self.status, Status::HardFail | Status::Error)
    }

    /// From the value of `data.org`: enabled rules and what they say. What is not text is no reason.
    pub(crate) fn of(org: &Value) -> Result<Self, String> {
        let names = |key: &str| match org.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(texts(items)),
            Some(_) => Err(format!("`{key}` is not a set of rule names: write `{key}[\"rule\"]`")),
        };
        let mut decision = Self { enabled_rules: names("enable_rule")?, ..Self::pass() };
        let mut hard = names("hard_fail")?;
        let both = names("enable_hard")?;
        hard.extend(both.iter().cloned());
        decision.enabled_rules.extend(both);
        decision.enabled_rules.sort();
        decision.enabled_rules.dedup();
        for rule in &decision.enabled_rules {
            let found =
                reasons(org.get(rule)).into_iter().map(|reason| Violation { rule: rule.clone(), reason });
            if hard.contains(rule) {
                decision.hard_failures.extend(found);
            } else {
                decision.soft_failures.extend(found);
            }
        }
        decision.hard_failures.sort();
        decision.soft_failures.sort();
        decision.status = match (decision.hard_failures.is_empty(), decision.soft_failures.is_empty()) {
            (false, _) => Status::HardFail,
            (true, false) => Status::SoftFail,
            (true, true) => Status::Pass,
        };
        Ok(decision)
    }
}

fn texts(items: &[Value]) -> Vec<String> {
    items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn reasons(said: Option<&Value>) -> Vec<String> {
    match said {
        Some(Value::String(reason)) => vec![reason.clone()],
        Some(Value::Array(items)) => texts(items),
        Some(Value::Object(map)) => values(map),
        _ => Vec::new(),
    }
}

fn values(map: &Map<String, Value>) -> Vec<String> {
    map.values().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}
