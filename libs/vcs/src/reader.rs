//! Reading objects through one `git cat-file --batch`: a process per reader, not one per question.

use crate::{Commit, Error, LIMIT, Repository, Result, git, is_revision, text};
use std::process::Stdio;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
};

/// Largest commit that is read, in bytes: a message has no bound of its own.
const COMMIT_LIMIT: u64 = 1 << 20;

/// A repository that is being read. Its process ends when it is dropped.
pub struct Reader {
    repository: Repository,
    _git: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    said: ChildStderr,
}

/// An object as git names it.
struct Object {
    id: String,
    kind: String,
    bytes: Vec<u8>,
}

impl Reader {
    /// Begins to read.
    ///
    /// # Errors
    /// The repository is missing, or git cannot be run.
    pub(crate) fn open(repository: &Repository) -> Result<Self> {
        if !repository.exists() {
            return Err(Error::NoRepository(repository.name.clone()));
        }
        let mut child = git(&repository.dir)
            .args(["cat-file", "--batch"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(questions), Some(answers), Some(said)) => Ok(Self {
                repository: repository.clone(),
                _git: child,
                questions,
                answers: BufReader::new(answers),
                said,
            }),
            _ => Err(repository.odd("cat-file", "its streams are not piped")),
        }
    }

    /// The commit of a branch.
    ///
    /// # Errors
    /// Git failed.
    pub async fn branch(&mut self, name: &str) -> Result<Option<Commit>> {
        self.commit_of("refs/heads/", name).await
    }

    /// The commit of a tag, annotated or not.
    ///
    /// # Errors
    /// Git failed.
    pub async fn tag(&mut self, name: &str) -> Result<Option<Commit>> {
        self.commit_of("refs/tags/", name).await
    }

    /// A commit by its full id.
    ///
    /// # Errors
    /// Git failed.
    pub async fn commit(&mut self, revision: &str) -> Result<Option<Commit>> {
        if !is_revision(revision) {
            return Ok(None);
        }
        self.commit_at(&format!("{revision}^{{commit}}")).await
    }

    /// A file at a commit, by its full id.
    ///
    /// # Errors
    /// The file has more than `limit` bytes (the reader answers nothing after that), or git failed.
    pub async fn file(&mut self, revision: &str, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        if !is_revision(revision) || path.contains('\n') {
            return Ok(None);
        }
        let found = self.object(&format!("{revision}:{path}"), path, limit).await?;
        // A folder of this name is no file.
        Ok(found.filter(|object| object.kind == "blob").map(|object| object.bytes))
    }

    async fn commit_of(&mut self, prefix: &str, name: &str) -> Result<Option<Commit>> {
        // Git reads `^`, `~`, `@{…}` and `:` in a name as expressions, and a line as a question: such a name is no ref
        // (git-check-ref-format).
        let odd = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
        if name.contains(odd) || name.contains("..") || name.contains("@{") {
            return Ok(None);
        }
        self.commit_at(&format!("{prefix}{name}^{{commit}}")).await
    }

    async fn commit_at(&mut self, name: &str) -> Result<Option<Commit>> {
        let found = self.object(name, name, COMMIT_LIMIT).await?;
        Ok(found.filter(|object| object.kind == "commit").map(|object| commit(object.id, &object.bytes)))
    }

    async fn object(&mut self, name: &str, path: &str, limit: u64) -> Result<Option<Object>> {
        let asked = tokio::time::timeout(LIMIT, self.ask(name, path, limit)).await;
        match asked.map_err(|_| Error::Timeout("cat-file".to_owned()))? {
            // It has ended, and said why.
            Err(Error::Io(_)) => {
                let mut said = Vec::new();
                let read = tokio::time::timeout(LIMIT, self.said.read_to_end(&mut said)).await;
                read.map_err(|_| Error::Timeout("cat-file".to_owned()))??;
                Err(self.repository.odd("cat-file", text(&said).trim()))
            }
            answer => answer,
        }
    }

    /// One question and its answer: `<id> <kind> <size>`, the bytes, and a line's end; or `<question> missing`.
    async fn ask(&mut self, name: &str, path: &str, limit: u64) -> Result<Option<Object>> {
        self.questions.write_all(format!("{name}\n").as_bytes()).await?;
        let mut head = String::new();
        if self.answers.read_line(&mut head).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        let head = head.trim_end_matches('\n');
        let words: Vec<&str> = head.split(' ').collect();
        let [id, kind, size] = words[..] else {
            tracing::debug!(git.said = head, "git found nothing");
            return Ok(None);
        };
        // `<question> missing` has two words, but for a question with a space in it.
        let Some(size) = size.parse().ok().filter(|_| is_revision(id)) else { return Ok(None) };
        if size > limit {
            return Err(Error::TooLarge { path: path.to_owned(), size, limit });
        }
        let mut bytes =
            vec![
                0;
                usize::try_from(size).map_err(|_| self.repository.odd("cat-file", "an impossible size"))? + 1
            ];
        self.answers.read_exact(&mut bytes).await?;
        bytes.pop();
        Ok(Some(Object { id: id.to_owned(), kind: kind.to_owned(), bytes }))
    }
}

/// A commit's texts: lines of `key value` up to an empty one, then the message (gitformat-commit).
fn commit(revision: String, bytes: &[u8]) -> Commit {
    let all = text(bytes);
    let (head, message) = all.split_once("\n\n").unwrap_or((&all, ""));
    let author = head.lines().find_map(|line| line.strip_prefix("author ")).unwrap_or_default();
    let author = author.split_once(" <").map_or(author, |(name, _)| name);
    // The first paragraph, as one line.
    let subject: Vec<&str> =
        message.trim_start().lines().take_while(|line| !line.trim().is_empty()).collect();
    Commit {
        revision,
        subject: subject.join(" "),
        message: message.trim_end().to_owned(),
        author: author.trim().to_owned(),
    }
}
