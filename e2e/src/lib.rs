//! Drives the real `gantry` binary through its public contract only.

pub mod ledger;
pub mod stack;

use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// Durations of leases, shortened together by a factor of ten (outside §8).
pub const SHORT_LEASES: [(&str, &str); 6] = [
    ("GANTRY_DISPATCHER_LEASE", "18s"),
    ("GANTRY_DISPATCHER_SELF_STOP", "15s"),
    ("GANTRY_DISPATCHER_RENEW", "1s"),
    ("GANTRY_DISPATCHER_UNREACHABLE", "4500ms"),
    ("GANTRY_DISPATCHER_RECOVERY_GRACE", "6s"),
    ("GANTRY_DISPATCHER_CLAIM_TIMEOUT", "6s"),
];

/// A running `gantry up` on a data folder.
pub struct Suite {
    /// Base address.
    pub url: String,
    /// The administrator's token.
    pub token: String,
    /// Process id.
    pub pid: i32,
    /// `None`: the stack of `scripts/stack`, which outlives the tests.
    child: Option<Child>,
    http: reqwest::Client,
}

/// One person asks for all tests at once, more than a person may.
const UNLIMITED: [(&str, &str); 2] =
    [("GANTRY_API_REQUESTS_PER_SECOND", "0"), ("GANTRY_API_CHANGES_PER_SECOND", "0")];

/// The built `gantry`: `GANTRY_BIN`, else the one of the test profile.
pub fn binary() -> PathBuf {
    let named = env::var_os("GANTRY_BIN").map(PathBuf::from);
    // `scripts/stack` is given the folder.
    named.map(|bin| if bin.is_dir() { bin.join("gantry") } else { bin }).unwrap_or_else(|| {
        let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")).join("ci/gantry")
    })
}

/// The program that runs the suite as separate processes.
pub fn stack_script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/stack")
}

impl Suite {
    /// Starts the suite and waits for its ready line. Talk goes to `up.log` beside the data folder.
    pub async fn up(data: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::up_with(data, arguments, &[]).await
    }

    /// The same with more environment.
    pub async fn up_with(
        data: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let log = fs::OpenOptions::new().create(true).append(true).open(data.with_extension("log"))?;
        let mut child = Command::new(binary())
            .args(["up", "--json", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(arguments)
            .env("GANTRY_EXECUTORS_DOCKER", "host")
            .envs(UNLIMITED)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| {
                format!("{} cannot be run; build it with --profile ci first", binary().display())
            })?;
        let stdout = child.stdout.take().context("no standard output")?;
        let line = tokio::time::timeout(Duration::from_secs(90), BufReader::new(stdout).lines().next_line())
            .await
            .context("no ready line within 90 s")??;
        let Some(line) = line else {
            bail!("gantry up ended: {}", fs::read_to_string(data.with_extension("log")).unwrap_or_default());
        };
        Self::ready(&line, Some(child))
    }

    /// Where `GANTRY_TEST_STACK` is set: the suite as separate processes on real servers, which `scripts/stack up` starts
    /// unless it runs. It stays; `scripts/stack down` ends it.
    pub async fn stack() -> anyhow::Result<Option<Self>> {
        if env::var_os("GANTRY_TEST_STACK").is_none() {
            return Ok(None);
        }
        Self::stack_with(&[]).await.map(Some)
    }

    /// The stack, whether the tests are to use one or not, with more environment.
    pub async fn stack_with(environment: &[(&str, &OsStr)]) -> anyhow::Result<Self> {
        let script = stack_script();
        let mut begun = Command::new(&script);
        begun.args(["up", "--json"]).envs(UNLIMITED).envs(environment.iter().copied()).stdin(Stdio::null());
        let output = begun.output().await.with_context(|| script.display().to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "scripts/stack up failed: {said}");
        eprint!("{said}");
        Self::ready(String::from_utf8(output.stdout)?.trim(), None)
    }

    fn ready(line: &str, child: Option<Child>) -> anyhow::Result<Self> {
        let ready: Value = serde_json::from_str(line).with_context(|| format!("not a ready line: {line}"))?;
        let text = |key: &str| ready.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Self {
            url: text("url"),
            token: text("token"),
            pid: i32::try_from(ready.get("pid").and_then(Value::as_i64).unwrap_or_default())?,
            child,
            http: reqwest::Client::new(),
        })
    }

    /// A request below the base address, with the token.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        self.anonymous(method, path).header("Circle-Token", &self.token)
    }

    /// A request below the base address, without a token.
    ///
    /// # Panics
    /// The method is none.
    pub fn anonymous(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().expect("a method of HTTP");
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// GET below the base address.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer =
            self.http.get(format!("{}{path}", self.url)).header("Circle-Token", &self.token).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "GET {path}: {status} {text}");
        serde_json::from_str(&text).with_context(|| format!("GET {path} is not JSON: {text}"))
    }

    /// POST below the base address; the status and the answer.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
        let request =
            self.http.post(format!("{}{path}", self.url)).header("Circle-Token", &self.token).json(body);
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await.unwrap_or_default()))
    }

    /// Makes a class of self-hosted runners and a token of it: the answer to the token's request.
    pub async fn runner_token(&self, class: &str) -> anyhow::Result<Value> {
        let (status, made) =
            self.post("/api/v3/runner/resource", &json!({ "resource_class": class })).await?;
        ensure!(status == 201, "the class {class}: {status} {made}");
        let body = json!({ "resource_class": class, "nickname": "test" });
        let (status, token) = self.post("/api/v3/runner/token", &body).await?;
        ensure!(status == 201, "a token of {class}: {status} {token}");
        Ok(token)
    }

    /// `gantry admin verify` and the invariants find nothing.
    pub async fn verify(&self) -> anyhow::Result<()> {
        for check in ["verify", "invariants"] {
            // The invariants count what waits for its time as overdue only after a while.
            until(check, Duration::from_secs(90), || async { self.admin(&[check]).await.map(Some) }).await?;
        }
        Ok(())
    }

    /// What `gantry admin` prints, if it ends well.
    pub async fn admin(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(binary());
        command.arg("admin").args(arguments).args(["--server", &self.url]).env("GANTRY_TOKEN", &self.token);
        let output = command.output().await?;
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(output.status.success(), "gantry admin {}: {said}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The bytes at a path.
    pub async fn bytes(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let request = self.http.get(format!("{}{path}", self.url)).header("Circle-Token", &self.token);
        Ok(request.send().await?.error_for_status()?.bytes().await?.to_vec())
    }

    /// All items of a list.
    pub async fn items(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut token = None::<String>;
        loop {
            let glue = if path.contains('?') { '&' } else { '?' };
            let at = token.map_or_else(|| path.to_owned(), |token| format!("{path}{glue}page-token={token}"));
            let page = self.get(&at).await?;
            items.extend(page.get("items").and_then(Value::as_array).cloned().unwrap_or_default());
            match page.get("next_page_token").and_then(Value::as_str) {
                Some(next) => token = Some(next.to_owned()),
                None => return Ok(items),
            }
        }
    }

    /// Makes a repository of `files` and pushes it; what git said on standard error.
    pub async fn push(
        &self,
        work: &Path,
        project: &str,
        files: &Path,
        reference: &str,
    ) -> anyhow::Result<String> {
        self.push_as(work, project, files, reference, "Build it").await
    }

    /// The same with a commit message.
    pub async fn push_as(
        &self,
        work: &Path,
        project: &str,
        files: &Path,
        reference: &str,
        message: &str,
    ) -> anyhow::Result<String> {
        let repository = commit(work, project, files, message).await?;
        let remote = self.remote(project);
        if let Some(tag) = reference.strip_prefix("refs/tags/") {
            git(&repository, &["tag", "-f", tag]).await?;
            return git(&repository, &["push", &remote, reference]).await;
        }
        git(&repository, &["push", &remote, &format!("HEAD:{reference}")]).await
    }

    /// Deletes a branch or tag of a project's repository; what git said on standard error.
    pub async fn delete(&self, work: &Path, project: &str, reference: &str) -> anyhow::Result<String> {
        git(&work.join(project), &["push", &self.remote(project), &format!(":{reference}")]).await
    }

    /// Where a project is pushed to, with the token.
    fn remote(&self, project: &str) -> String {
        let base = self.url.replacen("://", &format!("://x:{}@", self.token), 1);
        format!("{base}/git/local/{project}.git")
    }

    /// Sends SIGKILL to the server alone and waits for its end.
    pub async fn kill(self) -> anyhow::Result<()> {
        let mut child = self.child.context("the stack has no one server")?;
        kill(Pid::from_raw(self.pid), Signal::SIGKILL)?;
        child.wait().await?;
        Ok(())
    }

    /// Waits for the end of a server that dies by itself.
    pub async fn ended(self, limit: Duration) -> anyhow::Result<()> {
        let mut child = self.child.context("the stack has no one server")?;
        tokio::time::timeout(limit, child.wait()).await.context("it still runs")??;
        Ok(())
    }

    /// Stops the server and asserts that it ends well within its limit of 10 s. A stack stays.
    pub async fn down(self) -> anyhow::Result<()> {
        let Some(mut child) = self.child else { return Ok(()) };
        kill(Pid::from_raw(self.pid), Signal::SIGTERM)?;
        let status = tokio::time::timeout(Duration::from_secs(20), child.wait())
            .await
            .context("still runs after 20 s")??;
        ensure!(status.success(), "gantry up ended with {status}");
        Ok(())
    }
}

/// Commits `files` to a project's repository, which is made if there is none; its folder.
pub async fn commit(work: &Path, project: &str, files: &Path, message: &str) -> anyhow::Result<PathBuf> {
    let repository = work.join(project);
    if !repository.join(".git").exists() {
        fs::create_dir_all(&repository)?;
        git(&repository, &["init", "-q", "-b", "main"]).await?;
    }
    copy_tree(files, &repository)?;
    git(&repository, &["add", "-A"]).await?;
    git(&repository, &["commit", "-q", "--allow-empty", "-m", message]).await?;
    Ok(repository)
}

/// Runs git; what it said on standard error.
pub async fn git(dir: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=Ana", "-c", "user.email=ana@example.com"])
        .args(arguments)
        .env("GIT_TERMINAL_PROMPT", "0")
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "git {arguments:?}: {said}");
    Ok(said)
}

/// Asks until the answer is there, at most `limit`.
pub async fn until<T, F>(what: &str, limit: Duration, mut ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let begun = Instant::now();
    let mut pause = Duration::from_millis(30);
    loop {
        let last = ask().await;
        if let Ok(Some(found)) = last {
            return Ok(found);
        }
        if begun.elapsed() > limit {
            let error = last.err().map(|error| format!(" ({error:#})")).unwrap_or_default();
            bail!("{what}: not within {limit:?}{error}");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(Duration::from_millis(400));
    }
}

/// Copies a folder's files over another's; links stay links.
pub fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(&target)?;
            copy_tree(&entry.path(), &target)?;
        } else if entry.file_type()?.is_symlink() {
            let _ = fs::remove_file(&target);
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// A program of the newest PostgreSQL here; its bare name where none lies in the usual place.
pub fn postgres(program: &str) -> PathBuf {
    let mut found: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin").join(program))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| PathBuf::from(program))
}
