//! Steps that keep and fetch files: caches, workspaces, artifacts, test results (execution §15–§18).

mod artifacts;
mod cache;
mod key;
mod transfer;
mod workspace;

use crate::{helper::Failed, output::Stream, steps::Runner};
use model::plan::Step;
use std::{io, path::PathBuf};

/// How such a step ended.
pub(crate) enum Done {
    /// Well, or badly in a way that is only told: what a cache could not do is no reason to fail.
    Success,
    /// Badly.
    Failed,
    /// The task stops.
    Stopped,
    /// The environment is gone.
    Lost,
}

impl Runner {
    /// Runs a step that keeps or fetches files; `None`: the step is another one.
    pub(crate) async fn store_step(
        &self,
        number: u32,
        step: &Step,
        stream: &mut Stream,
    ) -> io::Result<Option<Done>> {
        self.control.tell_waiting(Some(stream.aside()));
        // Whether a failure is the job's failure.
        let (done, counts, before) = match step {
            Step::SaveCache { key, paths, .. } => (self.save_cache(key, paths, stream).await, false, ""),
            Step::RestoreCache { keys, .. } => (self.restore_cache(keys, stream).await, false, ""),
            Step::PersistToWorkspace { root, paths, .. } => {
                (self.persist_to_workspace(number, root, paths, stream).await, true, "")
            }
            Step::AttachWorkspace { at, .. } => (self.attach_workspace(at, stream).await, true, ""),
            Step::StoreArtifacts { path, destination, .. } => {
                (self.store_artifacts(path, destination.as_deref(), stream).await, true, "")
            }
            Step::StoreTestResults { path, .. } => {
                (self.store_test_results(path, stream).await, false, "failed uploading test results: ")
            }
            _ => return Ok(None),
        };
        self.control.tell_waiting(None);
        let Err(failed) = done else { return Ok(Some(Done::Success)) };
        if self.tell(&failed, before, stream)? {
            return Ok(Some(Done::Stopped));
        }
        Ok(Some(match failed {
            Failed::Lost => Done::Lost,
            Failed::Io(e) => return Err(e),
            _ if counts => Done::Failed,
            _ => Done::Success,
        }))
    }

    /// Puts the timings of earlier runs where `circleci tests split` finds them. They are asked for once, so that all
    /// nodes compute the same shares; without them names decide.
    pub(crate) async fn fetch_timings(&self) {
        if self.spec.total < 2 {
            return;
        }
        let timings = match self.control.get::<agent_api::stores::Timings>("timings").await {
            Ok(timings) => timings,
            Err(e) => {
                tracing::info!(error = %e, "there are no timings");
                return;
            }
        };
        let path = self.places.data.join(crate::injob::tests::TIMINGS);
        let text = serde_json::to_string(&timings).unwrap_or_default();
        if let Err(e) = self.sandbox.write(&path, &text, 0o644).await {
            tracing::warn!(error = %e, "the timings cannot be written");
        }
    }

    /// Puts the failed tests of the job before where `circleci tests run` finds them, if only those are to be run.
    ///
    /// # Errors
    /// They are not known: then the job does not run, instead of running too little or too much.
    pub(crate) async fn fetch_failed_tests(&self) -> Result<(), String> {
        if !self.spec.failed_tests {
            return Ok(());
        }
        let failed = self.control.get::<agent_api::stores::FailedTests>("failed-tests").await;
        let failed = failed.map_err(|e| format!("the failed tests of the job before are not known: {e}"))?;
        let path = self.places.data.join(crate::injob::tests::FAILED);
        let text = serde_json::to_string(&failed).map_err(|e| e.to_string())?;
        self.sandbox.write(&path, &text, 0o644).await.map_err(|e| e.to_string())
    }

    /// A path of a step: absolute, below the home folder, or below the working directory.
    fn located(&self, path: &str) -> PathBuf {
        crate::environment::expand(path, &self.places.home, &self.places.work)
    }
}

/// Bytes for people: `12 B`, `1.2 MiB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
