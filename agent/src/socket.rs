//! The task's socket: what steps ask of the agent while they run (execution §20). On the machine the agent itself listens;
//! in a container a helper does, and passes lines on over its pipes.

use crate::{
    control::{Control, Gone},
    output::Output,
    steps::Runner,
};
use agent_api::{MintToken, MintedToken};
use futures::{TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// The argument that makes this program the helper.
pub const NAME: &str = "__socket";
/// Its file in the folder of the task's data.
const FILE: &str = "agent.sock";
/// Most values that one job adds, and the longest (security §4.5).
const MAX_MASKS: usize = 1000;
const MAX_MASK: usize = 64 * 1024;
/// Longest line: a value in JSON, escaped.
const MAX_LINE: u64 = 8 * MAX_MASK as u64;
/// Questions that are read at once: one that is not finished holds up no other.
const AT_ONCE: usize = 16;
/// How long one side waits for the other.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a step asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Hides a value in all output from here on.
    Mask(String),
    /// An OIDC token of the job.
    Mint(MintToken),
}

/// What it is told: an error is a text for people.
pub(crate) type Answer = Result<String, String>;

/// Runs the helper: passes one question after another on. Ends when the agent closes its pipe.
pub fn main(path: &str) -> i32 {
    match pass_on(Path::new(path)) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("{path}: {e}");
            1
        }
    }
}

fn pass_on(path: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let mut answers = io::stdin().lock();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut question = Vec::new();
        let read = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| BufReader::new((&stream).take(MAX_LINE)).read_until(b'\n', &mut question));
        // A line that was cut off, or that never ended, is no question.
        if read.is_err() || question.last() != Some(&b'\n') {
            continue;
        }
        let mut out = io::stdout().lock();
        out.write_all(&question)?;
        out.flush()?;
        let mut answer = Vec::new();
        if answers.read_until(b'\n', &mut answer)? == 0 {
            return Ok(());
        }
        // Who asked may have gone.
        let _ = stream.write_all(&answer);
    }
    Ok(())
}

/// Asks the agent, from within a step.
pub(crate) fn ask(question: &Ask) -> Answer {
    let folder = std::env::var_os("CIRCLE_INTERNAL_TASK_DATA")
        .ok_or("this is not a step of a job: CIRCLE_INTERNAL_TASK_DATA is not set")?;
    let failed = |e: io::Error| format!("the agent does not answer: {e}");
    let mut stream = connect(&PathBuf::from(folder).join(FILE)).map_err(failed)?;
    let mut line = serde_json::to_vec(question).map_err(|e| e.to_string())?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;
    let mut answer = String::new();
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    BufReader::new(stream).read_line(&mut answer).map_err(failed)?;
    serde_json::from_str(&answer).map_err(|e| format!("the agent's answer cannot be read: {e}"))?
}

/// The helper starts beside the first step, which may be faster.
#[expect(
    clippy::disallowed_methods,
    reason = "waits for the socket, with a limit; nobody tells when it is there"
)]
fn connect(path: &Path) -> io::Result<UnixStream> {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match UnixStream::connect(path) {
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            other => return other,
        }
    }
}

/// Answers what steps ask.
struct Desk {
    control: Arc<Control>,
    output: Arc<Output>,
    masks: usize,
}

impl Desk {
    fn of(runner: &Runner) -> Self {
        Self { control: Arc::clone(&runner.control), output: Arc::clone(&runner.output), masks: 0 }
    }

    /// A line for a line.
    async fn reply(&mut self, line: &str) -> io::Result<Vec<u8>> {
        let mut answer = serde_json::to_vec(&self.answer(line).await)?;
        answer.push(b'\n');
        Ok(answer)
    }

    async fn answer(&mut self, line: &str) -> Answer {
        match serde_json::from_str(line).map_err(|e| format!("the question cannot be read: {e}"))? {
            Ask::Mask(value) => self.mask(&value),
            Ask::Mint(wanted) => self.mint(&wanted).await,
        }
    }

    fn mask(&mut self, value: &str) -> Answer {
        if value.len() > MAX_MASK {
            return Err(format!("a value to mask has at most {MAX_MASK} bytes"));
        }
        if !masking::is_maskable(value.as_bytes()) {
            return Err("values of less than 4 bytes, and words like true and null, are not masked".into());
        }
        if self.masks >= MAX_MASKS {
            return Err(format!("a job masks at most {MAX_MASKS} values of its own"));
        }
        self.masks += 1;
        self.output.learn(value);
        Ok(String::new())
    }

    async fn mint(&self, wanted: &MintToken) -> Answer {
        let minted =
            self.control.post("oidc", wanted).await.and_then(|answer| crate::control::decode(&answer));
        match minted {
            Ok(MintedToken { token }) => {
                self.output.learn_token(&token);
                Ok(token)
            }
            Err(Gone::Fenced) => Err("the task is no longer this agent's".into()),
            Err(Gone::Refused(failure)) => Err(failure.to_string()),
        }
    }
}

impl Runner {
    /// Listens until the environment ends. A task without it runs all the same; those who ask are told.
    pub(crate) fn serve_socket(self: &Arc<Self>) -> impl Future<Output = ()> + use<> {
        let (runner, path) = (Arc::clone(self), self.places.data.join(FILE));
        // Here and now: the first step may ask at once.
        let listener = self.sandbox.listen(&path);
        async move {
            let served = match listener {
                Ok(Some(listener)) => runner.serve_here(&listener).await,
                Ok(None) => runner.serve_by_helper(&path).await,
                Err(e) => Err(e.into()),
            };
            if let Err(e) = served {
                tracing::warn!(error = %e, "steps cannot ask the agent");
            }
        }
    }

    async fn serve_here(&self, listener: &tokio::net::UnixListener) -> anyhow::Result<()> {
        let desk = &tokio::sync::Mutex::new(Desk::of(self));
        let asked = stream::try_unfold((), |()| async move { Ok(Some((listener.accept().await?.0, ()))) });
        asked
            .try_for_each_concurrent(AT_ONCE, |mut asking| async move {
                let mut line = String::new();
                let (read, mut write) = asking.split();
                let mut read = tokio::io::BufReader::new(read).take(MAX_LINE);
                let read = timeout(PATIENCE, read.read_line(&mut line)).await;
                // A line that was cut off, or that never ended, is no question.
                if matches!(read, Ok(Ok(_))) && line.ends_with('\n') {
                    let answer = desk.lock().await.reply(&line).await?;
                    // Who asked may have gone.
                    let _ = timeout(PATIENCE, write.write_all(&answer)).await;
                }
                Ok(())
            })
            .await
    }

    async fn serve_by_helper(&self, path: &Path) -> anyhow::Result<()> {
        let command = self.helper_command(&[NAME, &path.display().to_string()]);
        let process = self.sandbox.spawn(command).await?;
        let mut input = process.input.ok_or_else(|| anyhow::anyhow!("the environment gave no pipes"))?;
        let mut questions = tokio::io::BufReader::new(process.output);
        let mut desk = Desk::of(self);
        loop {
            let mut line = String::new();
            if (&mut questions).take(MAX_LINE).read_line(&mut line).await? == 0 {
                return Ok(());
            }
            input.write_all(&desk.reply(&line).await?).await?;
            input.flush().await?;
        }
    }
}
