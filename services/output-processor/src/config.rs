//! Settings, section `[logs]`.

use serde::Deserialize;

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
        }
    }
}
