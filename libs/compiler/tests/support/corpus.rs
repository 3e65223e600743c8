//! The corpus of public configurations, where it lies beside this repository or at `GANTRY_CORPUS`.

use orb_folder::OrbFolder;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// A file of the corpus and what it is.
pub struct File {
    /// Path below the corpus.
    pub path: String,
    pub text: String,
    pub kind: String,
    /// What the page says that shows it; real configurations have none.
    #[allow(dead_code, reason = "not every test that shares this module needs it")]
    pub expect: Option<String>,
}

pub struct Corpus {
    pub files: Vec<File>,
    pub orbs: OrbFolder,
}

#[derive(Deserialize)]
struct Index {
    configs: Vec<Snapshot>,
    orbs: Vec<Snapshot>,
    testdata: Vec<Snapshot>,
}

#[derive(Deserialize)]
struct Snapshot {
    #[serde(default)]
    dir: String,
    #[serde(default = "yes")]
    saved: bool,
    #[serde(default)]
    files: Vec<Listed>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
struct Listed {
    path: String,
    /// Where it is kept, if not at its path: blocks of documentation pages.
    #[serde(rename = "as")]
    kept: Option<String>,
    kind: String,
    #[serde(default)]
    expect: Option<String>,
}

fn root() -> PathBuf {
    match std::env::var_os("GANTRY_CORPUS") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus"),
    }
}

impl Corpus {
    /// `None`, said on standard error, where there is no corpus.
    pub fn open() -> Option<Self> {
        let root = root();
        let Ok(text) = std::fs::read_to_string(root.join("index.json")) else {
            eprintln!("SKIPPED: there is no corpus at {}; set GANTRY_CORPUS to its folder", root.display());
            return None;
        };
        let index: Index = serde_json::from_str(&text).expect("index.json");
        let mut files = Vec::new();
        for snapshot in index.configs.into_iter().chain(index.orbs).chain(index.testdata) {
            for file in snapshot.files.into_iter().filter(|_| snapshot.saved) {
                let path = format!("{}/{}", snapshot.dir, file.kept.as_ref().unwrap_or(&file.path));
                // Some are listed and not kept.
                let Ok(text) = std::fs::read_to_string(root.join(&path)) else { continue };
                let (kind, expect) = (file.kind, file.expect);
                files.push(File { path, text, kind, expect });
            }
        }
        assert!(files.len() > 500, "the corpus has {} files only", files.len());
        let orbs = OrbFolder::open(&root.join("orbs")).expect("orbs of the corpus");
        Some(Self { files, orbs })
    }

    /// Whole configurations.
    #[allow(dead_code, reason = "not every test that shares this module needs it")]
    pub fn configs(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| matches!(file.kind.as_str(), "config" | "setup"))
    }
}
