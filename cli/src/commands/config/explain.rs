//! `gantry config explain`.

use super::{refuse, subject::Subject};
use crate::{Exit, Failure, Global};
use clap::Args;
use compiler::explain::{ExplainError, Explanation, Place, explain};

pub(super) const HELP: &str = "Examples:\n  gantry config explain 'jobs.build.steps[2].run.command'\n  gantry config explain jobs.build.docker --json\n  gantry config explain workflows.main.jobs.deploy.requires";

#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Path of a value in the compiled form, as `gantry config process` prints it
    path: String,
    #[command(flatten)]
    subject: Subject,
}

impl Arguments {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        self.subject.read(global, |input, _, text| {
            match explain(input, &self.path) {
                Ok(explanation) if global.json => println!("{}", serde_json::json!(explanation)),
                Ok(explanation) => print(&explanation),
                Err(ExplainError::Invalid(findings)) => return Ok(refuse(global, &findings, text)),
                Err(error) => return Err(Failure::new(Exit::NotFound, error.to_string())),
            }
            Ok(Exit::Success)
        })
    }
}

fn place(place: &Place) -> String {
    format!("{}:{}:{}", place.file, place.line, place.column)
}

fn print(explanation: &Explanation) {
    println!("{}", explanation.path);
    for line in explanation.value.lines() {
        println!("  | {line}");
    }
    if let Some(written) = &explanation.written {
        println!("written at {}: {}", place(written), written.text.trim());
    }
    for call in &explanation.calls {
        println!("through {} at {}", call.what, place(&call.at));
    }
    for used in &explanation.uses {
        match &used.from {
            Some(from) => {
                println!("with {} = {:?} from {}: {}", used.name, used.value, place(from), from.text.trim())
            }
            None => println!("with {} = {:?}, which the pipeline brings", used.name, used.value),
        }
    }
}
