//! The port: an environment in which the commands of one task run.

use crate::Signal;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixListener,
    sync::{mpsc::UnboundedSender, oneshot},
};

/// Why an environment or a command in it could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine does not allow the isolation that was asked for.
    #[error("this machine does not allow the isolation that is configured: {0}")]
    Isolation(String),
    /// The program could not be started.
    #[error("{0}")]
    Start(String),
    /// There is no engine for containers of the job's own; the text is for the job's author.
    #[error("{0}")]
    RemoteDocker(String),
    /// The environment was ended from outside.
    #[error("the processes of the task are gone")]
    Lost,
    /// The operating system refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is known of an environment once it stands. All paths are as the task sees them.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Home folder of [`Self::user`].
    pub home: PathBuf,
    /// Folder with the agent's programs: `gantry-runner`, `circleci` and its other names.
    pub bin: PathBuf,
    /// Folder for files of the task that are no files of its author's; steps may write it.
    pub data: PathBuf,
    /// As whom commands run.
    pub user: String,
    /// What the machine or the image sets, below everything else (execution §11.1).
    pub environment: BTreeMap<String, String>,
    /// What keeps the task from others, for people.
    pub isolation: String,
}

/// What a command is connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// Output goes to a terminal of 80 columns that changes no byte; there is no input.
    #[default]
    Terminal,
    /// The same, and input comes from that terminal, on which nobody types: shells wait.
    Interactive,
    /// Three pipes.
    Pipes,
    /// A terminal at which a person types: it is the command's controlling one, so that keys send signals, and it
    /// turns line ends as terminals do.
    Session(Size),
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Characters of a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl Default for Size {
    /// What terminals had.
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

/// A command to run.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory, as the task sees it.
    pub dir: PathBuf,
    /// Whether the directory is made when it is missing.
    pub make_dir: bool,
    /// What it is connected to.
    pub io: Io,
}

/// What a command writes. It ends when no process has it open any more. Dropping a read loses nothing.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;
/// What a command reads; dropping it is the end of it.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// Gives a terminal another size; programs in its foreground are told (`SIGWINCH`).
pub type Resize = Box<dyn Fn(Size) + Send + Sync>;

/// A started command.
pub struct Process {
    /// For [`Environment::signal`].
    pub id: u64,
    /// What it writes: to its terminal, or to standard output.
    pub output: Output,
    /// Standard error, with [`Io::Pipes`].
    pub errors: Option<Output>,
    /// Standard input, with [`Io::Pipes`]; the keyboard, with [`Io::Session`], where dropping it is no end.
    pub input: Option<Input>,
    /// Changes the size of the terminal, with [`Io::Session`].
    pub resize: Option<Resize>,
    /// Exit code of the command itself, 128 + n for a signal. Descendants may go on. Closed without a code:
    /// the environment is gone.
    pub exit: oneshot::Receiver<i32>,
    /// Comes after `exit`, when all that the command itself had written can be read without waiting; until then it
    /// may be under way. For more than a few hundred KiB it waits until they are read.
    pub written: oneshot::Receiver<()>,
}

/// A Docker engine that is one task's own, as its steps reach it (execution §24).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteDocker {
    /// Its name, which is its host's name for the steps too.
    pub name: String,
    /// Where its API is, over TLS: `tcp://NAME:PORT`.
    pub host: String,
    /// What a client needs to be let in and to know the engine: file names and texts, `ca.pem`, `cert.pem`, `key.pem`.
    pub certificates: Vec<(String, String)>,
}

/// The environment of one task: a sandbox on the machine, or containers. [`Environment::end`] ends all that runs
/// in it; so does the death of this process, however it dies.
#[async_trait::async_trait]
pub trait Environment: Send + Sync {
    /// What is known of it.
    fn facts(&self) -> &Facts;

    /// Starts a command.
    ///
    /// # Errors
    /// [`Error::Lost`] when the environment is gone, [`Error::Start`] when the program cannot be started. That a
    /// program does not exist is told by its exit code (127), as shells do.
    async fn spawn(&self, command: Command) -> Result<Process, Error>;

    /// Sends a signal to every process of a command's session. Without effect on one that has ended.
    async fn signal(&self, id: u64, signal: Signal);

    /// Writes a file, with the folders above it, for commands to read. One that exists is replaced.
    ///
    /// # Errors
    /// It cannot be written.
    async fn write(&self, path: &Path, text: &str, mode: u32) -> Result<(), Error>;

    /// Whether there is a file.
    ///
    /// # Errors
    /// The environment is gone.
    async fn exists(&self, path: &Path) -> Result<bool, Error>;

    /// Listens at a socket, as the task sees its path, that commands may connect to; `None` where this process is too far
    /// from the task's files, and only a command could listen.
    ///
    /// # Errors
    /// The socket cannot be made.
    fn listen(&self, _path: &Path) -> Result<Option<UnixListener>, Error> {
        Ok(None)
    }

    /// Waits until the environment fails by itself, and says why. One of the machine never does.
    async fn failed(&self) -> String {
        std::future::pending().await
    }

    /// What is to be said about an exit code that the environment had a part in, such as one that ran out of
    /// memory.
    async fn explain(&self, _exit_code: i32) -> Option<String> {
        None
    }

    /// A Docker engine for containers of the job's own; asked for again it is the same one. It goes with the
    /// environment. Lines for people are sent to `log` as they come, each with its line feed. The future may be
    /// dropped: what was made is removed with the environment.
    ///
    /// # Errors
    /// [`Error::RemoteDocker`]: there is none here, with the reason; or it could not be started.
    async fn remote_docker(&self, _log: UnboundedSender<String>) -> Result<RemoteDocker, Error> {
        Err(Error::RemoteDocker(
            "A job on a machine has no remote Docker engine: it uses the machine's own, if its user may. Leave out \
             `setup_remote_docker`, which is for jobs with `docker:`."
                .into(),
        ))
    }

    /// Ends every process of the task and waits until that is done. Files stay until [`Environment::remove`].
    async fn end(&self);

    /// Removes all that is left of the task.
    async fn remove(&self);
}
