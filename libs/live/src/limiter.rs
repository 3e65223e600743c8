//! Rate limits that all processes share, and that outlive the loss of live state (reliability F26).

use crate::{Live, LocalLive, Quota, Taken};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// After live state did not answer, it is not asked for so long: nobody is to wait for it each time.
const LEFT_ALONE: Duration = Duration::from_secs(2);

/// Buckets in live state; while that is away each process counts for itself.
#[derive(Debug)]
pub struct Limiter {
    live: Arc<dyn Live>,
    /// Of this process alone.
    own: LocalLive,
    away_until: Mutex<Option<Instant>>,
}

impl Limiter {
    /// Over this live state.
    pub fn new(live: Arc<dyn Live>) -> Self {
        Self { live, own: LocalLive::new(), away_until: Mutex::default() }
    }

    /// Takes one token of a bucket, if it has one.
    pub async fn take(&self, bucket: &str, quota: Quota) -> Taken {
        if self.away_until().is_none_or(|until| until <= Instant::now()) {
            match self.live.take(bucket, quota).await {
                Ok(taken) => return taken,
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "each process counts for itself"
                    );
                    *self.away_until() = Some(Instant::now() + LEFT_ALONE);
                }
            }
        }
        // The process's own never fails.
        self.own.take(bucket, quota).await.unwrap_or(Taken { allowed: true, left: 0.0 })
    }

    fn away_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.away_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
