//! `gantry config simulate`.

use super::{refuse, subject::Subject, watch};
use crate::{Exit, Failure, Global};
use clap::Args;
use compiler::simulate::{Simulation, simulate};

pub(super) const HELP: &str = "Examples:\n  gantry config simulate --event push --branch feature/x\n  gantry config simulate --tag v1.2.0\n  gantry config simulate --event api --param deploy=true --json";

#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Say it again when the file changes
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    subject: Subject,
}

impl Arguments {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        if self.watch {
            return watch::repeat(|| vec![self.subject.file.clone()], || self.once(global));
        }
        self.once(global)
    }

    fn once(&self, global: &Global) -> Result<Exit, Failure> {
        self.subject.read(global, |input, _, text| {
            match simulate(input) {
                Ok(simulation) if global.json => println!("{}", serde_json::json!(simulation)),
                Ok(simulation) => print(&simulation),
                Err(findings) => return Ok(refuse(global, &findings, text)),
            }
            Ok(Exit::Success)
        })
    }
}

fn print(simulation: &Simulation) {
    for workflow in &simulation.workflows {
        let verdict = if workflow.runs { "would run" } else { "would not run" };
        match &workflow.reason {
            Some(reason) => println!("{} {verdict}: {reason} (line {})", workflow.name, workflow.line),
            None => println!("{} {verdict}", workflow.name),
        }
        for job in &workflow.jobs {
            let kind = job.kind.filter(|kind| *kind != "build").map(|kind| format!(" ({kind})"));
            let kind = kind.unwrap_or_default();
            match &job.reason {
                Some(reason) => println!("  --  {}: {reason} (line {})", job.name, job.line),
                None if job.requires.is_empty() => println!("  ok  {}{kind}", job.name),
                None => println!("  ok  {}{kind}, after {}", job.name, job.requires.join(", ")),
            }
        }
    }
}
