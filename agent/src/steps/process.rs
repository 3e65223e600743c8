//! One program from its start to its end: its output, its limits, and how it is made to stop.

use super::{Ended, Runner, go_duration, lock};
use crate::output::Stream;
use executors::{Command, Signal};
use std::{io, sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt, time::Instant};

/// What a program left in the terminal when it ended comes within this time, when others keep it open.
const DRAIN: Duration = Duration::from_millis(50);
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
        let executors::Process { id, mut output, mut exit, .. } = started;
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
        while open {
            let read = async {
                budget.room().await;
                output.read(&mut buffer).await
            };
            tokio::select! {
                read = read => match read {
                    Ok(0) | Err(_) => open = false,
                    Ok(n) => stream.write(&buffer[..n])?,
                },
                () = tokio::time::sleep(DRAIN), if !budget.is_full() => break,
                () = self.control.until_fenced() => break,
            }
        }
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
}
