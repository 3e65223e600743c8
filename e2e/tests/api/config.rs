//! Configurations that are compiled on one machine with the orbs of another.

use crate::support::World;
use anyhow::ensure;
use gantry_e2e::binary;
use std::{fs, path::Path, process::Output};
use tokio::process::Command;

const ORB: &str = "version: 2.1
commands:
  hello:
    steps: [{ run: echo hello }]
";

/// A machine that knows a server, and has no instance of its own.
struct Desk<'d> {
    folder: &'d Path,
    url: String,
    token: String,
}

impl Desk<'_> {
    async fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(Command::new(binary())
            .args(arguments)
            .env("GANTRY_SERVER", &self.url)
            .env("GANTRY_TOKEN", &self.token)
            .env("GANTRY_CACHE_DIR", self.folder.join("cache"))
            .current_dir(self.folder)
            .output()
            .await?)
    }

    async fn validate(&self, orb: &str) -> anyhow::Result<(bool, String)> {
        let text = format!(
            "version: 2.1\norbs: {{g: {orb}}}\njobs: {{build: {{machine: true, steps: [g/hello]}}}}\n"
        );
        fs::write(self.folder.join("config.yml"), text)?;
        let output = self.run(&["config", "validate", "config.yml"]).await?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Orb sources that are kept.
    fn texts(&self) -> usize {
        fs::read_dir(self.folder.join("cache/orbs/texts")).map_or(0, Iterator::count)
    }
}

// Rules: config.orb-registry
#[tokio::test(flavor = "multi_thread")]
async fn orbs_of_the_server_are_found_and_kept_by_their_digests() -> anyhow::Result<()> {
    let World { suite, work } = World::up(&[]).await?;
    let desk = Desk { folder: work.path(), url: suite.url.clone(), token: suite.token.clone() };
    fs::write(work.path().join("orb.yml"), ORB)?;
    for version in ["desk/greet@1.0.0", "desk/greet@1.0.1"] {
        let output = desk.run(&["orb", "publish", "orb.yml", version, "--create"]).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for orb in ["desk/greet@1.0.0", "desk/greet@1", "desk/greet@volatile"] {
        let (valid, said) = desk.validate(orb).await?;
        ensure!(valid, "{orb}: {said}");
    }
    ensure!(desk.texts() == 1, "two versions have one text, and {} are kept", desk.texts());
    let (valid, said) = desk.validate("desk/greet@2").await?;
    ensure!(!valid && said.contains("orb-not-found"), "{said}");

    // Without the server, what is exact is still here; what may have changed is not guessed.
    suite.down().await?;
    let (valid, said) = desk.validate("desk/greet@1.0.1").await?;
    ensure!(valid, "{said}");
    let (valid, said) = desk.validate("desk/greet@1").await?;
    ensure!(!valid && said.contains("orb-unavailable"), "{said}");
    Ok(())
}
