//! `gantry config diff`.

use super::{event, orbs, refuse, source};
use crate::{Exit, Failure, Global};
use clap::Args;
use compiler::Input;
use compiler::diff::diff;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) const HELP: &str = "Examples:\n  gantry config diff old.yml new.yml\n  gantry config diff main                  the file of a git revision against the one of this folder\n  gantry config diff main --json\n\nExits with 0 when both mean the same, 1 when they differ, 7 when one of them is invalid.";

#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// A file, or a git revision that has the second file
    before: String,
    /// A file
    #[arg(default_value = source::DEFAULT)]
    after: PathBuf,
    #[command(flatten)]
    orbs: orbs::Options,
    #[command(flatten)]
    event: event::Options,
}

impl Arguments {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        let before = self.text_before()?;
        let after = (self.after.display().to_string(), source::read(&self.after)?);
        let orbs = self.orbs.open(global)?;
        let (values, parameters) = (self.event.values()?, self.event.parameters()?);
        let mut plans = Vec::new();
        for (shown, text) in [&before, &after] {
            let input = Input {
                values: values.clone(),
                parameters: &parameters,
                orbs: &orbs,
                ..Input::new(shown, text)
            };
            match compiler::compile(&input) {
                Ok(compiled) => plans.push(compiled.plan),
                Err(findings) => return Ok(refuse(global, &findings, text)),
            }
        }
        let [before, after] = plans.as_slice() else { return Ok(Exit::Failed) };
        let changes = diff(before, after);
        if global.json {
            println!("{}", serde_json::json!({ "changes": changes }));
        } else {
            changes.iter().for_each(|change| println!("{}", change.line()));
            if changes.is_empty() {
                eprintln!("Both mean the same.");
            }
        }
        Ok(if changes.is_empty() { Exit::Success } else { Exit::Failed })
    }

    fn text_before(&self) -> Result<(String, String), Failure> {
        let path = Path::new(&self.before);
        if path.exists() || self.before == "-" {
            return Ok((self.before.clone(), source::read(path)?));
        }
        // The path in `REV:./path` is taken from the present folder.
        let object = match self.before.split_once(':') {
            Some(_) => self.before.clone(),
            None => format!("{}:./{}", self.before, self.after.display()),
        };
        let output = Command::new("git").args(["show", "--end-of-options", &object]).output();
        match output {
            Ok(output) if output.status.success() => {
                Ok((object, String::from_utf8_lossy(&output.stdout).into_owned()))
            }
            _ => Err(Failure::new(
                Exit::NotFound,
                format!(
                    "`{}` is neither a file nor a git revision that has {}",
                    self.before,
                    self.after.display()
                ),
            )),
        }
    }
}
