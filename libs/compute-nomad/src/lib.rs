//! Agents on a Nomad cluster: one batch job per task and epoch.
//!
//! Nomad is a way to get a process started, and a source of hints; the agent's lease with the dispatcher is the truth
//! about a task (reliability §7). A job's id is the placement's name and it is registered only if there is none, so that
//! starting twice is starting once. Nomad may not restart, reschedule or replace what it started. What it does all the
//! same (an allocation that a drain has ended is started anew elsewhere) comes too late: the first start that shows its
//! identity has the token for good.
//!
//! No token is in a job. Nomad signs an identity for each allocation; the agent shows it, and [`Compute::identify`] checks
//! the signature.

mod api;
mod config;
mod events;
mod identity;
mod job;
mod why;

pub use config::{Config, Constraint, Driver, Pool, Wrong};

use api::{Api, Failure, JobRow, Place};
use compute::{Compute, Error, Identity, Phase, Placement, Running, check_name};
use futures::future::join_all;
use identity::Signers;
use ids::Timestamp;
use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{Mutex, Notify},
    task::AbortHandle,
    time::Instant,
};

/// What a list of changes is worth: looks come no faster than this.
const AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// The adapter.
pub struct Nomad {
    api: Api,
    config: Config,
    /// Where jobs may be: each region and namespace once.
    places: Vec<Place>,
    signers: Signers,
    changes: std::sync::Arc<Notify>,
    last_change: Mutex<Option<Instant>>,
    /// Listen to the events of a region and namespace each.
    listeners: Vec<AbortHandle>,
}

impl std::fmt::Debug for Nomad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nomad").field("places", &self.places).finish_non_exhaustive()
    }
}

impl Nomad {
    /// An adapter for this cluster, which need not answer yet; listens to its events from now on. Needs a runtime.
    ///
    /// # Errors
    /// The configuration cannot be used: [`Config::check`], or a certificate that cannot be read.
    pub fn open(config: Config) -> Result<Self, Wrong> {
        config.check()?;
        let api = Api::new(&config)?;
        let mut places: Vec<Place> = Vec::new();
        for pool in &config.pools {
            let place = Place { region: pool.region.clone(), namespace: pool.namespace.clone() };
            if !places.contains(&place) {
                places.push(place);
            }
        }
        let changes = std::sync::Arc::new(Notify::new());
        let listeners = places
            .iter()
            .map(|place| {
                let task = events::listen(api.clone(), place.clone(), std::sync::Arc::clone(&changes));
                tokio::spawn(task).abort_handle()
            })
            .collect();
        let signers = Signers::default();
        Ok(Self { api, config, places, signers, changes, last_change: Mutex::new(None), listeners })
    }

    /// Ends a job wherever it is. Each place is asked, whatever another one says.
    async fn deregister(&self, name: &str, purge: bool) -> Result<(), Error> {
        let asked = self.places.iter().map(|place| self.api.deregister(place, name, purge));
        Ok(join_all(asked).await.into_iter().collect::<Result<(), Failure>>()?)
    }

    /// All jobs of a place, as placements.
    async fn list_at(&self, place: &Place) -> Result<Vec<Running>, Failure> {
        let jobs = self.api.jobs(place).await?;
        let reasons = if jobs.iter().any(JobRow::is_unplaced) {
            let blocked = self.api.blocked(place).await?;
            blocked.into_iter().map(|found| (found.job_id.clone(), why::of(&found))).collect()
        } else {
            HashMap::new()
        };
        Ok(jobs.into_iter().map(|job| running(job, &reasons)).collect())
    }
}

impl Drop for Nomad {
    fn drop(&mut self) {
        self.listeners.iter().for_each(AbortHandle::abort);
    }
}

fn running(job: JobRow, reasons: &HashMap<String, String>) -> Running {
    let phase = if job.has_ended() {
        Phase::Ended
    } else if job.runs() {
        Phase::Runs
    } else {
        Phase::Waits { why: reasons.get(&job.id).cloned() }
    };
    let since = SystemTime::UNIX_EPOCH + Duration::from_nanos(job.submit_time);
    // What an agent could not deliver lies on its machine, where nobody starts another.
    Running { name: job.id, phase, since, unsent: false }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Scheduler(failure.to_string())
    }
}

#[async_trait::async_trait]
impl Compute for Nomad {
    async fn start(&self, placement: &Placement) -> Result<(), Error> {
        check_name(&placement.name)?;
        let pool = self.config.pool(placement).map_err(|wrong| Error::Scheduler(wrong.to_string()))?;
        let job = job::of(placement, pool, &self.config);
        let place = Place { region: pool.region.clone(), namespace: pool.namespace.clone() };
        Ok(self.api.register(&place, &job).await?)
    }

    /// Nomad ends the processes soon; it keeps the job, as ended.
    async fn stop(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        self.deregister(name, false).await
    }

    /// A region that does not answer takes nothing from the others: what runs there is left out until it does.
    async fn list(&self) -> Result<Vec<Running>, Error> {
        let found = join_all(self.places.iter().map(|place| self.list_at(place))).await;
        let (mut all, mut away) = (Vec::new(), None);
        for (place, found) in self.places.iter().zip(found) {
            match found {
                Ok(found) => all.extend(found),
                Err(failure) => {
                    tracing::warn!(region = place.region, namespace = place.namespace, error = %failure, "Nomad's jobs are not known");
                    away = Some(failure);
                }
            }
        }
        match away {
            Some(failure) if all.is_empty() => Err(failure.into()),
            _ => Ok(all),
        }
    }

    /// Nomad has taken it on when this returns: it ends the processes soon, also those on machines that do not answer now.
    async fn remove(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        self.deregister(name, true).await
    }

    /// A folder stays on the machine where it is.
    fn resumes(&self) -> bool {
        false
    }

    async fn changed(&self) {
        self.changes.notified().await;
        let mut last = self.last_change.lock().await;
        if let Some(at) = *last {
            tokio::time::sleep_until(at + AT_MOST_EVERY).await;
        }
        *last = Some(Instant::now());
    }

    async fn identify(&self, proof: &str, now: Timestamp) -> Result<Identity, Error> {
        let claims = self.signers.check(&self.api, &self.places, proof, now).await?;
        check_name(&claims.job).map_err(|error| Error::Identity(error.to_string()))?;
        Ok(Identity { placement: claims.job, instance: claims.allocation })
    }
}
