//! Agents as detached processes of this machine.

use crate::{Compute, Error, Phase, Placement, Running, check_name, process};
use agent_api::{CONTAINERS_FILE, Engine, JobUser, LAUNCH_FILE, LaunchFile, PID_FILE, SshListen};
use cgroups::Bounds;
use process::Identity;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{process::Command, sync::Mutex};

const PROGRAM: &str = "gantry-runner";
const LOG: &str = "agent.log";
const SPOOL: &str = "spool";
/// How long what an agent could not deliver is kept.
const KEEP_UNSENT: Duration = Duration::from_secs(24 * 3600);
/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// What of the server's environment an agent may know: enough to find programs, nothing that can be secret.
const PASSED_ON: [&str; 10] =
    ["PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"];

/// How agents are started here.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// The data folder: `tasks/` and `bin/` are made in it.
    pub data: PathBuf,
    /// The agent's program.
    pub agent: PathBuf,
    /// Where agents find the suite, for example `unix:/run/x/agent.sock`. The same across restarts.
    pub endpoint: String,
    /// `user`, `namespace` or `none`.
    pub isolation: String,
    /// As whom steps run, with isolation `user`.
    pub job_user: Option<JobUser>,
    /// Folders that steps must not see.
    pub hide: Vec<PathBuf>,
    /// Whether agents get cgroups where the machine allows it.
    pub cgroups: bool,
    /// Where jobs that are rerun with SSH are entered; `None`: they are not.
    pub ssh: Option<SshListen>,
}

/// Ends the containers of a placement. A container outlives the agent that made it.
#[async_trait::async_trait]
pub trait Containers: Send + Sync {
    /// Ends and removes all of a placement.
    ///
    /// # Errors
    /// Something of it is still there, or the engine does not answer.
    async fn sweep(&self, placement: &str) -> Result<(), String>;
}

/// The local adapter.
pub struct Local {
    config: LocalConfig,
    containers: Option<(Engine, Arc<dyn Containers>)>,
    cgroups: Option<cgroups::Root>,
    program: PathBuf,
    /// Looking whether an agent runs and starting it must be one act.
    starting: Mutex<()>,
}

impl Local {
    /// Prepares the folders and a copy of the agent's program. Agents of an earlier server are found by
    /// [`Compute::list`] and go on.
    ///
    /// # Errors
    /// The folders or the copy cannot be made.
    pub fn open(config: LocalConfig) -> Result<Self, Error> {
        let tasks = config.data.join("tasks");
        private_folder(&tasks)?;
        if let Err(error) = spread(&tasks) {
            tracing::debug!(%error, "folders of tasks lie where the file system puts them");
        }
        let program = install(&config.agent, &config.data.join("bin"))?;
        let cgroups = config.cgroups.then(cgroups::Root::find).flatten();
        if let Some(root) = &cgroups {
            root.sweep();
        }
        tracing::info!(cgroups = cgroups.is_some(), program = %program.display(), "local compute is ready");
        Ok(Self { config, containers: None, cgroups, program, starting: Mutex::new(()) })
    }

    /// Gives agents a container engine.
    #[must_use]
    pub fn with_engine(mut self, engine: Engine, containers: Arc<dyn Containers>) -> Self {
        self.containers = Some((engine, containers));
        self
    }

    /// The program that agents run.
    pub fn program(&self) -> &Path {
        &self.program
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.config.data.join("tasks").join(name)
    }

    fn launch(&self, placement: &Placement, folder: &Path, group: Option<&Path>) -> Result<(), Error> {
        private_folder(folder)?;
        let launch = LaunchFile {
            endpoint: self.config.endpoint.clone(),
            token: placement.token.clone(),
            isolation: self.config.isolation.clone(),
            job_user: self.config.job_user,
            hide: self.config.hide.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
            engine: self.containers.as_ref().map(|(engine, _)| engine.clone()),
            cgroup: group.map(|path| path.to_string_lossy().into_owned()),
            ssh: self.config.ssh.clone(),
            max_run_ms: None,
        };
        let file = folder.join(LAUNCH_FILE);
        let body = serde_json::to_vec(&launch).map_err(|error| io_error("write", &file)(error.into()))?;
        write_private(&file, &body).map_err(io_error("write", &file))?;
        self.spawn(&placement.name, folder, group)
    }

    fn spawn(&self, name: &str, folder: &Path, group: Option<&Path>) -> Result<(), Error> {
        let log = folder.join(LOG);
        let output = private_options().append(true).open(&log).map_err(io_error("open", &log))?;
        let errors = output.try_clone().map_err(io_error("open", &log))?;
        if let Some(group) = group {
            cgroups::create(group).map_err(io_error("make the cgroup", group))?;
        }
        let mut command = Command::new(&self.program);
        command.arg("--task-dir").arg(folder).current_dir(folder).env_clear().env(process::MARK, name);
        command.envs(PASSED_ON.iter().filter_map(|key| Some((key, std::env::var_os(key)?))));
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // Nothing to be done between fork and exec: that would copy this server's page tables for every agent. The
        // agent itself leaves our session, enters its cgroup and says who it is, before anything else.
        let mut child = command.spawn().map_err(io_error("start", &self.program))?;
        // Until it has said so, this says it.
        let pid_file = folder.join(PID_FILE);
        if let Some(stat) = child.id().and_then(|id| fs::read(format!("/proc/{id}/stat")).ok()) {
            let write =
                private_options().write(true).open(&pid_file).and_then(|mut file| file.write_all(&stat));
            write.map_err(io_error("write", &pid_file))?;
        }
        let name = name.to_owned();
        // Nobody waits for an agent, but a child that ended must be reaped.
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) => tracing::debug!(%name, %status, "the agent ended"),
                Err(error) => tracing::warn!(%name, %error, "cannot wait for the agent"),
            }
        });
        Ok(())
    }

    /// Whether all of a placement was in its cgroup: its agent entered it before it started anything, and the user of
    /// its steps may not move a process out.
    fn is_contained(&self, name: &str, group: &Path) -> bool {
        let launch = fs::read(self.folder(name).join(LAUNCH_FILE)).ok();
        let launch: Option<LaunchFile> = launch.and_then(|body| serde_json::from_slice(&body).ok());
        self.config.isolation == "user"
            && launch.and_then(|launch| launch.cgroup).is_some_and(|path| Path::new(&path) == group)
    }

    /// Ends what runs for a placement. Not under the lock: a placement that is being ended is not started.
    async fn end(&self, name: &str) -> Result<(), Error> {
        let agent = Identity::read(&self.folder(name).join(PID_FILE));
        let mut contained = false;
        if let Some(root) = &self.cgroups {
            let group = root.of(name);
            if group.exists() {
                let empty = cgroups::kill(&group, KILL_LIMIT).await.map_err(io_error("empty", &group))?;
                if !empty {
                    return Err(Error::Stuck(name.to_owned()));
                }
                cgroups::remove(&group);
                contained = self.is_contained(name, &group) && !agent.is_some_and(Identity::alive);
            }
        }
        // Looks at every process of the machine: only where something of it may be elsewhere, of an earlier server
        // that had no cgroups say.
        if !contained && !process::kill_all(agent, name, KILL_LIMIT).await {
            return Err(Error::Stuck(name.to_owned()));
        }
        self.end_containers(name).await?;
        Bounds::end(name, KILL_LIMIT).await.map_err(|_| Error::Stuck(name.to_owned()))
    }

    /// Not before the agent has ended: it makes them.
    async fn end_containers(&self, name: &str) -> Result<(), Error> {
        let mark = self.folder(name).join(CONTAINERS_FILE);
        if !mark.exists() {
            return Ok(());
        }
        let Some((_, containers)) = &self.containers else {
            tracing::warn!(%name, "containers may be left: no engine is configured any more");
            return Ok(());
        };
        containers
            .sweep(name)
            .await
            .map_err(|message| Error::Containers { name: name.to_owned(), message })?;
        fs::remove_file(&mark).map_err(io_error("remove", &mark))
    }
}

#[async_trait::async_trait]
impl Compute for Local {
    async fn start(&self, placement: &Placement) -> Result<(), Error> {
        check_name(&placement.name)?;
        let folder = self.folder(&placement.name);
        let _one_at_a_time = self.starting.lock().await;
        if Identity::read(&folder.join(PID_FILE)).is_some_and(Identity::alive) {
            return Ok(());
        }
        let group = self.cgroups.as_ref().map(|root| root.of(&placement.name));
        match self.launch(placement, &folder, group.as_deref()) {
            // A cgroup that can be made and not used must not keep work from running.
            Err(error) if group.is_some() => {
                tracing::warn!(name = %placement.name, error = ?error, "starting without a cgroup");
                self.launch(placement, &folder, None)
            }
            result => result,
        }
    }

    async fn stop(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        self.end(name).await
    }

    async fn list(&self) -> Result<Vec<Running>, Error> {
        let tasks = self.config.data.join("tasks");
        let entries = fs::read_dir(&tasks).map_err(io_error("read", &tasks))?;
        Ok(entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok().filter(|name| check_name(name).is_ok())?;
                let folder = entry.path();
                let since = modified(&folder.join(PID_FILE)).or_else(|| modified(&folder))?;
                let alive = Identity::read(&folder.join(PID_FILE)).is_some_and(Identity::alive);
                let phase = if alive { Phase::Runs } else { Phase::Ended };
                Some(Running { name, phase, since, unsent: unsent(&folder) })
            })
            .collect())
    }

    async fn remove(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        self.end(name).await?;
        let folder = self.folder(name);
        let old =
            modified(&folder.join(PID_FILE)).is_none_or(|at| at.elapsed().is_ok_and(|age| age > KEEP_UNSENT));
        if unsent(&folder) && !old {
            tracing::warn!(%name, "the agent's folder is kept: it holds output that was not delivered");
            return Ok(());
        }
        match tokio::fs::remove_dir_all(&folder).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &folder)(error)),
            _ => Ok(()),
        }
    }
}

/// Whether the agent left something that it could not deliver.
fn unsent(folder: &Path) -> bool {
    fs::read_dir(folder.join(SPOOL)).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.metadata().is_ok_and(|data| data.is_file() && data.len() > 0))
    })
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|data| data.modified()).ok()
}

/// Copies the program into a folder named by its version, once per build. Size and time of change tell builds
/// apart as well as a digest would and need no reading of the whole file at every start.
fn install(agent: &Path, bin: &Path) -> Result<PathBuf, Error> {
    let data = fs::metadata(agent).map_err(io_error("find the agent's program", agent))?;
    let version = format!("{:x}-{:x}-{:x}", data.size(), data.mtime(), data.mtime_nsec());
    let folder = bin.join(&version);
    let program = folder.join(PROGRAM);
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&folder).map_err(io_error("make", &folder))?;
    let draft = folder.join(format!("new-{}", std::process::id()));
    // The copy shares its blocks where the file system can; a hard link would change with its origin.
    fs::copy(agent, &draft).map_err(io_error("copy", agent))?;
    fs::rename(&draft, &program).map_err(io_error("install", &program))?;
    Ok(program)
}

/// Has the file system put each folder below this one into another part of the disk, as it does at its root. For a minute
/// and more ext4 does not give away what was freed in a part, and looks at all of it for each new file: tasks make some
/// twenty files each and remove them within seconds, and would soon spend more on that than on their work.
fn spread(folder: &Path) -> io::Result<()> {
    let folder = fs::File::open(folder)?;
    Ok(ioctl_setflags(&folder, ioctl_getflags(&folder)? | IFlags::TOPDIR)?)
}

fn private_folder(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("make", path))
}

fn private_options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.create(true).mode(0o600);
    options
}

fn write_private(path: &Path, body: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    private_options().write(true).truncate(true).open(&draft)?.write_all(body)?;
    failpoints::failpoint_blocking("compute.launch.before")?;
    fs::rename(&draft, path)?;
    failpoints::failpoint_blocking("compute.launch.after")?;
    Ok(())
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}
