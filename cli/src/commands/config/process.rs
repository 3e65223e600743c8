//! `gantry config process`.

use super::{event, orbs, refuse, show, source};
use crate::{Exit, Failure, Global};
use clap::Args;
use compiler::Input;
use std::path::PathBuf;

pub(super) const HELP: &str = "Examples:\n  gantry config process > compiled.yml\n  gantry config process --branch release --param deploy=true --orb-dir ~/orbs";

#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// File; `-` reads standard input
    #[arg(default_value = source::DEFAULT)]
    file: PathBuf,
    #[command(flatten)]
    orbs: orbs::Options,
    #[command(flatten)]
    event: event::Options,
}

impl Arguments {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        let text = source::read(&self.file)?;
        let shown = self.file.display().to_string();
        let orbs = self.orbs.open()?;
        let parameters = self.event.parameters()?;
        let input = Input {
            values: self.event.values()?,
            parameters: &parameters,
            orbs: &orbs,
            ..Input::new(&shown, &text)
        };
        match compiler::compile(&input) {
            Ok(compiled) => {
                orbs.keep(&compiled.orbs)?;
                if global.json {
                    let document = serde_json::json!({
                        "valid": true,
                        "processed": compiled.processed,
                        "plan": compiled.plan,
                        "diagnostics": compiled.warnings,
                    });
                    println!("{document}");
                } else {
                    show(&compiled.warnings, &text);
                    print!("{}", compiled.processed);
                }
                Ok(Exit::Success)
            }
            Err(findings) => Ok(refuse(global, &findings, &text)),
        }
    }
}
