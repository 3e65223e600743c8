//! `docs/reference/config-coverage.md`: which test holds which section of the language's reference.
//!
//! A case of `tests/rules` names its section; a test names those it is about in its doc comment (`§5.3`), a file
//! of `tests/good`, `tests/bad` or `tests/samples` in a comment. `UPDATE_GOLDEN=1` writes the page anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

#[path = "support/rules.rs"]
mod rules;

/// Sections of the reference, in its order. Those that state no rule for a compiler are not listed.
const SECTIONS: &[(&str, &str)] = &[
    ("1", "File, YAML and document rules"),
    ("2", "Names and identifiers"),
    ("3", "Top-level keys"),
    ("4", "Parameters"),
    ("4.1", "Declaration"),
    ("4.2", "Types"),
    ("4.3", "Pipeline parameters"),
    ("4.4", "Scope"),
    ("5", "Interpolation"),
    ("5.1", "Syntax"),
    ("5.2", "Where it applies"),
    ("5.3", "Type preservation"),
    ("5.4", "Rendering to text"),
    ("5.5", "Errors"),
    ("6", "Expressions"),
    ("6.1", "Where allowed"),
    ("6.2", "Lexical grammar"),
    ("6.3", "Grammar"),
    ("6.4", "Semantics"),
    ("6.5", "Errors"),
    ("7", "Logic statements"),
    ("8", "Commands"),
    ("9", "Executors"),
    ("10", "Jobs"),
    ("10.1", "Keys"),
    ("10.2", "Job types"),
    ("11", "Executor kinds, images, resource classes"),
    ("11.1", "docker"),
    ("11.3", "machine"),
    ("11.4", "macos"),
    ("12", "Steps"),
    ("12.1", "run"),
    ("12.2", "checkout"),
    ("12.3", "setup_remote_docker"),
    ("12.4", "save_cache"),
    ("12.5", "restore_cache"),
    ("12.6", "store_artifacts"),
    ("12.7", "store_test_results"),
    ("12.8", "persist_to_workspace"),
    ("12.9", "attach_workspace"),
    ("12.10", "add_ssh_keys"),
    ("12.11", "deploy"),
    ("12.12", "when and unless steps"),
    ("12.13", "steps step"),
    ("13", "Workflows"),
    ("13.1", "Schedules"),
    ("14", "Job invocations in a workflow"),
    ("15", "Filters"),
    ("15.1", "Map form"),
    ("15.2", "Expression form"),
    ("15.3", "Deprecated job-level branches"),
    ("16", "Matrix"),
    ("17", "Job groups and serial groups"),
    ("17.1", "Job groups"),
    ("17.2", "Serial groups"),
    ("18", "Orbs"),
    ("18.1", "References"),
    ("18.2", "Registry orb semantics"),
    ("18.3", "Inline orbs"),
    ("18.4", "URL orbs"),
    ("19", "Setup workflows and continuation"),
    ("20", "Pipeline values"),
    ("21", "Compilation"),
    ("22", "Compiled form"),
    ("23", "Naming of compiled jobs"),
    ("24", "Configuration version 2"),
    ("25", "Errors"),
    ("27", "Config packing"),
    ("28", "Limits"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(root().join(folder)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|own| own == extension));
    paths.sort();
    paths
}

/// The sections that a comment names.
fn named(comment: &str) -> Vec<String> {
    let number = |part: &str| {
        let end = part.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(part.len());
        part[..end].trim_end_matches('.').to_owned()
    };
    comment.split('§').skip(1).map(number).filter(|section| !section.is_empty()).collect()
}

/// Section to the tests that hold it.
fn coverage() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut put = |section: &str, test: String| {
        found.entry(section.to_owned()).or_default().insert(test);
    };
    for case in rules::cases() {
        put(&case.section, format!("rule: {}", case.name));
    }
    for folder in ["src", "tests"] {
        for path in files(folder, "rs") {
            let text = std::fs::read_to_string(&path).expect("source");
            let file = path.file_name().and_then(|name| name.to_str()).expect("name").to_owned();
            let (mut comment, mut is_test) = (String::new(), false);
            for line in text.lines().map(str::trim) {
                if let Some(more) = line.strip_prefix("///") {
                    comment.push_str(more);
                } else if line == "#[test]" {
                    is_test = true;
                } else if let Some(name) = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next()) {
                    if is_test {
                        named(&comment)
                            .iter()
                            .for_each(|section| put(section, format!("{folder}/{file}: {name}")));
                    }
                    (comment, is_test) = (String::new(), false);
                } else if !line.starts_with("#[") {
                    comment.clear();
                    is_test = false;
                }
            }
        }
    }
    for folder in ["tests/good", "tests/bad", "tests/samples"] {
        for path in files(folder, "yml") {
            let text = std::fs::read_to_string(&path).expect("yaml");
            let file = path.file_name().and_then(|name| name.to_str()).expect("name").to_owned();
            let comments = text.lines().filter_map(|line| line.split_once('#').map(|(_, comment)| comment));
            comments.flat_map(named).for_each(|section| put(&section, format!("{folder}/{file}")));
        }
    }
    found
}

fn page(coverage: &BTreeMap<String, BTreeSet<String>>) -> String {
    let mut out = String::from(
        "# What tests hold of the configuration language\n\nWritten by `UPDATE_GOLDEN=1 cargo test --profile ci -p gantry-compiler --test coverage`; a test fails when it is stale.\nRules are cases of `libs/compiler/tests/rules`.\n",
    );
    for (section, title) in SECTIONS {
        let _ = writeln!(out, "\n{} {section} {title}\n", if section.contains('.') { "###" } else { "##" });
        let tests = coverage.get(*section);
        for test in tests.into_iter().flatten() {
            let _ = writeln!(out, "- {test}");
        }
        let prefix = format!("{section}.");
        let below = SECTIONS.iter().any(|(other, _)| other.starts_with(&prefix));
        if tests.is_none() && below {
            out.push_str("See the parts below.\n");
        }
    }
    out
}

#[test]
fn the_page_is_fresh_and_every_section_has_a_test() {
    let coverage = coverage();
    let missing: Vec<&str> = SECTIONS
        .iter()
        .map(|(section, _)| *section)
        .filter(|section| {
            let prefix = format!("{section}.");
            !coverage.keys().any(|own| own == section || own.starts_with(&prefix))
        })
        .collect();
    assert!(missing.is_empty(), "no test names these sections: {missing:?}");
    let unknown: Vec<&String> =
        coverage.keys().filter(|own| !SECTIONS.iter().any(|(section, _)| section == own)).collect();
    println!("sections outside the list: {unknown:?}");
    let path = root().join("../../docs/reference/config-coverage.md");
    let fresh = page(&coverage);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, fresh).expect("write the page");
        return;
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == fresh, "docs/reference/config-coverage.md is stale: run with UPDATE_GOLDEN=1");
}
