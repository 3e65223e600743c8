//! The host executor: steps run on this machine.

mod files;
mod pipes;

use crate::{
    Command, Environment, Error, Facts, Io, Process, Signal, helper,
    terminal::{Terminal, Use},
    wire::{Bind, Ends, Event, Exec, Ids, Mode, Request, Setup, Spawn},
};
use cgroups::Bounds;
use pipes::Pipes;
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::UnixListener,
    process::{Child, ChildStdin, ChildStdout},
    sync::oneshot,
};

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

#[derive(Default)]
struct Waiting {
    started: Option<oneshot::Sender<Result<(), String>>>,
    /// For [`Process::exit`] and [`Process::written`].
    exited: Option<(oneshot::Sender<i32>, oneshot::Sender<()>)>,
}

/// The environment of one task. Dropping it ends all of its processes.
pub struct Sandbox {
    helper: tokio::sync::Mutex<Child>,
    requests: tokio::sync::Mutex<Option<ChildStdin>>,
    waiting: Arc<Mutex<HashMap<u64, Waiting>>>,
    next: AtomicU64,
    mode: Mode,
    identity: Option<Ids>,
    owner: Option<Identity>,
    facts: Facts,
    outside: PathBuf,
    inside: PathBuf,
    /// What all processes may use together, once it is known.
    bounds: OnceLock<Bounds>,
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
        files::make_place(place)?;
        let outside = if bound { options.work.clone() } else { place.clone() };
        let owner = match options.isolation {
            Isolation::User(id) => Some(id),
            _ => None,
        };
        let program = files::furnish(&outside, owner)?;
        let mut binds = Vec::new();
        if bound && files::may_be_shared(&options.program, owner) {
            // One file for all tasks, which none of them can change: it is many times what else is written for a task.
            fs::File::create(&program)?;
            binds.push(Bind { from: options.program.clone(), to: program, read_only: true });
        } else {
            files::provide(&options.program, &program)?;
        }
        if bound {
            binds.push(Bind { from: options.work.clone(), to: place.clone(), read_only: false });
        }
        let setup = Setup {
            mode,
            binds,
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
            Isolation::User(id) => Some(Ids { uid: id.uid, gid: id.gid, groups: files::groups_of(id) }),
            _ => None,
        };
        let uid = owner.map_or_else(|| nix::unistd::getuid().as_raw(), |id| id.uid);
        let facts = Facts {
            home: place.join("home"),
            bin: place.join("bin"),
            data: place.join("data"),
            user: files::user_name(uid),
            environment: files::environment(),
            isolation: match (owner, bound) {
                (Some(id), true) => format!("user {} in namespaces of its own", id.uid),
                (Some(id), false) => format!("user {}", id.uid),
                (None, true) => "namespaces of its own".into(),
                (None, false) => "none".into(),
            },
        };
        Ok(Self {
            helper: tokio::sync::Mutex::new(helper),
            requests: tokio::sync::Mutex::new(Some(requests)),
            waiting,
            next: AtomicU64::new(1),
            mode,
            identity,
            owner,
            facts,
            outside,
            inside: place.clone(),
            bounds: OnceLock::new(),
        })
    }

    /// Bounds what is started from now on. The environment is made before its task is known, and with it what that may use.
    ///
    /// # Errors
    /// The group cannot be entered.
    pub async fn bound(&self, bounds: Bounds) -> Result<(), Error> {
        let bounds = self.bounds.get_or_init(|| bounds);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (started, entered) = oneshot::channel();
        self.lock().insert(id, Waiting { started: Some(started), exited: None });
        self.request(&Request::Enter { id, groups: bounds.groups().to_vec() }).await?;
        entered.await.map_err(|_| Error::Lost)?.map_err(Error::Start)
    }

    /// Where a path of the task's own folder is for this process.
    fn of_agent(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.inside).map_or_else(|_| path.to_owned(), |rest| self.outside.join(rest))
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

#[async_trait::async_trait]
impl Environment for Sandbox {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    async fn spawn(&self, command: Command) -> Result<Process, Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut terminal = None;
        let mut pipes = None;
        let io = match command.io {
            Io::Terminal | Io::Interactive => {
                let owner = self.identity.as_ref().map(|ids| (ids.uid, ids.gid));
                let (_, theirs) = terminal.insert(Terminal::open(owner, Use::Output)?);
                Ends::Tty { path: theirs.path.clone(), input: command.io == Io::Interactive }
            }
            Io::Session(size) => {
                let owner = self.identity.as_ref().map(|ids| (ids.uid, ids.gid));
                let (_, theirs) = terminal.insert(Terminal::open(owner, Use::Session(size))?);
                Ends::Session { path: theirs.path.clone() }
            }
            Io::Pipes => {
                let folder = Path::new("io").join(id.to_string());
                pipes.insert(Pipes::open(&self.outside.join(&folder))?).ends(&self.inside.join(&folder))
            }
        };
        let (started_tx, started) = oneshot::channel();
        let (exited_tx, exit) = oneshot::channel();
        let (written_tx, written) = oneshot::channel();
        let exited = Some((exited_tx, written_tx));
        self.lock().insert(id, Waiting { started: Some(started_tx), exited });
        let inner = (self.mode == Mode::UserNamespaces)
            .then(|| (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw()));
        let exec = Exec {
            identity: self.identity.clone(),
            inner,
            dir: command.dir,
            make_dir: command.make_dir,
            controls: matches!(command.io, Io::Session(_)),
        };
        let spawn = Spawn { id, argv: command.argv, env: command.env, io, exec };
        self.request(&Request::Spawn(spawn)).await?;
        match started.await {
            Ok(Ok(())) => {}
            Ok(Err(message)) => return Err(Error::Start(message)),
            Err(_) => return Err(Error::Lost),
        }
        Ok(match (terminal, pipes) {
            (Some((terminal, _theirs)), _) => {
                let (mut input, mut resize) = (None, None);
                if matches!(command.io, Io::Session(_)) {
                    let (keyboard, sized) = terminal.keyboard()?;
                    input = Some(Box::new(keyboard) as crate::Input);
                    resize = Some(sized);
                }
                Process { id, output: Box::new(terminal), errors: None, input, resize, exit, written }
            }
            (None, Some(pipes)) => pipes.process(id, exit, written),
            (None, None) => return Err(Error::Lost),
        })
    }

    async fn signal(&self, id: u64, signal: Signal) {
        // If the helper is gone, so is the command.
        let _ = self.request(&Request::Signal { id, signal: signal as i32 }).await;
    }

    async fn write(&self, path: &Path, text: &str, mode: u32) -> Result<(), Error> {
        Ok(files::write(&self.of_agent(path), text, mode, self.owner)?)
    }

    async fn exists(&self, path: &Path) -> Result<bool, Error> {
        Ok(self.of_agent(path).exists())
    }

    fn listen(&self, path: &Path) -> Result<Option<UnixListener>, Error> {
        Ok(Some(files::listen(&self.of_agent(path), self.owner)?))
    }

    async fn explain(&self, exit_code: i32) -> Option<String> {
        let bounds = self.bounds.get()?;
        (exit_code == 137 && bounds.ran_out_of_memory()).then(|| out_of_memory(bounds.memory_bytes()))
    }

    async fn end(&self) {
        *self.requests.lock().await = None;
        let _ = self.helper.lock().await.wait().await;
    }

    async fn remove(&self) {
        files::remove_all(&self.outside);
        if let Some(bounds) = self.bounds.get() {
            bounds.remove();
        }
    }
}

/// What is said of a command that was ended for want of memory, of which there were so many bytes.
pub fn out_of_memory(bytes: Option<u64>) -> String {
    let limit = bytes.map_or_else(|| "its memory".into(), |bytes| format!("{} MiB", bytes >> 20));
    format!("oom_killed: the job needed more than {limit}; give it a larger resource class")
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
            Event::Done { id, .. } => {
                if let Some(done) = lock().remove(&id).and_then(|w| w.started) {
                    let _ = done.send(Ok(()));
                }
            }
            Event::Exited { id, code } => {
                if let Some((exited, written)) = lock().remove(&id).and_then(|w| w.exited) {
                    let _ = exited.send(code);
                    // It lies in the kernel.
                    let _ = written.send(());
                }
            }
            Event::Ready | Event::Guest(_) | Event::Written { .. } | Event::Unable { .. } => {}
        }
    }
    // Whoever still waits learns that the helper is gone.
    lock().clear();
}
