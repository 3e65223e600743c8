//! Settings, section `[test_results]`.

use serde::Deserialize;

/// Retention and limits of test results.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Days that results are kept; 0 keeps them for ever.
    pub retention_days: u32,
    /// Seconds between two looks for what is past its retention.
    pub sweep_seconds: u64,
    /// Bytes of the reports of one upload, after decompression.
    pub max_expanded_bytes: u64,
    /// Tests of one upload.
    pub max_tests: usize,
    /// So many of the latest runs of a job make its timings.
    pub timed_runs: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            retention_days: 30,
            sweep_seconds: 3600,
            max_expanded_bytes: 500 << 20,
            max_tests: 1_000_000,
            timed_runs: 5,
        }
    }
}
