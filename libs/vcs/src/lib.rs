//! Plain git: bare repositories of one folder, read through the system's `git`.
//!
//! Nothing of the account that runs us takes part: system and user configuration are off, no prompt, no
//! hooks. Every call has a time limit and ends its process when it is dropped.

mod reader;

pub use reader::Reader;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::process::Command;

/// Time limit of one call of `git`.
const LIMIT: Duration = Duration::from_secs(20);

/// Why git gave no answer. An answer of "there is none" is `Ok(None)`, never an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that cannot be a folder of ours.
    #[error("{0:?} is not a name of letters, digits, `.`, `_` and `-`")]
    Name(String),
    /// The repository is not there.
    #[error("there is no repository {0}")]
    NoRepository(String),
    /// The file is larger than the caller reads.
    #[error("{path} has {size} bytes; at most {limit} are read")]
    TooLarge {
        /// Which.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Git answered something else than expected.
    #[error("git {command} failed: {message}")]
    Git {
        /// Sub-command.
        command: String,
        /// What it said.
        message: String,
    },
    /// Git took too long.
    #[error("git {0} took longer than its limit")]
    Timeout(String),
    /// Git could not be run.
    #[error("git could not be run")]
    Io(#[from] std::io::Error),
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What people wrote about a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Full id.
    pub revision: String,
    /// First paragraph, as one line.
    pub subject: String,
    /// Whole message.
    pub message: String,
    /// Name of the author.
    pub author: String,
}

/// The folder `<root>/<org>/<repo>.git`.
#[derive(Clone, Debug)]
pub struct Git {
    root: PathBuf,
}

impl Git {
    /// Repositories below this folder.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The place of a repository, whether it exists or not.
    ///
    /// # Errors
    /// [`Error::Name`] for anything that could leave the folder.
    pub fn repository(&self, org: &str, repo: &str) -> Result<Repository> {
        for name in [org, repo] {
            if !is_name(name) {
                return Err(Error::Name(name.to_owned()));
            }
        }
        Ok(Repository { name: format!("{org}/{repo}"), dir: self.root.join(org).join(format!("{repo}.git")) })
    }
}

/// Whether this may be the name of an organisation or repository: `[A-Za-z0-9._-]`, at most 100 characters,
/// no leading dot or dash.
pub fn is_name(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// One bare repository.
#[derive(Clone, Debug)]
pub struct Repository {
    name: String,
    dir: PathBuf,
}

impl Repository {
    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.dir.join("HEAD").is_file()
    }

    /// Makes it, empty and bare, unless it is there.
    ///
    /// # Errors
    /// Git cannot write there.
    pub async fn init(&self, default_branch: &str) -> Result<()> {
        if self.exists() {
            return Ok(());
        }
        tokio::fs::create_dir_all(&self.dir).await?;
        let branch = format!("--initial-branch={default_branch}");
        self.call("init", ["--bare", "--quiet", "--template=", &branch, "."]).await
    }

    /// Begins to read: a process, which answers until the reader is dropped.
    ///
    /// # Errors
    /// The repository is missing, or git cannot be run.
    pub fn read(&self) -> Result<Reader> {
        Reader::open(self)
    }

    fn odd(&self, command: &str, message: &str) -> Error {
        Error::Git { command: command.to_owned(), message: format!("{}: {message}", self.name) }
    }

    /// Runs one sub-command in the folder.
    async fn call<I, S>(&self, command: &str, arguments: I) -> Result<()>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let run =
            git(&self.dir).arg(command).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
        let output =
            tokio::time::timeout(LIMIT, run).await.map_err(|_| Error::Timeout(command.to_owned()))??;
        if output.status.success() { Ok(()) } else { Err(self.odd(command, text(&output.stderr).trim())) }
    }
}

/// A command on a bare repository, apart from the account's own configuration. Also for those who serve the
/// repository over HTTP.
pub fn git(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .current_dir(dir)
        .env("GIT_DIR", ".")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("LC_ALL", "C")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .env_remove("GIT_OBJECT_DIRECTORY")
        .args(["-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null"]);
    command
}

/// Whether this is a full commit id. Anything else could be an expression or an option.
pub fn is_revision(revision: &str) -> bool {
    matches!(revision.len(), 40 | 64) && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
