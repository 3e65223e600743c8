//! The time as the suite has it: when the lease was granted, and what has passed since. The machine's own clock may be off
//! by days, or be set while a job runs (reliability F21), so that nothing that is shown comes from it.

use chrono::{TimeDelta, Utc};
use ids::Timestamp;
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// What is told to people when it is more: less is what calls take.
const NOTICEABLE: TimeDelta = TimeDelta::seconds(5);

/// Time since the machine was started, also while it slept: the suite's clock did not stop either.
pub(crate) fn boottime() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the clock exists since Linux 2.6.39");
    Duration::new(now.tv_sec().unsigned_abs(), u32::try_from(now.tv_nsec()).unwrap_or(0))
}

/// A clock that was set once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    at: Timestamp,
    since: Duration,
}

impl Clock {
    /// Set to the moment that has just been told; without one to the machine's.
    pub(crate) fn set(told: Option<Timestamp>) -> Self {
        Self { at: told.unwrap_or_else(Utc::now), since: boottime() }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.at + boottime().saturating_sub(self.since)
    }

    /// By how much the machine's clock is ahead, if that is worth telling.
    pub(crate) fn machine_is_ahead_by(&self) -> Option<TimeDelta> {
        let ahead = Utc::now() - self.now();
        (ahead.abs() > NOTICEABLE).then_some(ahead)
    }
}
