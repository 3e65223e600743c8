//! `gantry config graph`.

use super::{refuse, subject::Subject, watch};
use crate::{Exit, Failure, Global};
use clap::{Args, ValueEnum};
use compiler::graph;

pub(super) const HELP: &str = "Examples:\n  gantry config graph\n  gantry config graph --format dot | dot -Tsvg > graph.svg\n  gantry config graph --format mermaid --branch main";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Indented text: jobs by the stage in which they can start
    #[default]
    Text,
    /// The language of Graphviz
    Dot,
    /// The language of Mermaid
    Mermaid,
}

#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Form of the picture
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Draw again when the file changes
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
            let plan = match compiler::compile(input) {
                Ok(compiled) => compiled.plan,
                Err(findings) => return Ok(refuse(global, &findings, text)),
            };
            if global.json {
                println!("{}", graph::json(&plan));
                return Ok(Exit::Success);
            }
            let drawn = match self.format {
                Format::Text => graph::text(&plan),
                Format::Dot => graph::dot(&plan),
                Format::Mermaid => graph::mermaid(&plan),
            };
            print!("{drawn}");
            Ok(Exit::Success)
        })
    }
}
