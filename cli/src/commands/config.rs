//! `gantry config`: checks a configuration offline.

use crate::{Exit, Failure, Global};
use clap::Subcommand;
use compiler::{Compiled, Diagnostic, Input, PipelineValues};
use serde_json::{Value, json};
use std::{fs, io::IsTerminal, path::PathBuf};

/// `gantry config …`
#[derive(Subcommand, Debug)]
pub enum Config {
    /// Check files; exits 0 or 7
    Validate {
        /// Files; default `.circleci/config.yml`
        #[arg(default_value = ".circleci/config.yml")]
        files: Vec<PathBuf>,
        /// Folder of orbs; accepted for scripts, orbs from a registry are not supported yet
        #[arg(long)]
        orb_dir: Option<PathBuf>,
    },
    /// Print the compiled form
    Process {
        /// File; default `.circleci/config.yml`
        #[arg(default_value = ".circleci/config.yml")]
        file: PathBuf,
    },
}

fn compile(source: &str, shown: &str) -> Result<Compiled, Vec<Diagnostic>> {
    compiler::compile(&Input {
        values: PipelineValues { branch: Some("main".to_owned()), ..PipelineValues::default() },
        ..Input::new(shown, source)
    })
}

impl Config {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        match self {
            Self::Validate { files, orb_dir: _ } => validate(global, &files),
            Self::Process { file } => {
                let source = read(&file)?;
                let shown = file.display().to_string();
                match compile(&source, &shown) {
                    Ok(compiled) => {
                        print!("{}", compiled.processed);
                        Ok(Exit::Success)
                    }
                    Err(diagnostics) => {
                        show(&diagnostics, &source);
                        Ok(Exit::Invalid)
                    }
                }
            }
        }
    }
}

fn validate(global: &Global, files: &[PathBuf]) -> Result<Exit, Failure> {
    let mut all = Vec::new();
    let mut valid = true;
    for file in files {
        let source = read(file)?;
        let shown = file.display().to_string();
        let found = match compile(&source, &shown) {
            Ok(compiled) => compiled.warnings,
            Err(diagnostics) => {
                valid = false;
                diagnostics
            }
        };
        if global.json {
            all.extend(found.iter().filter_map(|diagnostic| serde_json::to_value(diagnostic).ok()));
        } else {
            show(&found, &source);
        }
    }
    if global.json {
        println!("{}", json!({ "valid": valid, "diagnostics": Value::Array(all) }));
    } else if valid {
        eprintln!("Config is valid.");
    }
    Ok(if valid { Exit::Success } else { Exit::Invalid })
}

fn show(diagnostics: &[Diagnostic], source: &str) {
    let color = std::io::stderr().is_terminal();
    for diagnostic in diagnostics {
        anstream::eprintln!("{}\n", diagnostic.render(source, color));
    }
}

fn read(file: &PathBuf) -> Result<String, Failure> {
    fs::read_to_string(file)
        .map_err(|error| Failure::new(Exit::NotFound, format!("{} cannot be read: {error}", file.display())))
}
