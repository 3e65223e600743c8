//! Policies without a server.

use super::{Subject, files, show};
use crate::{Exit, Failure, Global};
use compiler::{Input, PipelineValues};
use policy::{Bundle, Outcome};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

fn bundle(path: &Path) -> Result<Bundle, Failure> {
    Bundle::parse(&files::policies(path)?).map_err(|error| Failure::new(Exit::Invalid, error.0.join("\n")))
}

/// The configuration as data with its compiled form.
fn input(subject: &Subject) -> Result<Value, Failure> {
    let (source, mut input) = files::configuration(&subject.input)?;
    if !subject.no_compile {
        let parameters = files::parameters(&subject.parameters)?;
        input["_compiled_"] =
            compiled(&source, &parameters).map_err(|why| Failure::new(Exit::Invalid, why))?;
    }
    Ok(input)
}

/// The compiled form as data; orbs are not at hand.
fn compiled(source: &str, parameters: &Map<String, Value>) -> Result<Value, String> {
    let one_line = |found: Vec<compiler::Diagnostic>| {
        found.iter().map(compiler::Diagnostic::one_line).collect::<Vec<_>>().join("\n")
    };
    let values = PipelineValues { branch: Some("main".to_owned()), number: 1, ..PipelineValues::default() };
    let input = Input { parameters, values, ..Input::new("config.yml", source) };
    let compiled = compiler::compile(&input).map_err(one_line)?;
    compiler::data("the compiled configuration", &compiled.processed).map_err(one_line)
}

pub(super) fn decide(policies: &Path, subject: &Subject) -> Result<Exit, Failure> {
    let decision = bundle(policies)?.decide(&input(subject)?, &files::meta(subject)?);
    Ok(show(&json!(decision)))
}

pub(super) fn eval(policies: &Path, subject: &Subject, query: &str) -> Result<Exit, Failure> {
    let value = bundle(policies)?.eval(query, &input(subject)?, &files::meta(subject)?);
    println!("{}", super::pretty(&value.map_err(|why| Failure::new(Exit::Invalid, why))?));
    Ok(Exit::Success)
}

/// Runs the test files of every folder with the policies of that folder and those below it.
pub(super) fn test(global: &Global, path: &Path, only: Option<&str>) -> Result<Exit, Failure> {
    let is_test = |file: &&std::path::PathBuf| {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.ends_with("_test.yaml") || name.ends_with("_test.yml")
    };
    let all = files::walk(path)?;
    let folders: BTreeSet<&Path> = all.iter().filter(is_test).filter_map(|file| file.parent()).collect();
    if folders.is_empty() {
        return Err(Failure::new(Exit::NotFound, format!("{} has no *_test.yaml file", path.display())));
    }
    let (mut passed, mut failed) = (0_usize, Vec::new());
    for folder in folders {
        let bundle = match files::policies(folder) {
            Ok(files) => parse(folder, &files)?,
            // Tests of what is decided without any policy.
            Err(failure) if failure.exit == Exit::NotFound => parse(folder, &BTreeMap::new())?,
            Err(failure) => return Err(failure),
        };
        for file in all.iter().filter(is_test).filter(|file| file.parent() == Some(folder)) {
            let shown = file.display().to_string();
            let tests = policy::cases(&files::data(&shown, &files::read(file)?)?)
                .map_err(|why| Failure::new(Exit::Invalid, format!("{shown}: {why}")))?;
            for case in tests.iter().filter(|case| only.is_none_or(|only| case.name.contains(only))) {
                // JSON is YAML.
                let compile =
                    |input: &Value, parameters: &Map<String, Value>| compiled(&input.to_string(), parameters);
                match case.run(&bundle, &compile) {
                    Outcome::Passed => passed += 1,
                    Outcome::Failed { expected, found } => {
                        failed.push(
                            json!({ "file": shown, "test": case.name, "expected": expected, "found": found }),
                        );
                    }
                    Outcome::Broken(why) => {
                        failed.push(json!({ "file": shown, "test": case.name, "error": why }));
                    }
                }
            }
        }
    }
    if global.json {
        println!("{}", json!({ "passed": passed, "failed": failed }));
    } else {
        for failure in &failed {
            println!("FAIL {}: {}", super::text(failure, "file"), super::text(failure, "test"));
            for key in ["expected", "found", "error"] {
                if let Some(value) = failure.get(key) {
                    println!("  {key}: {value}");
                }
            }
        }
        println!("{passed} passed, {} failed", failed.len());
    }
    Ok(if failed.is_empty() { Exit::Success } else { Exit::Failed })
}

fn parse(folder: &Path, files: &BTreeMap<String, String>) -> Result<Bundle, Failure> {
    Bundle::parse(files)
        .map_err(|error| Failure::new(Exit::Invalid, format!("{}: {}", folder.display(), error.0.join("\n"))))
}
