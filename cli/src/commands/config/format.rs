//! `gantry config format`.

use super::{refuse, source};
use crate::{Exit, Failure, Global};
use clap::Args;
use compiler::format::{FormatError, format};
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const HELP: &str = "Examples:\n  gantry config format                     rewrite .circleci/config.yml\n  gantry config format --check .           exit 7 when a file of the folder is laid out otherwise\n  gantry config format - < a.yml > b.yml";

#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Files or folders; `-` reads standard input and prints
    #[arg(default_value = source::DEFAULT)]
    paths: Vec<PathBuf>,
    /// Change nothing; say which files would change, and exit with 7
    #[arg(long)]
    check: bool,
    /// Print the result instead of writing it
    #[arg(long, conflicts_with = "check")]
    stdout: bool,
}

impl Arguments {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        let mut exit = Exit::Success;
        for found in source::files(&self.paths)? {
            let text = source::read(&found.path)?;
            let shown = found.path.display().to_string();
            match format(&shown, &text) {
                Ok(formatted) if self.stdout || found.path == Path::new("-") => print!("{formatted}"),
                Ok(formatted) if formatted == text => {}
                Ok(_) if self.check => {
                    println!("{shown}");
                    exit = Exit::Invalid;
                }
                Ok(formatted) => {
                    let failed =
                        |error| Failure::new(Exit::Failed, format!("{shown} cannot be written: {error}"));
                    fs::write(&found.path, formatted).map_err(failed)?;
                    eprintln!("Formatted {shown}.");
                }
                Err(FormatError::Broken(findings)) => exit = refuse(global, &findings, &text),
                Err(error @ FormatError::Unknown) => {
                    anstream::eprintln!("gantry: {shown}: {error}");
                    exit = Exit::Invalid;
                }
            }
        }
        Ok(exit)
    }
}
