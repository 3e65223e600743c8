//! `gantry config`: everything that can be said about a configuration without a server.

mod diff;
mod event;
mod explain;
mod format;
mod graph;
mod lsp;
mod orbs;
mod pack;
mod process;
mod server;
mod simulate;
mod source;
mod subject;
mod validate;
mod watch;

use crate::{Exit, Failure, Global};
use clap::Subcommand;
use compiler::Diagnostic;
use std::io::IsTerminal;

/// `gantry config …`
#[derive(Subcommand, Debug)]
pub enum Config {
    /// Check files or folders; exits 0 or 7
    #[command(after_help = validate::HELP)]
    Validate(validate::Arguments),
    /// Print the compiled form
    #[command(after_help = process::HELP)]
    Process(process::Arguments),
    /// Lay a file out: two blanks a level, lists below their key; comments stay
    #[command(after_help = format::HELP)]
    Format(format::Arguments),
    /// Say where a value of the compiled form comes from
    #[command(after_help = explain::HELP)]
    Explain(explain::Arguments),
    /// Say which jobs an event would start, and why not the others
    #[command(after_help = simulate::HELP)]
    Simulate(simulate::Arguments),
    /// Draw the workflows
    #[command(after_help = graph::HELP)]
    Graph(graph::Arguments),
    /// Compare what two configurations mean; exits 1 when they differ
    #[command(after_help = diff::HELP)]
    Diff(diff::Arguments),
    /// Speak to an editor: findings, explanations, completion, definitions, new names
    #[command(after_help = lsp::HELP)]
    Lsp(lsp::Arguments),
    /// Make one file of a folder of YAML files
    #[command(after_help = pack::HELP)]
    Pack(pack::Arguments),
}

impl Config {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        match self {
            Self::Validate(arguments) => arguments.run(global),
            Self::Process(arguments) => arguments.run(global),
            Self::Format(arguments) => arguments.run(global),
            Self::Explain(arguments) => arguments.run(global),
            Self::Simulate(arguments) => arguments.run(global),
            Self::Graph(arguments) => arguments.run(global),
            Self::Diff(arguments) => arguments.run(global),
            Self::Lsp(arguments) => arguments.run(global),
            Self::Pack(arguments) => arguments.run(),
        }
    }
}

/// Prints findings with their lines, for people.
fn show(findings: &[Diagnostic], source: &str) {
    let color = std::io::stderr().is_terminal();
    for finding in findings {
        anstream::eprintln!("{}\n", finding.render(source, color));
    }
}

/// Prints the findings of a file that does not compile, as data or for people.
fn refuse(global: &Global, findings: &[Diagnostic], source: &str) -> Exit {
    if global.json {
        println!("{}", serde_json::json!({ "valid": false, "diagnostics": findings }));
    } else {
        show(findings, source);
    }
    Exit::Invalid
}
