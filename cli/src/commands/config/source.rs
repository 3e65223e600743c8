//! Files of a command: one, many, or those of a folder.

use crate::{Exit, Failure};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where a configuration lies when nothing else is said.
pub(super) const DEFAULT: &str = ".circleci/config.yml";

/// Folders deeper than this are not followed: a link may lead in a circle.
const MAX_DEPTH: usize = 24;

/// The text of a file, or of standard input for `-`.
pub(super) fn read(file: &Path) -> Result<String, Failure> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(file)
    };
    text.map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Invalid };
        Failure::new(exit, format!("{} cannot be read: {error}", file.display()))
    })
}

/// A file to look at.
pub(super) struct Found {
    pub path: PathBuf,
    /// Whether it was found in a folder; then it may be something else than a configuration.
    pub in_folder: bool,
}

/// The files that are meant: those of a folder are its YAML files, or only those in `.circleci` folders where
/// there are any.
pub(super) fn files(paths: &[PathBuf]) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            found.push(Found { path: path.clone(), in_folder: false });
            continue;
        }
        let mut inside = Vec::new();
        walk(path, 0, &mut inside)?;
        inside.sort();
        let is_config = |path: &&PathBuf| path.iter().any(|part| part == ".circleci");
        if inside.iter().any(|path| is_config(&path)) {
            inside.retain(|path| is_config(&path));
        }
        found.extend(inside.into_iter().map(|path| Found { path, in_folder: true }));
    }
    Ok(found)
}

fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::new(Exit::NotFound, format!("{} cannot be listed: {error}", folder.display()))
    };
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            let hidden = name.starts_with('.') && name != ".circleci";
            if !hidden && name != "node_modules" && depth < MAX_DEPTH {
                walk(&path, depth + 1, found)?;
            }
        } else if name.ends_with(".yml") || name.ends_with(".yaml") {
            found.push(path);
        }
    }
    Ok(())
}
