//! One connection: who may have it, and what it asks for.

use super::{Door, LOGIN, forward, session};
use ids::InstanceId;
use russh::{
    Channel, ChannelOpenFailure, Disconnect,
    keys::{Algorithm, HashAlg, PublicKey},
    server::{self, Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey},
};
use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};
use tokio::{net::TcpStream, sync::Notify};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What is known of a connection outside of its handler.
struct State {
    /// Fingerprint of the key that was shown.
    key: OnceLock<String>,
    authenticated: Notify,
    /// Ends with the connection.
    over: CancellationToken,
    /// What runs for it.
    work: TaskTracker,
}

/// One connection.
pub(super) struct Connection {
    door: Arc<Door>,
    from: SocketAddr,
    state: Arc<State>,
}

impl Connection {
    /// Serves a connection until either side, or the job, ends it.
    pub(super) async fn serve(
        door: Arc<Door>,
        stream: TcpStream,
        from: SocketAddr,
        config: Arc<server::Config>,
    ) {
        let state = Arc::new(State {
            key: OnceLock::new(),
            authenticated: Notify::new(),
            over: CancellationToken::new(),
            work: TaskTracker::new(),
        });
        let this = Self { door: Arc::clone(&door), from, state: Arc::clone(&state) };
        let began = tokio::select! {
            began = server::run_stream(config, stream, this) => began,
            () = door.closing.cancelled() => return,
            () = tokio::time::sleep(LOGIN) => return,
        };
        let mut running = match began {
            Ok(running) => running,
            Err(e) => {
                tracing::debug!(%from, error = %e, "who connected does not speak SSH");
                return;
            }
        };
        let handle = running.handle();
        let entered = tokio::select! {
            () = state.authenticated.notified() => true,
            _ = &mut running => false,
            () = door.closing.cancelled() => false,
            () = tokio::time::sleep(LOGIN) => false,
        };
        if !entered {
            let _ =
                handle.disconnect(Disconnect::ByApplication, "no key was shown".into(), "en".into()).await;
            return;
        }
        let key = state.key.get().cloned().unwrap_or_default();
        let session = InstanceId::new();
        door.opened(&key, from);
        // Beside the session: a suite that is away keeps nobody out of a job.
        let record = {
            let (door, key) = (Arc::clone(&door), key.clone());
            async move { door.tell(session, true, &key, from).await }
        };
        let live = async {
            tokio::select! {
                _ = &mut running => {}
                () = door.closing.cancelled() => {
                    let _ = handle.disconnect(Disconnect::ByApplication, door.farewell(), "en".into()).await;
                    // What was said goes out before the connection is dropped.
                    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), &mut running).await;
                }
            }
            state.over.cancel();
            state.work.close();
            state.work.wait().await;
            door.closed(from);
        };
        tokio::join!(record, live);
        door.tell(session, false, &key, from).await;
    }

    /// Whether a key opens this job. The old form of RSA, whose signatures can be forged, does not.
    fn opens(&self, key: &PublicKey, algorithm: &Algorithm) -> bool {
        !matches!(algorithm, Algorithm::Rsa { hash: None }) && self.door.accepted(key)
    }
}

impl server::Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        let opens = self.opens(offer.public_key, offer.algorithm);
        Ok(if opens { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(
        &mut self,
        _user: &str,
        shown: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        if !self.opens(shown.public_key, shown.algorithm) {
            return Ok(Auth::reject());
        }
        let _ = self.state.key.set(shown.public_key.fingerprint(HashAlg::Sha256).to_string());
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        self.state.authenticated.notify_one();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        let work = session::serve(
            Arc::clone(&self.door),
            channel,
            session.handle(),
            self.from,
            self.state.over.clone(),
        );
        self.state.work.spawn(work);
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Ok(port) = u16::try_from(port) else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        let work = forward::serve(
            Arc::clone(&self.door),
            channel,
            reply,
            (host.to_owned(), port),
            self.state.over.clone(),
        );
        self.state.work.spawn(work);
        Ok(())
    }
}
