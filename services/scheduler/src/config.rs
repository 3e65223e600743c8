//! Durations.

use std::time::Duration;

/// Keys of the scheduler.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long an agent whose task has ended may take to leave by itself.
    pub linger: Duration,
    /// Between looks at what compute runs.
    pub watch: Duration,
    /// How long a placement that is gone is remembered, so that what it left can be told from a stranger.
    pub remember: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            linger: Duration::from_secs(5),
            watch: Duration::from_secs(10),
            remember: Duration::from_secs(24 * 3600),
        }
    }
}
