//! Folders of YAML files, read for the packer.

use compiler::pack::{self, PackError};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Folders deeper than this are not followed: a link may lead in a circle.
const MAX_DEPTH: usize = 20;

/// Why a folder cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// It cannot be read.
    #[error("{0} cannot be read: {1}")]
    Read(PathBuf, io::Error),
    /// Its files do not fit together.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// All files of a folder that take part in packing: path below it (with `/`) to text.
///
/// # Errors
/// A folder or file cannot be read, or is no UTF-8.
pub fn read_folder(root: &Path) -> Result<BTreeMap<String, String>, TreeError> {
    let mut files = BTreeMap::new();
    walk(root, "", 0, &mut files)?;
    Ok(files)
}

fn walk(
    folder: &Path,
    below: &str,
    depth: usize,
    files: &mut BTreeMap<String, String>,
) -> Result<(), TreeError> {
    let unreadable = |error| TreeError::Read(folder.to_owned(), error);
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let inner = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            if depth < MAX_DEPTH {
                walk(&path, &inner, depth + 1, files)?;
            }
        } else if pack::is_packed(&inner) {
            let text = fs::read_to_string(&path).map_err(|error| TreeError::Read(path.clone(), error))?;
            files.insert(inner, text);
        }
    }
    Ok(())
}

/// The folder as one YAML text. Includes are read below the folder only.
///
/// # Errors
/// See [`TreeError`].
pub fn pack_folder(root: &Path) -> Result<String, TreeError> {
    let files = read_folder(root)?;
    let include = |name: &str| {
        let inside = Path::new(name)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
        inside.then(|| fs::read_to_string(root.join(name)).ok()).flatten()
    };
    Ok(pack::pack(&files, &include)?)
}
