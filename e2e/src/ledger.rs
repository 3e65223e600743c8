//! A fan of jobs that count their executions in a file outside of the product, and the judge of what became of them: each
//! ran once or is said to be lost, and every byte of its output is there.

use crate::{Suite, git, until};
use anyhow::{Context, ensure};
use nix::unistd::Pid;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

/// For anything that is waited for: a loaded machine may be slow.
pub const LIMIT: Duration = Duration::from_secs(240);

/// A file that jobs append their names to, and the repositories that they come from.
pub struct Ledger {
    /// Folder of everything, which others may enter.
    pub work: tempfile::TempDir,
    /// The file.
    pub file: PathBuf,
}

/// Jobs of a workflow: one begins, many follow, one ends it.
pub struct Fan {
    /// In all: 1, or at least 3.
    pub jobs: usize,
    /// Lines that each prints.
    pub lines: usize,
    /// Shell text between two lines.
    pub between: &'static str,
    /// Their resource class; `None`: the usual one.
    pub class: Option<&'static str>,
    /// More items of the second job in its workflow, and more steps of it, as YAML.
    pub more: (&'static str, &'static str),
}

impl Ledger {
    /// An empty one in a folder of its own.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let work = tempfile::tempdir()?;
        let file = work.path().join("ledger");
        fs::write(&file, "")?;
        // Jobs may run as another user: the file is theirs to append to.
        fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?;
        Ok(Self { work, file })
    }

    /// Pushes a fan of jobs as a project.
    pub async fn push(&self, suite: &Suite, project: &str, fan: &Fan) -> anyhow::Result<String> {
        let files = self.work.path().join("files").join(project);
        fs::create_dir_all(files.join(".circleci"))?;
        fs::write(files.join(".circleci/config.yml"), self.config(project, fan))?;
        suite.push(&self.work.path().join("repositories"), project, &files, "refs/heads/main").await
    }

    /// Makes the commit of a project that could not be pushed yet.
    pub async fn prepare(&self, project: &str, fan: &Fan) -> anyhow::Result<()> {
        let repository = self.work.path().join("repositories").join(project);
        if repository.join(".git").exists() {
            return Ok(());
        }
        fs::create_dir_all(repository.join(".circleci"))?;
        fs::write(repository.join(".circleci/config.yml"), self.config(project, fan))?;
        git(&repository, &["init", "-q", "-b", "main"]).await?;
        git(&repository, &["add", "-A"]).await?;
        git(&repository, &["commit", "-q", "-m", "Build it"]).await?;
        Ok(())
    }

    /// Pushes the same commit again, whether it arrived or not.
    pub async fn push_again(&self, suite: &Suite, project: &str) -> anyhow::Result<String> {
        self.push_with(suite, project, &[]).await
    }

    /// Has the suite say that it would take a push, which makes the project, and pushes nothing.
    pub async fn push_dry(&self, suite: &Suite, project: &str) -> anyhow::Result<String> {
        self.push_with(suite, project, &["--dry-run"]).await
    }

    async fn push_with(&self, suite: &Suite, project: &str, options: &[&str]) -> anyhow::Result<String> {
        let repository = self.work.path().join("repositories").join(project);
        let host = suite.url.replacen("://", &format!("://x:{}@", suite.token), 1);
        let remote = format!("{host}/git/local/{project}.git");
        let mut arguments = vec!["push"];
        arguments.extend_from_slice(options);
        arguments.extend_from_slice(&[&remote, "HEAD:refs/heads/main"]);
        git(&repository, &arguments).await
    }

    fn config(&self, project: &str, fan: &Fan) -> String {
        let mut text = String::from("version: 2.1\njobs:\n");
        let (ledger, lines, between) = (self.file.display(), fan.lines, fan.between);
        let class = fan.class.map(|class| format!("    resource_class: {class}\n")).unwrap_or_default();
        for job in 0..fan.jobs {
            text.push_str(&format!(
                "  j{job}:\n    machine: true\n{class}    steps:\n      - run:\n          name: work\n          command: |\n            \
                 echo {project}/j{job} >> {ledger}\n            for i in $(seq {lines}); do echo \"line $i of {project}/j{job}\"; {between}; done\n"
            ));
            if job == 1 && !fan.more.1.is_empty() {
                text.push_str(&format!("      - {}\n", fan.more.1));
            }
        }
        text.push_str("workflows:\n  main:\n    jobs:\n      - j0\n");
        if fan.jobs == 1 {
            return text;
        }
        let middle: Vec<_> = (1..fan.jobs - 1).map(|job| format!("j{job}")).collect();
        for job in &middle {
            let more = if job == "j1" { fan.more.0 } else { "" };
            text.push_str(&format!("      - {job}: {{ requires: [j0]{more} }}\n"));
        }
        text.push_str(&format!("      - j{}: {{ requires: [{}] }}\n", fan.jobs - 1, middle.join(", ")));
        text
    }

    /// How often each job's code ran.
    pub fn ran(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        let mut ran = BTreeMap::new();
        for line in fs::read_to_string(&self.file)?.lines() {
            *ran.entry(line.to_owned()).or_default() += 1;
        }
        Ok(ran)
    }

    /// Waits until so many jobs have begun.
    pub async fn begun(&self, jobs: usize) -> anyhow::Result<()> {
        until("user code", LIMIT, || async { Ok((self.ran()?.len() >= jobs).then_some(())) }).await
    }

    /// Waits for the end of a project's workflow, and judges its jobs by ledger and logs.
    pub async fn judge(&self, suite: &Suite, project: &str, fan: &Fan) -> anyhow::Result<Verdict> {
        let slug = format!("git/local/{project}");
        let pipeline = until("the pipeline", LIMIT, || async {
            let mut found = suite.items(&format!("/api/v2/project/{slug}/pipeline")).await?;
            ensure!(found.len() <= 1, "{project} has {} pipelines", found.len());
            Ok(found.pop())
        })
        .await?;
        let id = pipeline["id"].as_str().context("no id")?;
        let workflow = until("the workflow's end", LIMIT, || async {
            let found = suite.items(&format!("/api/v2/pipeline/{id}/workflow")).await?;
            Ok(found.into_iter().next().filter(|workflow| !workflow["stopped_at"].is_null()))
        })
        .await
        .with_context(|| format!("{project}: {pipeline}"))?;
        let id = workflow["id"].as_str().context("no id")?;
        let jobs = suite.items(&format!("/api/v2/workflow/{id}/job")).await?;
        ensure!(jobs.len() == fan.jobs, "{project} has {} jobs", jobs.len());
        let ran = self.ran()?;
        let mut verdict =
            Verdict { status: workflow["status"].as_str().unwrap_or_default().to_owned(), lost: Vec::new() };
        for job in &jobs {
            let (name, status) =
                (job["name"].as_str().unwrap_or_default(), job["status"].as_str().unwrap_or_default());
            let times = ran.get(&format!("{project}/{name}")).copied().unwrap_or(0);
            match status {
                "success" => {
                    ensure!(times == 1, "{project}/{name} is a success and ran {times} times");
                    whole_log(suite, &slug, job, project, fan).await?;
                }
                // what may have run is never run again silently.
                "infrastructure_fail" => {
                    ensure!(times <= 1, "{project}/{name} was lost and ran {times} times");
                    let number = job["job_number"].as_i64().context("no number")?;
                    let build = suite.get(&format!("/api/v1.1/project/{slug}/{number}")).await?;
                    verdict
                        .lost
                        .push(format!("{name}: {}", build["fail_reason"].as_str().unwrap_or_default()));
                }
                "not_run" => ensure!(times == 0, "{project}/{name} did not run, but {times} times"),
                other => anyhow::bail!("{project}/{name} is {other}"),
            }
        }
        Ok(verdict)
    }
}

/// How a workflow ended.
pub struct Verdict {
    /// Of the workflow.
    pub status: String,
    /// Jobs that ended `infrastructure_fail`, and why.
    pub lost: Vec<String>,
}

/// Every byte, once, in order, under the digest that the record names.
async fn whole_log(suite: &Suite, slug: &str, job: &Value, project: &str, fan: &Fan) -> anyhow::Result<()> {
    let name = job["name"].as_str().unwrap_or_default();
    let number = job["job_number"].as_i64().context("no number")?;
    let whole: String = (1..=fan.lines).map(|line| format!("line {line} of {project}/{name}\n")).collect();
    // Records are rebuilt after a crash: they may be a moment behind.
    until("the sealed log", LIMIT, || async {
        let build = suite.get(&format!("/api/v1.1/project/{slug}/{number}")).await?;
        let step = build["steps"].as_array().into_iter().flatten().find(|step| step["name"] == "work");
        let id = step.and_then(|step| step["actions"][0]["step_id"].as_str()).context("no step")?;
        let log = suite.bytes(&format!("/logs/{id}/raw")).await?;
        ensure!(log == whole.as_bytes(), "the log of {name} is {:?}", String::from_utf8_lossy(&log));
        let meta = suite.get(&format!("/logs/{id}/meta")).await?;
        let digest: String = Sha256::digest(&log).iter().map(|byte| format!("{byte:02x}")).collect();
        ensure!(meta["hash"] == digest.as_str(), "the digest of {name} is {}, not {digest}", meta["hash"]);
        Ok(Some(()))
    })
    .await
}

/// Processes whose command line, with blanks between its words, is so.
pub fn processes(so: impl Fn(&str) -> bool) -> Vec<Pid> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        so(&line).then(|| Pid::from_raw(pid))
    })
    .collect()
}
