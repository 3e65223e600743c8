//! Live streams that are open (security §5.2): so many of a process, and of one session in all processes of the edge.

use crate::{auth::Caller, error::Fail};
use axum::http::StatusCode;
use ids::InstanceId;
use live::{Live, LocalLive};
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How often an open stream says that it is there.
const AGAIN: Duration = Duration::from_secs(15);
/// One that has not said so for this long is gone with its process.
const GONE: Duration = Duration::from_secs(45);

/// Those of this process, and where those of a session are counted.
pub struct Streams {
    places: Arc<Semaphore>,
    live: Arc<dyn Live>,
    /// Of this process alone: what counts while live state is away.
    own: LocalLive,
    each: usize,
}

/// A stream that may be open, for as long as this is kept.
pub struct Stream {
    _place: OwnedSemaphorePermit,
    _present: Option<DropGuard>,
}

impl Streams {
    /// At most `all` in this process, and `each` of one session; 0: no limit of its own.
    pub fn new(live: Arc<dyn Live>, all: usize, each: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(all)), live, own: LocalLive::new(), each }
    }

    /// A stream of a session.
    ///
    /// # Errors
    /// 429 `limit_reached`: it has too many, or this process has.
    pub async fn open(&self, caller: &Caller) -> Result<Stream, Fail> {
        let _place = self.place()?;
        Ok(Stream { _place, _present: self.present(caller).await? })
    }

    /// A place for a stream of a session that is not known yet.
    ///
    /// # Errors
    /// As [`Streams::open`].
    pub fn place(&self) -> Result<OwnedSemaphorePermit, Fail> {
        self.places
            .clone()
            .try_acquire_owned()
            .map_err(|_| too_many("too many live streams are open ([api] max_streams)".to_owned()))
    }

    /// Counts a stream of a session until the guard is dropped; `None` where they have no limit.
    ///
    /// # Errors
    /// As [`Streams::open`].
    pub async fn present(&self, caller: &Caller) -> Result<Option<DropGuard>, Fail> {
        if self.each == 0 {
            return Ok(None);
        }
        let key = format!("api:streams:{}", caller.session);
        let shared = self.live.present(&key).await;
        let open = match shared {
            Ok(open) => open.len(),
            Err(_) => self.own.present(&key).await.map_or(0, |open| open.len()),
        };
        if open >= self.each {
            let each = self.each;
            let message = format!(
                "this session has {each} live streams open already; close one, or ask for more ([api] max_streams_of_session)"
            );
            return Err(too_many(message));
        }
        let me = InstanceId::new().to_string();
        let end = CancellationToken::new();
        let all: [Arc<dyn Live>; 2] = [Arc::clone(&self.live), Arc::new(self.own.clone())];
        touch(&all, &key, &me).await;
        let ended = end.clone();
        tokio::spawn(async move {
            while ended.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_some() {
                touch(&all, &key, &me).await;
            }
            for live in &all {
                if let Err(error) = live.leave(&key, &me).await {
                    tracing::debug!(%error, "a stream that has ended counts for some seconds more");
                }
            }
        });
        Ok(Some(end.drop_guard()))
    }
}

async fn touch(all: &[Arc<dyn Live>], key: &str, me: &str) {
    for live in all {
        if let Err(error) = live.touch(key, me, GONE).await {
            tracing::debug!(%error, "a stream is counted by its own process alone");
        }
    }
}

fn too_many(message: String) -> Fail {
    Fail::new(StatusCode::TOO_MANY_REQUESTS, "limit_reached", message)
}
