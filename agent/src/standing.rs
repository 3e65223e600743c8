//! `gantry-runner --config FILE`: a standing runner on a machine of its owner's (execution §25). It asks for tasks of its
//! class and has an agent run each; on SIGTERM it takes no further task, and ends when those that run have.

mod agents;

use crate::{
    client::{Call, Client, Failure},
    control::{backoff, decode, encode},
};
use agent_api::{RunnerClaim, RunnerTask, RunnerUnclaim, SshListen};
use agents::Place;
use anyhow::Context;
use hyper::Method;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

/// How long the suite may wait for a task before it answers.
const WAIT: Duration = Duration::from_secs(20);

/// The file. Keys that do nothing here are read too, so that files of other runners go on to work.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    api: Api,
    runner: Runner,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
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
    /// The container engine for jobs with `docker:`, with the keys of a server's `[executors.engine]`; `None`: there is none.
    engine: Option<executors_docker::Config>,
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
            engine: None,
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
    from_environment(&mut config, |name| std::env::var(name).ok())?;
    for (key, value, name) in [
        ("api.auth_token", &config.api.auth_token, "API_AUTH_TOKEN"),
        ("api.url", &config.api.url, "API_URL"),
    ] {
        anyhow::ensure!(
            !value.is_empty(),
            "{} has no {key}, and {VARIABLES}{name} is not set",
            file.display()
        );
    }
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

/// What the names of variables that stand for keys of the file begin with (services §9).
const VARIABLES: &str = "CIRCLECI_RUNNER_";

/// Sets what variables say in the place of the file.
fn from_environment(config: &mut Config, of: impl Fn(&str) -> Option<String>) -> anyhow::Result<()> {
    let given = |name: &str| {
        let name = format!("{VARIABLES}{name}");
        of(&name).filter(|text| !text.is_empty()).map(|text| (name, text))
    };
    let time = |(name, text): (String, String)| {
        humantime::parse_duration(&text)
            .with_context(|| format!("{name} is a duration such as `5h`, not `{text}`"))
    };
    let Config { api, runner } = config;
    for (place, name) in [
        (&mut api.auth_token, "API_AUTH_TOKEN"),
        (&mut api.url, "API_URL"),
        (&mut runner.name, "NAME"),
        (&mut runner.ssh.advertise_addr, "SSH_ADVERTISE_ADDR"),
    ] {
        if let Some((_, text)) = given(name) {
            *place = text;
        }
    }
    if let Some((_, text)) = given("WORK_DIR").or_else(|| given("WORKING_DIRECTORY")) {
        runner.working_directory = text.into();
    }
    if let Some((name, text)) = given("COMMAND_PREFIX") {
        // A list as in the file, or words as in a shell.
        let words = serde_json::from_str(&text).ok().or_else(|| shlex::split(&text));
        runner.command_prefix = words.with_context(|| format!("{name} is not a list of words: {text}"))?;
    }
    if let Some((name, text)) = given("MODE") {
        runner.mode = match text.as_str() {
            "continuous" => Mode::Continuous,
            "single-task" => Mode::SingleTask,
            _ => anyhow::bail!("{name} is `continuous` or `single-task`, not `{text}`"),
        };
    }
    runner.max_run_time = given("MAX_RUN_TIME").map(time).transpose()?.or(runner.max_run_time);
    runner.idle_timeout = given("IDLE_TIMEOUT").map(time).transpose()?.or(runner.idle_timeout);
    Ok(())
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

async fn serve(file: &Path, config: Config) -> anyhow::Result<()> {
    let place = Arc::new(Place::new(file, &config)?);
    let client = Arc::new(Client::new(&config.api.url)?);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let engine = AbortOnDropHandle::new(tokio::spawn(Place::prepare_engine(config.runner.engine.clone())));
    let ready = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&place).keep_ready()));
    let mut tasks = JoinSet::new();
    for folder in place.left() {
        tasks.spawn(Arc::clone(&place).take_over(folder));
    }
    let runner = &config.runner;
    tracing::info!(name = runner.name, url = config.api.url, "the runner asks for tasks");
    let mut pauses = backoff(&client);
    let mut idle_since = Instant::now();
    let mut refused = None;
    loop {
        while tasks.try_join_next().is_some() {
            idle_since = Instant::now();
        }
        let busy = u32::try_from(tasks.len()).unwrap_or(u32::MAX);
        let free = runner.concurrency.saturating_sub(busy);
        let idle = tasks.is_empty() && runner.idle_timeout.is_some_and(|limit| idle_since.elapsed() >= limit);
        if idle {
            tracing::info!("there was no task for long: the runner ends");
            break;
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
                tasks.spawn(run_one(Arc::clone(&place), Arc::clone(&client), task));
                if runner.mode == Mode::SingleTask {
                    break;
                }
            }
            Ok(None) => pauses = backoff(&client),
            Err(failure) if failure.code() == "version_skew" => {
                tracing::error!(error = %failure, "no further task is taken");
                refused = Some(anyhow::anyhow!("{failure}"));
                break;
            }
            Err(failure) if matches!(failure.status(), Some(401 | 403)) => {
                let url = &config.api.url;
                refused =
                    Some(anyhow::anyhow!("{url} does not know the token in api.auth_token ({failure})"));
                break;
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
    drop((engine, ready));
    place.close().await;
    while tasks.join_next().await.is_some() {}
    refused.map_or(Ok(()), Err)
}

/// Runs a task to its end, or gives it back when no agent can be had for it.
async fn run_one(place: Arc<Place>, client: Arc<Client>, task: RunnerTask) {
    match place.agent(&task).await {
        Ok(agent) => place.see_off(agent).await,
        Err(e) => {
            tracing::error!(task = %task.task_id, error = %e, "no agent can be started");
            place.troubled.store(true, Ordering::Relaxed);
            unclaim(&client, &task).await;
        }
    }
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
    use std::collections::HashMap;

    fn with(variables: &[(&str, &str)]) -> anyhow::Result<Config> {
        let known: HashMap<&str, &str> = variables.iter().copied().collect();
        let text = "api: { auth_token: of-file, url: https://file }\nrunner: { name: file, cleanup_working_directory: true }\n";
        let mut config: Config = serde_saphyr::from_str(text).unwrap();
        from_environment(&mut config, |name| known.get(name).map(|text| (*text).to_owned()))?;
        Ok(config)
    }

    #[test]
    fn variables_stand_for_keys_of_the_file() {
        let config = with(&[
            ("CIRCLECI_RUNNER_API_AUTH_TOKEN", "of-variable"),
            ("CIRCLECI_RUNNER_API_URL", ""),
            ("CIRCLECI_RUNNER_WORK_DIR", "/work/%s"),
            ("CIRCLECI_RUNNER_COMMAND_PREFIX", "sudo -niHu 'a b' --"),
            ("CIRCLECI_RUNNER_MODE", "single-task"),
            ("CIRCLECI_RUNNER_MAX_RUN_TIME", "5h"),
        ])
        .unwrap();
        assert_eq!((&*config.api.auth_token, &*config.api.url), ("of-variable", "https://file"));
        assert_eq!((&*config.runner.name, config.runner.mode), ("file", Mode::SingleTask));
        assert_eq!(config.runner.working_directory, Path::new("/work/%s"));
        assert_eq!(config.runner.command_prefix, ["sudo", "-niHu", "a b", "--"]);
        assert_eq!(config.runner.max_run_time, Some(Duration::from_secs(5 * 3600)));
        let listed = with(&[("CIRCLECI_RUNNER_COMMAND_PREFIX", r#"["nice", "-n", "10"]"#)]).unwrap();
        assert_eq!(listed.runner.command_prefix, ["nice", "-n", "10"]);

        for (name, wrong) in [("MODE", "twice"), ("IDLE_TIMEOUT", "soon"), ("COMMAND_PREFIX", "'open")] {
            let name = format!("CIRCLECI_RUNNER_{name}");
            let said = with(&[(&name, wrong)]).unwrap_err();
            assert!(format!("{said:#}").contains(&name), "{said:#}");
        }
    }
}
