//! Tests of policies: `*_test.yaml` files, as data (config-language §26).
//!
//! Top-level keys that begin with `test_` are tests; each may hold `input`, `meta`, `decision`, `compile`,
//! `pipeline_parameters` and nested `cases`, which take over what their parent has: maps are merged, everything
//! else is replaced.

use crate::Bundle;
use serde_json::{Map, Value};

/// One test, with what it takes over from those around it.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// Names of the test and the cases in it, joined by `/`.
    pub name: String,
    /// Configuration as data.
    pub input: Value,
    /// `data.meta`.
    pub meta: Value,
    /// Expected decision; null: the case only gives values to nested ones.
    pub decision: Value,
    /// Whether `input._compiled_` is made by the compiler.
    pub compile: bool,
    /// Pipeline parameters for that.
    pub parameters: Map<String, Value>,
}

/// Compiles a configuration given as data, with pipeline parameters.
pub type Compile<'a> = dyn Fn(&Value, &Map<String, Value>) -> Result<Value, String> + 'a;

/// What became of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The decision is as expected.
    Passed,
    /// It is another one.
    Failed {
        /// As in the file.
        expected: Value,
        /// As decided.
        found: Value,
    },
    /// The input could not be compiled.
    Broken(String),
}

impl Case {
    /// Decides and compares.
    pub fn run(&self, bundle: &Bundle, compile: &Compile<'_>) -> Outcome {
        let mut input = self.input.clone();
        if self.compile {
            match (compile(&self.input, &self.parameters), &mut input) {
                (Ok(compiled), Value::Object(map)) => drop(map.insert("_compiled_".to_owned(), compiled)),
                (Ok(_), _) => return Outcome::Broken("the input is not a map".to_owned()),
                (Err(why), _) => return Outcome::Broken(why),
            }
        }
        let decision = bundle.decide(&input, &self.meta);
        let found = serde_json::to_value(decision).unwrap_or_default();
        if found == self.decision {
            Outcome::Passed
        } else {
            Outcome::Failed { expected: self.decision.clone(), found }
        }
    }
}

/// The cases of a test file, sorted by name.
///
/// # Errors
/// The file is not what test files are; the text says where.
pub fn cases(file: &Value) -> Result<Vec<Case>, String> {
    let Value::Object(tests) = file else { return Err("the file is not a map of tests".to_owned()) };
    let mut found = Vec::new();
    for (name, test) in tests.iter().filter(|(name, _)| name.starts_with("test_")) {
        let parent = Case { meta: Value::Object(Map::new()), ..Case::default() };
        collect(&parent, name, test, &mut found)?;
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn collect(parent: &Case, name: &str, test: &Value, found: &mut Vec<Case>) -> Result<(), String> {
    let name = if parent.name.is_empty() { name.to_owned() } else { format!("{}/{name}", parent.name) };
    let Value::Object(test) = test else { return Err(format!("{name} is not a map")) };
    let mut case = Case { name: name.clone(), ..parent.clone() };
    for (key, value) in test {
        match (key.as_str(), value) {
            ("input", value) => merge(&mut case.input, value),
            ("meta", value) => merge(&mut case.meta, value),
            ("decision", value) => case.decision = value.clone(),
            ("compile", Value::Bool(compile)) => case.compile = *compile,
            ("pipeline_parameters", Value::Object(parameters)) => case.parameters.extend(parameters.clone()),
            ("cases", Value::Object(_)) => {}
            ("compile" | "pipeline_parameters" | "cases", _) => {
                return Err(format!("{name}: `{key}` has the wrong type"));
            }
            _ => return Err(format!("{name}: `{key}` is not a key of a test")),
        }
    }
    if !case.decision.is_null() {
        found.push(case.clone());
    }
    if let Some(Value::Object(nested)) = test.get("cases") {
        for (inner, test) in nested {
            collect(&case, inner, test, found)?;
        }
    }
    Ok(())
}

/// Maps are merged, everything else is replaced.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}
