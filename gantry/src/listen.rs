//! Listeners: the public one, and the one that agents of this machine use.

use anyhow::Context;
use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use std::{fs, path::Path};
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Serves the public router until `stop`; requests under way are finished by the caller's deadline.
pub fn public(listener: TcpListener, router: Router, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        let serve =
            axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await });
        if let Err(error) = serve.await {
            tracing::error!("the public listener failed: {error}");
        }
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
                        tracing::warn!("an agent's connection was not accepted: {error}");
                        continue;
                    }
                },
            };
            let service = TowerToHyperService::new(router.clone());
            let ended = stop.clone();
            connections.spawn(async move {
                let builder = Builder::new(TokioExecutor::new());
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                tokio::pin!(connection);
                tokio::select! {
                    _ = connection.as_mut() => {}
                    () = ended.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        let _ = connection.await;
                    }
                }
            });
        }
        connections.close();
        connections.wait().await;
    }))
}
