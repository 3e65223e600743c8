//! The reference pages that are made from the program itself, so that they cannot say anything else.

use crate::{
    command::{Completion, tree},
    config::Config,
};
use std::fmt::Write;

/// All commands as Markdown.
pub fn commands() -> String {
    let mut page = String::from(
        "# Command line\n\nMade from the program by `GANTRY_UPDATE_DOCS=1 cargo test --profile ci -p gantry-server --test reference`.\n\n\
         Every command takes `--json`, `--server`, `--token`, `--ca-file`, `--data` and `--project`. Topics: `gantry help`.\n",
    );
    let mut root = tree();
    root.build();
    describe(&root, &mut page);
    let _ = writeln!(page, "\nShells with completions: {}.", Completion::shells().join(", "));
    page
}

fn describe(command: &clap::Command, page: &mut String) {
    for found in command.get_subcommands().filter(|found| found.get_name() != "help") {
        if found.has_subcommands() {
            describe(found, page);
            continue;
        }
        let name = found.get_bin_name().unwrap_or(found.get_name());
        let about = found.get_about().map(ToString::to_string).unwrap_or_default();
        let usage = found.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ").replace("[OPTIONS]", "…");
        let _ = writeln!(page, "\n## {name}\n\n{about}.\n\n```\n{usage}\n```");
        let own =
            found.get_arguments().filter(|argument| !argument.is_global_set() && !argument.is_hide_set());
        let lines: Vec<String> = own.filter(|argument| argument.get_id() != "help").map(argument).collect();
        if !lines.is_empty() {
            let _ = writeln!(page, "\n| argument | meaning | default |\n|---|---|---|\n{}", lines.join("\n"));
        }
        if let Some(more) = found.get_after_help() {
            let _ = writeln!(page, "\n```\n{}\n```", more.to_string().trim());
        }
    }
}

fn argument(argument: &clap::Arg) -> String {
    let name = match argument.get_long() {
        Some(long) => format!("--{long}"),
        None => argument.get_id().as_str().to_uppercase(),
    };
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let default: Vec<String> =
        argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    format!("| `{name}` | {} | {} |", help.replace('|', "\\|"), default.join(" "))
}

/// All configuration keys as Markdown; the texts are the doc comments of [`Config`]'s parts.
pub fn configuration() -> String {
    let mut page = String::from(
        "# Configuration\n\nOne TOML file. Environment variables `GANTRY_<SECTION>_<KEY>` go over it, `…_FILE` names a file that holds the value.\n\
         `gantry serve --print-config` shows every value and where it came from. An unknown key is an error.\n\n\
         Made from the program by `GANTRY_UPDATE_DOCS=1 cargo test --profile ci -p gantry-server --test reference`.\n",
    );
    let known = toml::Table::try_from(Config::default()).unwrap_or_default();
    for (section, keys) in &known {
        let toml::Value::Table(keys) = keys else { continue };
        let Some((kind, about)) = field("Config", section) else { continue };
        let _ = writeln!(page, "\n## [{section}]\n");
        if keys.is_empty() {
            let _ = writeln!(page, "{about} Its keys are names that you choose.");
            continue;
        }
        let _ = writeln!(page, "| key | default | meaning |\n|---|---|---|");
        rows(&kind, "", keys, &mut page);
    }
    page
}

/// A row per key; a section in a section has its keys with a dot.
fn rows(kind: &str, prefix: &str, keys: &toml::Table, page: &mut String) {
    for (key, default) in keys {
        let (inner, meaning) = field(kind, key).unwrap_or_default();
        match default {
            toml::Value::Table(keys) => rows(&inner, &format!("{prefix}{key}."), keys, page),
            _ => {
                let _ = writeln!(page, "| `{prefix}{key}` | `{default}` | {} |", meaning.replace('|', "\\|"));
            }
        }
    }
}

/// Where the sections of the configuration are.
const SOURCES: [&str; 6] = [
    include_str!("config.rs"),
    include_str!("config/adapters.rs"),
    include_str!("config/dispatcher.rs"),
    include_str!("config/executors.rs"),
    include_str!("config/kept.rs"),
    include_str!("config/server.rs"),
];

/// Type and doc comment of a field of the configuration, out of the source.
fn field(kind: &str, key: &str) -> Option<(String, String)> {
    let body = SOURCES.into_iter().find_map(|source| body_of(source, kind))?;
    let mut comment = Vec::new();
    for line in body.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim());
        } else if let Some(kind) = line.strip_prefix(&format!("pub {key}: ")) {
            return Some((kind.trim_end_matches(',').to_owned(), comment.join(" ")));
        } else if line.starts_with("pub ") {
            comment.clear();
        }
    }
    None
}

fn body_of<'s>(source: &'s str, kind: &str) -> Option<&'s str> {
    let begin = source.find(&format!("pub struct {kind} {{"))?;
    let end = source[begin..].find("\n}")?;
    Some(&source[begin..begin + end])
}
