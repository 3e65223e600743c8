//! The agents of a standing runner: one for each task, and one that stands ready for the next.
//!
//! Much of what an agent does before the first step is the same for every task: it starts, makes its keys, and builds the
//! environment with its namespaces. One that stands ready has done so before there is a task, and waits for its token on
//! standard input. It ends when that is closed, so that none outlives its runner.

use super::Config;
use crate::{containers, state};
use agent_api::{LAUNCH_FILE, LaunchFile, PID_FILE, RunnerTask};
use anyhow::Context;
use ids::InstanceId;
use std::{
    ffi::OsString,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
    sync::{Mutex, Notify},
    time::Instant,
};

/// How long an agent stands ready before another takes its place: what cleans folders for temporary files must not find its.
const FRESH: Duration = Duration::from_secs(3600);

/// How long after a task was taken the agent of the next one is started: its first step runs by then.
const CALM: Duration = Duration::from_millis(200);
/// The variable by which an agent knows the name of its placement.
const PLACEMENT: &str = "GANTRY_PLACEMENT";

/// Under which name the containers of a task are found again: the folder's, which is unique on this machine.
fn placement(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Where the folders of tasks are, and how they are called.
#[derive(Debug, PartialEq, Eq)]
struct Folders {
    within: PathBuf,
    /// Before and after a task's own part.
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

    /// A folder that no other task has: which one it is for may not be known yet.
    fn another(&self) -> PathBuf {
        let (before, after) = &self.around;
        self.within.join(format!("{before}{}{after}", InstanceId::new()))
    }

    /// Folders that a runner before this one had when it died.
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
pub(super) struct Place {
    /// The agent's program, with what starts it before it.
    command: Vec<OsString>,
    launch: LaunchFile,
    folders: Folders,
    /// Whether a task had to be given back: then the next one is not asked for at once.
    pub(super) troubled: AtomicBool,
    /// Whether an agent may stand ready.
    spares: bool,
    /// The one that does.
    spare: Mutex<Option<Agent>>,
    /// It has got a task.
    taken: Notify,
}

impl Place {
    pub(super) fn new(file: &Path, config: &Config) -> anyhow::Result<Self> {
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
            engine: config.runner.engine.clone().map(Into::into),
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
            // What stands before the agent may be made for a task, or keep standard input to itself.
            spares: config.runner.command_prefix.is_empty(),
            spare: Mutex::new(None),
            taken: Notify::new(),
        })
    }

    /// Has the engine hold the agent's program before the first task waits for that.
    pub(super) async fn prepare_engine(config: Option<executors_docker::Config>) {
        let Some(config) = config else { return };
        let made = async {
            let program = std::env::current_exe().map_err(|e| e.to_string())?;
            let engine = executors_docker::Engine::connect(config).await.map_err(|e| e.to_string())?;
            engine.prepare(&program).await.map_err(|e| e.to_string())
        };
        if let Err(e) = made.await {
            tracing::warn!(error = %e, "the container engine is not prepared; agents will try");
        }
    }

    /// Has an agent stand ready from now on, and none for too long.
    pub(super) async fn keep_ready(self: Arc<Self>) {
        if !self.spares {
            return;
        }
        loop {
            let taken = self.taken.notified();
            self.replace_spare().await;
            tokio::select! {
                // What a task has to do at its beginning is not to wait for what the next one will need.
                () = taken => tokio::time::sleep(CALM).await,
                () = tokio::time::sleep(FRESH) => {}
            }
        }
    }

    async fn replace_spare(&self) {
        let mut spare = self.spare.lock().await;
        if let Some(old) = spare.take_if(|agent| agent.since.elapsed() >= FRESH) {
            self.dismiss(old).await;
        }
        if spare.is_none() {
            match self.start(self.folders.another(), "", Stdio::piped()) {
                Ok(agent) => *spare = Some(agent),
                // Whether one can be started for a task is seen when there is one.
                Err(e) => tracing::warn!(error = %e, "no agent stands ready for the next task"),
            }
        }
    }

    /// Ends the agent that stands ready.
    pub(super) async fn close(&self) {
        if let Some(spare) = self.spare.lock().await.take() {
            self.dismiss(spare).await;
        }
    }

    /// The agent of a task: the one that stands ready, or one that is started now.
    pub(super) async fn agent(&self, task: &RunnerTask) -> io::Result<Agent> {
        let spare = self.spare.lock().await.take();
        self.taken.notify_one();
        if let Some(mut spare) = spare {
            match spare.give(&task.token).await {
                Ok(()) => return Ok(spare),
                Err(e) => {
                    tracing::warn!(error = %e, "the agent that stood ready is gone");
                    self.dismiss(spare).await;
                }
            }
        }
        self.start(self.folders.another(), &task.token, Stdio::null())
    }

    fn start(&self, folder: PathBuf, token: &str, input: Stdio) -> io::Result<Agent> {
        std::fs::create_dir_all(&folder)?;
        let launch = LaunchFile { token: token.to_owned(), ..self.launch.clone() };
        let started =
            state::keep(&folder, LAUNCH_FILE, &launch, false).and_then(|()| self.spawn(&folder, input));
        match started {
            Ok(child) => Ok(Agent::new(folder, child)),
            Err(e) => {
                let _ = std::fs::remove_dir_all(&folder);
                Err(e)
            }
        }
    }

    fn spawn(&self, folder: &Path, input: Stdio) -> io::Result<Child> {
        // A group of its own: what a terminal tells the runner is not for the task.
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).arg("--task-dir").arg(folder);
        command.env(PLACEMENT, placement(folder));
        // The token of the class is not for agents.
        std::env::vars_os()
            .map(|(name, _)| name)
            .filter(|name| name.to_string_lossy().starts_with(super::VARIABLES))
            .for_each(|name| _ = command.env_remove(name));
        command.stdin(input).process_group(0).spawn()
    }

    /// Waits for an agent's end, and removes what is left of its task. One that came to a sudden end is followed by another,
    /// which runs nothing: it delivers what the dead one could not, and reports that it died.
    pub(super) async fn see_off(&self, mut agent: Agent) {
        let well = agent.ended().await;
        if let Some(engine) = &self.launch.engine
            && let Err(e) = containers::sweep(&agent.folder, engine, &placement(&agent.folder)).await
        {
            // The next runner finds the folder, and tries again.
            tracing::warn!(folder = %agent.folder.display(), error = %e, "the task's containers are left");
            return;
        }
        if !well && agent.folder.join(state::LEASE).exists() {
            match self.spawn(&agent.folder, Stdio::null()) {
                Ok(child) => drop(Agent::new(agent.folder.clone(), child).ended().await),
                Err(e) => {
                    tracing::error!(error = %e, "no agent can be started to report the death of another")
                }
            }
        }
        if let Err(e) = tokio::fs::remove_dir_all(&agent.folder).await {
            tracing::warn!(folder = %agent.folder.display(), error = %e, "the task's folder is left");
        }
    }

    /// Has an agent end without a task.
    async fn dismiss(&self, mut agent: Agent) {
        agent.token = None;
        self.see_off(agent).await;
    }

    /// Folders of a runner before this one.
    pub(super) fn left(&self) -> Vec<PathBuf> {
        self.folders.left()
    }

    /// Ends what a runner before this one began. Its agent may live: then it is waited for. The one that follows it runs
    /// nothing, whether it finds a lease or not.
    pub(super) async fn take_over(self: Arc<Self>, folder: PathBuf) {
        let pid = folder.join(PID_FILE);
        let locked = tokio::task::spawn_blocking(move || match File::open(pid) {
            Ok(file) => file.lock(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        });
        if let Ok(Err(e)) = locked.await {
            tracing::warn!(folder = %folder.display(), error = %e, "whether an agent works there is not known");
        }
        match self.spawn(&folder, Stdio::null()) {
            Ok(child) => self.see_off(Agent::new(folder, child)).await,
            Err(e) => tracing::error!(folder = %folder.display(), error = %e, "no agent can be started"),
        }
    }
}

/// An agent, and the folder of its task.
pub(super) struct Agent {
    folder: PathBuf,
    child: Child,
    /// Where it waits for the token of its task.
    token: Option<ChildStdin>,
    since: Instant,
}

impl Agent {
    fn new(folder: PathBuf, mut child: Child) -> Self {
        Self { folder, token: child.stdin.take(), child, since: Instant::now() }
    }

    /// Gives it the token of its task.
    async fn give(&mut self, token: &str) -> io::Result<()> {
        let mut input = self.token.take().ok_or(io::ErrorKind::BrokenPipe)?;
        input.write_all(format!("{token}\n").as_bytes()).await
    }

    /// Waits for its end. Whether that was as it should be.
    async fn ended(&mut self) -> bool {
        let folder = self.folder.display();
        match self.child.wait().await {
            Ok(status) if status.success() => {
                tracing::info!(%folder, "the agent is done");
                return true;
            }
            Ok(status) => tracing::warn!(%folder, %status, "the agent failed"),
            Err(e) => tracing::error!(%folder, error = %e, "the agent cannot be waited for"),
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_tasks_are_named_as_configured() {
        let named = |configured: &str| {
            let folder = Folders::new(Path::new(configured)).map(|folders| folders.another());
            folder.map(|path| {
                let text = path.display().to_string();
                // An id is 36 characters.
                let id = text.find(|c: char| c.is_ascii_digit()).unwrap();
                format!("{}ID{}", &text[..id], &text[id + 36..])
            })
        };
        assert_eq!(named("/var/lib/runner").unwrap(), "/var/lib/runner/task-ID");
        assert_eq!(named("/var/lib/runner/%s").unwrap(), "/var/lib/runner/ID");
        assert_eq!(named("/tmp/a-%s-b/").unwrap(), "/tmp/a-ID-b");
        assert_eq!(named("/%s").unwrap(), "/ID");
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
