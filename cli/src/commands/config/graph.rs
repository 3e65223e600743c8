//! `gantry config graph`.

use super::{event, orbs, refuse, source, watch};
use crate::{Exit, Failure, Global};
use clap::{Args, ValueEnum};
use compiler::{Input, graph};
use std::path::PathBuf;

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
    /// File; `-` reads standard input
    #[arg(default_value = source::DEFAULT)]
    file: PathBuf,
    /// Form of the picture
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Draw again when the file changes
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    orbs: orbs::Options,
    #[command(flatten)]
    event: event::Options,
}

impl Arguments {
    pub(super) fn run(self, global: &Global) -> Result<Exit, Failure> {
        if self.watch {
            return watch::repeat(|| vec![self.file.clone()], || self.once(global));
        }
        self.once(global)
    }

    fn once(&self, global: &Global) -> Result<Exit, Failure> {
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
        let plan = match compiler::compile(&input) {
            Ok(compiled) => compiled.plan,
            Err(findings) => return Ok(refuse(global, &findings, &text)),
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
    }
}
