//! Artifacts and tests of a job.

use crate::artifacts;
use async_graphql::SimpleObject;
use contracts::{stores::ArtifactRecord, test_results::TestRecord};
use ids::JobId;

/// A file that a job kept for people.
#[derive(SimpleObject)]
pub struct Artifact {
    /// Parallel index of the task that stored it.
    index: u32,
    /// Its path in the list.
    path: String,
    /// Bytes.
    size: u64,
    /// SHA-256 (hex).
    sha256: String,
    /// Where to ask for its bytes; `?format=json` answers with an address instead of a redirect.
    url: String,
}

impl Artifact {
    /// As its job has it.
    pub fn of(app: &crate::state::App, job: JobId, record: ArtifactRecord) -> Self {
        let url = artifacts::address(app, job, &record);
        let ArtifactRecord { index, path, size, sha256 } = record;
        Self { index, path, size, sha256, url }
    }
}

/// Tests of a job.
#[derive(SimpleObject)]
pub struct Tests {
    /// How many there are.
    pub total: u64,
    /// Reports that could not be read, with the reason.
    pub problems: Vec<String>,
    /// A page of them.
    pub items: Vec<Test>,
}

/// One test as it ran.
#[derive(SimpleObject)]
pub struct Test {
    index: u32,
    classname: String,
    file: String,
    name: String,
    /// `success`, `failure`, `error` or `skipped`.
    result: String,
    /// Seconds.
    run_time: f64,
    message: String,
}

impl From<TestRecord> for Test {
    fn from(record: TestRecord) -> Self {
        let TestRecord { index, classname, file, name, result, run_time, message } = record;
        Self { index, classname, file, name, result, run_time, message }
    }
}
