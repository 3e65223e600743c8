//! `gantry config pack`.

use super::show;
use crate::{Exit, Failure};
use clap::Args;
use orb_folder::{TreeError, pack_folder};
use std::path::PathBuf;

pub(super) const HELP: &str = "Examples:\n  gantry config pack .circleci/src > .circleci/config.yml\n  gantry config pack src --output orb.yml\n\nFiles of the folder are merged into the top level; commands/build.yml becomes `commands: {build: …}`;\n@name.yml is merged at the level of its folder. `<<include(path)>>` takes the text of a file.";

#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Folder
    folder: PathBuf,
    /// File to write instead of standard output
    #[arg(short, long)]
    output: Option<PathBuf>,
}

impl Arguments {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let packed = match pack_folder(&self.folder) {
            Ok(packed) => packed,
            Err(TreeError::Read(path, error)) => {
                let message = format!("{} cannot be read: {error}", path.display());
                return Err(Failure::new(Exit::NotFound, message));
            }
            Err(TreeError::Pack(error)) => {
                if let compiler::pack::PackError::Broken { findings, .. } = &error {
                    show(findings, "");
                }
                return Err(Failure::new(Exit::Invalid, error.to_string()));
            }
        };
        match self.output {
            None => print!("{packed}"),
            Some(path) => {
                let failed = |error| {
                    Failure::new(Exit::Failed, format!("{} cannot be written: {error}", path.display()))
                };
                std::fs::write(&path, packed).map_err(failed)?;
                eprintln!("Wrote {}.", path.display());
            }
        }
        Ok(Exit::Success)
    }
}
