//! Configuration: one TOML file, overridden by `GANTRY_<SECTION>_<KEY>` (outside §6).

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, env, fs, path::Path, time::Duration};
use toml::{Table, Value};

/// Everything that can be configured, with its default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[bus]`
    pub bus: Bus,
    /// `[records]`
    pub records: Records,
    /// `[live]`
    pub live: Live,
    /// `[blobs]`
    pub blobs: Blobs,
    /// `[secrets]`
    pub secrets: Secrets,
    /// `[compute]`
    pub compute: Compute,
    /// `[database]`
    pub database: Database,
    /// `[executors]`
    pub executors: Executors,
    /// `[dispatcher]`
    pub dispatcher: Dispatcher,
    /// `[agents]`
    pub agents: Agents,
}

macro_rules! adapter {
    ($(#[$doc:meta])* $section:ident, $kind:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $section {
            /// Which adapter.
            pub kind: $kind,
        }
        /// Adapters of the section.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $kind { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }
    };
}

adapter!(/// The bus between services.
    Bus, BusKind { /// In process, over the event tables.
    #[default] Local = "local" });
adapter!(/// Records of what ran.
    Records, RecordsKind { /// JSONB in Postgres.
    #[default] Postgres = "postgres" });
adapter!(/// What is happening right now.
    Live, LiveKind { /// In process.
    #[default] Local = "local" });
adapter!(/// Bytes by key.
    Blobs, BlobsKind { /// Files.
    #[default] Fs = "fs" });
adapter!(/// Keys of secrets.
    Secrets, SecretsKind { /// A key ring in a file of mode 0600.
    #[default] Keyring = "keyring" });
adapter!(/// What starts agents.
    Compute, ComputeKind { /// Processes of this machine.
    #[default] Local = "local" });

/// `[database]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `embedded`: a private PostgreSQL in the data folder; `url`: the one that `url` names.
    pub kind: DatabaseKind,
    /// Of `kind = "url"`.
    pub url: String,
    /// Connections of one process for all its services.
    pub connections: Connections,
}

/// Where the database is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatabaseKind {
    /// A private server in the data folder.
    #[default]
    Embedded,
    /// A server of one's own.
    Url,
}

/// Size of the connection pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Connections(pub u32);

impl Default for Connections {
    fn default() -> Self {
        Self(12)
    }
}

/// `[executors]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Executors {
    /// What a job that asks for a container does where no engine runs.
    pub docker: DockerPolicy,
    /// `none` lets host jobs run without any isolation from the server's own files.
    pub host_isolation: HostIsolation,
}

/// What becomes of docker jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DockerPolicy {
    /// They end `infrastructure_fail`, and say so.
    #[default]
    Refuse,
    /// They run on the host as if they had asked for a machine.
    Host,
}

/// What keeps host jobs from the server's own files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostIsolation {
    /// Another user when the server is root, else namespaces; refuses to start with neither.
    #[default]
    Auto,
    /// Nothing.
    None,
}

/// `[dispatcher]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dispatcher {
    /// Tasks that run at once; 0: twice the processors.
    pub slots: u32,
    /// Length of a lease.
    pub lease: Span,
    /// Between two renewals.
    pub renew: Span,
    /// Without a renewal for so long, a task is shown as unreachable.
    pub unreachable: Span,
    /// An agent that could not renew for so long ends its task.
    pub self_stop: Span,
    /// After a start, nothing is declared lost for so long.
    pub recovery_grace: Span,
    /// A task that no agent claims within this is placed again.
    pub claim_timeout: Span,
    /// Longest run of a job.
    pub job_timeout: Span,
    /// Between SIGTERM and SIGKILL.
    pub grace: Span,
}

impl Default for Dispatcher {
    fn default() -> Self {
        Self {
            slots: 0,
            lease: Span::secs(180),
            renew: Span::secs(10),
            unreachable: Span::secs(45),
            self_stop: Span::secs(150),
            recovery_grace: Span::secs(60),
            claim_timeout: Span::secs(60),
            job_timeout: Span::secs(5 * 3600),
            grace: Span::secs(10),
        }
    }
}

/// `[agents]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agents {
    /// Path of `gantry-runner`; empty: beside `gantry`.
    pub binary: String,
}

/// A duration, written as text: `10s`, `2h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|error| {
            serde::de::Error::custom(format!("\"{text}\" is no duration ({error}); write it as 10s or 2h"))
        })
    }
}

/// The configuration cannot be used: what is wrong, where, and what to do. Ends the program with 78.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

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
    /// that breaks a safety ratio.
    pub fn read(file: Option<&Path>) -> Result<Self, Invalid> {
        let mut table = match file {
            Some(file) => {
                let text = fs::read_to_string(file)
                    .map_err(|error| Invalid(format!("{} cannot be read: {error}", file.display())))?;
                text.parse::<Table>().map_err(|error| Invalid(format!("{}: {error}", file.display())))?
            }
            None => Table::new(),
        };
        let known = Table::try_from(Config::default()).map_err(|error| Invalid(error.to_string()))?;
        let mut origins = BTreeMap::new();
        let shown = file.map(|file| file.display().to_string()).unwrap_or_default();
        for (section, values) in &table {
            let Some(Value::Table(keys)) = known.get(section) else {
                return Err(unknown(&shown, section, known.keys()));
            };
            let Value::Table(values) = values else {
                return Err(Invalid(format!("{shown}: {section} is a section; write [{section}]")));
            };
            for key in values.keys() {
                if !keys.contains_key(key) {
                    return Err(unknown(&shown, &format!("{section}.{key}"), keys.keys()));
                }
                origins.insert(format!("{section}.{key}"), shown.clone());
            }
        }
        for (section, keys) in &known {
            let Value::Table(keys) = keys else { continue };
            for (key, default) in keys {
                let name = format!("GANTRY_{}_{}", section.to_uppercase(), key.to_uppercase());
                let Some(text) = from_environment(&name)? else { continue };
                let value = match default {
                    Value::Integer(_) => Value::Integer(
                        text.parse()
                            .map_err(|_| Invalid(format!("{name}: \"{text}\" is no whole number")))?,
                    ),
                    Value::Boolean(_) => Value::Boolean(
                        text.parse()
                            .map_err(|_| Invalid(format!("{name}: \"{text}\" is neither true nor false")))?,
                    ),
                    _ => Value::String(text),
                };
                let section_table =
                    table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
                if let Value::Table(values) = section_table {
                    values.insert(key.clone(), value);
                }
                origins.insert(format!("{section}.{key}"), format!("environment {name}"));
            }
        }
        let config: Config = Value::Table(table).try_into().map_err(|error: toml::de::Error| {
            Invalid(format!(
                "{}: {}",
                if shown.is_empty() { "configuration" } else { &shown },
                error.message()
            ))
        })?;
        config.dispatcher.check()?;
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
                lines.push_str(&format!("{name} = {value}  # {origin}\n"));
            }
        }
        lines
    }
}

impl Dispatcher {
    /// Agent self-stop must come before the server gives the lease to another.
    fn check(&self) -> Result<(), Invalid> {
        let margin = self.lease.0 / 12;
        if self.self_stop.0 + margin > self.lease.0 {
            return Err(Invalid(format!(
                "dispatcher.self_stop ({}) must be at least a twelfth of dispatcher.lease ({}) shorter than it",
                humantime::format_duration(self.self_stop.0),
                humantime::format_duration(self.lease.0)
            )));
        }
        if self.renew.0 * 3 > self.self_stop.0 {
            return Err(Invalid(
                "dispatcher.renew must be at most a third of dispatcher.self_stop".to_owned(),
            ));
        }
        Ok(())
    }
}

fn from_environment(name: &str) -> Result<Option<String>, Invalid> {
    if let Ok(value) = env::var(name) {
        return Ok(Some(value));
    }
    match env::var(format!("{name}_FILE")) {
        Ok(file) => fs::read_to_string(&file)
            .map(|text| Some(text.trim_end().to_owned()))
            .map_err(|error| Invalid(format!("{name}_FILE: {file} cannot be read: {error}"))),
        Err(_) => Ok(None),
    }
}

fn unknown<'k>(file: &str, key: &str, known: impl Iterator<Item = &'k String>) -> Invalid {
    let last = key.rsplit('.').next().unwrap_or(key);
    let nearest = known.max_by(|a, b| strsim::jaro(a, last).total_cmp(&strsim::jaro(b, last)));
    let hint = nearest.map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default();
    Invalid(format!("{file}: there is no key {key}{hint}"))
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
    fn an_unknown_key_names_the_nearest_one() {
        let error = read("[dispatcher]\nslot = 3\n").unwrap_err().to_string();
        assert!(error.contains("dispatcher.slot") && error.contains("did you mean slots?"), "{error}");
        let error = read("[dispacher]\n").unwrap_err().to_string();
        assert!(error.contains("did you mean dispatcher?"), "{error}");
    }

    #[test]
    fn durations_that_break_the_safety_ratio_are_refused() {
        let error = read("[dispatcher]\nself_stop = \"179s\"\n").unwrap_err().to_string();
        assert!(error.contains("dispatcher.self_stop"), "{error}");
        read("[dispatcher]\nlease = \"18s\"\nself_stop = \"15s\"\nrenew = \"1s\"\n").unwrap();
    }

    #[test]
    fn every_value_is_printed_with_its_origin() {
        let printed = read("[dispatcher]\nslots = 3\n").unwrap().print();
        assert!(printed.contains("dispatcher.slots = 3  # /"), "{printed}");
        assert!(printed.contains("dispatcher.lease = \"3m\"  # default"), "{printed}");
    }
}
