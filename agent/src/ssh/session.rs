//! One session of a connection: a shell or a command in the environment of the job.

use super::{Door, sftp, shell::Wanted};
use executors::{Command, Io, Output, Resize, Signal, Size};
use russh::{
    Channel, ChannelMsg, ChannelWriteHalf, Sig,
    server::{Handle, Msg},
};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

/// What others say that a command has left running comes within this time after its end.
const DRAIN: Duration = Duration::from_millis(100);
/// Pieces of input that wait for the command.
const AHEAD: usize = 16;
/// What a terminal takes for the end of input.
const END_OF_INPUT: &[u8] = b"\x04";
/// The code of standard error among the streams of a session.
const ERRORS: u32 = 1;

/// What was asked for before the command.
#[derive(Default)]
struct Asked {
    terminal: Option<(String, Size)>,
    env: Vec<(String, String)>,
}

/// What it was opened for.
enum Purpose {
    Shell(Wanted),
    /// Copies: `scp` and `sftp`.
    Files,
}

/// Serves a session to its end.
pub(super) async fn serve(
    door: Arc<Door>,
    channel: Channel<Msg>,
    handle: Handle,
    from: SocketAddr,
    over: CancellationToken,
) {
    let id = channel.id();
    let (mut read, write) = channel.split();
    let mut asked = Asked::default();
    let purpose = loop {
        let message = tokio::select! {
            message = read.wait() => message,
            () = over.cancelled() => return,
        };
        match message {
            None | Some(ChannelMsg::Close) => return,
            Some(ChannelMsg::RequestPty { term, col_width, row_height, .. }) => {
                asked.terminal = Some((term, size(col_width, row_height)));
                let _ = handle.channel_success(id).await;
            }
            Some(ChannelMsg::WindowChange { col_width, row_height, .. }) => {
                if let Some((_, now)) = &mut asked.terminal {
                    *now = size(col_width, row_height);
                }
            }
            Some(ChannelMsg::SetEnv { variable_name, variable_value, .. }) => {
                // As other servers do: the language of who connects, and nothing that changes what runs.
                if variable_name == "LANG" || variable_name.starts_with("LC_") {
                    asked.env.push((variable_name, variable_value));
                    let _ = handle.channel_success(id).await;
                } else {
                    let _ = handle.channel_failure(id).await;
                }
            }
            Some(ChannelMsg::RequestShell { .. }) => {
                break Purpose::Shell(match &asked.terminal {
                    Some((term, _)) => Wanted::Login { term: term.clone() },
                    None => Wanted::Plain,
                });
            }
            Some(ChannelMsg::Exec { command, .. }) => {
                let command = String::from_utf8_lossy(&command).into_owned();
                break Purpose::Shell(Wanted::Command(command));
            }
            Some(ChannelMsg::RequestSubsystem { name, .. }) if name == "sftp" => break Purpose::Files,
            Some(
                ChannelMsg::RequestSubsystem { .. }
                | ChannelMsg::RequestX11 { .. }
                | ChannelMsg::AgentForward { .. },
            ) => drop(handle.channel_failure(id).await),
            Some(_) => {}
        }
    };
    let command = match &purpose {
        Purpose::Shell(wanted) => command(&door, &asked, wanted, from),
        Purpose::Files => door.runner.helper_command(&[sftp::NAME]),
    };
    let process = match door.runner.sandbox.spawn(command).await {
        Ok(process) => process,
        Err(e) => {
            tracing::warn!(error = %e, "a session's command could not be started");
            let _ = handle.channel_failure(id).await;
            let _ = write.close().await;
            return;
        }
    };
    let _ = handle.channel_success(id).await;
    if let Purpose::Shell(Wanted::Login { .. }) = purpose {
        let _ = write.data_bytes(greeting(&door)).await;
    }
    let program = process.id;
    let terminal = asked.terminal.is_some() && !matches!(purpose, Purpose::Files);
    let end = run(&door, process, terminal, (&mut read, &write), &over).await;
    match end {
        End::Exit(code) => {
            let _ = write.exit_status(code.unsigned_abs()).await;
            let _ = write.eof().await;
        }
        // Who leaves hangs up, terminal or not.
        End::Left => door.runner.sandbox.signal(program, Signal::SIGHUP).await,
        End::Lost => {}
    }
    let _ = write.close().await;
}

fn size(columns: u32, rows: u32) -> Size {
    let most = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    match (columns, rows) {
        // What clients without a terminal send.
        (0, _) | (_, 0) => Size::default(),
        _ => Size { columns: most(columns), rows: most(rows) },
    }
}

fn greeting(door: &Door) -> String {
    let spec = &door.runner.spec;
    let node = match spec.total {
        0 | 1 => String::new(),
        total => format!(", node {} of {total}", spec.index),
    };
    format!(
        "Job {} (number {}{node}) of {}/{}. That you are here is recorded; what you do is not.\r\n",
        spec.job_name, spec.job_number, spec.org, spec.repo
    )
}

fn command(door: &Door, asked: &Asked, wanted: &Wanted, from: SocketAddr) -> Command {
    let mut env = asked.env.clone();
    // As other servers say it. `SSH_CLIENT` is left out: with it bash reads `~/.bashrc` for a command, and not `BASH_ENV`.
    let to = door.address;
    env.push(("SSH_CONNECTION".into(), format!("{} {} {} {}", from.ip(), from.port(), to.ip(), to.port())));
    let (argv, more) = door.shell.command(wanted, &door.runner.variables(&[]));
    env.extend(more);
    if let (Some((term, _)), Wanted::Command(_)) = (&asked.terminal, wanted) {
        env.push(("TERM".into(), term.clone()));
    }
    Command {
        argv,
        env: door.runner.variables(&env),
        dir: door.runner.places.work.clone(),
        make_dir: true,
        io: asked.terminal.as_ref().map_or(Io::Pipes, |(_, size)| Io::Session(*size)),
    }
}

/// How a session came to its end.
enum End {
    /// The command ended, with this code.
    Exit(i32),
    /// The other side is gone, or let go of the session.
    Left,
    /// The environment is gone.
    Lost,
}

async fn run(
    door: &Door,
    process: executors::Process,
    terminal: bool,
    (read, write): (&mut russh::ChannelReadHalf, &ChannelWriteHalf<Msg>),
    over: &CancellationToken,
) -> End {
    let executors::Process { id, output, errors, input, resize, mut exit, written } = process;
    let (ended, is_over) = watch::channel(false);
    let out = carry(output, write.make_writer(), is_over.clone());
    let err = async {
        if let Some(errors) = errors {
            carry(errors, write.make_writer_ext(Some(ERRORS)), is_over).await;
        }
    };
    let (typed, keys) = mpsc::channel::<Option<bytes::Bytes>>(AHEAD);
    let feeding = feed(input, keys, terminal);
    let ask = Ask { door, id, resize };
    // Borrowed by the branches below one after another.
    let mut outputs = std::pin::pin!(async { tokio::join!(out, err) });
    let mut feeding = std::pin::pin!(feeding);
    let (mut fed, mut shown) = (false, false);
    let code = loop {
        tokio::select! {
            code = &mut exit => break code,
            _ = &mut outputs, if !shown => shown = true,
            () = &mut feeding, if !fed => fed = true,
            () = over.cancelled() => return End::Left,
            // Not read while the command takes no input: that holds up who types, and no memory fills.
            place = typed.reserve(), if !fed => {
                let Ok(place) = place else { continue };
                let message = tokio::select! {
                    message = read.wait() => message,
                    code = &mut exit => break code,
                    _ = &mut outputs, if !shown => { shown = true; continue }
                    () = &mut feeding, if !fed => { fed = true; continue }
                    () = over.cancelled() => return End::Left,
                };
                match message {
                    None | Some(ChannelMsg::Close) => return End::Left,
                    Some(ChannelMsg::Data { data }) => place.send(Some(data)),
                    Some(ChannelMsg::Eof) => place.send(None),
                    Some(other) => ask.heed(other).await,
                }
            }
            message = read.wait(), if fed => match message {
                None | Some(ChannelMsg::Close) => return End::Left,
                Some(other) => ask.heed(other).await,
            },
        }
    };
    if !shown {
        let parting = async {
            // Closed: the environment is gone, and says no more.
            let _ = written.await;
            ended.send_replace(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = &mut outputs => {}
            () = parting => {}
            () = over.cancelled() => return End::Left,
        }
    }
    code.map_or(End::Lost, End::Exit)
}

/// What a session asks for beside its input.
struct Ask<'d> {
    door: &'d Door,
    id: u64,
    resize: Option<Resize>,
}

impl Ask<'_> {
    async fn heed(&self, message: ChannelMsg) {
        match message {
            ChannelMsg::WindowChange { col_width, row_height, .. } => {
                if let Some(resize) = &self.resize {
                    resize(size(col_width, row_height));
                }
            }
            ChannelMsg::Signal { signal } => {
                if let Some(signal) = known(&signal) {
                    self.door.runner.sandbox.signal(self.id, signal).await;
                }
            }
            _ => {}
        }
    }
}

fn known(signal: &Sig) -> Option<Signal> {
    Some(match signal {
        Sig::ABRT => Signal::SIGABRT,
        Sig::ALRM => Signal::SIGALRM,
        Sig::FPE => Signal::SIGFPE,
        Sig::HUP => Signal::SIGHUP,
        Sig::ILL => Signal::SIGILL,
        Sig::INT => Signal::SIGINT,
        Sig::KILL => Signal::SIGKILL,
        Sig::PIPE => Signal::SIGPIPE,
        Sig::QUIT => Signal::SIGQUIT,
        Sig::SEGV => Signal::SIGSEGV,
        Sig::TERM => Signal::SIGTERM,
        Sig::USR1 => Signal::SIGUSR1,
        Sig::Custom(name) if name == "USR2" => Signal::SIGUSR2,
        Sig::Custom(_) => return None,
    })
}

/// Hands over what is typed; nothing more is taken once the command reads no more.
async fn feed(
    input: Option<executors::Input>,
    mut keys: mpsc::Receiver<Option<bytes::Bytes>>,
    terminal: bool,
) {
    let Some(mut input) = input else { return };
    while let Some(piece) = keys.recv().await {
        let written = match &piece {
            Some(bytes) => input.write_all(bytes).await,
            None if terminal => input.write_all(END_OF_INPUT).await,
            // Dropping it is the end.
            None => return,
        };
        if written.is_err() {
            return;
        }
    }
}

/// Carries output until it ends; once the command has, until there is no more for a moment. A client that is slow loses
/// nothing.
async fn carry(mut from: Output, mut to: impl AsyncWrite + Unpin, mut ended: watch::Receiver<bool>) {
    let mut buffer = vec![0u8; 32 * 1024];
    loop {
        let idle = async {
            let _ = ended.wait_for(|ended| *ended).await;
            tokio::time::sleep(DRAIN).await;
        };
        let read: io::Result<usize> = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read,
            () = idle => return,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                if to.write_all(&buffer[..n]).await.is_err() || to.flush().await.is_err() {
                    return;
                }
            }
        }
    }
}
