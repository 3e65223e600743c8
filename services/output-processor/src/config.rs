//! Settings, section `[logs]`.

use serde::Deserialize;
use std::time::Duration;

/// Limits and durations of output.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bytes of a journal segment after which the next begins.
    pub segment_bytes: u64,
    /// Bytes of output that one step may store.
    pub max_step_bytes: u64,
    /// Bytes of output that one task may store.
    pub max_task_bytes: u64,
    /// Steps that one task may report.
    pub max_steps: usize,
    /// Step changes are gathered for so long before they are written to the records.
    pub gather_ms: u64,
    /// Days that the record and the output of a task are kept; 0 keeps them for ever.
    pub retention_days: u32,
    /// Seconds between two looks for what is past its retention.
    pub sweep_seconds: u64,
    /// What agents upload.
    pub stores: Stores,
    /// Between two looks for jobs whose pipeline is past its retention, if none is announced.
    pub retention_sweep: Duration,
}

/// Limits and retention of what agents upload (execution §30, security §5.2). Days of 0: for ever.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stores {
    /// Days that a cache is kept after it was saved.
    pub cache_days: u32,
    /// Days that a layer of a workspace is kept.
    pub workspace_days: u32,
    /// Days that artifacts and test reports are kept.
    pub artifact_days: u32,
    /// Bytes of one cache or layer, before compression.
    pub max_archive_bytes: u64,
    /// Bytes of one artifact.
    pub max_artifact_bytes: u64,
    /// Bytes of all artifacts of a job.
    pub max_job_artifact_bytes: u64,
    /// Artifacts of a job.
    pub max_artifacts: u64,
    /// Bytes of one upload of test reports, compressed.
    pub max_reports_bytes: u64,
}

impl Default for Stores {
    fn default() -> Self {
        Self {
            cache_days: 15,
            workspace_days: 15,
            artifact_days: 30,
            max_archive_bytes: 5 << 30,
            max_artifact_bytes: 3 << 30,
            max_job_artifact_bytes: 50 << 30,
            max_artifacts: 5_000,
            max_reports_bytes: 100 << 20,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            segment_bytes: 4 << 20,
            max_step_bytes: 1 << 30,
            max_task_bytes: 4 << 30,
            max_steps: 5_000,
            gather_ms: 20,
            retention_days: 0,
            sweep_seconds: 3600,
            stores: Stores::default(),
            retention_sweep: Duration::from_secs(3600),
        }
    }
}
