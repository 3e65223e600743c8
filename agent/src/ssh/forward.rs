//! Ports of the job, forwarded to who is connected (`ssh -L`, `ssh -D`). The connection is made by a helper inside the
//! environment: what a session reaches is what steps reach.

use super::Door;
use russh::{
    Channel, ChannelOpenFailure,
    server::{ChannelOpenHandle, Msg},
};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

/// The argument that makes this program the helper.
pub const NAME: &str = "__connect";
/// What the helper says first when it is connected.
const CONNECTED: u8 = b'+';
/// Longest wait for the other side.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the helper: connects, and carries bytes between the connection and its own pipes.
pub fn main(host: &str, port: &str) -> i32 {
    let connected = port.parse().map_err(io::Error::other).and_then(|port| connect(host, port));
    match connected.and_then(carry) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("{host}:{port}: {e}");
            1
        }
    }
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut refused = io::Error::other("the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(e) => refused = e,
        }
    }
    Err(refused)
}

fn carry(stream: TcpStream) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(&[CONNECTED])?;
    out.flush()?;
    let mut sent = stream.try_clone()?;
    let sending = std::thread::spawn(move || {
        let copied = copy(&mut io::stdin().lock(), &mut sent);
        let _ = sent.shutdown(Shutdown::Write);
        copied
    });
    copy(&mut &stream, &mut out)?;
    let _ = stream.shutdown(Shutdown::Both);
    drop(out);
    // It may wait for input for ever: the end of this process ends it.
    drop(sending);
    Ok(())
}

/// Passed on as it comes: what is buffered answers nobody.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0u8; 32 * 1024];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        to.write_all(&buffer[..n])?;
        to.flush()?;
    }
}

/// Serves one forwarded connection to its end.
pub(super) async fn serve(
    door: Arc<Door>,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    (host, port): (String, u16),
    over: CancellationToken,
) {
    let runner = &door.runner;
    let command = runner.helper_command(&[NAME, &host, &port.to_string()]);
    let Ok(process) = runner.sandbox.spawn(command).await else {
        return reply.reject(ChannelOpenFailure::ConnectFailed).await;
    };
    let executors::Process { id, mut output, input: Some(mut input), .. } = process else {
        return reply.reject(ChannelOpenFailure::ConnectFailed).await;
    };
    let mut first = [0u8];
    let connected = output.read_exact(&mut first).await.is_ok() && first == [CONNECTED];
    if !connected {
        return reply.reject(ChannelOpenFailure::ConnectFailed).await;
    }
    reply.accept().await;
    let (mut read, mut write) = tokio::io::split(channel.into_stream());
    let inwards = async {
        let _ = tokio::io::copy(&mut read, &mut input).await;
        drop(input);
    };
    let outwards = async {
        let _ = tokio::io::copy(&mut output, &mut write).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
    };
    tokio::select! {
        // What the other side of the connection has to say ends it.
        () = outwards => {}
        () = async { inwards.await; std::future::pending().await } => {}
        () = over.cancelled() => {}
    }
    runner.sandbox.signal(id, executors::Signal::SIGKILL).await;
}
