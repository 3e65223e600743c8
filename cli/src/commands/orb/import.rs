//! Orbs from elsewhere: a folder, a bundle, or another server.

use super::registry::Registry;
use crate::{Client, Exit, Failure, Global};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

pub(super) const HELP: &str = "Examples:\n  gantry orb import circleci/node@5.1 --from https://circleci.com\n  gantry orb import --dir ~/orbs            namespace/name@1.2.3.yml files\n  gantry orb import --bundle orbs.json\n\nOrbs that an orb imports come with it from another server; from a folder or a bundle they have to be in it or here.";
pub(super) const EXPORT_HELP: &str = "Examples:\n  gantry orb export acme/greet@1 --out orbs.json\n  gantry orb export circleci/node@5.1 --from https://circleci.com --out orbs.json";

/// Where orbs come from.
#[derive(Args, Clone, Debug, Default)]
struct Origin {
    /// Address of another server with an orb registry
    #[arg(long, value_name = "URL", env = "GANTRY_ORB_SERVER")]
    from: Option<String>,
    /// Token for the other server; public orbs need none
    #[arg(long, value_name = "TOKEN", env = "GANTRY_ORB_TOKEN", hide_env_values = true)]
    from_token: Option<String>,
}

/// `gantry orb import`
#[derive(Args, Clone, Debug)]
pub struct Import {
    /// Orbs of the other server, `namespace/orb@version`
    orbs: Vec<String>,
    #[command(flatten)]
    origin: Origin,
    /// Folder with `namespace/name@1.2.3.yml` files
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// File that `gantry orb export` wrote
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Organisation that takes namespaces that do not exist yet
    #[arg(long, default_value = "local")]
    org: String,
}

/// `gantry orb export`
#[derive(Args, Clone, Debug)]
pub struct Export {
    /// Orbs, `namespace/orb@version`; what they import comes along
    #[arg(required = true)]
    orbs: Vec<String>,
    #[command(flatten)]
    origin: Origin,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// A version with its source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Item {
    name: String,
    version: String,
    source: String,
}

/// A bundle's file.
#[derive(Serialize, Deserialize)]
struct Bundle {
    orbs: Vec<Item>,
}

impl Import {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let mut items = Vec::new();
        if !self.orbs.is_empty() {
            let Some(from) = &self.origin.from else {
                let message = "name the server that has them with --from, or a file with --dir or --bundle";
                return Err(Failure::new(Exit::Usage, message));
            };
            items.extend(collect(&Registry::at(from, self.origin.from_token.clone()), &self.orbs).await?);
        }
        if let Some(dir) = &self.dir {
            items.extend(folder(dir)?);
        }
        if let Some(file) = &self.bundle {
            let bundle: Bundle = serde_json::from_str(&read(file)?)
                .map_err(|error| Failure::new(Exit::Invalid, format!("{}: {error}", file.display())))?;
            items.extend(bundle.orbs);
        }
        if items.is_empty() {
            return Err(Failure::new(
                Exit::Usage,
                "there is nothing to import: name orbs, --dir or --bundle",
            ));
        }
        let registry = Registry::of(Client::connect(global)?);
        let done = publish(&registry, items, &self.org).await?;
        if global.json {
            println!("{}", json!(done));
        } else {
            done.iter().for_each(|orb| println!("{orb}"));
        }
        Ok(Exit::Success)
    }
}

impl Export {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let registry = match self.origin.from {
            Some(from) => Registry::at(&from, self.origin.from_token),
            None => Registry::of(Client::connect(global)?),
        };
        let orbs = collect(&registry, &self.orbs).await?;
        let count = orbs.len();
        let text = serde_json::to_string_pretty(&Bundle { orbs })
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        fs::write(&self.out, text).map_err(|error| {
            Failure::new(Exit::Failed, format!("{} cannot be written: {error}", self.out.display()))
        })?;
        eprintln!("Wrote {} with {count} orb(s).", self.out.display());
        Ok(Exit::Success)
    }
}

/// Orbs of a server with all that they import.
async fn collect(registry: &Registry, references: &[String]) -> Result<Vec<Item>, Failure> {
    let mut open: Vec<String> = references.to_vec();
    let mut asked: BTreeSet<String> = BTreeSet::new();
    let mut items: BTreeSet<Item> = BTreeSet::new();
    while let Some(reference) = open.pop() {
        if !asked.insert(reference.clone()) {
            continue;
        }
        let found = registry.version(&reference).await?;
        let field = |path: &str| found.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let item = Item { name: field("/orb/name"), version: field("/version"), source: field("/source") };
        open.extend(imports(&item.source));
        items.insert(item);
    }
    Ok(items.into_iter().collect())
}

/// References to other orbs in a source, those of inline orbs included.
fn imports(source: &str) -> Vec<String> {
    fn below(orb: &Value, found: &mut Vec<String>) {
        for import in orb.get("orbs").and_then(Value::as_object).into_iter().flat_map(|map| map.values()) {
            match import {
                Value::String(text) => found.push(text.trim().to_owned()),
                inline => below(inline, found),
            }
        }
    }
    let mut found = Vec::new();
    // A source that cannot be read is refused when it is published, with its errors.
    if let Ok(data) = compiler::data("orb.yml", source) {
        below(&data, &mut found);
    }
    found
}

/// `namespace/name@version.yml` files.
fn folder(dir: &Path) -> Result<Vec<Item>, Failure> {
    let failed = |error| Failure::new(Exit::NotFound, format!("{} cannot be listed: {error}", dir.display()));
    let mut items = Vec::new();
    for namespace in fs::read_dir(dir).map_err(failed)? {
        let namespace = namespace.map_err(failed)?.path();
        if !namespace.is_dir() {
            continue;
        }
        let space = namespace.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        for file in fs::read_dir(&namespace).map_err(failed)? {
            let file = file.map_err(failed)?.path();
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let stem = name.strip_suffix(".yml").or_else(|| name.strip_suffix(".yaml"));
            if let Some((orb, version)) = stem.and_then(|stem| stem.split_once('@')) {
                let (name, version) = (format!("{space}/{orb}"), version.to_owned());
                items.push(Item { name, version, source: read(&file)? });
            }
        }
    }
    items.sort();
    Ok(items)
}

/// Publishes each after those that it imports: one that fails for want of another is tried again as long as others
/// succeed.
async fn publish(registry: &Registry, mut items: Vec<Item>, org: &str) -> Result<Vec<String>, Failure> {
    let mut done = Vec::new();
    loop {
        let mut left = Vec::new();
        let mut last = None;
        let before = items.len();
        for item in items {
            registry.ensure(&item.name, org, false).await?;
            match registry.publish(&item.name, &item.version, &item.source).await {
                Ok(version) => done.push(format!("{}@{version}", item.name)),
                Err(failure) if failure.exit == Exit::Invalid => {
                    last = Some(Failure::new(
                        Exit::Invalid,
                        format!("{}@{}: {failure}", item.name, item.version),
                    ));
                    left.push(item);
                }
                Err(failure) => return Err(failure),
            }
        }
        match last {
            None => return Ok(done),
            Some(failure) if left.len() == before => return Err(failure),
            Some(_) => items = left,
        }
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file)
        .map_err(|error| Failure::new(Exit::NotFound, format!("{} cannot be read: {error}", file.display())))
}
