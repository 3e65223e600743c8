//! Public status words (execution §3, §4, §31).

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),* }

        impl $name {
            /// The word that the APIs use.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
            /// The status with this word.
            pub fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
    };
}

words! {
    /// Status of a job (execution §4).
    JobStatus {
        /// Waits for requirements.
        Blocked = "blocked",
        /// Ready; waits for a slot or lock.
        Queued = "queued",
        /// Handed to an executor, not started.
        NotRunning = "not_running",
        /// First step started.
        Running = "running",
        /// An approval that waits.
        OnHold = "on_hold",
        /// All steps succeeded, or the approval was given.
        Success = "success",
        /// A step failed.
        Failed = "failed",
        /// By a person, the API or auto-cancel.
        Canceled = "canceled",
        /// A context restriction denied it.
        Unauthorized = "unauthorized",
        /// Its requirements can no longer be met.
        NotRun = "not_run",
        /// The environment could not be provided or was lost.
        InfrastructureFail = "infrastructure_fail",
        /// Longer than its maximum.
        Timedout = "timedout",
    }
}

impl JobStatus {
    /// Whether nothing can follow.
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Blocked | Self::Queued | Self::NotRunning | Self::Running | Self::OnHold)
    }

    /// The status as `requires` sees it: `timedout` and `infrastructure_fail` count as `failed`
    /// (execution §4).
    pub const fn for_requires(self) -> Self {
        match self {
            Self::Timedout | Self::InfrastructureFail => Self::Failed,
            other => other,
        }
    }
}

words! {
    /// Status of a workflow (execution §3).
    WorkflowStatus {
        /// Something runs or can run.
        Running = "running",
        /// Every job succeeded.
        Success = "success",
        /// A job failed.
        Failed = "failed",
        /// A job failed, others still run or wait.
        Failing = "failing",
        /// A job could not be started for an internal reason.
        Error = "error",
        /// Nothing runs and an approval waits.
        OnHold = "on_hold",
        /// Canceled.
        Canceled = "canceled",
        /// A job was denied.
        Unauthorized = "unauthorized",
        /// Nothing was run.
        NotRun = "not_run",
        /// Waits for a lock only.
        Queued = "queued",
    }
}

impl WorkflowStatus {
    /// Whether nothing can follow.
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Running | Self::Failing | Self::OnHold | Self::Queued)
    }
}
