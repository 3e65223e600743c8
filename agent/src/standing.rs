//! `gantry-runner --config FILE`: a standing runner on a machine of its owner's (execution §25). It asks for tasks of its
//! class and starts an agent for each; on SIGTERM it takes no further task, and ends when those that run have.

use crate::{
    client::{Call, Client, Failure},
    control::{backoff, decode, encode},
    state,
};
use agent_api::{LAUNCH_FILE, LaunchFile, RunnerClaim, RunnerTask, RunnerUnclaim, SshListen};
use anyhow::Context;
use hyper::Method;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::Instant,
};

/// How long the suite may wait for a task before it answers.
const WAIT: Duration = Duration::from_secs(20);

/// The file. Keys that do nothing here are read too, so that files of other runners go on to work.
#[derive(Clone, Debug, Deserialize)]
struct Config {
    api: Api,
    #[serde(default)]
    runner: Runner,
}

#[derive(Clone, Debug, Deserialize)]
struct Api {
    /// The token of the resource class.
    auth_token: String,
    /// Where the suite is.
    url: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Runner {
    /// Unique in the class; the machine's name if it is not given.
    name: String,
    /// Where the tasks' folders are; with `%s` in its last part, the folder of each task.
    working_directory: PathBuf,
    /// What starts an agent, with its program and arguments after it.
    command_prefix: Vec<String>,
    /// Longest run of a task, if it is shorter than the job's limit.
    #[serde(deserialize_with = "duration")]
    max_run_time: Option<Duration>,
    /// How many tasks run at once.
    concurrency: u32,
    /// What keeps steps from this machine's files: `namespace` or `none`.
    isolation: String,
    mode: Mode,
    ssh: Ssh,
    /// After so long without a task the runner ends.
    #[serde(deserialize_with = "duration")]
    idle_timeout: Option<Duration>,
}

impl Default for Runner {
    fn default() -> Self {
        Self {
            name: String::new(),
            working_directory: "/var/lib/gantry-runner".into(),
            command_prefix: Vec::new(),
            max_run_time: None,
            concurrency: 1,
            isolation: "namespace".into(),
            mode: Mode::Continuous,
            ssh: Ssh::default(),
            idle_timeout: None,
        }
    }
}

/// `runner.ssh` (execution §25).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Ssh {
    /// `HOST:PORT` under which people reach this machine, to enter jobs that were rerun with SSH; empty: they cannot.
    advertise_addr: String,
}

/// Where a runner listens for SSH unless its configuration says otherwise (execution §26).
const SSH_PORT: u16 = 54782;

impl Ssh {
    /// A port for each task that runs at once.
    fn listen(&self, concurrency: u32) -> anyhow::Result<Option<SshListen>> {
        if self.advertise_addr.is_empty() {
            return Ok(None);
        }
        let wrong =
            || format!("runner.ssh.advertise_addr is a host or `HOST:PORT`, not `{}`", self.advertise_addr);
        let (host, port) = match self.advertise_addr.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') => (host, port.parse().with_context(wrong)?),
            _ => (self.advertise_addr.as_str(), SSH_PORT),
        };
        anyhow::ensure!(!host.is_empty() && port > 0, wrong());
        let more = u16::try_from(concurrency.saturating_sub(1)).unwrap_or(u16::MAX);
        Ok(Some(SshListen {
            address: "0.0.0.0".to_owned(),
            advertise: host.trim_matches(['[', ']']).to_owned(),
            first_port: port,
            last_port: port.saturating_add(more),
        }))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    /// One task after another.
    Continuous,
    /// One task, then the end.
    SingleTask,
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text).map(Some).map_err(D::Error::custom)
}

/// Runs until it is told to end, or its token is refused. Answer: the exit code of the process.
pub fn run(file: &Path) -> i32 {
    crate::log();
    let ended = read(file).and_then(|config| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve(file, config))
    });
    match ended {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("{e:#}");
            1
        }
    }
}

fn read(file: &Path) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let mut config: Config = serde_saphyr::from_str(&text)
        .with_context(|| format!("{} is not a runner's configuration", file.display()))?;
    let runner = &mut config.runner;
    anyhow::ensure!(
        ["namespace", "none"].contains(&runner.isolation.as_str()),
        "runner.isolation is `namespace` or `none`, not `{}`",
        runner.isolation
    );
    anyhow::ensure!(runner.concurrency > 0, "runner.concurrency is at least 1");
    if runner.name.is_empty() {
        runner.name = hostname();
    }
    Ok(config)
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Where the folders of tasks are, and how they are called.
#[derive(Debug, PartialEq, Eq)]
struct Folders {
    within: PathBuf,
    /// Before and after a task's own name.
    around: (String, String),
}

impl Folders {
    /// As configured: a folder for all of them, or with `%s` in its last part the name of each (execution §25).
    fn new(configured: &Path) -> anyhow::Result<Self> {
        let Some((before, after)) = configured.to_str().and_then(|text| text.split_once("%s")) else {
            return Ok(Self { within: configured.to_owned(), around: ("task-".to_owned(), String::new()) });
        };
        let wrong = || {
            format!("runner.working_directory has `%s` once, in its last part, not {}", configured.display())
        };
        let (within, before) = before.rsplit_once('/').with_context(wrong)?;
        let after = after.strip_suffix('/').unwrap_or(after);
        anyhow::ensure!(!after.contains('/') && !after.contains("%s"), wrong());
        let within = if within.is_empty() { "/" } else { within };
        Ok(Self { within: within.into(), around: (before.to_owned(), after.to_owned()) })
    }

    fn of(&self, task: &RunnerTask) -> PathBuf {
        let (before, after) = &self.around;
        self.within.join(format!("{before}{}-{}{after}", task.task_id, task.epoch))
    }

    /// Folders of tasks that a runner before this one had when it died.
    fn left(&self) -> Vec<PathBuf> {
        let ours = |path: &PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            name.starts_with(&self.around.0)
                && name.ends_with(&self.around.1)
                && path.join(LAUNCH_FILE).exists()
        };
        let entries = std::fs::read_dir(&self.within).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(ours).collect()
    }
}

/// What all tasks of the runner have in common.
struct Place {
    /// The agent's program, with what starts it before it.
    command: Vec<OsString>,
    launch: LaunchFile,
    folders: Folders,
    /// Whether a task had to be given back: then the next one is not asked for at once.
    troubled: AtomicBool,
}

impl Place {
    fn new(file: &Path, config: &Config) -> anyhow::Result<Self> {
        let mut folders = Folders::new(&config.runner.working_directory)?;
        let folder = &folders.within;
        std::fs::create_dir_all(folder)
            .with_context(|| format!("runner.working_directory {} cannot be made", folder.display()))?;
        folders.within = std::fs::canonicalize(folder)?;
        // The token of the class is not for steps.
        let file = std::fs::canonicalize(file)?;
        let hide: Vec<String> =
            file.parent().map(|parent| parent.display().to_string()).into_iter().collect();
        let launch = LaunchFile {
            endpoint: config.api.url.trim_end_matches('/').to_owned(),
            token: String::new(),
            isolation: config.runner.isolation.clone(),
            job_user: None,
            hide: if config.runner.isolation == "none" { Vec::new() } else { hide },
            engine: None,
            cgroup: None,
            ssh: config.runner.ssh.listen(config.runner.concurrency)?,
            max_run_ms: config
                .runner
                .max_run_time
                .map(|most| u64::try_from(most.as_millis()).unwrap_or(u64::MAX)),
        };
        let prefix = config.runner.command_prefix.iter().map(OsString::from);
        Ok(Self {
            command: prefix.chain([std::env::current_exe()?.into_os_string()]).collect(),
            launch,
            folders,
            troubled: AtomicBool::new(false),
        })
    }

    /// Leaves what an agent claims with.
    fn prepare(&self, task: &RunnerTask) -> std::io::Result<PathBuf> {
        let folder = self.folders.of(task);
        std::fs::create_dir_all(&folder)?;
        let launch = LaunchFile { token: task.token.clone(), ..self.launch.clone() };
        state::keep(&folder, LAUNCH_FILE, &launch, false)?;
        Ok(folder)
    }

    /// Runs a task to its end, or gives it back when no agent can be started for it.
    async fn task(self: Arc<Self>, client: Arc<Client>, task: RunnerTask) {
        let started = match self.prepare(&task) {
            Ok(folder) => Arc::clone(&self).agent(folder).await,
            Err(e) => {
                tracing::error!(task = %task.task_id, error = %e, "the folder of the task cannot be made");
                false
            }
        };
        if !started {
            self.troubled.store(true, Ordering::Relaxed);
            unclaim(&client, &task).await;
        }
    }

    /// Runs the agent of a folder to its end, and removes the folder. Whether there was one.
    async fn agent(self: Arc<Self>, folder: PathBuf) -> bool {
        // A group of its own: what a terminal tells the runner is not for the task.
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).arg("--task-dir").arg(&folder).process_group(0);
        let ran = command.status().await;
        let started = ran.is_ok();
        match ran {
            Ok(status) if status.success() => tracing::info!(folder = %folder.display(), "the task is over"),
            Ok(status) => tracing::warn!(folder = %folder.display(), %status, "the task's agent failed"),
            Err(e) => tracing::error!(folder = %folder.display(), error = %e, "the agent cannot be started"),
        }
        if let Err(e) = tokio::fs::remove_dir_all(&folder).await {
            tracing::warn!(folder = %folder.display(), error = %e, "the task's folder is left");
        }
        started
    }
}

async fn serve(file: &Path, config: Config) -> anyhow::Result<()> {
    let place = Arc::new(Place::new(file, &config)?);
    let client = Arc::new(Client::new(&config.api.url)?);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut tasks = JoinSet::new();
    // An agent that finds its lease runs nothing: it reports that the one before it died.
    for folder in place.folders.left() {
        let place = Arc::clone(&place);
        tasks.spawn(async move {
            place.agent(folder).await;
        });
    }
    let runner = &config.runner;
    tracing::info!(name = runner.name, url = config.api.url, "the runner asks for tasks");
    let mut pauses = backoff(&client);
    let mut idle_since = Instant::now();
    loop {
        while tasks.try_join_next().is_some() {
            idle_since = Instant::now();
        }
        let busy = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
        let free = runner.concurrency.saturating_sub(busy);
        let idle = tasks.is_empty() && runner.idle_timeout.is_some_and(|limit| idle_since.elapsed() >= limit);
        if idle {
            tracing::info!("there was no task for long: the runner ends");
            return Ok(());
        }
        // A machine on which nothing starts must not take one task after another to lose it.
        if place.troubled.swap(false, Ordering::Relaxed) {
            tokio::select! {
                () = tokio::time::sleep(pauses.next().unwrap_or(WAIT)) => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        let asked = tokio::select! {
            asked = claim(&client, &config, free) => asked,
            // Not while a task may come: one that is on its way would be lost until its claim times out.
            Some(_) = tasks.join_next(), if free == 0 => continue,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        match asked {
            Ok(Some(task)) => {
                tracing::info!(task = %task.task_id, "a task was taken");
                tasks.spawn(Arc::clone(&place).task(Arc::clone(&client), task));
                if runner.mode == Mode::SingleTask {
                    break;
                }
            }
            Ok(None) => pauses = backoff(&client),
            Err(failure) if failure.code() == "version_skew" => {
                tracing::error!(error = %failure, running = tasks.len(), "no further task is taken");
                while tasks.join_next().await.is_some() {}
                anyhow::bail!("{failure}");
            }
            Err(failure) if matches!(failure.status(), Some(401 | 403)) => {
                anyhow::bail!("{} does not know the token in api.auth_token ({failure})", config.api.url);
            }
            Err(failure) => {
                tracing::warn!(error = %failure, "no task can be asked for; tried again");
                let pause = pauses.next().unwrap_or(WAIT);
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => break,
                }
            }
        }
    }
    tracing::info!(running = tasks.len(), "no further task is taken");
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn claim(client: &Client, config: &Config, free: u32) -> Result<Option<RunnerTask>, Failure> {
    let body = encode(&RunnerClaim {
        name: config.runner.name.clone(),
        hostname: hostname(),
        version: env!("CARGO_PKG_VERSION").into(),
        free,
        wait_ms: u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX),
    });
    let call = Call {
        method: Method::POST,
        path: "/api/v3/runner/claim",
        bearer: Some(&config.api.auth_token),
        header: None,
        body,
        timeout: WAIT + Duration::from_secs(10),
    };
    let answer = client.call(call).await?;
    if answer.is_empty() {
        return Ok(None);
    }
    decode(&answer).map(Some).map_err(|gone| match gone {
        crate::control::Gone::Refused(failure) => failure,
        crate::control::Gone::Fenced => Failure::Transport("the answer cannot be read".into()),
    })
}

/// Gives a task back; where that fails, the suite notices by itself that no agent comes.
async fn unclaim(client: &Client, task: &RunnerTask) {
    let call = Call {
        method: Method::POST,
        path: "/api/v3/runner/unclaim",
        bearer: None,
        header: None,
        body: encode(&RunnerUnclaim { task_id: task.task_id, task_token: task.token.clone() }),
        timeout: Duration::from_secs(10),
    };
    match client.call(call).await {
        Ok(_) => tracing::info!(task = %task.task_id, "the task was given back"),
        Err(failure) => tracing::warn!(task = %task.task_id, error = %failure, "the task was not given back"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_tasks_are_named_as_configured() {
        let task = RunnerTask { task_id: ids::TaskId::new(), epoch: 3, token: String::new() };
        let named = |configured: &str| {
            let folder = Folders::new(Path::new(configured)).map(|folders| folders.of(&task));
            folder.map(|path| path.display().to_string().replace(&task.task_id.to_string(), "ID"))
        };
        assert_eq!(named("/var/lib/runner").unwrap(), "/var/lib/runner/task-ID-3");
        assert_eq!(named("/var/lib/runner/%s").unwrap(), "/var/lib/runner/ID-3");
        assert_eq!(named("/tmp/a-%s-b/").unwrap(), "/tmp/a-ID-3-b");
        assert_eq!(named("/%s").unwrap(), "/ID-3");
        for wrong in ["/tmp/%s/work", "/tmp/%s-%s", "%s"] {
            assert!(named(wrong).unwrap_err().to_string().contains("in its last part"), "{wrong}");
        }
    }

    #[test]
    fn what_a_dead_runner_left_is_found_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["job-1-x", "job-2-x", "other"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in ["job-1-x", "other"] {
            std::fs::write(folder.path().join(name).join(LAUNCH_FILE), "{}").unwrap();
        }
        let folders = Folders::new(&folder.path().join("job-%s-x")).unwrap();
        assert_eq!(folders.left(), [folder.path().join("job-1-x")]);
    }
}
