//! `gantry try`: a sample project from nothing to green, so that the first five minutes show the product.

use super::{text, verbs, watch::watch};
use crate::{Client, Exit, Failure, Global};
use backon::Retryable;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;

const SLUG: &str = "git/local/sample";
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

pub(super) async fn run(global: &Global, dir: Option<PathBuf>) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let keep;
    let dir = match dir {
        Some(dir) => {
            std::fs::create_dir_all(&dir)?;
            dir
        }
        None => {
            keep = tempfile::tempdir()?;
            keep.path().to_owned()
        }
    };
    std::fs::create_dir_all(dir.join(".circleci"))?;
    std::fs::write(dir.join(".circleci/config.yml"), CONFIG)?;
    std::fs::write(dir.join("README.md"), "# A sample project\n")?;
    git(&client, &dir, &["init", "-q"]).await?;
    git(&client, &dir, &["add", "-A"]).await?;
    git(&client, &dir, &["commit", "-q", "--allow-empty", "-m", "Add a sample project"]).await?;
    let remote = format!("{}/{SLUG}.git", client.server()).replacen(
        "://",
        &format!("://gantry:{}@", client.token()),
        1,
    );

    eprintln!("Pushing a sample project to {SLUG}: its tests will fail first.");
    git(&client, &dir, &["push", "-q", "--force", &remote, "HEAD:refs/heads/main"]).await?;
    let first = watch_pushed(global, &client, &dir).await?;
    if first != Exit::Failed {
        eprintln!("The first run was meant to fail.");
        return Ok(Exit::Failed);
    }

    eprintln!("\nFixing it and pushing again; the approval is given for you.");
    std::fs::write(dir.join("fixed"), "yes\n")?;
    git(&client, &dir, &["add", "-A"]).await?;
    git(&client, &dir, &["commit", "-q", "-m", "Fix the tests"]).await?;
    git(&client, &dir, &["push", "-q", &remote, "HEAD:refs/heads/main"]).await?;
    let second = watch_pushed(global, &client, &dir).await?;
    if second == Exit::Success {
        eprintln!("\nGreen. Look at it: {}/", client.server());
    }
    Ok(second)
}

/// The pipeline of the commit that was just pushed. Its services may be processes of their own: they have not all
/// heard of the push when it returns.
async fn pushed(client: &Client, dir: &Path) -> Result<serde_json::Value, Failure> {
    let revision = git(client, dir, &["rev-parse", "HEAD"]).await?;
    let find = || async {
        let newest = super::nouns::pipeline(client, SLUG, "latest").await?;
        let newest = client.get(&format!("/api/v2/pipeline/{}", text(&newest, "id"))).await?;
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

async fn watch_pushed(global: &Global, client: &Client, dir: &Path) -> Result<Exit, Failure> {
    let newest = pushed(client, dir).await?;
    watch(client, SLUG, &newest, false, global.json, |workflow| async move {
        match verbs::approve(global, &workflow, None).await {
            // Approved meanwhile: what was wanted.
            Err(failure) if failure.exit == Exit::Conflict => Ok(()),
            other => other.map(|_| ()),
        }
    })
    .await
}
