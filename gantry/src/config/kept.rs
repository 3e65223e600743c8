//! What is kept, how much of it and for how long.

use super::{Invalid, Span};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `[disk]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Disk {
    /// With fewer MiB free on the data folder's disk no new work is taken; running work goes on. 0: never look.
    pub min_free_mib: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Self { min_free_mib: 256 }
    }
}

/// `[logs]`: output and records of tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Logs {
    /// Days that output and records of a finished task are kept; 0: for ever.
    pub retention_days: u32,
    /// Between two looks for what is past its retention.
    pub sweep: Span,
    /// MiB of output that one step may store; what exceeds them is counted and not kept.
    pub max_step_mib: u64,
    /// MiB of output that one task may store.
    pub max_task_mib: u64,
}

impl Default for Logs {
    fn default() -> Self {
        Self { retention_days: 0, sweep: Span::secs(3600), max_step_mib: 1024, max_task_mib: 4096 }
    }
}

/// `[retention]`: how long pipelines are kept, with their workflows, jobs, output, artifacts and test results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// A pipeline goes so long after the end of its last workflow, for example `400d`; at least `reruns`. `0s`: never.
    pub pipelines: Span,
    /// A workflow can be rerun for so long after its creation; at most `90d`.
    pub reruns: Span,
    /// Between two looks for pipelines that are past it.
    pub sweep: Span,
}

impl Default for Retention {
    fn default() -> Self {
        Self { pipelines: Span::secs(0), reruns: Span::secs(90 * 86_400), sweep: Span::secs(3600) }
    }
}

impl Retention {
    /// Nothing goes that can still run (reliability R-9).
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let (keep, reruns) = (self.pipelines.0, self.reruns.0);
        if reruns > Duration::from_secs(90 * 86_400) {
            return Err(Invalid::new("retention.reruns must be at most 90d"));
        }
        if !keep.is_zero() && keep < reruns {
            return Err(Invalid::new(format!(
                "retention.pipelines ({}) must be at least retention.reruns ({}), for a pipeline that can be rerun must not \
                 go; 0s keeps all for ever",
                self.pipelines, self.reruns
            )));
        }
        if self.sweep.0.is_zero() {
            return Err(Invalid::new("retention.sweep must be longer than 0s, for example 1h"));
        }
        Ok(())
    }

    /// How long pipelines are kept; `None`: for ever.
    pub fn keep(&self) -> Option<Duration> {
        (!self.pipelines.0.is_zero()).then_some(self.pipelines.0)
    }
}

/// `[stores]`: what jobs keep. Days of 0: for ever.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stores {
    /// Days that a cache is kept after it was saved.
    pub cache_days: u32,
    /// Days that a layer of a workspace is kept.
    pub workspace_days: u32,
    /// Days that artifacts are kept.
    pub artifact_days: u32,
    /// Days that test results are kept.
    pub test_days: u32,
    /// MiB of one cache or workspace layer, before compression.
    pub max_archive_mib: u64,
    /// MiB of one artifact.
    pub max_artifact_mib: u64,
    /// MiB of all artifacts of a job.
    pub max_job_artifact_mib: u64,
    /// Artifacts of a job.
    pub max_artifacts: u64,
}

impl Default for Stores {
    fn default() -> Self {
        Self {
            cache_days: 15,
            workspace_days: 15,
            artifact_days: 30,
            test_days: 30,
            max_archive_mib: 5 << 10,
            max_artifact_mib: 3 << 10,
            max_job_artifact_mib: 50 << 10,
            max_artifacts: 5_000,
        }
    }
}

impl Stores {
    /// As the service has them.
    pub fn limits(&self) -> output_processor::Stores {
        output_processor::Stores {
            cache_days: self.cache_days,
            workspace_days: self.workspace_days,
            artifact_days: self.artifact_days,
            max_archive_bytes: self.max_archive_mib << 20,
            max_artifact_bytes: self.max_artifact_mib << 20,
            max_job_artifact_bytes: self.max_job_artifact_mib << 20,
            max_artifacts: self.max_artifacts,
            ..output_processor::Stores::default()
        }
    }
}
