//! Test results; owner: `test-results`.

use crate::ask;
use ids::JobId;
use serde::{Deserialize, Serialize};

/// One test as it ran (execution §18).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestRecord {
    /// Parallel index of the task that ran it.
    pub index: u32,
    /// Class.
    pub classname: String,
    /// File; empty where the report does not say.
    pub file: String,
    /// Name.
    pub name: String,
    /// `success`, `failure`, `error` or `skipped`.
    pub result: String,
    /// Seconds.
    pub run_time: f64,
    /// What it said, cut to fit.
    pub message: String,
}

/// Tests of a job in the order of their reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListTests {
    /// Which job.
    pub job_id: JobId,
    /// Skip so many.
    pub offset: u64,
    /// At most so many, itself at most 500; fewer when their texts are long.
    pub limit: u32,
}
ask!(query ListTests, "test-results", "tests.list", TestPage);

/// A page of tests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TestPage {
    /// The tests.
    pub items: Vec<TestRecord>,
    /// How many the job has.
    pub total: u64,
    /// Files that could not be read, with the reason.
    pub problems: Vec<String>,
}
