//! A data folder with a ledger, a workflow that writes it, and the judge of what became of it.

use anyhow::{Context, ensure};
use gantry_e2e::{Suite, binary, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;

/// For anything that is waited for: a loaded machine may be slow.
pub const LIMIT: Duration = Duration::from_secs(240);

/// Durations of leases, shortened together by a factor of ten (outside §8).
pub const SHORT: [(&str, &str); 7] = [
    ("GANTRY_DISPATCHER_LEASE", "18s"),
    ("GANTRY_DISPATCHER_SELF_STOP", "15s"),
    ("GANTRY_DISPATCHER_RENEW", "1s"),
    ("GANTRY_DISPATCHER_UNREACHABLE", "4500ms"),
    ("GANTRY_DISPATCHER_RECOVERY_GRACE", "6s"),
    ("GANTRY_DISPATCHER_CLAIM_TIMEOUT", "6s"),
    ("GANTRY_DISPATCHER_SLOTS", "6"),
];

/// A data folder and what lies beside it.
pub struct Place {
    pub work: tempfile::TempDir,
    pub data: PathBuf,
    pub ledger: PathBuf,
}

/// Jobs of a workflow: one begins, many follow, one ends it.
pub struct Fan {
    /// In all, at least 3.
    pub jobs: usize,
    /// Lines that each prints.
    pub lines: usize,
    /// Shell text between two lines.
    pub between: &'static str,
    /// More items of the second job in its workflow, and more steps of it, as YAML.
    pub more: (&'static str, &'static str),
}

impl Place {
    pub fn new() -> anyhow::Result<Self> {
        let work = tempfile::tempdir()?;
        let (data, ledger) = (work.path().join("data"), work.path().join("ledger"));
        fs::write(&ledger, "")?;
        // Jobs may run as another user: the ledger is theirs to append to.
        fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
        fs::set_permissions(&ledger, fs::Permissions::from_mode(0o666))?;
        Ok(Self { work, data, ledger })
    }

    /// Starts the suite with short leases, and with what is given besides.
    pub async fn up(&self, more: &[(&str, &str)]) -> anyhow::Result<Suite> {
        let all: Vec<_> = SHORT.iter().chain(more).copied().collect();
        Suite::up_with(&self.data, &[], &all).await
    }

    /// Starts it again, with its last port taken by somebody else.
    pub async fn up_elsewhere(&self, last: &str) -> anyhow::Result<Suite> {
        let address = last.trim_start_matches("http://").to_owned();
        let taken = until("the old port", LIMIT, || async { Ok(TcpListener::bind(&address).ok()) }).await?;
        let suite = self.up(&[]).await?;
        ensure!(suite.url != last, "it listens where somebody else does");
        drop(taken);
        Ok(suite)
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
        gantry_e2e::git(&repository, &["init", "-q", "-b", "main"]).await?;
        gantry_e2e::git(&repository, &["add", "-A"]).await?;
        gantry_e2e::git(&repository, &["commit", "-q", "-m", "Build it"]).await?;
        Ok(())
    }

    /// Pushes the same commit again, whether it arrived or not.
    pub async fn push_again(&self, suite: &Suite, project: &str) -> anyhow::Result<String> {
        let repository = self.work.path().join("repositories").join(project);
        let host = suite.url.replacen("://", &format!("://x:{}@", suite.token), 1);
        let remote = format!("{host}/git/local/{project}.git");
        gantry_e2e::git(&repository, &["push", &remote, "HEAD:refs/heads/main"]).await
    }

    fn config(&self, project: &str, fan: &Fan) -> String {
        let mut text = String::from("version: 2.1\njobs:\n");
        let (ledger, lines, between) = (self.ledger.display(), fan.lines, fan.between);
        for job in 0..fan.jobs {
            text.push_str(&format!(
                "  j{job}:\n    machine: true\n    steps:\n      - run:\n          name: work\n          command: |\n            \
                 echo {project}/j{job} >> {ledger}\n            for i in $(seq {lines}); do echo \"line $i of {project}/j{job}\"; {between}; done\n"
            ));
            if job == 1 && !fan.more.1.is_empty() {
                text.push_str(&format!("      - {}\n", fan.more.1));
            }
        }
        text.push_str("workflows:\n  main:\n    jobs:\n      - j0\n");
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
        for line in fs::read_to_string(&self.ledger)?.lines() {
            *ran.entry(line.to_owned()).or_default() += 1;
        }
        Ok(ran)
    }

    /// Waits until so many jobs have begun.
    pub async fn begun(&self, jobs: usize) -> anyhow::Result<()> {
        until("user code", LIMIT, || async { Ok((self.ran()?.len() >= jobs).then_some(())) }).await
    }

    /// The postmaster's process id.
    pub fn postmaster(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.data.join("postgres/postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok().map(Pid::from_raw)
    }

    /// What the server said since `from`.
    pub fn said(&self, from: u64) -> String {
        let log = fs::read(self.data.with_extension("log")).unwrap_or_default();
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(log.len());
        String::from_utf8_lossy(&log[from..]).into_owned()
    }

    /// Length of what it said.
    pub fn said_length(&self) -> u64 {
        fs::metadata(self.data.with_extension("log")).map_or(0, |meta| meta.len())
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

    /// `gantry admin verify` and the invariants find nothing.
    pub async fn verify(&self) -> anyhow::Result<()> {
        for check in ["verify", "invariants"] {
            // The invariants count what waits for its time as overdue only after a while.
            until(check, Duration::from_secs(60), || async {
                let output =
                    Command::new(binary()).args(["admin", check, "--data"]).arg(&self.data).output().await?;
                let said = [output.stdout, output.stderr].concat();
                ensure!(output.status.success(), "gantry admin {check}: {}", String::from_utf8_lossy(&said));
                Ok(Some(()))
            })
            .await?;
        }
        Ok(())
    }
}

/// How a workflow ended.
pub struct Verdict {
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

impl Drop for Place {
    /// A test that failed leaves nothing behind.
    fn drop(&mut self) {
        for pid in agents(&self.data).into_iter().chain(self.postmaster()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Agents of a data folder, by their command line.
pub fn agents(data: &Path) -> Vec<Pid> {
    let tasks = data.join("tasks").display().to_string();
    processes(|line| line.contains("--task-dir") && line.contains(&tasks))
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
