//! Running the steps of a task, one after another (execution §13).

mod process;
mod remote_docker;
mod reports;

use crate::{
    checkout,
    control::{Control, Stop},
    environment::{Environment, Places, expand},
    output::{Output, Stream},
    reach::Way,
    stores::Done,
};
use agent_api::{Secrets, Siblings, SshKey, StepReport, TaskSpec};
use executors::{Command, Io};
use ids::StepId;
use model::{
    plan::{CheckoutMethod, RunStep, Step, When},
    status::JobStatus,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;

pub(crate) use reports::Reports;

/// What runs a script where no shell is configured (config-language §12.1), and what does where there is no bash.
const BASH: &str = "/bin/bash -eo pipefail";
const SH: &str = "/bin/sh -eo pipefail";
/// Longest script that goes as an argument: the kernel takes 128 KiB.
const MAX_ARGUMENT: usize = 96 * 1024;
const FIRST_NUMBER: u32 = 101;
/// Between two looks at the other nodes.
const SIBLINGS: Duration = Duration::from_secs(1);

pub(crate) enum Ended {
    Exit(i32),
    NoOutput,
    Stopped,
    NotStarted(String),
    Lost,
}

/// How a step ended.
struct Outcome {
    status: &'static str,
    exit_code: Option<i32>,
}

/// How the job ended, as far as the steps tell.
pub(crate) struct Result {
    pub(crate) status: JobStatus,
    pub(crate) reason: Option<String>,
}

/// What the steps of a task share.
pub(crate) struct Runner {
    pub(crate) control: Arc<Control>,
    pub(crate) sandbox: Arc<dyn executors::Environment>,
    pub(crate) spec: TaskSpec,
    pub(crate) output: Arc<Output>,
    pub(crate) reports: Arc<Reports>,
    pub(crate) places: Places,
    pub(crate) environment: Environment,
    pub(crate) ssh_keys: Vec<SshKey>,
    pub(crate) checkout_key: Option<SshKey>,
    /// Variables that steps of the agent's own add for those after them.
    added: Mutex<Vec<(String, String)>>,
    ending: AtomicBool,
    background: Mutex<JoinSet<()>>,
    /// Terminals of steps that ended and left something running, and the task's socket.
    leftovers: Mutex<JoinSet<()>>,
    /// From the job's container to the server, once it was needed.
    pub(crate) way: tokio::sync::Mutex<Option<Way>>,
    /// Why a step was ended by the machine.
    trouble: Mutex<Option<String>>,
    /// Whether there is a bash where the steps run, once that was asked.
    has_bash: tokio::sync::OnceCell<bool>,
}

impl Runner {
    pub(crate) fn new(
        control: Arc<Control>,
        sandbox: Arc<dyn executors::Environment>,
        spec: TaskSpec,
        (output, reports): (Arc<Output>, Arc<Reports>),
        places: Places,
        environment: Environment,
        secrets: &Secrets,
    ) -> Self {
        Self {
            control,
            sandbox,
            spec,
            output,
            reports,
            places,
            environment,
            ssh_keys: secrets.ssh_keys.clone(),
            checkout_key: secrets.checkout_key.clone(),
            added: Mutex::default(),
            ending: AtomicBool::new(false),
            background: Mutex::default(),
            leftovers: Mutex::default(),
            way: tokio::sync::Mutex::default(),
            trouble: Mutex::default(),
            has_bash: tokio::sync::OnceCell::new(),
        }
    }

    /// Runs all steps. Background steps go on until [`Runner::end`].
    pub(crate) async fn run(self: &Arc<Self>) -> Result {
        lock(&self.leftovers).spawn(self.serve_socket());
        self.fetch_timings().await;
        if let Err(why) = self.fetch_failed_tests().await
            && self.control.stopped().is_none()
        {
            return Result { status: JobStatus::InfrastructureFail, reason: Some(why) };
        }
        let (mut failed, mut halted) = (false, false);
        let mut reason = None;
        for (number, step) in (FIRST_NUMBER..).zip(&self.spec.definition.steps) {
            if self.control.stopped().is_some() {
                break;
            }
            halted = halted || self.is_halted().await;
            if halted {
                // Node 0 waits until the others have come as far as a deploy step: one that has nothing more to do has.
                if matches!(step, Step::Deploy(_)) && self.spec.index > 0 && !failed {
                    let _ = self.step(number, step).await;
                }
                continue;
            }
            let runs = match step.when() {
                When::OnSuccess => !failed,
                When::OnFail => failed,
                When::Always => true,
            };
            if !runs {
                continue;
            }
            let status = match self.step(number, step).await {
                Ok(status) => status,
                Err(e) => {
                    tracing::error!(step = number, error = %e, "the step could not be run");
                    reason = Some(format!("step {number} could not be run: {e}"));
                    "infrastructure_fail"
                }
            };
            match status {
                "success" => {}
                "infrastructure_fail" => {
                    let reason = reason.or_else(|| lock(&self.trouble).take());
                    return Result { status: JobStatus::InfrastructureFail, reason };
                }
                _ => failed = true,
            }
        }
        let (status, reason) = match self.control.stopped() {
            Some(Stop::TimedOut) => {
                let limit = go_duration(Duration::from_millis(self.control.timing.job_timeout_ms));
                (JobStatus::Timedout, Some(format!("the job ran longer than its limit of {limit}")))
            }
            Some(Stop::Canceled) => (JobStatus::Canceled, None),
            Some(_) => (JobStatus::InfrastructureFail, Some("the agent was ended".into())),
            None if failed => (JobStatus::Failed, None),
            None => (JobStatus::Success, None),
        };
        Result { status, reason }
    }

    /// The environment of a program, with what is its own.
    pub(crate) fn variables(&self, own: &[(String, String)]) -> Vec<(String, String)> {
        let mut more = self.added.lock().unwrap_or_else(PoisonError::into_inner).clone();
        more.extend_from_slice(own);
        self.environment.with(&more)
    }

    /// Sets a variable for the steps to come, unless the configuration does.
    pub(crate) fn set_variable(&self, name: &str, value: String) {
        if !self.spec.definition.environment.iter().any(|(set, _)| set == name) {
            let mut added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
            added.push((name.to_owned(), value));
        }
    }

    /// Whether a step asked that no further one runs.
    async fn is_halted(&self) -> bool {
        // An environment that is gone tells so at the next step.
        self.sandbox.exists(&self.places.halt()).await.unwrap_or(false)
    }

    /// Ends everything that still runs, and waits until nothing of it is left.
    pub(crate) async fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        self.sandbox.end().await;
        let mut background = std::mem::take(&mut *lock(&self.background));
        while background.join_next().await.is_some() {}
        lock(&self.leftovers).abort_all();
    }

    async fn step(self: &Arc<Self>, number: u32, step: &Step) -> io::Result<&'static str> {
        let (name, bash_command, background) = match step {
            Step::Run(run) => {
                let text = format!("#!{}\n{}", self.shell(run).await, run.command);
                (run.name.clone(), Some(text), run.background)
            }
            Step::Checkout { .. } => {
                (step.name().to_owned(), Some(format!("#!/bin/sh -e\n{}", checkout::SCRIPT)), false)
            }
            Step::Deploy(run) => {
                (run.name.clone(), Some(format!("#!{}\n{}", self.shell(run).await, run.command)), false)
            }
            other => (other.name().to_owned(), None, false),
        };
        let mut report = StepReport {
            step_id: StepId::new(),
            number,
            name: self.output.mask(&name),
            status: "running".into(),
            bash_command: bash_command.map(|text| self.output.mask(&text)),
            exit_code: None,
            background,
            started_at: self.control.clock.now(),
            ended_at: None,
        };
        let mut stream = self.open(&report)?;
        if background && let Step::Run(run) = step {
            let (runner, run) = (Arc::clone(self), run.clone());
            lock(&self.background).spawn(async move {
                let outcome = runner.run_step(number, &run, &mut stream).await;
                if let Err(e) = runner.conclude(report, stream, outcome) {
                    tracing::error!(step = number, error = %e, "the background step could not be run");
                }
            });
            return Ok("success");
        }
        let (tries, delay) = match step {
            Step::Run(run) => (run.max_auto_reruns, Duration::from_secs(run.auto_rerun_delay_secs)),
            _ => (0, Duration::ZERO),
        };
        for attempt in 1.. {
            let outcome = self.attempt(number, step, &mut stream).await;
            let again = attempt <= tries
                && outcome.as_ref().is_ok_and(|outcome| outcome.status == "failed")
                && self.control.stopped().is_none();
            if again {
                let wait =
                    if delay.is_zero() { String::new() } else { format!(" in {}", go_duration(delay)) };
                stream.note(&format!("The step failed and is run again{wait} ({attempt} of {tries})"))?;
            }
            let status = self.conclude(report.clone(), stream, outcome)?;
            if !again {
                return Ok(status);
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                _ = self.control.until_stopped() => return Ok(status),
            }
            // Each attempt has a log of its own (execution §9).
            report.step_id = StepId::new();
            report.started_at = self.control.clock.now();
            stream = self.open(&report)?;
        }
        unreachable!("the loop ends by returning")
    }

    fn open(&self, report: &StepReport) -> io::Result<Stream> {
        let registered = self.reports.send(report.clone());
        self.output.open(report.step_id, registered)
    }

    async fn attempt(&self, number: u32, step: &Step, stream: &mut Stream) -> io::Result<Outcome> {
        match step {
            Step::Run(run) => self.run_step(number, run, stream).await,
            Step::Deploy(run) => self.deploy(number, run, stream).await,
            Step::Checkout { path, method, .. } => self.checkout(path.as_deref(), *method, stream).await,
            Step::AddSshKeys { fingerprints, .. } => match self.add_ssh_keys(fingerprints, stream).await? {
                Some(ended) => self.judge(ended, false, stream),
                None => Ok(Outcome { status: "failed", exit_code: None }),
            },
            Step::SetupRemoteDocker { docker_layer_caching, version, .. } => {
                self.setup_remote_docker(*docker_layer_caching, version.as_deref(), stream).await
            }
            other => self.other_step(number, other, stream).await,
        }
    }

    /// Ends an opened step and reports how.
    fn conclude(
        &self,
        mut report: StepReport,
        mut stream: Stream,
        outcome: io::Result<Outcome>,
    ) -> io::Result<&'static str> {
        let outcome = outcome.unwrap_or_else(|e| {
            // Best effort: the disk may be what failed.
            let _ = stream.note(&format!("The step could not be run: {e}"));
            *lock(&self.trouble) = Some(e.to_string());
            Outcome { status: "infrastructure_fail", exit_code: None }
        });
        stream.finish()?;
        report.status = outcome.status.into();
        report.exit_code = outcome.exit_code;
        report.ended_at = Some(self.control.clock.now());
        // Not waited for: the next step may begin.
        drop(self.reports.send(report));
        Ok(outcome.status)
    }

    /// The step that runs on node 0 alone, after all other nodes came as far (execution §14.4).
    async fn deploy(&self, number: u32, run: &RunStep, stream: &mut Stream) -> io::Result<Outcome> {
        if self.spec.index > 0 {
            stream.note("Deploy steps run on node 0 only.")?;
            return Ok(Outcome { status: "success", exit_code: None });
        }
        if self.spec.total == 1 {
            return self.run_step(number, run, stream).await;
        }
        stream.note(&format!("Waiting for the {} other nodes", self.spec.total - 1))?;
        let path = format!("siblings?step={number}");
        loop {
            let siblings = tokio::select! {
                siblings = self.control.get::<Siblings>(&path) => siblings,
                _ = self.control.until_stopped() => return self.judge(Ended::Stopped, false, stream),
            };
            match siblings {
                Ok(siblings) if siblings.failed > 0 => {
                    stream.note("Another node failed: nothing is deployed.")?;
                    return Ok(Outcome { status: "failed", exit_code: None });
                }
                Ok(siblings) if siblings.arrived + 1 >= self.spec.total => break,
                Ok(_) => {}
                Err(e) => {
                    stream.note(&format!("The other nodes cannot be asked for: {e}"))?;
                    return Ok(Outcome { status: "failed", exit_code: None });
                }
            }
            tokio::select! {
                () = tokio::time::sleep(SIBLINGS) => {}
                _ = self.control.until_stopped() => return self.judge(Ended::Stopped, false, stream),
            }
        }
        self.run_step(number, run, stream).await
    }

    /// Steps that no program of the author's runs.
    async fn other_step(&self, number: u32, step: &Step, stream: &mut Stream) -> io::Result<Outcome> {
        let ended = match self.store_step(number, step, stream).await? {
            Some(Done::Success) => return Ok(Outcome { status: "success", exit_code: None }),
            Some(Done::Failed) => return Ok(Outcome { status: "failed", exit_code: None }),
            Some(Done::Stopped) => Ended::Stopped,
            Some(Done::Lost) => Ended::Lost,
            None => {
                stream.note(&format!("This agent does not know the step `{}`.", step.name()))?;
                return Ok(Outcome { status: "failed", exit_code: None });
            }
        };
        self.judge(ended, false, stream)
    }

    /// The line that runs a script: a program and its arguments.
    async fn shell<'a>(&'a self, run: &'a RunStep) -> &'a str {
        if let Some(line) = run.shell.as_deref().or(self.spec.definition.shell.as_deref()) {
            return line;
        }
        let has_bash = async || self.sandbox.exists(Path::new("/bin/bash")).await.unwrap_or(true);
        if *self.has_bash.get_or_init(has_bash).await { BASH } else { SH }
    }

    async fn run_step(&self, number: u32, run: &RunStep, stream: &mut Stream) -> io::Result<Outcome> {
        let line = self.shell(run).await;
        // What a shell could not split either is taken word by word.
        let mut argv = shlex::split(line)
            .unwrap_or_else(|| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        if run.command.len() > MAX_ARGUMENT || !takes_script_as_argument(&argv) {
            let path = self.places.script(number);
            self.sandbox.write(&path, &run.command, 0o755).await.map_err(io::Error::other)?;
            argv.push(path.display().to_string());
        } else {
            argv.push("-c".into());
            argv.push(run.command.clone());
        }
        let work = &self.places.work;
        let dir = match &run.working_directory {
            Some(path) => expand(path, &self.places.home, work),
            None => work.clone(),
        };
        let make_dir = dir == *work;
        let env = self.variables(&run.environment);
        let command = Command { argv, env, dir, make_dir, io: Io::Terminal };
        let limit = (!run.background).then(|| Duration::from_secs(run.no_output_timeout_secs));
        let ended = self.process(command, limit, stream).await?;
        if matches!(ended, Ended::Exit(code) if code != 0) {
            self.output.out_of_room()?;
        }
        self.judge(ended, run.background, stream)
    }

    fn judge(&self, ended: Ended, background: bool, stream: &mut Stream) -> io::Result<Outcome> {
        let over = self.ending.load(Ordering::Relaxed);
        Ok(match ended {
            Ended::Exit(0) => Outcome { status: "success", exit_code: Some(0) },
            // Ended because the job is over: that is how background steps end.
            Ended::Lost | Ended::Exit(137) if background && over => {
                Outcome { status: "success", exit_code: None }
            }
            Ended::Exit(code) => Outcome { status: "failed", exit_code: Some(code) },
            Ended::NoOutput => Outcome { status: "failed", exit_code: None },
            Ended::Stopped => {
                let status = match self.control.stopped() {
                    Some(Stop::TimedOut) => "timedout",
                    Some(Stop::Canceled) => "canceled",
                    _ => "infrastructure_fail",
                };
                Outcome { status, exit_code: None }
            }
            Ended::NotStarted(message) => {
                stream.note(&format!("The command could not be started: {message}"))?;
                Outcome { status: "failed", exit_code: None }
            }
            Ended::Lost => {
                stream.note("The processes of the task were ended from outside.")?;
                Outcome { status: "infrastructure_fail", exit_code: None }
            }
        })
    }

    async fn checkout(
        &self,
        path: Option<&str>,
        method: CheckoutMethod,
        stream: &mut Stream,
    ) -> io::Result<Outcome> {
        let dir: PathBuf = match path {
            Some(path) => expand(path, &self.places.home, &self.places.work),
            None => self.places.work.clone(),
        };
        let ssh = self.install_checkout_key().await?;
        for attempt in 1.. {
            // Asked each time: after a restart of the suite it may be elsewhere.
            let source = tokio::select! {
                source = self.control.get::<agent_api::Source>("source") => source,
                _ = self.control.until_stopped() => return self.judge(Ended::Stopped, false, stream),
            };
            let source = match source {
                Ok(source) => source,
                Err(e) => {
                    stream.note(&format!("The repository is not available: {e}"))?;
                    return Ok(Outcome { status: "failed", exit_code: None });
                }
            };
            stream.learn(&checkout::secrets(&source))?;
            let inside = self.reachable(&source.url).await;
            let places = (inside.as_ref(), ssh.as_deref());
            let env = self.variables(&checkout::variables(&self.spec, &source, method, places));
            let argv = ["/bin/sh", "-c", checkout::SCRIPT].map(str::to_owned).to_vec();
            let command = Command { argv, env, dir: dir.clone(), make_dir: true, io: Io::Terminal };
            let ended = self.process(command, Some(Duration::from_secs(600)), stream).await?;
            if !matches!(ended, Ended::Exit(checkout::UNREACHABLE)) || attempt >= checkout::TRIES {
                return self.judge(ended, false, stream);
            }
            stream.note(&format!("Trying again ({attempt} of {})", checkout::TRIES - 1))?;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(500 << attempt)) => {}
                _ = self.control.until_stopped() => return self.judge(Ended::Stopped, false, stream),
            }
        }
        unreachable!("the loop ends by returning")
    }
}

fn lock<T>(held: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shells and Python take a script after `-c`; for other interpreters that means something else.
fn takes_script_as_argument(argv: &[String]) -> bool {
    let name = |word: &String| word.rsplit('/').next().unwrap_or_default().to_owned();
    let mut words = argv.iter();
    let mut program = words.next().map(name).unwrap_or_default();
    if program == "env" {
        program = words.find(|w| !w.starts_with('-') && !w.contains('=')).map(name).unwrap_or_default();
    }
    program.ends_with("sh") || program.starts_with("python")
}

/// Durations as Go prints them: the text is a contract.
pub(crate) fn go_duration(duration: Duration) -> String {
    let total = duration.as_secs();
    let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}
