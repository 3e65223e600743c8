//! Listeners: the public one, in clear or over TLS, and the one that agents of this machine use.
//!
//! A client that is slow to say what it wants is hung up on; the sizes of what it may say before it is known are
//! small (security §5.2).

use anyhow::Context;
use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use std::{fs, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A client has so long for its handshake, and for the headers of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Headers of a request: how many, and how many bytes.
const HEADERS: usize = 100;
const HEADER_BYTES: u32 = 16 * 1024;
/// Connections that one listener serves at a time; further ones wait to be accepted.
const CONNECTIONS: usize = 4096;

/// Who is at the other end of a public connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Serves the newest router until `stop`; requests under way are finished by the caller's deadline. The router
/// may change: while the suite starts, another one says what is waited for.
pub fn public(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    router: watch::Receiver<Router>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let tls = tls.map(TlsAcceptor::from);
    tokio::spawn(async move {
        let connections = TaskTracker::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
            let (stream, peer) = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        refused("a connection", &error).await;
                        continue;
                    }
                },
            };
            // Answers are small and wanted at once.
            let _ = stream.set_nodelay(true);
            let router = router.borrow().clone().layer(Extension(Peer(peer)));
            let (tls, stop) = (tls.clone(), stop.clone());
            connections.spawn(async move {
                let _place = place;
                match tls {
                    None => connection(stream, router, stop).await,
                    Some(tls) => match tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
                        Ok(Ok(stream)) => connection(stream, router, stop).await,
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS came of a connection"),
                        Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
                    },
                }
            });
        }
        connections.close();
        connections.wait().await;
    })
}

/// Serves agents over a Unix socket of a fixed place, so that a task outlives the server (architecture §7).
///
/// # Errors
/// The socket cannot be made.
pub fn agents(path: &Path, router: Router, stop: CancellationToken) -> anyhow::Result<JoinHandle<()>> {
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("{} cannot be bound", path.display()))?;
    Ok(tokio::spawn(async move {
        let connections = TaskTracker::new();
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        refused("an agent's connection", &error).await;
                        continue;
                    }
                },
            };
            connections.spawn(connection(stream, router.clone(), stop.clone()));
        }
        connections.close();
        connections.wait().await;
    }))
}

/// Out of files, for example: trying again at once would only burn the processor.
async fn refused(what: &str, error: &io::Error) {
    tracing::warn!("{what} was not accepted: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Serves one connection; after `stop` it ends with the request under way.
async fn connection<S>(stream: S, router: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_headers(HEADERS);
    builder.http2().timer(TokioTimer::new()).max_header_list_size(HEADER_BYTES);
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}
