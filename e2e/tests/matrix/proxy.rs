//! A proxy on loopback before one server, through which bytes pass as a row of the matrix wants them to.

use gantry_e2e::stack;
use std::{path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::Instant,
};

/// Bytes on their way in one direction.
const IN_FLIGHT: usize = 256;
/// How long TCP waits before it sends again what was lost.
const SENT_AGAIN: Duration = Duration::from_millis(200);

/// How bytes pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// At once.
    Through,
    /// Each so much later, and of a hundred parcels so many once more later, as if they had been lost and sent again.
    Slow { by: Duration, lost: u8 },
    /// Not at all: connections are taken and nothing comes through. What was open then stays silent for ever.
    Silent,
    /// Not now: what is sent waits, and arrives when the line is whole again.
    Cut,
    /// Every request over HTTP is answered with 500, and what is open breaks.
    Errors,
}

/// One that listens.
pub struct Proxy {
    pub port: u16,
    way: watch::Sender<Way>,
}

impl Proxy {
    /// Listens, at a port if it is given, for the server whose port the file names.
    pub async fn bind(port: Option<u16>, ports: PathBuf, name: &'static str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port.unwrap_or(0))).await?;
        let port = listener.local_addr()?.port();
        let (way, seen) = watch::channel(Way::Through);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let target = stack::port(&ports, name);
                tokio::spawn(carry(near, target, seen.clone()));
            }
        });
        Ok(Self { port, way })
    }

    /// From now on, for connections that are open too.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

async fn carry(mut near: TcpStream, target: Option<u16>, mut way: watch::Receiver<Way>) {
    let _ = near.set_nodelay(true);
    let now = *way.borrow();
    match now {
        Way::Errors => return refuse(near).await,
        Way::Silent => return silence(near).await,
        Way::Cut => drop(way.wait_for(|way| *way != Way::Cut).await),
        Way::Through | Way::Slow { .. } => {}
    }
    // A server that is away refuses; so does the proxy.
    let Some(target) = target else { return };
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let _ = far.set_nodelay(true);
    let (near_in, near_out) = near.split();
    let (far_in, far_out) = far.split();
    // Whichever side ends first ends the other, except that what is on its way still arrives.
    tokio::join!(pass(near_in, far_out, way.clone()), pass(far_in, near_out, way));
}

/// One direction.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut way: watch::Receiver<Way>,
) {
    let (parcels, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let mut seen = way.clone();
    let read = async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = tokio::select! {
                count = from.read(&mut buffer) => count,
                _ = seen.wait_for(|way| *way == Way::Errors) => return,
            };
            let Ok(count @ 1..) = count else { return };
            let later = match *seen.borrow() {
                Way::Slow { by, lost } => {
                    by + if fastrand::u8(0..100) < lost { SENT_AGAIN } else { Duration::ZERO }
                }
                Way::Through | Way::Cut | Way::Silent | Way::Errors => Duration::ZERO,
            };
            if parcels.send((Instant::now() + later, buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, parcel)) = arriving.recv().await {
            tokio::time::sleep_until(due).await;
            if way.wait_for(|way| *way != Way::Cut).await.is_ok_and(|way| *way == Way::Silent) {
                // Nothing says that the line is dead.
                std::future::pending::<()>().await;
            }
            if to.write_all(&parcel).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

/// Takes a connection and says nothing until the other side gives up.
async fn silence(mut near: TcpStream) {
    let mut buffer = vec![0; 4 << 10];
    while let Ok(1..) = near.read(&mut buffer).await {}
}

/// Answers the first request and ends.
async fn refuse(mut near: TcpStream) {
    let mut request = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match near.read(&mut buffer).await {
            Ok(count @ 1..) => request.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
    let answer = b"HTTP/1.1 500 Internal Server Error\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let _ = near.write_all(answer).await;
    let _ = near.shutdown().await;
}
