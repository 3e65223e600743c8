//! The host executor: steps run on this machine.

use crate::{
    helper,
    terminal::Terminal,
    wire::{Event, Exec, Ids, Mode, Request, Setup, Spawn},
};
use nix::sys::signal::Signal;
use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
    sync::oneshot,
};

/// Why a step or its environment could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine does not allow the isolation that was asked for.
    #[error("this machine does not allow the isolation that is configured: {0}")]
    Isolation(String),
    /// The program could not be started.
    #[error("{0}")]
    Start(String),
    /// The processes of the task were ended from outside.
    #[error("the processes of the task are gone")]
    Lost,
    /// The operating system refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Whom steps run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What keeps steps from files that are not theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Another user.
    User(Identity),
    /// Namespaces without the hidden folders.
    Namespace,
    /// Nothing.
    None,
}

/// What a sandbox is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program whose `main` calls [`crate::helper_main`].
    pub program: PathBuf,
    /// Kind of isolation.
    pub isolation: Isolation,
    /// Folder for the task's files. Must exist.
    pub work: PathBuf,
    /// Where the task sees that folder, with a mount namespace: short, below folders that everybody may enter,
    /// and the same for all tasks, so that what remembers paths (caches of compilers, say) finds them again.
    pub place: PathBuf,
    /// Without one the files are here: a path of this task alone.
    pub own_place: PathBuf,
    /// Folders that steps must not see.
    pub hide: Vec<PathBuf>,
    /// Control group for all processes.
    pub cgroup: Option<PathBuf>,
}

/// A command to run.
#[derive(Clone, Debug)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory, as the task sees it.
    pub dir: PathBuf,
    /// Whether the directory is made when it is missing.
    pub make_dir: bool,
}

/// A started command.
pub struct Process {
    /// For [`Sandbox::signal`].
    pub id: u64,
    /// Its output.
    pub terminal: Terminal,
    /// Exit code of the command itself, 128 + n for a signal. Descendants may go on.
    pub exit: oneshot::Receiver<i32>,
}

#[derive(Default)]
struct Waiting {
    started: Option<oneshot::Sender<Result<(), String>>>,
    exited: Option<oneshot::Sender<i32>>,
}

/// The environment of one task. Dropping it ends all of its processes.
pub struct Sandbox {
    helper: tokio::sync::Mutex<Child>,
    requests: tokio::sync::Mutex<Option<ChildStdin>>,
    waiting: Arc<Mutex<HashMap<u64, Waiting>>>,
    next: AtomicU64,
    mode: Mode,
    identity: Option<Ids>,
    outside: PathBuf,
    inside: PathBuf,
}

impl Sandbox {
    /// Makes the environment.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let root = nix::unistd::geteuid().is_root();
        let modes: &[Mode] = match (options.isolation, root) {
            (Isolation::User(_) | Isolation::None, true) => &[Mode::Namespaces, Mode::Tree],
            (Isolation::Namespace, true) => &[Mode::Namespaces],
            (Isolation::Namespace, false) => &[Mode::UserNamespaces],
            (Isolation::None, false) => &[Mode::Tree],
            (Isolation::User(_), false) => {
                return Err(Error::Isolation("only root can run steps as another user".into()));
            }
        };
        let mut refused = String::new();
        for mode in modes {
            match Self::attempt(&options, *mode).await {
                Ok(sandbox) => return Ok(sandbox),
                Err(Error::Isolation(message)) => {
                    tracing::info!(?mode, %message, "this kind of sandbox cannot be made here");
                    refused = message;
                }
                Err(e) => return Err(e),
            }
        }
        Err(Error::Isolation(refused))
    }

    async fn attempt(options: &Options, mode: Mode) -> Result<Self, Error> {
        let bound = mode != Mode::Tree;
        let place = if bound { &options.place } else { &options.own_place };
        make_place(place)?;
        let setup = Setup {
            mode,
            bind: bound.then(|| (options.work.clone(), place.clone())),
            hide: if options.isolation == Isolation::None { Vec::new() } else { options.hide.clone() },
            cgroup: options.cgroup.clone(),
        };
        let setup = serde_json::to_string(&setup).map_err(io::Error::from)?;
        let mut helper = tokio::process::Command::new(&options.program)
            .arg(helper::INIT)
            .arg(setup)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let (Some(requests), Some(events)) = (helper.stdin.take(), helper.stdout.take()) else {
            return Err(Error::Lost);
        };
        let mut events = BufReader::new(events).lines();
        match next_event(&mut events).await {
            Some(Event::Ready) => {}
            Some(Event::Unable { message }) => return Err(Error::Isolation(message)),
            _ => return Err(Error::Isolation("the helper process ended".into())),
        }
        let waiting: Arc<Mutex<HashMap<u64, Waiting>>> = Arc::default();
        tokio::spawn(listen(events, Arc::clone(&waiting)));
        let identity = match options.isolation {
            Isolation::User(id) => Some(Ids { uid: id.uid, gid: id.gid, groups: groups_of(id) }),
            _ => None,
        };
        let outside = if bound { options.work.clone() } else { place.clone() };
        Ok(Self {
            helper: tokio::sync::Mutex::new(helper),
            requests: tokio::sync::Mutex::new(Some(requests)),
            waiting,
            next: AtomicU64::new(1),
            mode,
            identity,
            outside,
            inside: place.clone(),
        })
    }

    /// Where the task sees its folder.
    pub fn inside(&self) -> &Path {
        &self.inside
    }

    /// Where that folder is for this process.
    pub fn outside(&self) -> &Path {
        &self.outside
    }

    /// Whether every process of the task ends with the sandbox by the kernel's doing.
    pub fn has_namespaces(&self) -> bool {
        self.mode != Mode::Tree
    }

    /// Starts a command on a terminal of its own.
    pub async fn spawn(&self, command: Command) -> Result<Process, Error> {
        let owner = self.identity.as_ref().map(|ids| (ids.uid, ids.gid));
        let (terminal, slave) = Terminal::open(owner)?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (started_tx, started) = oneshot::channel();
        let (exited_tx, exit) = oneshot::channel();
        self.lock().insert(id, Waiting { started: Some(started_tx), exited: Some(exited_tx) });
        let inner = (self.mode == Mode::UserNamespaces)
            .then(|| (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()));
        let request = Request::Spawn(Spawn {
            id,
            argv: command.argv,
            env: command.env,
            tty: slave.path.clone(),
            exec: Exec {
                identity: self.identity.clone(),
                inner,
                dir: command.dir,
                make_dir: command.make_dir,
            },
        });
        self.request(&request).await?;
        match started.await {
            Ok(Ok(())) => Ok(Process { id, terminal, exit }),
            Ok(Err(message)) => Err(Error::Start(message)),
            Err(_) => Err(Error::Lost),
        }
    }

    /// Sends a signal to every process of a command's session.
    pub async fn signal(&self, id: u64, signal: Signal) {
        // If the helper is gone, so is the command.
        let _ = self.request(&Request::Signal { id, signal: signal as i32 }).await;
    }

    /// Ends every process of the task and waits until that is done.
    pub async fn end(&self) {
        *self.requests.lock().await = None;
        let _ = self.helper.lock().await.wait().await;
    }

    /// Removes the task's files.
    pub fn remove_files(&self) {
        remove_all(&self.outside);
    }

    async fn request(&self, request: &Request) -> Result<(), Error> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        let mut pipe = self.requests.lock().await;
        let Some(pipe) = pipe.as_mut() else { return Err(Error::Lost) };
        pipe.write_all(&line).await.map_err(|_| Error::Lost)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

async fn next_event(events: &mut Lines<BufReader<ChildStdout>>) -> Option<Event> {
    let line = events.next_line().await.ok()??;
    serde_json::from_str(&line).ok()
}

async fn listen(mut events: Lines<BufReader<ChildStdout>>, waiting: Arc<Mutex<HashMap<u64, Waiting>>>) {
    let lock = || waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    while let Some(event) = next_event(&mut events).await {
        match event {
            Event::Spawned { id } => {
                if let Some(tx) = lock().get_mut(&id).and_then(|w| w.started.take()) {
                    let _ = tx.send(Ok(()));
                }
            }
            Event::Failed { id, message } => {
                if let Some(tx) = lock().remove(&id).and_then(|w| w.started) {
                    let _ = tx.send(Err(message));
                }
            }
            Event::Exited { id, code } => {
                if let Some(tx) = lock().remove(&id).and_then(|w| w.exited) {
                    let _ = tx.send(code);
                }
            }
            Event::Ready | Event::Unable { .. } => {}
        }
    }
    // Whoever still waits learns that the helper is gone.
    lock().clear();
}

/// Makes the folder, or takes over our own from before; never one of somebody else in a folder for all.
fn make_place(place: &Path) -> io::Result<()> {
    match fs::create_dir(place) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::symlink_metadata(place)?;
            if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
                return Err(e);
            }
        }
        Err(e) => return Err(e),
    }
    // It also counts as used: what cleans up old temporary files would take the mount away from under a task.
    fs::set_permissions(place, fs::Permissions::from_mode(0o755))
}

/// Removes a tree, also where a tool (a module cache, say) took the right to write from its own folders.
fn remove_all(root: &Path) {
    if fs::remove_dir_all(root).is_ok() {
        return;
    }
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let _ = fs::set_permissions(&folder, fs::Permissions::from_mode(0o700));
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        folders
            .extend(entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    if let Err(e) = fs::remove_dir_all(root)
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %root.display(), error = %e, "files of the task are left");
    }
}

/// The groups of a user, read from the files themselves: a static program cannot load the modules that would
/// ask a directory service.
fn groups_of(id: Identity) -> Vec<u32> {
    let mut groups = vec![id.gid];
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(id.uid)).then_some(name)
    });
    if let Some(name) = name {
        for line in fs::read_to_string("/etc/group").unwrap_or_default().lines() {
            let mut fields = line.split(':').skip(2);
            if let (Some(gid), Some(members)) = (fields.next().and_then(|g| g.parse().ok()), fields.next())
                && members.split(',').any(|m| m == name)
                && !groups.contains(&gid)
            {
                groups.push(gid);
            }
        }
    }
    groups
}
