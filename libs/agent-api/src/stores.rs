//! Caches, workspaces, artifacts and test results: what an agent asks of `output-processor` below
//! `/v1/tasks/{task}/stores/` (execution §15–§18, reliability §8.4).
//!
//! | route | |
//! |---|---|
//! | `POST stores/cache/check` [`CacheCheck`] → [`CacheChecked`] | is exactly this key there? |
//! | `POST stores/cache/find` [`CacheFind`] → [`CacheFound`] | the newest entry of the first prefix that has one |
//! | `POST stores/cache/commit` [`CacheCommit`] → [`Committed`] | makes an entry visible: the first writer wins |
//! | `POST stores/workspace/layers` `{}` → [`Layers`] | layers of upstream jobs, in the order to apply them |
//! | `POST stores/workspace/commit` [`LayerCommit`] → [`Committed`] | adds a layer |
//! | `POST stores/chunks/missing` [`ChunksWanted`] → [`ChunksMissing`] | which chunks are not stored yet |
//! | `POST stores/chunks/uploads` [`ChunkUploads`] → [`Uploads`] | where to put them |
//! | `POST stores/chunks/downloads` [`ChunkDownloads`] → [`Downloads`] | where to get those of an archive |
//! | `POST stores/artifacts/uploads` [`ArtifactUploads`] → [`Uploads`] | where to put artifacts |
//! | `POST stores/artifacts/parts` [`PartsWanted`] → [`Uploads`] | where to put parts of a large one |
//! | `POST stores/artifacts/commit` [`ObjectsCommit`] → [`Committed`] | makes them visible |
//! | `POST stores/tests/upload` [`TestsUpload`] → [`Uploads`] | where to put an archive of reports |
//! | `POST stores/tests/commit` [`ObjectsCommit`] → [`Committed`] | hands it on to be read |
//!
//! `GET /v1/tasks/{task}/timings` → [`Timings`] and `…/failed-tests` → [`FailedTests`] are answered by `test-results`.
//!
//! The scope of caches and chunks is never sent: the suite computes it from the task (security §9.3). An upload URL
//! takes exactly the bytes whose size and digest it was made for. A relative URL belongs to the endpoint that the
//! agent uses. What is not committed is not there for anybody, and is removed after a day.

use ids::{JobId, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest cache key in characters.
pub const MAX_KEY: usize = 900;
/// Most chunks, artifacts or parts of one request.
pub const MAX_BATCH: usize = 128;
/// Bytes of each part of a large artifact but the last, which has the rest.
pub const PART: u64 = 8 << 20;
/// Parts that are announced at most, so that they fit into one request; what has more goes as a whole.
pub const MAX_PARTS: usize = 8192;

/// Asks for exactly one key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheCheck {
    /// The expanded key.
    pub key: String,
}

/// Whether a key is taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheChecked {
    /// Since when.
    pub created_at: Option<Timestamp>,
}

/// Looks for a cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheFind {
    /// Expanded keys in order; each counts as a prefix.
    pub keys: Vec<String>,
}

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheFound {
    /// The entry.
    pub hit: Option<CacheHit>,
}

/// A cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheHit {
    /// Which of the keys found it.
    pub candidate: usize,
    /// Its whole key.
    pub key: String,
    /// Number of the job that made it.
    pub job_number: i64,
    /// When.
    pub created_at: Timestamp,
    /// The paths, as the author wrote them but joined with the working directory: the archive's first parts of names
    /// are numbers in this list.
    pub paths: Vec<String>,
    /// Its bytes.
    pub archive: ArchiveRef,
}

/// A stored archive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArchiveRef {
    /// Which.
    pub id: Uuid,
    /// How many chunks.
    pub chunks: u32,
    /// Bytes before compression.
    pub bytes: u64,
}

/// An archive whose chunks are all stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArchiveMade {
    /// Name (hex) of each chunk, in order.
    pub chunks: Vec<String>,
    /// Bytes before compression.
    pub bytes: u64,
}

/// Adds a cache.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CacheCommit {
    /// The expanded key.
    pub key: String,
    /// See [`CacheHit::paths`].
    pub paths: Vec<String>,
    /// Its bytes.
    pub archive: ArchiveMade,
}

/// Adds a layer to the workspace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerCommit {
    /// Number of the step.
    pub step: u32,
    /// Its bytes.
    pub archive: ArchiveMade,
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Committed {
    /// It is visible now.
    Stored,
    /// Another was first; nothing changed.
    AlreadyExists {
        /// Since when.
        created_at: Timestamp,
    },
    /// These chunks are not stored in this scope: upload them, and commit again.
    Missing {
        /// Their digests.
        chunks: Vec<String>,
    },
}

/// Layers of a workspace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Layers {
    /// In the order in which they are applied.
    pub layers: Vec<Layer>,
}

/// A layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Layer {
    /// Job that made it.
    pub job_id: JobId,
    /// Its name.
    pub job_name: String,
    /// Parallel index.
    pub index: u32,
    /// Which earlier layers of the list may be overwritten by this one: those of its job's upstream jobs, and earlier
    /// ones of the same task. A file that another one has too is a conflict.
    pub after: Vec<usize>,
    /// Its bytes.
    pub archive: ArchiveRef,
}

/// Asks which chunks are to be uploaded; at most [`MAX_BATCH`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChunksWanted {
    /// Their names.
    pub chunks: Vec<String>,
}

/// Chunks that are not stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChunksMissing {
    /// Places in the list of the request.
    pub missing: Vec<usize>,
}

/// Asks where to put chunks; at most [`MAX_BATCH`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChunkUploads {
    /// The chunks.
    pub chunks: Vec<ChunkUpload>,
}

/// A chunk to be uploaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChunkUpload {
    /// Its name; on the wire it is called by what names were made with at first.
    #[serde(rename = "content_sha256")]
    pub content: String,
    /// Bytes before compression.
    pub content_size: u32,
    /// SHA-256 (hex) of the bytes that are sent.
    pub sha256: String,
    /// How many.
    pub size: u64,
}

/// Where to put things, in the order of the request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Uploads {
    /// The places.
    pub uploads: Vec<Upload>,
}

/// A place for exactly the announced bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Upload {
    /// Its name, for the commit.
    pub object: Uuid,
    /// Takes a `PUT`; empty where it goes in parts.
    pub url: String,
    /// Headers that a store outside of the suite wants to see, as they stand here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// It goes in the parts that were announced: ask for their places. They are put together by the commit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_parts: bool,
}

/// Asks where the chunks of an archive are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChunkDownloads {
    /// Which archive: one that the suite named to this task.
    pub archive: Uuid,
    /// First chunk.
    pub from: u32,
    /// How many; at most [`MAX_BATCH`].
    pub count: u32,
}

/// Where chunks are, in the archive's order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Downloads {
    /// The chunks.
    pub chunks: Vec<Download>,
}

/// A chunk to be downloaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Download {
    /// Its name; on the wire it is called by what names were made with at first.
    #[serde(rename = "content_sha256")]
    pub content: String,
    /// Bytes before compression.
    pub content_size: u32,
    /// Bytes to read.
    pub size: u64,
    /// Answers a `GET`.
    pub url: String,
}

/// Asks where to put artifacts; at most [`MAX_BATCH`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArtifactUploads {
    /// The files.
    pub files: Vec<ArtifactUpload>,
}

/// An artifact to be uploaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArtifactUpload {
    /// Its path in the list of artifacts.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 (hex).
    pub sha256: String,
    /// SHA-256 (hex) of each part of [`PART`] bytes, if there are several: it can go in parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
}

/// Asks where to put parts of an artifact, each a place of its own for exactly the announced bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartsWanted {
    /// Which artifact: one whose [`Upload::in_parts`] is set.
    pub object: Uuid,
    /// First part, from 0.
    pub from: u32,
    /// How many; at most [`MAX_BATCH`].
    pub count: u32,
}

/// Makes uploaded objects visible.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ObjectsCommit {
    /// Which; at most [`MAX_BATCH`].
    pub objects: Vec<Uuid>,
}

/// Asks where to put an archive (tar, zstd) of test reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TestsUpload {
    /// Bytes.
    pub size: u64,
    /// SHA-256 (hex).
    pub sha256: String,
}

/// How long the tests of a job took lately, the same for all of its tasks (execution §19). Milliseconds by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Files.
    pub files: std::collections::BTreeMap<String, u64>,
    /// Classes.
    pub classes: std::collections::BTreeMap<String, u64>,
    /// Single tests.
    pub tests: std::collections::BTreeMap<String, u64>,
}

/// Where tests failed in the job of which only the failed tests are run again (execution §9, §19). Nothing at all:
/// none is known, and all tests are run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedTests {
    /// Files with a failed test, without a leading `./`.
    pub files: std::collections::BTreeSet<String>,
    /// Classes with a failed test.
    pub classes: std::collections::BTreeSet<String>,
    /// Names of failed tests.
    pub tests: std::collections::BTreeSet<String>,
}
