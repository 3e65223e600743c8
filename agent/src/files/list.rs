//! Which files a step means.

use super::{go_error, results};
use agent_api::stores::{MAX_PARTS, PART};
use archive::Source;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Component, Path, PathBuf},
};

/// A file to be uploaded as an artifact.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Artifact {
    /// Where it is.
    pub(crate) source: PathBuf,
    /// Its path in the list of artifacts.
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
    /// SHA-256 (hex).
    pub(crate) sha256: String,
    /// The same of each of its parts, if it can go in several.
    pub(crate) parts: Vec<String>,
}

/// A file that may hold test results.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Why it is not one.
    pub(crate) problem: Option<String>,
}

/// Most files of one step: one more than a job may store, so that it is refused with its limit.
const MAX_FILES: usize = 5_001;
/// Most tests of one report, bytes of one, and reports of one step.
const MAX_TESTS: usize = 1_000_000;
const MAX_REPORT: u64 = 500 << 20;
const MAX_REPORTS: usize = 5_000;

/// Files below a path, sorted; links to files count as files, links to folders are not walked.
fn files_below(path: &Path, hidden: bool, limit: usize) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    let mut todo = vec![path.to_owned()];
    while let Some(folder) = todo.pop() {
        let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {}", folder.display(), go_error(&e)))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                if hidden || !entry.file_name().to_string_lossy().starts_with('.') {
                    todo.push(path);
                }
            } else if kind.is_file() || (kind.is_symlink() && path.is_file()) {
                files.push(path);
                if files.len() > limit {
                    return Err(format!("more than {limit} files"));
                }
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The artifact path of a source that the author gave no destination (execution §17): as it is written, with the home
/// folder as `~`, without a leading slash.
fn default_name(written: &str, path: &Path, home: &Path) -> String {
    if let Ok(below) = path.strip_prefix(home)
        && (written.starts_with('~') || Path::new(written).is_absolute())
    {
        return clean(&Path::new("~").join(below));
    }
    clean(Path::new(if Path::new(written).is_relative() { written } else { written.trim_start_matches('/') }))
}

/// Without `.` and `..`, which no list of artifacts has.
fn clean(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join("/")
}

pub(super) fn artifacts(
    path: &Path,
    written: &str,
    destination: Option<&str>,
    home: &Path,
) -> Result<Vec<Artifact>, String> {
    let Ok(meta) = fs::metadata(path) else { return Ok(Vec::new()) };
    let mut named = Vec::new();
    if meta.is_dir() {
        let base = destination.map_or_else(|| default_name(written, path, home), |to| clean(Path::new(to)));
        for source in files_below(path, true, MAX_FILES)? {
            let below = source.strip_prefix(path).unwrap_or(&source);
            let name = clean(&Path::new(&base).join(below));
            named.push((source, name));
        }
    } else if meta.is_file() {
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let name = match destination {
            Some(to) if to.ends_with('/') || clean(Path::new(to)).is_empty() => {
                clean(&Path::new(to).join(&file))
            }
            Some(to) => clean(Path::new(to)),
            None => default_name(written, path, home),
        };
        named.push((path.to_owned(), name));
    }
    let artifacts = named.into_iter().map(|(source, name)| {
        let size =
            fs::metadata(&source).map_err(|e| format!("{}: {}", source.display(), go_error(&e)))?.len();
        // Most files are one part, and are hashed once.
        let several = size > PART && size.div_ceil(PART) <= MAX_PARTS as u64;
        let (sha256, parts) =
            if several { super::checksums(&source)? } else { (super::checksum(&source)?, Vec::new()) };
        Ok(Artifact { source, name, size, sha256, parts })
    });
    artifacts.collect()
}

/// JUnit files and what is wrong with those that are none; the good ones are to be packed.
pub(super) fn reports(path: &Path) -> Result<(Vec<Report>, Vec<Source>), String> {
    let meta = fs::metadata(path)
        .map_err(|e| format!("Unable to save test results: stat {}: {}", path.display(), go_error(&e)))?;
    let files = if meta.is_dir() {
        let mut files = files_below(path, false, usize::MAX)?;
        files.retain(|file| file.extension().is_some_and(|end| end.eq_ignore_ascii_case("xml")));
        files
    } else {
        vec![path.to_owned()]
    };
    if files.len() > MAX_REPORTS {
        return Err(format!("more than {MAX_REPORTS} files of test results"));
    }
    let (mut reports, mut sources) = (Vec::new(), Vec::new());
    // For scripts of the job: what is kept of it elsewhere does not depend on it.
    let data = std::env::var_os("CIRCLE_INTERNAL_TASK_DATA");
    let mut results = data.and_then(|data| results::Writer::new(Path::new(&data)).ok());
    let mut total = 0;
    for file in files {
        total += fs::metadata(&file).map_or(0, |meta| meta.len());
        if total > MAX_REPORT {
            return Err(format!("the test results have more than {MAX_REPORT} bytes"));
        }
        let read = fs::read(&file).map_err(|e| go_error(&e));
        let parsed = read.and_then(|text| junit::parse(&text, MAX_TESTS).map_err(|e| e.to_string()));
        if let Ok(cases) = &parsed {
            if results.as_mut().is_some_and(|writer| writer.add(cases).is_err()) {
                results = None;
            }
            let name = PathBuf::from(sources.len().to_string());
            sources.push(Source { name, path: fs::canonicalize(&file).unwrap_or_else(|_| file.clone()) });
        }
        reports.push(Report { path: file, problem: parsed.err() });
    }
    // A disk that is full ends other steps.
    let _ = results.map(results::Writer::end);
    Ok((reports, sources))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_are_named_after_destination_or_source() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        fs::create_dir_all(home.join("project/out/deep")).unwrap();
        fs::write(home.join("project/out/a.txt"), "a").unwrap();
        fs::write(home.join("project/out/deep/b.txt"), "b").unwrap();
        let names = |path: &str, written: &str, to: Option<&str>| {
            let found = artifacts(&home.join(path), written, to, &home).unwrap();
            found.into_iter().map(|artifact| artifact.name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names("project/out", "out", None), "out/a.txt out/deep/b.txt");
        assert_eq!(names("project/out", "./out/", Some("x")), "x/a.txt x/deep/b.txt");
        assert_eq!(names("project/out", ".", Some("")), "a.txt deep/b.txt");
        assert_eq!(
            names("project/out", "~/project/out", None),
            "~/project/out/a.txt ~/project/out/deep/b.txt"
        );
        assert_eq!(names("project/out/a.txt", "out/a.txt", None), "out/a.txt");
        assert_eq!(names("project/out/a.txt", "out/a.txt", Some("x")), "x");
        assert_eq!(names("project/out/a.txt", "out/a.txt", Some("x/")), "x/a.txt");
        assert_eq!(names("project/out/a.txt", "out/a.txt", Some("../../etc/x")), "etc/x");
        assert_eq!(names("project/none", "none", None), "");
        let outside = folder.path().join("tmp.txt");
        fs::write(&outside, "c").unwrap();
        let found = artifacts(&outside, &outside.display().to_string(), None, &home).unwrap();
        assert_eq!(found[0].name, outside.display().to_string().trim_start_matches('/'));
    }
}
