//! SSH into jobs (execution §26): who may enter one, and how long it stays for them.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Who may enter a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Login of who asked for the rerun, if known: sessions are theirs.
    pub login: Option<String>,
    /// Public keys of that person in OpenSSH's one-line form, as they were when the rerun was asked for. None: the job
    /// runs as any other, and nobody can enter it.
    pub keys: Vec<String>,
}

/// How long a job stays after its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Without a session.
    pub idle: Duration,
    /// In all.
    pub total: Duration,
}

/// Where the sessions of a job are when its steps have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    /// At least one is open.
    Open,
    /// None is.
    None {
        /// When the last one ended, counted from the end of the steps; zero if it ended before, or there was none.
        since: Duration,
    },
}

/// Why a job stays no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Nobody was connected for [`Limits::idle`].
    Idle,
    /// It stayed for [`Limits::total`].
    Total,
}

/// When a job stays no longer if its sessions stay as they are, counted from the end of its steps, and why.
pub fn end(limits: Limits, sessions: Sessions) -> (Duration, Over) {
    let total = (limits.total, Over::Total);
    match sessions {
        Sessions::Open => total,
        Sessions::None { since } => {
            let idle = since.saturating_add(limits.idle);
            if idle < limits.total { (idle, Over::Idle) } else { total }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const LIMITS: Limits =
        Limits { idle: Duration::from_secs(10 * 60), total: Duration::from_secs(2 * 3600) };

    #[test]
    fn ten_minutes_without_a_session_and_two_hours_in_all() {
        let none = |minutes: u32| Sessions::None { since: MINUTE * minutes };
        assert_eq!(end(LIMITS, none(0)), (MINUTE * 10, Over::Idle));
        assert_eq!(end(LIMITS, none(30)), (MINUTE * 40, Over::Idle));
        assert_eq!(end(LIMITS, Sessions::Open), (MINUTE * 120, Over::Total));
        assert_eq!(end(LIMITS, none(111)), (MINUTE * 120, Over::Total));
        assert_eq!(end(LIMITS, none(110)), (MINUTE * 120, Over::Total));
    }
}
