//! The way out of a container to a server that listens on its machine's loopback alone, as one does that was started
//! without a word about addresses: inside the container that address is the container itself. A helper in the container
//! listens there, at a port of the kernel's choice, so that no port is taken from the job; the agent, which reaches the
//! server, carries the bytes. All connections share the helper's pipes.

use crate::steps::Runner;
use futures::future::poll_fn;
use reqwest::Url;
use std::{
    io,
    net::Ipv4Addr,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader},
    net::{TcpListener, TcpStream, unix::pipe},
    task::JoinSet,
};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

/// The argument that makes this program the helper.
pub const NAME: &str = "__reach";
/// Connections at once; more wait.
const CONNECTIONS: usize = 16;

/// A helper that stands in the job's container.
pub(crate) struct Way {
    /// Host and port as the server's URLs have them.
    server: String,
    /// Port in the container.
    port: u16,
}

/// Whether an address means whoever asks.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host_str().map(|host| host.trim_matches(['[', ']'])) {
        Some("localhost") => true,
        Some(host) => {
            host.ends_with(".localhost") || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        }
        None => false,
    }
}

fn config() -> Config {
    let mut config = Config::default();
    // One that has ended is forgotten a little later.
    let streams = 2 * CONNECTIONS;
    config.set_max_num_streams(streams);
    config.set_max_connection_receive_window(Some(streams * yamux::DEFAULT_CREDIT as usize));
    config
}

/// Runs the helper: says the port on standard error, and carries connections until the agent closes its pipe.
pub fn main() -> i32 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(listen())) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("{e}");
            1
        }
    }
}

async fn listen() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    eprintln!("{}", listener.local_addr()?.port());
    let input = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let output = pipe::Sender::from_owned_fd(io::stdout().as_fd().try_clone_to_owned()?)?;
    let pipes = tokio::io::join(input, output).compat();
    Helper::new(listener, Connection::new(pipes, config(), Mode::Client)).await
}

struct Helper<T> {
    listener: TcpListener,
    agent: Connection<T>,
    /// Accepted, and without a stream yet.
    waiting: Option<TcpStream>,
    carried: JoinSet<()>,
}

impl<T> Helper<T> {
    fn new(listener: TcpListener, agent: Connection<T>) -> Self {
        Self { listener, agent, waiting: None, carried: JoinSet::new() }
    }
}

impl<T: futures::AsyncRead + futures::AsyncWrite + Unpin> Future for Helper<T> {
    /// Ends with the agent.
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let helper = &mut *self;
        loop {
            while let Poll::Ready(Some(_)) = helper.carried.poll_join_next(context) {}
            if helper.waiting.is_none()
                && helper.carried.len() < CONNECTIONS
                && let Poll::Ready(accepted) = helper.listener.poll_accept(context)?
            {
                helper.waiting = Some(accepted.0);
            }
            if helper.waiting.is_some()
                && let Poll::Ready(stream) =
                    helper.agent.poll_new_outbound(context).map_err(io::Error::other)?
                && let Some(mut connection) = helper.waiting.take()
            {
                helper.carried.spawn(async move {
                    let _ = tokio::io::copy_bidirectional(&mut connection, &mut stream.compat()).await;
                });
                continue;
            }
            // The agent opens none; streams make progress only while it is asked for one.
            return helper.agent.poll_next_inbound(context).map(|ended| match ended {
                None | Some(Ok(_)) => Ok(()),
                Some(Err(e)) => Err(io::Error::other(e)),
            });
        }
    }
}

impl Runner {
    /// The same URL for the inside of the job's container; `None` where it can be used as it is.
    pub(crate) async fn reachable(&self, url: &str) -> Option<Url> {
        let url = Url::parse(url).ok().filter(|url| self.spec.containers && is_loopback(url))?;
        let mut way = self.way.lock().await;
        // After a restart the server may be elsewhere.
        if way.as_ref().is_none_or(|way| way.server != url.authority()) {
            let port = self
                .open_way(&url)
                .await
                .inspect_err(|e| tracing::warn!("no way to the server: {e:#}"))
                .ok()?;
            *way = Some(Way { server: url.authority().to_owned(), port });
        }
        let port = way.as_ref()?.port;
        let mut inside = url;
        inside.set_ip_host(Ipv4Addr::LOCALHOST.into()).ok()?;
        inside.set_port(Some(port)).ok()?;
        Some(inside)
    }

    async fn open_way(&self, url: &Url) -> anyhow::Result<u16> {
        let unusable = || anyhow::anyhow!("{url} has no address");
        let server = (
            url.host_str().ok_or_else(unusable)?.trim_matches(['[', ']']).to_owned(),
            url.port_or_known_default().ok_or_else(unusable)?,
        );
        let command = self.helper_command(&[NAME]);
        let process = self.sandbox.spawn(command).await?;
        let no_pipes = || anyhow::anyhow!("the environment gave no pipes");
        let (input, errors) = (process.input.ok_or_else(no_pipes)?, process.errors.ok_or_else(no_pipes)?);
        let mut said = String::new();
        BufReader::new(errors).read_line(&mut said).await?;
        let port = said.trim().parse().map_err(|_| anyhow::anyhow!("the helper says {said:?}"))?;
        tokio::spawn(carry(tokio::io::join(process.output, input), server));
        Ok(port)
    }
}

/// Connects to the server for each connection in the container, until the environment ends.
async fn carry(pipes: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, server: (String, u16)) {
    let mut helper = Connection::new(pipes.compat(), config(), Mode::Server);
    while let Some(Ok(stream)) = poll_fn(|context| helper.poll_next_inbound(context)).await {
        let server = server.clone();
        tokio::spawn(async move {
            let mut connection = TcpStream::connect(server).await?;
            tokio::io::copy_bidirectional(&mut stream.compat(), &mut connection).await
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn loopback_is_told_by_any_name() {
        let of = |url: &str| is_loopback(&Url::parse(url).unwrap());
        for near in [
            "http://127.0.0.1:8080/a",
            "http://localhost/",
            "https://[::1]:8443/",
            "http://127.8.0.1/",
            "http://git.localhost/",
        ] {
            assert!(of(near), "{near}");
        }
        for far in [
            "http://10.0.0.1:8080/",
            "https://git.example.com/",
            "http://localhost.example.com/",
            "http://[2001:db8::1]/",
        ] {
            assert!(!of(far), "{far}");
        }
    }

    /// More at once than there are streams, and more bytes than a window holds.
    #[tokio::test]
    async fn connections_are_carried_side_by_side() {
        let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = ("127.0.0.1".to_owned(), echo.local_addr().unwrap().port());
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = connection.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        tokio::spawn(carry(ours, server));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let agent = Connection::new(theirs.compat(), config(), Mode::Client);
        tokio::spawn(Helper::new(listener, agent));
        let sent: Vec<u8> = (0..2_000_000u32).map(|i| (i % 251) as u8).collect();
        let all = (0..CONNECTIONS + 4).map(|_| async {
            let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
            let send = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, read) = tokio::join!(send, read.read_to_end(&mut got));
            read.unwrap();
            assert!(got == sent, "{} of {} bytes came back", got.len(), sent.len());
        });
        let limit = std::time::Duration::from_secs(60);
        tokio::time::timeout(limit, futures::future::join_all(all)).await.expect("all came back");
    }
}
