//! `gantry try`: a sample project from nothing to green, so that the first five minutes show the product.

mod docker;

pub(super) use docker::{IMAGE, run as run_docker};

use super::{text, verbs, watch::watch};
use crate::{Client, Exit, Failure, Global};
use backon::Retryable;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;

/// How often, and how many times, the pipeline of a push is looked for.
const FIND_EVERY: Duration = Duration::from_millis(100);
const FIND_TIMES: usize = 300;

/// A fan-out, an approval, and a job that fails until a file exists.
const CONFIG: &str = r#"version: 2.1
jobs:
  build:
    machine: true
    steps:
      - checkout
      - run: ls -la
      - run: echo "building $CIRCLE_SHA1"
  test:
    machine: true
    parameters:
      part:
        type: string
    steps:
      - checkout
      - run: echo "testing << parameters.part >>"
      - run:
          name: Is it fixed?
          command: test -e fixed || { echo "the file 'fixed' is missing"; exit 1; }
  deploy:
    machine: true
    steps:
      - run: echo "deployed"
workflows:
  sample:
    jobs:
      - build
      - test:
          name: test-a
          part: a
          requires: [build]
      - test:
          name: test-b
          part: b
          requires: [build]
      - hold:
          type: approval
          requires: [test-a, test-b]
      - deploy:
          requires: [hold]
"#;

/// Runs git, and returns what it printed.
async fn git(client: &Client, dir: &Path, arguments: &[&str]) -> Result<String, Failure> {
    let mut command = Command::new("git");
    if let Some(certificate) = client.certificate() {
        command.env("GIT_SSL_CAINFO", certificate);
    }
    let output = command
        .current_dir(dir)
        .args(["-c", "user.name=Gantry", "-c", "user.email=try@localhost", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .env("GIT_TERMINAL_PROMPT", "0")
        .output()
        .await
        .map_err(|error| Failure::new(Exit::Failed, format!("git cannot be run: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::new(Exit::Failed, format!("git {} failed: {said}", arguments.first().unwrap_or(&""))))
}

/// A sample project: a folder, its repository and the project that it is pushed to.
struct Sample<'a> {
    global: &'a Global,
    client: Client,
    slug: &'static str,
    dir: PathBuf,
    /// Where it is pushed to, with the token.
    remote: String,
    /// Removed with the sample, unless the user has named the folder.
    _temporary: Option<tempfile::TempDir>,
}

impl<'a> Sample<'a> {
    async fn new(global: &'a Global, slug: &'static str, dir: Option<PathBuf>) -> Result<Self, Failure> {
        let client = Client::connect(global)?;
        let (dir, temporary) = match dir {
            Some(dir) => (dir, None),
            None => {
                let temporary = tempfile::tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        std::fs::create_dir_all(&dir)?;
        let address = format!("{}/{slug}.git", client.server());
        let remote = address.replacen("://", &format!("://gantry:{}@", client.token()), 1);
        git(&client, &dir, &["init", "-q"]).await?;
        Ok(Self { global, client, slug, dir, remote, _temporary: temporary })
    }

    fn write(&self, file: &str, text: &str) -> std::io::Result<()> {
        let file = self.dir.join(file);
        std::fs::create_dir_all(file.parent().unwrap_or(&self.dir))?;
        std::fs::write(file, text)
    }

    /// Commits what is there, pushes it and watches its pipeline to the end; the pipeline, and how it went.
    async fn push(&self, message: &str) -> Result<(Value, Exit), Failure> {
        git(&self.client, &self.dir, &["add", "-A"]).await?;
        git(&self.client, &self.dir, &["commit", "-q", "--allow-empty", "-m", message]).await?;
        git(&self.client, &self.dir, &["push", "-q", "--force", &self.remote, "HEAD:refs/heads/main"])
            .await?;
        let pipeline = self.pushed().await?;
        let exit =
            watch(&self.client, self.slug, &pipeline, false, self.global.json, |workflow| async move {
                match verbs::approve(self.global, &workflow, None).await {
                    // Approved meanwhile: what was wanted.
                    Err(failure) if failure.exit == Exit::Conflict => Ok(()),
                    other => other.map(|_| ()),
                }
            })
            .await?;
        Ok((pipeline, exit))
    }

    /// The pipeline of the commit that was just pushed. Its services may be processes of their own: they have not all
    /// heard of the push when it returns.
    async fn pushed(&self) -> Result<Value, Failure> {
        let revision = git(&self.client, &self.dir, &["rev-parse", "HEAD"]).await?;
        let find = || async {
            let newest = super::nouns::pipeline(&self.client, self.slug, "latest").await?;
            let newest = self.client.get(&format!("/api/v2/pipeline/{}", text(&newest, "id"))).await?;
            if newest["vcs"]["revision"] == revision.as_str() {
                return Ok(newest);
            }
            Err(Failure::new(
                Exit::NotFound,
                format!("no pipeline of {revision} came about; see `gantry admin dead-letter list`"),
            ))
        };
        let patience = backon::ConstantBuilder::default().with_delay(FIND_EVERY).with_max_times(FIND_TIMES);
        find.retry(patience).when(|failure| failure.exit == Exit::NotFound).await
    }
}

/// The sample of [`CONFIG`]: red, then fixed and green.
pub(super) async fn run(global: &Global, dir: Option<PathBuf>) -> Result<Exit, Failure> {
    let sample = Sample::new(global, "git/local/sample", dir).await?;
    sample.write(".circleci/config.yml", CONFIG)?;
    sample.write("README.md", "# A sample project\n")?;

    eprintln!("Pushing a sample project to {}: its tests will fail first.", sample.slug);
    let (_, first) = sample.push("Add a sample project").await?;
    if first != Exit::Failed {
        eprintln!("The first run was meant to fail.");
        return Ok(Exit::Failed);
    }

    eprintln!("\nFixing it and pushing again; the approval is given for you.");
    sample.write("fixed", "yes\n")?;
    let (_, second) = sample.push("Fix the tests").await?;
    if second == Exit::Success {
        eprintln!("\nGreen. Look at it: {}/", sample.client.server());
    }
    Ok(second)
}
