//! `gantry config process`.

use super::{refuse, show, subject::Subject};
use crate::{Exit, Failure, Global};
use clap::Args;

pub(super) const HELP: &str = "Examples:\n  gantry config process > compiled.yml\n  gantry config process --branch release --param deploy=true --orb-dir ~/orbs";

#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
}

impl Arguments {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        self.subject.read(global, |input, orbs, text| match compiler::compile(input) {
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
                    show(&compiled.warnings, text);
                    print!("{}", compiled.processed);
                }
                Ok(Exit::Success)
            }
            Err(findings) => Ok(refuse(global, &findings, text)),
        })
    }
}
