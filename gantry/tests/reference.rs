//! The reference pages say what the program says.

use gantry_server::{command, reference};
use std::{env, fs, path::PathBuf};

fn page(name: &str, wanted: &str) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/reference").join(name);
    // A page that is not there yet is made; one that is there must be fresh.
    if env::var_os("GANTRY_UPDATE_DOCS").is_some() || !file.exists() {
        fs::write(&file, wanted).unwrap();
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/reference/{name} is out of date; make it again with GANTRY_UPDATE_DOCS=1 cargo test --profile ci -p gantry-server --test reference"
    );
}

#[test]
fn the_commands_page_is_fresh() {
    page("cli.md", &reference::commands());
}

#[test]
fn the_configuration_page_is_fresh_and_explains_every_key() {
    let wanted = reference::configuration();
    for line in wanted.lines().filter(|line| line.starts_with("| `")) {
        assert!(!line.ends_with("|  |"), "a key without a doc comment: {line}");
    }
    page("config.md", &wanted);
}

#[test]
fn every_command_has_a_purpose_examples_and_exit_codes() {
    fn walk(command: &clap::Command, path: &str, missing: &mut Vec<String>) {
        for found in command.get_subcommands() {
            let path = format!("{path} {}", found.get_name());
            if found.get_about().is_none() {
                missing.push(format!("{path}: no purpose"));
            }
            if found.has_subcommands() {
                walk(found, &path, missing);
                continue;
            }
            let more = found.get_after_help().map(ToString::to_string).unwrap_or_default();
            if more.matches("\n  gantry").count() < 2 {
                missing.push(format!("{path}: fewer than two examples"));
            }
            if !more.contains("Exit") {
                missing.push(format!("{path}: no exit codes"));
            }
            for example in more.lines().filter_map(|line| line.strip_prefix("  gantry ")) {
                let parsed = command::tree()
                    .try_get_matches_from(std::iter::once("gantry".to_owned()).chain(words(example)));
                if let Err(error) = parsed
                    && error.use_stderr()
                {
                    missing.push(format!("{path}: the example does not parse: {example}: {error}"));
                }
            }
        }
    }
    let mut tree = command::tree();
    tree.build();
    let mut missing = Vec::new();
    walk(&tree, "gantry", &mut missing);
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// The words of an example as a shell would see them, up to a pipe, a redirection or the text that explains it.
fn words(example: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut rest = example.chars().peekable();
    while let Some(letter) = rest.next() {
        match (letter, quote) {
            ('"' | '\'', None) => quote = Some(letter),
            (_, Some(open)) if letter == open => quote = None,
            (' ', None) if rest.peek() == Some(&' ') => break,
            ('|' | '<' | '>', None) => break,
            (' ', None) => words.push(std::mem::take(&mut word)),
            _ => word.push(letter),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}
