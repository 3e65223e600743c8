//! One program from its start to its end: its output, its limits, and how it is made to stop.

use super::{Ended, Runner, go_duration, lock};
use crate::output::Stream;
use executors::{Command, Signal};
use std::{io, sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt, sync::oneshot, time::Instant};

/// What a program left running when it ended may say so much longer, when it is not silent before.
const LINGER: Duration = Duration::from_secs(1);
/// Silence after which nothing more is expected of it.
const SILENCE: Duration = Duration::from_millis(50);
/// Bytes after which it is taken for something that goes on.
const MOST: usize = 1 << 20;
/// Longest wait for a program that was killed.
const KILLED: Duration = Duration::from_secs(10);

impl Runner {
    /// Runs one program to its end.
    pub(crate) async fn process(
        &self,
        command: Command,
        limit: Option<Duration>,
        stream: &mut Stream,
    ) -> io::Result<Ended> {
        let started = match self.sandbox.spawn(command).await {
            Ok(started) => started,
            Err(executors::Error::Io(e)) => return Err(e),
            Err(executors::Error::Lost) => return Ok(Ended::Lost),
            Err(e) => return Ok(Ended::NotStarted(e.to_string())),
        };
        let executors::Process { id, mut output, mut exit, written, .. } = started;
        tracing::debug!(id, "a program runs");
        let budget = Arc::clone(&self.output.budget);
        let mut buffer = vec![0u8; 64 * 1024];
        let mut open = true;
        let mut last = Instant::now();
        // Why the program is being ended, and when that gets harder.
        let mut ending: Option<Ended> = None;
        let mut killed = false;
        let mut deadline = limit.map(|limit| last + limit);
        let ended = loop {
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = async { budget.room().await; output.read(&mut buffer).await }, if open => match read {
                    Ok(0) | Err(_) => open = false,
                    Ok(n) => {
                        stream.write(&buffer[..n])?;
                        last = Instant::now();
                        if ending.is_none() {
                            deadline = limit.map(|limit| last + limit);
                        }
                    }
                },
                code = &mut exit => break match (ending, code) {
                    (Some(why), _) => why,
                    (None, Ok(code)) => Ended::Exit(code),
                    (None, Err(_)) => Ended::Lost,
                },
                () = timer => match ending {
                    // It is not the program that is slow.
                    None if budget.is_full() => deadline = limit.map(|limit| Instant::now() + limit),
                    None => {
                        self.sandbox.signal(id, Signal::SIGKILL).await;
                        (ending, killed) = (Some(Ended::NoOutput), true);
                        deadline = Some(Instant::now() + KILLED);
                    }
                    Some(_) if !killed => {
                        self.sandbox.signal(id, Signal::SIGKILL).await;
                        killed = true;
                        deadline = Some(Instant::now() + KILLED);
                    }
                    Some(why) => break why,
                },
                why = self.control.until_stopped(), if !matches!(ending, Some(Ended::Stopped)) => {
                    ending = Some(Ended::Stopped);
                    let signal = if why.is_fenced() { Signal::SIGKILL } else { Signal::SIGTERM };
                    self.sandbox.signal(id, signal).await;
                    let grace = Duration::from_millis(self.control.timing.grace_ms);
                    deadline = Some(Instant::now() + if why.is_fenced() { KILLED } else { grace });
                    killed |= why.is_fenced();
                },
            }
        };
        let open = open && self.read_rest(&mut output, written, &mut buffer, stream).await?;
        if open {
            // What it left running may go on writing, to nobody.
            lock(&self.leftovers)
                .spawn(async move { while output.read(&mut buffer).await.is_ok_and(|n| n > 0) {} });
        }
        if let Ended::Exit(code) = ended
            && let Some(text) = self.sandbox.explain(code).await
        {
            stream.note(&text)?;
        }
        if matches!(ended, Ended::NoOutput) {
            let limit = go_duration(limit.unwrap_or_default());
            stream.note(&format!("Too long with no output (exceeded {limit}): context deadline exceeded"))?;
        }
        Ok(ended)
    }

    /// Reads what an ended program has left: all that it wrote itself, then what comes at once from others that have the
    /// terminal open. Answers whether somebody still has.
    async fn read_rest(
        &self,
        output: &mut executors::Output,
        mut written: oneshot::Receiver<()>,
        buffer: &mut [u8],
        stream: &mut Stream,
    ) -> io::Result<bool> {
        let budget = &self.output.budget;
        let mut all = false;
        let (mut until, mut rest) = (Instant::now() + KILLED, MOST);
        while rest > 0 {
            let read = async {
                budget.room().await;
                output.read(buffer).await
            };
            let silent = if all { until.min(Instant::now() + SILENCE) } else { until };
            tokio::select! {
                // What is there comes before any limit of time: on a machine that is slow both may be due at once.
                biased;
                read = read => match read {
                    Ok(0) | Err(_) => return Ok(false),
                    Ok(n) => {
                        stream.write(&buffer[..n])?;
                        match all {
                            true => rest = rest.saturating_sub(n),
                            false => until = Instant::now() + KILLED,
                        }
                    }
                },
                // Closed: the environment is gone, and says no more.
                _ = &mut written, if !all => (all, until) = (true, Instant::now() + LINGER),
                () = tokio::time::sleep_until(silent), if !budget.is_full() => break,
                () = self.control.until_fenced() => break,
            }
        }
        Ok(true)
    }
}
