//! Reading the configuration: the file, then the environment over it, each value with its origin.

use super::Config;
use std::{collections::BTreeMap, env, fs, path::Path};
use toml::{Table, Value, de::DeTable};

/// The configuration cannot be used: what is wrong, where, and what to do. Ends the program with 78.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// A configuration and where each value came from.
#[derive(Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    origins: BTreeMap<String, String>,
}

impl Loaded {
    /// Reads the file, if one is named, and the environment over it.
    ///
    /// # Errors
    /// A file that cannot be read, a key that does not exist, a value of another type, or a set of durations
    /// that breaks a safety ratio. What stands in the file is named with its line and column.
    pub fn read(file: Option<&Path>) -> Result<Self, Invalid> {
        let known = Table::try_from(Config::default()).map_err(|error| Invalid::new(error.to_string()))?;
        let (mut table, mut origins) = match file {
            Some(file) => from_file(file, &known)?,
            None => (Table::new(), BTreeMap::new()),
        };
        for (path, default) in leaves(&known) {
            let name = format!("GANTRY_{}", path.join("_").to_uppercase());
            let Some(text) = from_environment(&name)? else { continue };
            let value = match default {
                Value::Integer(_) => Value::Integer(
                    text.parse()
                        .map_err(|_| Invalid::new(format!("{name}: \"{text}\" is no whole number")))?,
                ),
                Value::Boolean(_) => Value::Boolean(
                    text.parse()
                        .map_err(|_| Invalid::new(format!("{name}: \"{text}\" is neither true nor false")))?,
                ),
                _ => Value::String(text),
            };
            // By itself first: an error then names this variable.
            let mut alone = Table::new();
            set(&mut alone, &path, value.clone());
            if let Err(error) = Value::Table(alone).try_into::<Config>() {
                return Err(Invalid::new(format!("{name}: {}", error.message())));
            }
            set(&mut table, &path, value);
            let shown: Vec<&str> = path.iter().take(2).map(String::as_str).collect();
            origins.insert(shown.join("."), format!("environment {name}"));
        }
        let config: Config = Value::Table(table)
            .try_into()
            .map_err(|error: toml::de::Error| Invalid::new(error.message().to_owned()))?;
        config.dispatcher.check()?;
        config.database.check()?;
        config.blobs.check()?;
        config.records.check()?;
        config.secrets.check()?;
        config.compute.check()?;
        config.executors.ssh.check()?;
        config.retention.check()?;
        config.telemetry.check()?;
        for (name, class) in &config.resource_classes {
            class.check(name)?;
        }
        Ok(Self { config, origins })
    }

    /// `key = value  # origin` lines, one per key.
    pub fn print(&self) -> String {
        let table = Table::try_from(self.config.clone()).unwrap_or_default();
        let mut lines = String::new();
        for (section, keys) in &table {
            let Value::Table(keys) = keys else { continue };
            for (key, value) in keys {
                let name = format!("{section}.{key}");
                let origin = self.origins.get(&name).map_or("default", String::as_str);
                lines.push_str(&format!("{name} = {}  # {origin}\n", shown(key, value)));
            }
        }
        lines
    }
}

/// A value as it may be shown: a URL without its password, and no secret.
fn shown(key: &str, value: &Value) -> Value {
    let text = match value {
        Value::String(text) => text,
        Value::Table(inner) => {
            return Value::Table(inner.iter().map(|(key, value)| (key.clone(), shown(key, value))).collect());
        }
        Value::Array(values) => return Value::Array(values.iter().map(|value| shown(key, value)).collect()),
        _ => return value.clone(),
    };
    if !text.is_empty()
        && ["secret_key", "secret_id", "deliver_secret_id", "token", "otlp_headers"].contains(&key)
    {
        return Value::String("***".to_owned());
    }
    let hidden = text.split_once("://").and_then(|(scheme, rest)| {
        let (user, host) = rest.split_once('@')?;
        let (name, _) = user.split_once(':')?;
        Some(format!("{scheme}://{name}:***@{host}"))
    });
    Value::String(hidden.unwrap_or_else(|| text.clone()))
}

/// Every key with its default, sections of sections included.
fn leaves(known: &Table) -> Vec<(Vec<String>, &Value)> {
    let mut all = Vec::new();
    let mut tables: Vec<(Vec<String>, &Table)> = vec![(Vec::new(), known)];
    while let Some((path, table)) = tables.pop() {
        for (key, value) in table {
            let mut path = path.clone();
            path.push(key.clone());
            match value {
                Value::Table(inner) if path.len() == 1 || !inner.is_empty() => tables.push((path, inner)),
                _ => all.push((path, value)),
            }
        }
    }
    all
}

/// Sets a value, with the sections above it.
fn set(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [key] => drop(table.insert(key.clone(), value)),
        [section, rest @ ..] => {
            let inner = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

/// The file's values, and the place of each key as its origin.
fn from_file(file: &Path, known: &Table) -> Result<(Table, BTreeMap<String, String>), Invalid> {
    let shown = file.display();
    let text = fs::read_to_string(file).map_err(|error| {
        Invalid::new(format!("{shown} cannot be read: {error}; name another with --config"))
    })?;
    let at = |offset: usize| {
        let (line, column) = position(&text, offset);
        format!("{shown}:{line}:{column}")
    };
    let wrong = |error: toml::de::Error| {
        let place = at(error.span().map_or(0, |span| span.start));
        Invalid::new(format!("{place}: {}", error.message().trim_end()))
    };
    let places = DeTable::parse(&text).map_err(wrong)?;
    let mut origins = BTreeMap::new();
    for (section, values) in places.get_ref() {
        let (name, place) = (section.get_ref().as_ref(), at(section.span().start));
        let Some(Value::Table(keys)) = known.get(name) else {
            return Err(unknown(&place, name, known.keys()));
        };
        let Some(values) = values.get_ref().as_table() else {
            return Err(Invalid::new(format!("{place}: {name} is a section; write [{name}]")));
        };
        for key in values.keys() {
            let (key, place) = (key.get_ref().as_ref(), at(key.span().start));
            // A section without keys of its own takes any: its keys are names that people choose.
            if !keys.is_empty() && !keys.contains_key(key) {
                return Err(unknown(&place, &format!("{name}.{key}"), keys.keys()));
            }
            origins.insert(format!("{name}.{key}"), place);
        }
    }
    // Here for the place of a value of the wrong type.
    toml::from_str::<Config>(&text).map_err(wrong)?;
    let table = text.parse::<Table>().map_err(wrong)?;
    Ok((table, origins))
}

/// Line and column of a byte, both from 1, as editors count.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
    (line, column)
}

fn from_environment(name: &str) -> Result<Option<String>, Invalid> {
    if let Ok(value) = env::var(name) {
        return Ok(Some(value));
    }
    match env::var(format!("{name}_FILE")) {
        Ok(file) => fs::read_to_string(&file)
            .map(|text| Some(text.trim_end().to_owned()))
            .map_err(|error| Invalid::new(format!("{name}_FILE: {file} cannot be read: {error}"))),
        Err(_) => Ok(None),
    }
}

fn unknown<'k>(place: &str, key: &str, known: impl Iterator<Item = &'k String>) -> Invalid {
    let last = key.rsplit('.').next().unwrap_or(key);
    let nearest = known.max_by(|a, b| strsim::jaro(a, last).total_cmp(&strsim::jaro(b, last)));
    let hint = nearest.map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default();
    Invalid::new(format!("{place}: there is no key {key}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Loaded, Invalid> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gantry.toml");
        fs::write(&file, text).unwrap();
        Loaded::read(Some(&file))
    }

    #[test]
    fn an_unknown_key_names_the_nearest_one_and_its_place() {
        let error = read("# ours\n[dispatcher]\nslot = 3\n").unwrap_err().to_string();
        assert!(error.contains("dispatcher.slot") && error.contains("did you mean slots?"), "{error}");
        assert!(error.contains("gantry.toml:3:1: "), "{error}");
        let error = read("[dispacher]\n").unwrap_err().to_string();
        assert!(error.contains("did you mean dispatcher?") && error.contains("gantry.toml:1:2: "), "{error}");
    }

    #[test]
    fn a_value_that_cannot_be_is_named_with_its_place() {
        let error = read("[dispatcher]\nslots = 3\nlease = \"soon\"\n").unwrap_err().to_string();
        assert!(error.contains("gantry.toml:3:9: ") && error.contains("no duration"), "{error}");
        let error = read("[dispatcher]\nslots = \"many\"\n").unwrap_err().to_string();
        assert!(error.contains("gantry.toml:2:9: "), "{error}");
        let error = read("[dispatcher\nslots = 3\n").unwrap_err().to_string();
        assert!(error.contains("gantry.toml:1:"), "{error}");
        let error = read("[telemetry]\nlog = \"xml\"\n").unwrap_err().to_string();
        assert!(error.contains("text") && error.contains("json"), "{error}");
    }

    #[test]
    fn durations_that_break_the_safety_ratio_are_refused() {
        let error = read("[dispatcher]\nself_stop = \"179s\"\n").unwrap_err().to_string();
        assert!(error.contains("dispatcher.self_stop"), "{error}");
        read("[dispatcher]\nlease = \"18s\"\nself_stop = \"15s\"\nrenew = \"1s\"\n").unwrap();
    }

    #[test]
    fn an_adapter_without_what_it_needs_is_refused_and_its_secret_is_not_shown() {
        let error = read("[blobs]\nkind = \"s3\"\nendpoint = \"http://s3\"\n").unwrap_err().to_string();
        assert!(error.contains("blobs.bucket"), "{error}");
        let error = read("[secrets]\nkind = \"vault\"\n").unwrap_err().to_string();
        assert!(error.contains("secrets.address"), "{error}");
        let text = "[blobs]\nkind = \"s3\"\nendpoint = \"http://s3\"\nbucket = \"b\"\naccess_key = \"a\"\nsecret_key = \"hidden\"\n";
        let printed = read(text).unwrap().print();
        assert!(printed.contains("blobs.bucket = \"b\"") && !printed.contains("hidden"), "{printed}");
    }

    #[test]
    fn a_collector_is_checked_and_its_headers_are_not_shown() {
        let error = read("[telemetry]\notlp = \"collector:4318\"\n").unwrap_err().to_string();
        assert!(error.contains("telemetry.otlp:") && error.contains("http://"), "{error}");
        let text = "[telemetry]\notlp = \"http://collector:4318\"\notlp_headers = \"authorization hidden\"\n";
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains("telemetry.otlp_headers:") && !error.contains("hidden"), "{error}");
        let loaded = read(&text.replace("authorization ", "authorization=")).unwrap();
        assert!(loaded.config.telemetry.collector().unwrap().is_some());
        assert!(!loaded.print().contains("hidden"), "{}", loaded.print());
        assert!(read("").unwrap().config.telemetry.collector().unwrap().is_none(), "off by default");
    }

    #[test]
    fn every_value_is_printed_with_its_origin() {
        let printed = read("[dispatcher]\nslots = 3\n").unwrap().print();
        assert!(printed.contains("dispatcher.slots = 3  # /"), "{printed}");
        assert!(printed.contains("dispatcher.lease = \"3m\"  # default"), "{printed}");
    }
}
