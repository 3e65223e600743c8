//! Policies, configurations and metadata from files.

use super::Subject;
use crate::{Exit, Failure};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

pub(super) fn read(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file)
        .map_err(|error| Failure::new(Exit::NotFound, format!("{} cannot be read: {error}", file.display())))
}

/// YAML as data.
pub(super) fn data(shown: &str, source: &str) -> Result<Value, Failure> {
    compiler::data(shown, source).map_err(|found| {
        let first = found.first().map(compiler::Diagnostic::one_line);
        Failure::new(Exit::Invalid, first.unwrap_or_else(|| format!("{shown} is no YAML")))
    })
}

/// A configuration as text and as data.
pub(super) fn configuration(file: &Path) -> Result<(String, Value), Failure> {
    let source = read(file)?;
    let data = data(&file.display().to_string(), &source)?;
    if data.is_object() {
        return Ok((source, data));
    }
    Err(Failure::new(Exit::Invalid, format!("{} is not a map", file.display())))
}

/// `data.meta`.
pub(super) fn meta(subject: &Subject) -> Result<Value, Failure> {
    match (&subject.meta, &subject.metafile) {
        (Some(text), _) => serde_json::from_str(text)
            .map_err(|error| Failure::new(Exit::Usage, format!("--meta is no JSON: {error}"))),
        (None, Some(file)) => data(&file.display().to_string(), &read(file)?),
        (None, None) => Ok(Value::Object(Map::new())),
    }
}

/// `NAME=VALUE` pairs; booleans and integers are read as such.
pub(super) fn parameters(pairs: &[String]) -> Result<Map<String, Value>, Failure> {
    let typed = |text: &str| match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        other => other.parse::<i64>().map_or_else(|_| Value::from(other), Value::from),
    };
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), typed(value))),
        _ => Err(Failure::new(Exit::Usage, format!("--param takes NAME=VALUE, not `{text}`"))),
    };
    pairs.iter().map(pair).collect()
}

/// The Rego files of a folder and of those in it, by their path below it; or the one file.
pub(super) fn policies(path: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let mut found = BTreeMap::new();
    if path.is_file() {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("policy.rego");
        found.insert(name.to_owned(), read(path)?);
        return Ok(found);
    }
    for file in walk(path)? {
        if file.extension().is_some_and(|extension| extension == "rego") {
            let below = file.strip_prefix(path).unwrap_or(&file).display().to_string();
            found.insert(below, read(&file)?);
        }
    }
    if found.is_empty() {
        return Err(Failure::new(Exit::NotFound, format!("{} has no .rego file", path.display())));
    }
    Ok(found)
}

/// All files below a folder, sorted; hidden folders are left out.
pub(super) fn walk(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed =
        |error| Failure::new(Exit::NotFound, format!("{} cannot be listed: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        // A link may lead in a circle.
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() && !hidden {
            found.extend(walk(&entry.path())?);
        } else if !kind.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
