//! What a folder holds: names and versions, without reading a source.

use crate::tree::{self, TreeError};
use compiler::pack::PackError;
use compiler::{OrbError, OrbVersion, Published};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a source lies.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A packed file.
    File(PathBuf),
    /// A folder to pack.
    Tree(PathBuf),
}

impl Place {
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Tree(path) => path,
        }
    }

    /// The packed source.
    pub fn text(&self) -> Result<Arc<str>, OrbError> {
        let shown = self.path().display();
        let unavailable = |reason: String| OrbError::Unavailable(format!("{shown} cannot be used: {reason}"));
        match self {
            Self::File(path) => {
                fs::read_to_string(path).map(Arc::from).map_err(|error| unavailable(error.to_string()))
            }
            Self::Tree(path) => tree::pack_folder(path).map(Arc::from).map_err(|error| match error {
                // A tree without its scripts (a submodule that was not fetched) is no source.
                TreeError::Pack(missing @ PackError::MissingInclude { .. }) => {
                    OrbError::NotFound(Some(format!("{shown} is not complete: {missing}")))
                }
                error => unavailable(error.to_string()),
            }),
        }
    }
}

/// One orb's sources.
#[derive(Debug, Default)]
pub(crate) struct Orb {
    published: BTreeMap<Published, Place>,
    dev: BTreeMap<String, Place>,
    /// A source without a version, with its date: the newest one counts.
    newest: Option<(String, Place)>,
}

impl Orb {
    pub fn published(&self) -> impl Iterator<Item = Published> + '_ {
        self.published.keys().copied()
    }

    pub fn at(&self, version: Published) -> Option<&Place> {
        self.published.get(&version)
    }

    pub fn dev(&self, tag: &str) -> Option<&Place> {
        self.dev.get(tag)
    }

    pub fn newest(&self) -> Option<&Place> {
        self.newest.as_ref().map(|(_, place)| place)
    }

    /// What there is, for a message.
    pub fn versions(&self) -> String {
        let mut words: Vec<String> =
            self.published.keys().map(|(major, minor, patch)| format!("{major}.{minor}.{patch}")).collect();
        words.extend(self.dev.keys().map(|tag| format!("dev:{tag}")));
        if self.newest.is_some() {
            words.push("a source without a version".to_owned());
        }
        words.join(", ")
    }
}

/// All orbs of a folder.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    orbs: BTreeMap<String, Orb>,
}

/// A catalog file; everything else in it is passed over.
#[derive(Deserialize)]
struct CatalogFile {
    #[serde(default)]
    orbs: Vec<CatalogEntry>,
}

#[derive(Deserialize)]
struct CatalogEntry {
    orb: Option<String>,
    version: Option<String>,
    dir: Option<String>,
    root: Option<String>,
    date: Option<String>,
}

impl Catalog {
    pub fn of(root: &Path) -> io::Result<Self> {
        let mut catalog = Self::default();
        let mut trees = Vec::new();
        for entry in fs::read_dir(root)? {
            let path = entry?.path();
            let Some(folder) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
                continue;
            };
            if folder.starts_with('.') || !path.is_dir() {
                continue;
            }
            if folder.contains("__") {
                trees.push((folder, path));
            } else {
                catalog.plain(&folder, &path)?;
            }
        }
        if !trees.is_empty() && !catalog.listed(root)? {
            for (repository, path) in trees {
                catalog.unlisted(&repository, &path)?;
            }
        }
        Ok(catalog)
    }

    pub fn len(&self) -> usize {
        let sources = |orb: &Orb| orb.published.len() + orb.dev.len() + usize::from(orb.newest.is_some());
        self.orbs.values().map(sources).sum()
    }

    pub fn orb(&self, full: &str) -> Option<&Orb> {
        self.orbs.get(full)
    }

    /// An orb of the same name in another namespace, or the other way round.
    pub fn near(&self, full: &str) -> Option<&str> {
        let name = full.split_once('/').map(|(_, name)| name)?;
        self.orbs.keys().find(|key| key.ends_with(&format!("/{name}"))).map(String::as_str)
    }

    /// `namespace/name@version.yml`.
    fn plain(&mut self, namespace: &str, folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let Some(file) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let Some(stem) = file.strip_suffix(".yml").or_else(|| file.strip_suffix(".yaml")) else {
                continue;
            };
            let Some((name, version)) = stem.split_once('@') else { continue };
            let orb = format!("{namespace}/{name}");
            self.add(&orb, Some(version), String::new(), Place::File(path.clone()));
        }
        Ok(())
    }

    /// Reads the first catalog beside or above the folder; whether there is one.
    fn listed(&mut self, root: &Path) -> io::Result<bool> {
        let above = root.canonicalize()?.parent().map(Path::to_owned);
        for folder in std::iter::once(root.to_owned()).chain(above) {
            let mut files: Vec<PathBuf> = fs::read_dir(&folder)?
                .filter_map(|entry| entry.ok().map(|entry| entry.path()))
                .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
                .collect();
            files.sort();
            for file in files {
                let Ok(text) = fs::read_to_string(&file) else { continue };
                let Ok(found) = serde_json::from_str::<CatalogFile>(&text) else { continue };
                if found.orbs.is_empty() {
                    continue;
                }
                for entry in found.orbs {
                    self.entry(root, entry);
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn entry(&mut self, root: &Path, entry: CatalogEntry) {
        let (Some(orb), Some(dir)) = (entry.orb, entry.dir) else { return };
        // The catalog's paths may start above the folder: the last two parts are repository and commit.
        let parts: Vec<&str> = dir.split('/').filter(|part| !part.is_empty() && *part != "..").collect();
        let tail = &parts[parts.len().saturating_sub(2)..];
        let source = tail.iter().fold(root.to_owned(), |path, part| path.join(part));
        let inner = entry.root.unwrap_or_default();
        let inside = inner.split('/').filter(|part| !part.is_empty() && *part != "..");
        let source = inside.fold(source, |path, part| path.join(part));
        let place = if source.is_file() {
            Place::File(source)
        } else if source.is_dir() {
            Place::Tree(source)
        } else {
            // Listed only.
            return;
        };
        self.add(&orb, entry.version.as_deref(), entry.date.unwrap_or_default(), place);
    }

    /// A repository that no catalog names.
    fn unlisted(&mut self, repository: &str, folder: &Path) -> io::Result<()> {
        let Some(orb) = orb_of(repository) else { return Ok(()) };
        for entry in fs::read_dir(folder)? {
            let commit = entry?.path();
            let root = ["src", "", "orb/src"].iter().map(|inner| commit.join(inner));
            let tree = root.into_iter().find(|root| root.join("@orb.yml").is_file());
            let file = commit.join("orb.yml");
            let place = match tree {
                Some(tree) => Place::Tree(tree),
                None if file.is_file() => Place::File(file),
                None => continue,
            };
            let commit = commit.file_name().map(|name| name.to_string_lossy().into_owned());
            self.add(&orb, None, commit.unwrap_or_default(), place);
        }
        Ok(())
    }

    fn add(&mut self, full: &str, version: Option<&str>, date: String, place: Place) {
        let orb = self.orbs.entry(full.to_owned()).or_default();
        match version.map(str::parse) {
            Some(Ok(OrbVersion::Exact(major, minor, patch))) => {
                orb.published.entry((major, minor, patch)).or_insert(place);
            }
            Some(Ok(OrbVersion::Dev(tag))) => {
                orb.dev.entry(tag).or_insert(place);
            }
            None if orb.newest.as_ref().is_none_or(|(known, _)| *known < date) => {
                orb.newest = Some((date, place));
            }
            // A file name such as `node@5.yml` says no version that could be published.
            _ => {}
        }
    }
}

/// `CircleCI-Public__node-orb` → `circleci/node`.
fn orb_of(repository: &str) -> Option<String> {
    let (owner, name) = repository.split_once("__")?;
    let owner = owner.to_lowercase();
    let namespace = match owner.as_str() {
        "circleci-public" | "circleci" => "circleci",
        other => other,
    };
    let name = name.to_lowercase();
    let name = name.strip_prefix("orb-").unwrap_or(&name);
    let name = name.strip_suffix("-orb").unwrap_or(name);
    let name = name.strip_suffix("-circleci").unwrap_or(name);
    let name = name.strip_prefix("circleci-").unwrap_or(name);
    Some(format!("{namespace}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::orb_of;

    #[test]
    fn names_of_repositories() {
        assert_eq!(orb_of("CircleCI-Public__node-orb").as_deref(), Some("circleci/node"));
        assert_eq!(orb_of("codecov__codecov-circleci-orb").as_deref(), Some("codecov/codecov"));
        assert_eq!(orb_of("eddiewebb__circleci-queue").as_deref(), Some("eddiewebb/queue"));
        assert_eq!(orb_of("plain"), None);
    }
}
