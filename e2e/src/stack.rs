//! The suite as separate processes, of which single ones are taken away: `scripts/stack` in a folder of its own.

use crate::{Suite, ledger::processes, stack_script, until};
use anyhow::{Context, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::process::Command;

/// The stack and its folder, which goes with it.
pub struct Stack {
    /// Where it lives.
    pub folder: PathBuf,
    /// Environment of `scripts/stack`.
    environment: Vec<(&'static str, OsString)>,
    /// Whether it was ended.
    ended: AtomicBool,
    /// Where nobody named a folder.
    temporary: Option<tempfile::TempDir>,
}

/// What is given up half-way does not leave its processes to a folder that is gone.
impl Drop for Stack {
    fn drop(&mut self) {
        if self.temporary.is_some() && !self.ended.load(Ordering::Relaxed) && self.folder.join("run").exists()
        {
            let down = std::process::Command::new(stack_script())
                .arg("down")
                .env("GANTRY_STACK", &self.folder)
                .status();
            if !down.is_ok_and(|status| status.success()) {
                eprintln!("processes of {} may be left", self.folder.display());
            }
        }
    }
}

impl Stack {
    /// A folder for one; nothing is started yet. `GANTRY_STACK` names one to keep.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(environment: &[(&'static str, &str)]) -> anyhow::Result<Self> {
        let (folder, temporary) = match env::var_os("GANTRY_STACK") {
            Some(folder) => (PathBuf::from(folder), None),
            None => {
                let temporary = tempfile::tempdir()?;
                // Jobs run as another user.
                fs::set_permissions(temporary.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
                (temporary.path().join("stack"), Some(temporary))
            }
        };
        fs::create_dir_all(&folder)?;
        let environment = environment.iter().map(|(name, value)| (*name, value.into())).collect();
        Ok(Self { folder, environment, ended: AtomicBool::new(false), temporary })
    }

    /// Starts what does not run.
    pub async fn suite(&self) -> anyhow::Result<Suite> {
        let own = [
            ("GANTRY_STACK", self.folder.as_os_str()),
            ("GANTRY_EXECUTORS_DOCKER", OsStr::new("host")),
            ("GANTRY_DISPATCHER_SLOTS", OsStr::new("10")),
        ];
        let more = self.environment.iter().map(|(name, value)| (*name, value.as_os_str()));
        Suite::stack_with(&own.into_iter().chain(more).collect::<Vec<_>>()).await
    }

    async fn script(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(stack_script());
        let more = self.environment.iter().map(|(name, value)| (name, value));
        command.args(arguments).envs(more).env("GANTRY_STACK", &self.folder);
        run(&mut command).await.map(|_| ())
    }

    /// Ends a process with a signal, and waits for its end; `STOP` pauses it.
    pub async fn stop(&self, name: &str, signal: &str) -> anyhow::Result<()> {
        self.script(&["stop", name, signal]).await
    }

    /// Starts it again, or lets it go on.
    pub async fn start(&self, name: &str) -> anyhow::Result<()> {
        self.script(&["start", name]).await
    }

    /// Starts it again with more in its environment (`NAME=VALUE …`, for a shell), this once.
    pub async fn start_with(&self, name: &str, environment: &str) -> anyhow::Result<()> {
        let file = self.folder.join("run").join(format!("{name}.cmd"));
        let command = fs::read_to_string(&file)?;
        fs::write(&file, format!("env {environment} {command}"))?;
        let started = self.start(name).await;
        fs::write(&file, command)?;
        started
    }

    /// Id of a process.
    pub fn pid(&self, name: &str) -> anyhow::Result<i32> {
        let file = self.folder.join("run").join(format!("{name}.pid"));
        fs::read_to_string(file)?.trim().parse().with_context(|| format!("the id of {name}"))
    }

    /// Ends everything.
    pub async fn down(&self) -> anyhow::Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        self.script(&["down"]).await
    }

    /// Whether a process or server is part of the stack.
    pub fn has(&self, name: &str) -> bool {
        self.folder.join("run").join(format!("{name}.cmd")).exists()
    }

    /// Brings the database to the version of the programs that are started from now on.
    pub async fn migrate(&self) -> anyhow::Result<()> {
        self.script(&["migrate"]).await
    }

    /// Agents of this stack: Nomad's clients, and the scheduler where there is none, start them with their folder.
    pub fn agents(&self) -> Vec<Pid> {
        let folder = self.folder.display().to_string();
        processes(|line| {
            let mut words = line.split(' ');
            let program = words.next().is_some_and(|program| program.ends_with("gantry-runner"));
            program && matches!(words.next(), Some("--placed" | "--task-dir")) && line.contains(&folder)
        })
    }

    /// Those that a client of Nomad, `1` or `2`, has started.
    pub fn agents_of(&self, client: &str) -> Vec<Pid> {
        let of = format!("{}/nomad/client_{client}/", self.folder.display());
        let mut agents = self.agents();
        agents.retain(|agent| {
            let line = fs::read(format!("/proc/{agent}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&of)
        });
        agents
    }

    /// Runs `nomad` with the token that opens everything.
    pub async fn nomad(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let token = fs::read_to_string(self.folder.join("secret/nomad-root"))?;
        let mut command = Command::new(tool("nomad"));
        command
            .args(arguments)
            .env("NOMAD_ADDR", format!("http://127.0.0.1:{}", self.port("nomad")?))
            .env("NOMAD_TOKEN", token.trim());
        run(&mut command).await
    }

    /// Kills one of the agents; whether there was one.
    pub fn kill_agent(&self, which: usize) -> bool {
        let found = self.agents();
        found.get(which % found.len().max(1)).is_some_and(|agent| kill(*agent, Signal::SIGKILL).is_ok())
    }

    /// Kills every process at once; the names, in the order in which they were killed.
    pub fn kill_all(&self) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        for (name, pid) in self.processes()? {
            let pid = Pid::from_raw(pid);
            // Servers of several processes: each began a session of its own, children of some did too.
            for child in children(pid) {
                let _ = kill(child, Signal::SIGKILL);
            }
            let _ = kill(pid, Signal::SIGKILL);
            names.push(name);
        }
        Ok(names)
    }

    /// What runs: names and process ids.
    pub fn processes(&self) -> anyhow::Result<Vec<(String, i32)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.folder.join("run"))? {
            let path = entry?.path();
            if let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".pid")) {
                found.push((name.to_owned(), self.pid(name)?));
            }
        }
        Ok(found)
    }

    /// Names of a service's processes.
    pub fn of(&self, role: &str) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.folder.join("run"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(".cmd")
                && name.strip_prefix(role).is_some_and(|rest| rest.starts_with('-'))
            {
                names.push(name.to_owned());
            }
        }
        ensure!(!names.is_empty(), "no {role} was started");
        names.sort();
        Ok(names)
    }

    /// A port of the stack.
    pub fn port(&self, name: &str) -> anyhow::Result<u16> {
        port(&self.folder.join("ports"), name).with_context(|| format!("no port {name}"))
    }

    /// Waits until a process of a service says that it can serve.
    pub async fn ready(&self, name: &str) -> anyhow::Result<()> {
        let at = format!("{}/readyz", self.internal(name)?);
        let http = reqwest::Client::new();
        until(&format!("{name} is ready"), Duration::from_secs(60), || async {
            Ok(http.get(&at).send().await?.status().is_success().then_some(()))
        })
        .await
    }

    /// Address of the listener for probes and operators of a process of a service.
    pub fn internal(&self, name: &str) -> anyhow::Result<String> {
        let (role, number) =
            name.rsplit_once('-').with_context(|| format!("{name} is no process of a service"))?;
        Ok(format!("http://127.0.0.1:{}", self.port(&format!("{role}_internal_{number}"))?))
    }

    /// What a process of a service has counted since its start: the sum of all series of a metric whose labels fit.
    pub async fn counted(&self, name: &str, metric: &str, labels: &str) -> anyhow::Result<f64> {
        let at = format!("{}/metrics", self.internal(name)?);
        let asked = reqwest::Client::new().get(at).timeout(Duration::from_secs(10)).send();
        let text = asked.await.with_context(|| name.to_owned())?.error_for_status()?.text().await?;
        Ok(sum_of(&text, metric, labels))
    }

    /// Names of all services, with their processes.
    pub fn services(&self) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        let mut services = BTreeMap::<String, Vec<String>>::new();
        let ports = fs::read_to_string(self.folder.join("ports"))?;
        for line in ports.lines() {
            let Some((role, number)) =
                line.split_once('=').and_then(|(name, _)| name.split_once("_internal_"))
            else {
                continue;
            };
            services.entry(role.to_owned()).or_default().push(format!("{role}-{number}"));
        }
        services.values_mut().for_each(|names| names.sort());
        Ok(services)
    }

    /// Runs `rabbitmqctl` against the stack's broker.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let home = self.folder.join("rabbitmq");
        let mut command = Command::new("/usr/sbin/rabbitmqctl");
        command
            .args(["-q", "-n", &format!("gantry{}@localhost", self.port("amqp")?)])
            .args(arguments)
            .env("HOME", &home)
            .env("ERL_EPMD_PORT", self.port("epmd")?.to_string());
        // The wrapper takes another user; the program below it does not.
        let direct = Path::new("/usr/lib/rabbitmq/bin/rabbitmqctl");
        if direct.exists() {
            let mut direct = Command::new(direct);
            direct.args(command.as_std().get_args());
            direct.envs(command.as_std().get_envs().filter_map(|(key, value)| Some((key, value?))));
            return run(&mut direct).await;
        }
        run(&mut command).await
    }

    /// Runs `redis-cli` against the stack's server.
    pub async fn redis(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(Command::new("redis-cli").args(["-p", &self.port("redis")?.to_string()]).args(arguments)).await
    }

    /// Runs a statement in the database of a service as its owner, past every proxy.
    pub fn psql_of(&self, service: &str, statement: &str) -> anyhow::Result<Command> {
        let config: toml::Table = fs::read_to_string(self.folder.join("gantry.toml"))?.parse()?;
        let address = config["database"].get("of").and_then(|of| of.get(service.replace('-', "_"))?.as_str());
        let mut command = self.psql(statement)?;
        if let Some((_, name)) = address.and_then(|address| address.rsplit_once('/')) {
            command.args(["-d", name]);
        }
        Ok(command)
    }

    /// Runs a statement as the database server's owner, past every proxy.
    pub fn psql(&self, statement: &str) -> anyhow::Result<Command> {
        let mut command = Command::new("psql");
        command
            .args(["-qAtX", "-h", "127.0.0.1", "-U", "postgres", "-p", &self.port("postgres")?.to_string()])
            .args(["-v", "ON_ERROR_STOP=1", "-c", statement]);
        Ok(command)
    }

    /// Runs statements in the engine below MongoDB's protocol, past every proxy: nothing here speaks that protocol.
    pub async fn documents(&self, statements: &[&str]) -> anyhow::Result<String> {
        let port = self.port("mongo_inner")?.to_string();
        let mut command = Command::new("psql");
        command.args(["-qAtX", "-h", "127.0.0.1", "-U", "postgres", "-p", &port, "-v", "ON_ERROR_STOP=1"]);
        for statement in statements {
            command.args(["-c", statement]);
        }
        run(&mut command).await
    }

    /// Runs `vault` with the token that opens everything.
    pub async fn vault(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let said = self.vault_said()?;
        run(Command::new(tool("vault"))
            .args(arguments)
            .env("VAULT_ADDR", format!("http://127.0.0.1:{}", self.port("vault")?))
            .env("VAULT_TOKEN", said["root_token"].as_str().context("no root token")?)
            .env("HOME", self.folder.join("vault")))
        .await
    }

    /// The key that opens a sealed Vault.
    pub fn unseal_key(&self) -> anyhow::Result<String> {
        Ok(self.vault_said()?["unseal_keys_b64"][0].as_str().context("no key")?.to_owned())
    }

    fn vault_said(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&fs::read_to_string(self.folder.join("secret/vault.json"))?)?)
    }

    /// Warnings and errors that the services' logs hold: what a broken row leaves to be understood by.
    pub fn complaints(&self, most: usize) -> String {
        let mut lines = Vec::new();
        for entry in fs::read_dir(self.folder.join("logs")).into_iter().flatten().flatten() {
            let text = fs::read(entry.path()).unwrap_or_default();
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = String::from_utf8_lossy(&text).into_owned();
            let bad = text.lines().filter(|line| {
                ["WARN", "ERROR", "panicked"].iter().any(|word| line.contains(word)) && name.contains("-1")
            });
            let bad = bad.filter(|line| !line.contains("lapin"));
            lines.extend(bad.rev().take(most).map(|line| format!("{name}: {line}")));
        }
        lines.join("\n")
    }
}

/// A program that `scripts/tools/get` made.
fn tool(name: &str) -> PathBuf {
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let tools = env::var_os("GANTRY_TOOLS").map_or_else(|| home.join(".cache/gantry"), PathBuf::from);
    tools.join("bin").join(name)
}

/// Output of a program that must succeed.
pub async fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(std::process::Stdio::null()).output().await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{:?}: {said}{}",
        command.as_std(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

/// The sum of all series of a metric whose labels fit, of what `/metrics` says.
pub fn sum_of(text: &str, metric: &str, labels: &str) -> f64 {
    let of = text.lines().filter_map(|line| line.strip_prefix(metric));
    let of = of.filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels));
    of.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok()).fold(0.0, |sum, one| sum + one)
}

/// A line of the file that the stack keeps its ports in.
pub fn port(file: &Path, name: &str) -> Option<u16> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// Processes below another, and below those; of Nomad and the scheduler none, whose jobs are not theirs.
fn children(of: Pid) -> Vec<Pid> {
    let line = fs::read(format!("/proc/{of}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    if line.contains("nomad") || line.contains("scheduler") {
        return Vec::new();
    }
    let direct = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    let mut all = Vec::new();
    for child in direct.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw) {
        all.extend(children(child));
        all.push(child);
    }
    all
}
