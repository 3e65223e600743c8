//! The agent's side of the helper in the environment ([`crate::files`]).

use crate::{
    files::{self, Ask},
    output::Stream,
    steps::Runner,
};
use archive::{Cutter, frames};
use bytes::Bytes;
use executors::{Command, Error, Input, Io, Output, Signal};
use serde::de::DeserializeOwned;
use std::{
    future::Future,
    io::{self, Read, Write},
};
use tokio::{io::AsyncReadExt, sync::mpsc, task::JoinHandle};
use tokio_util::io::SyncIoBridge;

/// Bytes that are moved at once.
const PIECE: usize = 256 << 10;

/// Why work with files was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// It is said in the step's output already, or in this text.
    #[error("{0}")]
    Told(String),
    /// What the store gave is not what was kept there, in the code of reliability F32.
    #[error("integrity_check_failed: a stored chunk is not what was stored, and is not used")]
    Damaged,
    /// The task is to stop.
    #[error("the task stops")]
    Stopped,
    /// The environment is gone.
    #[error("the processes of the task were ended from outside")]
    Lost,
    /// The agent's own trouble.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<crate::control::Gone> for Failed {
    fn from(gone: crate::control::Gone) -> Self {
        match gone {
            crate::control::Gone::Fenced => Self::Stopped,
            crate::control::Gone::Refused(failure) => Self::Told(failure.to_string()),
        }
    }
}

/// The bytes of a running helper.
pub(crate) struct Ends {
    pub(crate) input: Input,
    pub(crate) output: Output,
}

impl Runner {
    /// This program as a helper inside the environment, with three pipes, in the folder of the task's data. It has no
    /// variable of the job's: secrets are for the steps alone (security §4.3).
    pub(crate) fn helper_command(&self, words: &[&str]) -> Command {
        let program = self.places.bin.join("gantry-runner").display().to_string();
        Command {
            argv: std::iter::once(program).chain(words.iter().map(|word| (*word).to_owned())).collect(),
            env: self.environment.of_helpers(),
            dir: self.places.data.clone(),
            make_dir: false,
            io: Io::Pipes,
        }
    }

    /// Runs the helper in the environment. `work` moves bytes meanwhile; what the helper says to people goes to the
    /// step's output.
    pub(crate) async fn helper<T, F>(
        &self,
        ask: &Ask,
        stream: &mut Stream,
        work: impl FnOnce(Ends) -> F,
    ) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let request = serde_json::to_string(ask).map_err(io::Error::from)?;
        let command = Command {
            dir: self.places.work.clone(),
            make_dir: true,
            ..self.helper_command(&[files::NAME, &request])
        };
        let process = match self.sandbox.spawn(command).await {
            Ok(process) => process,
            Err(Error::Io(e)) => return Err(e.into()),
            Err(Error::Lost) => return Err(Failed::Lost),
            Err(e) => return Err(Failed::Told(e.to_string())),
        };
        let executors::Process { id, output, errors, input, exit, .. } = process;
        let (Some(mut errors), Some(input)) = (errors, input) else {
            return Err(io::Error::other("the environment gave no pipes").into());
        };
        let said = async {
            let mut buffer = vec![0; 4096];
            let mut said = false;
            loop {
                match errors.read(&mut buffer).await {
                    Ok(0) | Err(_) => return Ok::<_, io::Error>(said),
                    Ok(n) => {
                        stream.write(&buffer[..n])?;
                        said = true;
                    }
                }
            }
        };
        let both = async { tokio::join!(work(Ends { input, output }), said, exit) };
        let (worked, said, exit) = tokio::select! {
            ended = both => ended,
            why = self.control.until_stopped() => {
                self.sandbox.signal(id, Signal::SIGKILL).await;
                tracing::debug!(?why, "work with files is given up");
                return Err(Failed::Stopped);
            }
        };
        let said = said?;
        match (worked, exit) {
            (Err(Failed::Damaged), _) => Err(Failed::Damaged),
            // What the helper said explains more than that its pipe broke.
            (_, Ok(code)) if code != 0 && said => Err(Failed::Told(String::new())),
            (Err(e), _) => Err(e),
            (Ok(_), Ok(code)) if code != 0 => Err(Failed::Told(format!("the helper ended with {code}"))),
            (Ok(_), Err(_)) => Err(Failed::Lost),
            (Ok(done), Ok(_)) => Ok(done),
        }
    }

    /// Runs the helper for its answer alone.
    pub(crate) async fn ask_helper<T>(&self, ask: &Ask, stream: &mut Stream) -> Result<T, Failed>
    where
        T: DeserializeOwned + Send + 'static,
    {
        self.helper(ask, stream, |ends| async move {
            let Ends { input, output } = ends;
            drop(input);
            answer(output).await
        })
        .await
    }

    /// What a step says when its work failed, and whether the task stops.
    pub(crate) fn tell(&self, failed: &Failed, before: &str, stream: &mut Stream) -> io::Result<bool> {
        let stopped = self.control.stopped().is_some();
        let text = failed.to_string();
        if !stopped && !text.is_empty() {
            stream.note(&format!("{before}{text}"))?;
        }
        Ok(stopped)
    }
}

/// The last word of a helper that sends nothing else.
async fn answer<T: DeserializeOwned + Send + 'static>(output: Output) -> Result<T, Failed> {
    let output = SyncIoBridge::new(output);
    let read = move || {
        let word = frames::Reader::new(io::BufReader::new(output)).finish(files::MAX_ANSWER)?;
        Ok::<_, io::Error>(serde_json::from_slice(&word)?)
    };
    Ok(join(tokio::task::spawn_blocking(read)).await??)
}

async fn join<T>(task: JoinHandle<T>) -> io::Result<T> {
    task.await.map_err(io::Error::other)
}

/// Cuts what a helper sends into chunks, beside the runtime. The end of the task is the helper's last word.
pub(crate) fn cut<T>(ends: Ends) -> (mpsc::Receiver<Vec<u8>>, JoinHandle<io::Result<T>>)
where
    T: DeserializeOwned + Send + 'static,
{
    drop(ends.input);
    let output = SyncIoBridge::new(ends.output);
    let (found, chunks) = mpsc::channel(2);
    let work = move || {
        let mut reader = frames::Reader::new(output);
        let mut cutter = Cutter::default();
        let mut ended = false;
        while !ended {
            ended = cutter.take_in(&mut reader, 4 * PIECE)? == 0;
            while let Some(chunk) = cutter.cut(ended) {
                if found.blocking_send(chunk).is_err() {
                    return Err(io::Error::other("nobody takes the chunks"));
                }
            }
        }
        Ok(serde_json::from_slice(&reader.finish(files::MAX_ANSWER)?)?)
    };
    (chunks, tokio::task::spawn_blocking(work))
}

/// Sends streams of pieces to a helper, beside the runtime: an empty piece ends a stream. Then reads its last word.
pub(crate) fn feed(ends: Ends) -> (mpsc::Sender<Bytes>, JoinHandle<io::Result<()>>) {
    let (input, output) = (SyncIoBridge::new(ends.input), ends.output);
    let (send, mut pieces) = mpsc::channel::<Bytes>(2);
    let work = move || {
        let mut writer = frames::Writer::new(input);
        while let Some(piece) = pieces.blocking_recv() {
            if piece.is_empty() {
                writer = frames::Writer::new(writer.finish(b"")?);
            } else {
                writer.write_all(&piece)?;
            }
        }
        // A stream that was not ended breaks off here, and the helper notices.
        Ok::<_, io::Error>(writer)
    };
    let written = tokio::task::spawn_blocking(work);
    let ended = tokio::spawn(async move {
        // The end of its input is what the helper waits for.
        drop(written.await.map_err(io::Error::other)??);
        answer::<()>(output).await.map_err(io::Error::other)
    });
    (send, ended)
}

/// Reads what a helper sends, piece by piece, beside the runtime.
pub(crate) fn pieces(ends: Ends) -> (mpsc::Receiver<Bytes>, JoinHandle<io::Result<()>>) {
    drop(ends.input);
    let output = SyncIoBridge::new(ends.output);
    let (send, pieces) = mpsc::channel(4);
    let work = move || {
        let mut reader = frames::Reader::new(io::BufReader::with_capacity(PIECE, output));
        loop {
            let mut piece = vec![0; PIECE];
            let read = reader.read(&mut piece)?;
            if read == 0 {
                reader.finish(files::MAX_ANSWER)?;
                return Ok(());
            }
            piece.truncate(read);
            if send.blocking_send(Bytes::from(piece)).is_err() {
                return Err(io::Error::other("nobody takes the bytes"));
            }
        }
    };
    (pieces, tokio::task::spawn_blocking(work))
}
