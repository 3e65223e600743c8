//! `circleci tests glob|split|run` (execution §19): which tests a node runs.

mod split;

use crate::files::{
    glob::{self, Syntax},
    results::{RESULTS, Results},
};
use agent_api::stores::{FailedTests, Timings};
use clap::{Args, Parser, Subcommand, ValueEnum};
use split::{By, Weights};
use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Name of the file with timings in the folder of the task's data.
pub(crate) const TIMINGS: &str = "timings.json";
/// Name of the file with the failed tests in the same folder, where only those are to be run.
pub(crate) const FAILED: &str = "failed-tests.json";

#[derive(Debug, Parser)]
#[command(name = "circleci tests", disable_version_flag = true)]
struct Line {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Prints files that match patterns (`*`, `**`, `?`, `[…]`, `{a,b}`).
    Glob {
        /// Patterns, in quotes so that the shell leaves them alone.
        patterns: Vec<String>,
    },
    /// Prints the share of this node of the names in a file or on standard input.
    Split {
        #[command(flatten)]
        options: Options,
        /// File with names, separated by blanks or newlines.
        file: Option<PathBuf>,
    },
    /// Runs a command with the share of this node on its standard input.
    Run {
        #[command(flatten)]
        options: Options,
        /// The command, run by the shell.
        #[arg(long)]
        command: String,
        /// Print the command before it runs.
        #[arg(long)]
        verbose: bool,
        /// File with names; default standard input.
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Options {
    /// Index of this node.
    #[arg(long, env = "CIRCLE_NODE_INDEX", default_value_t = 0)]
    index: usize,
    /// How many nodes there are.
    #[arg(long, env = "CIRCLE_NODE_TOTAL", default_value_t = 1)]
    total: usize,
    /// What makes the shares equal.
    #[arg(long, value_enum, default_value_t = SplitBy::Name)]
    split_by: SplitBy,
    /// What the names are, when they are split by timings.
    #[arg(long, value_enum, default_value_t = TimingsType::Autodetect)]
    timings_type: TimingsType,
    /// Weight of a test without a timing, for example `10s`.
    #[arg(long, default_value = "0s")]
    time_default: String,
    /// JSON file with timings instead of those of earlier runs.
    #[arg(long)]
    timings_file: Option<PathBuf>,
    /// Print on standard error how many of how many names are printed.
    #[arg(long)]
    show_counts: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SplitBy {
    Name,
    Filesize,
    Timings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TimingsType {
    Autodetect,
    Classname,
    Filename,
    Testname,
}

/// Runs a command line after `tests`; answers the exit code.
pub(super) fn run(words: &[&str]) -> i32 {
    let line = match Line::try_parse_from(std::iter::once("circleci tests").chain(words.iter().copied())) {
        Ok(line) => line,
        Err(e) => {
            // Best effort: there is nobody else to tell.
            let _ = e.print();
            return e.exit_code();
        }
    };
    let done = match line.verb {
        Verb::Glob { patterns } => globbed(&patterns).map(|names| print(&names)),
        Verb::Split { options, file } => {
            given(file.as_deref()).and_then(|names| share(&options, names)).map(|names| print(&names))
        }
        Verb::Run { options, command, verbose, file } => given(file.as_deref())
            .and_then(only_failed)
            .and_then(|names| share(&options, names))
            .and_then(|names| feed(&names, &command, verbose)),
    };
    done.unwrap_or_else(|message| super::fail(&message))
}

fn print(names: &[String]) -> i32 {
    super::say(&names.iter().map(|name| format!("{name}\n")).collect::<String>())
}

fn globbed(patterns: &[String]) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for pattern in patterns {
        for path in glob::expand(Path::new("."), pattern, Syntax::Doublestar)? {
            let name = path.to_string_lossy().into_owned();
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    Ok(names)
}

/// Names from a file or standard input.
fn given(file: Option<&Path>) -> Result<Vec<String>, String> {
    let text = match file {
        Some(file) => std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?,
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| e.to_string())?;
            text
        }
    };
    let names: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if names.is_empty() {
        eprintln!("No test names found in input source");
    }
    Ok(names)
}

/// A file that the agent left for this command.
fn left(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("CIRCLE_INTERNAL_TASK_DATA")?;
    Some(Path::new(&folder).join(name)).filter(|path| path.exists())
}

/// The names that failed in the job before, when only those are to be run (execution §19).
fn only_failed(names: Vec<String>) -> Result<Vec<String>, String> {
    let Some(file) = left(FAILED) else { return Ok(names) };
    let failed: FailedTests = read(&file)?;
    let is_known = |name: &str| {
        failed.files.contains(name) || failed.classes.contains(name) || failed.tests.contains(name)
    };
    let again: Vec<String> =
        names.iter().filter(|name| is_known(name.strip_prefix("./").unwrap_or(name))).cloned().collect();
    if again.is_empty() {
        // Neither is the job green without a test, nor did what failed go away by itself.
        eprintln!("No failed test of the job before is among the names: all of them are run");
        return Ok(names);
    }
    eprintln!("Running {} of {} tests: those that failed before", again.len(), names.len());
    Ok(again)
}

/// The names of this node.
fn share(options: &Options, names: Vec<String>) -> Result<Vec<String>, String> {
    if options.total == 0 || options.index >= options.total {
        return Err(format!("index {} is not below total {}", options.index, options.total));
    }
    let by = match options.split_by {
        SplitBy::Name => By::Name,
        SplitBy::Filesize => By::Weight(Weights {
            of: names.iter().map(|name| std::fs::metadata(name).ok().map(|meta| meta.len())).collect(),
            default: 0,
        }),
        SplitBy::Timings => timed(options, &names)?,
    };
    let shares = split::split(&names, options.total, &by);
    let mine = shares.into_iter().nth(options.index).unwrap_or_default();
    if options.show_counts {
        eprintln!("Using {} of {} tests", mine.len(), names.len());
    }
    Ok(mine)
}

/// A file with timings.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Source {
    /// Of tests as they ran, which a job may keep for the next.
    Results(Results),
    /// Of names.
    Timings(Timings),
}

impl Source {
    fn timings(self) -> Timings {
        match self {
            Self::Results(results) => results.timings(),
            Self::Timings(timings) => timings,
        }
    }
}

/// Weights from earlier runs, or the fallback to names where there are none.
fn timed(options: &Options, names: &[String]) -> Result<By, String> {
    let default = humantime::parse_duration(&options.time_default)
        .map_err(|e| format!("--time-default {}: {e}", options.time_default))?;
    let timings = match &options.timings_file {
        Some(file) => read::<Source>(file)?.timings(),
        None => [TIMINGS, RESULTS]
            .iter()
            .filter_map(|name| Some(read::<Source>(&left(name)?).ok()?.timings()))
            .find(|timings| *timings != Timings::default())
            .unwrap_or_default(),
    };
    let known = |map: &std::collections::BTreeMap<String, u64>| {
        names.iter().map(|name| map.get(name.strip_prefix("./").unwrap_or(name)).copied()).collect::<Vec<_>>()
    };
    let hits = |of: &[Option<u64>]| of.iter().flatten().count();
    let of = match options.timings_type {
        TimingsType::Classname => known(&timings.classes),
        TimingsType::Filename => known(&timings.files),
        TimingsType::Testname => known(&timings.tests),
        TimingsType::Autodetect => {
            let (files, classes) = (known(&timings.files), known(&timings.classes));
            if hits(&files) == 0 && hits(&classes) == 0 {
                eprintln!("Error auto-detecting timing type, falling back to weighting by name.");
                return Ok(By::Name);
            }
            if hits(&files) >= hits(&classes) {
                eprintln!("Autodetected filename timings.");
                files
            } else {
                eprintln!("Autodetected classname timings.");
                classes
            }
        }
    };
    if hits(&of) == 0 {
        eprintln!("No timings found, falling back to weighting by name.");
        return Ok(By::Name);
    }
    for (name, _) in names.iter().zip(&of).filter(|(_, known)| known.is_none()) {
        eprintln!("No timing found for \"{name}\"");
    }
    Ok(By::Weight(Weights { of, default: u64::try_from(default.as_millis()).unwrap_or(u64::MAX) }))
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T, String> {
    let text = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", file.display()))
}

/// Runs the command with the names on its standard input; nothing to run is no error.
fn feed(names: &[String], command: &str, verbose: bool) -> Result<i32, String> {
    if names.is_empty() {
        return Ok(0);
    }
    if verbose {
        eprintln!("{command}");
    }
    let failed = |e: std::io::Error| format!("the command cannot be run: {e}");
    let mut child =
        Command::new("/bin/sh").arg("-c").arg(command).stdin(Stdio::piped()).spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that reads less than all is free to.
        let _ = stdin.write_all(format!("{}\n", names.join("\n")).as_bytes());
    }
    let status = child.wait().map_err(failed)?;
    Ok(status
        .code()
        .unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or_default()))
}
