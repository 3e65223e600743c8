//! Plain git: bare repositories of one folder, read through the system's `git`.
//!
//! Nothing of the account that runs us takes part: system and user configuration are off, no prompt, no
//! hooks. Every call has a time limit and ends its process when it is dropped.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{io::AsyncReadExt, process::Command};

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
    /// First line.
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
        self.call("init", ["--bare", "--quiet", "--template=", &branch, "."]).await.map(drop)
    }

    /// The commit of a branch.
    ///
    /// # Errors
    /// The repository is missing, or git failed.
    pub async fn branch(&self, name: &str) -> Result<Option<String>> {
        self.commit_of(&format!("refs/heads/{name}")).await
    }

    /// The commit of a tag, annotated or not.
    ///
    /// # Errors
    /// The repository is missing, or git failed.
    pub async fn tag(&self, name: &str) -> Result<Option<String>> {
        self.commit_of(&format!("refs/tags/{name}")).await
    }

    async fn commit_of(&self, reference: &str) -> Result<Option<String>> {
        // `rev-parse` reads `^`, `~`, `@{…}` and `:` in a name as expressions: such a name is no ref.
        if self.call("check-ref-format", [reference]).await?.is_none() {
            return Ok(None);
        }
        let found =
            self.call("rev-parse", ["--verify", "--quiet", &format!("{reference}^{{commit}}")]).await?;
        Ok(found.map(|out| text(&out).trim().to_owned()))
    }

    /// A file at a commit.
    ///
    /// # Errors
    /// The repository is missing, the file has more than `limit` bytes, or git failed.
    pub async fn file(&self, revision: &str, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        if !is_revision(revision) {
            return Ok(None);
        }
        let object = format!("{revision}:{path}");
        let Some(size) = self.call("cat-file", ["-s", &object]).await? else { return Ok(None) };
        let size =
            text(&size).trim().parse().map_err(|_| self.odd("cat-file", "the size is not a number"))?;
        if size > limit {
            return Err(Error::TooLarge { path: path.to_owned(), size, limit });
        }
        // A folder of this name is no file: `blob` makes git say so.
        self.call("cat-file", ["blob", &object]).await
    }

    /// A commit's texts.
    ///
    /// # Errors
    /// The repository is missing, or git failed.
    pub async fn commit(&self, revision: &str) -> Result<Option<Commit>> {
        if !is_revision(revision) {
            return Ok(None);
        }
        let format = "--format=%H%x00%s%x00%an%x00%B";
        let Some(out) = self.call("log", ["-1", "--no-show-signature", format, revision, "--"]).await? else {
            return Ok(None);
        };
        let out = text(&out);
        let mut parts = out.splitn(4, '\0').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(revision), Some(subject), Some(author), Some(message)) => {
                Ok(Some(Commit { revision, subject, message: message.trim_end().to_owned(), author }))
            }
            _ => Err(self.odd("log", "fields are missing")),
        }
    }

    fn odd(&self, command: &str, message: &str) -> Error {
        Error::Git { command: command.to_owned(), message: format!("{}: {message}", self.name) }
    }

    /// Runs one sub-command in the repository. `None`: git said no (status 1 or 128) without it being broken.
    async fn call<I, S>(&self, command: &str, arguments: I) -> Result<Option<Vec<u8>>>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        if command != "init" && !self.exists() {
            return Err(Error::NoRepository(self.name.clone()));
        }
        let mut child = git(&self.dir)
            .arg(command)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (mut out, mut said) = (Vec::new(), Vec::new());
        let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(self.odd(command, "its output is not piped"));
        };
        let run = async {
            let (read, also, status) =
                tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut said), child.wait());
            read?;
            also?;
            status
        };
        let status =
            tokio::time::timeout(LIMIT, run).await.map_err(|_| Error::Timeout(command.to_owned()))??;
        match status.code() {
            Some(0) => Ok(Some(out)),
            Some(1 | 128) if command != "init" => {
                let said = text(&said);
                // Of what git says with these codes, only damage is worth a fault.
                if ["corrupt", "unable to read", "dubious ownership", "not a git repository"]
                    .iter()
                    .any(|word| said.contains(word))
                {
                    return Err(self.odd(command, said.trim()));
                }
                tracing::debug!(git.command = command, git.said = said.trim(), "git found nothing");
                Ok(None)
            }
            _ => Err(self.odd(command, text(&said).trim())),
        }
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
