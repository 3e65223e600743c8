//! The configuration that a command compiles: its file, its orbs and its event.

use super::{
    event,
    orbs::{self, Orbs},
    source,
};
use crate::{Failure, Global};
use clap::Args;
use compiler::Input;
use std::path::PathBuf;

/// Arguments of every command that compiles one file.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub(super) struct Subject {
    /// File; `-` reads standard input
    #[arg(default_value = source::DEFAULT)]
    pub(super) file: PathBuf,
    #[command(flatten)]
    orbs: orbs::Options,
    #[command(flatten)]
    event: event::Options,
}

impl Subject {
    /// Reads all of it and hands it to `work`: what the compiler takes, the orbs behind it, the file's text.
    pub(super) fn read<T>(
        &self,
        global: &Global,
        work: impl FnOnce(&Input<'_>, &Orbs, &str) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let text = source::read(&self.file)?;
        let shown = self.file.display().to_string();
        let orbs = self.orbs.open(global)?;
        let parameters = self.event.parameters()?;
        let input = Input {
            values: self.event.values()?,
            parameters: &parameters,
            orbs: &orbs,
            ..Input::new(&shown, &text)
        };
        work(&input, &orbs, &text)
    }
}
