//! Artifacts and other stored bytes; owner: `output-processor`.

use crate::{ask, event};
use ids::{JobId, OrgId, ProjectId, TaskId, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A task uploaded test reports (aggregate kind `record`, id = the task's): they are to be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportsStored {
    /// Its task.
    pub task_id: TaskId,
    /// Its job.
    pub job_id: JobId,
    /// Parallel index.
    pub index: u32,
    /// Organisation.
    pub org_id: OrgId,
    /// Project.
    pub project_id: ProjectId,
    /// Name of the job: timings are kept by it.
    pub job_name: String,
    /// Branch, of branch pipelines.
    pub branch: Option<String>,
    /// Commit.
    pub revision: String,
    /// Which upload of the task.
    pub object: Uuid,
    /// Key of the blob: a tar archive, compressed with zstd.
    pub blob: String,
    /// When.
    pub at: Timestamp,
}
event!(ReportsStored, "reports.stored", 1);

/// An artifact of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRecord {
    /// Parallel index of the task that stored it.
    pub index: u32,
    /// Its path in the list.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 (hex), as the store computed it.
    pub sha256: String,
}

/// Artifacts of a job, by index and path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListArtifacts {
    /// Which job.
    pub job_id: JobId,
    /// Go on after this one.
    pub after: Option<(u32, String)>,
    /// At most so many, itself at most 500.
    pub limit: u32,
}
ask!(query ListArtifacts, "output-processor", "artifacts.list", ArtifactPage);

/// A page of artifacts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArtifactPage {
    /// The artifacts.
    pub items: Vec<ArtifactRecord>,
    /// Whether there are more.
    pub more: bool,
}

/// Asks for the bytes of one artifact. Refused `not_found`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenArtifact {
    /// Which job.
    pub job_id: JobId,
    /// Parallel index.
    pub index: u32,
    /// Its path.
    pub path: String,
}
ask!(query OpenArtifact, "output-processor", "artifact.open", ArtifactPlace);

/// Where an artifact's bytes are, for five minutes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArtifactPlace {
    /// A signed URL, or a path of the public listener.
    pub url: String,
}
