//! Exit codes (user-experience §2.5).

/// What a command ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0
    Success,
    /// 1: general failure; the watched run failed
    Failed,
    /// 2
    Usage,
    /// 3: not signed in, or the token was refused
    NotSignedIn,
    /// 4: server or API error
    Server,
    /// 5
    NotFound,
    /// 6: cancelled
    Canceled,
    /// 7: validation failed
    Invalid,
    /// 8: timed out waiting
    TimedOut,
    /// 9: signed in, not allowed
    Forbidden,
    /// 10: already done, changed meanwhile
    Conflict,
    /// 11: on hold and `--no-wait-approval` was given
    OnHold,
    /// 12: the run could not be executed
    Infrastructure,
    /// 13: connection problem
    Connection,
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotSignedIn => 3,
            Self::Server => 4,
            Self::NotFound => 5,
            Self::Canceled => 6,
            Self::Invalid => 7,
            Self::TimedOut => 8,
            Self::Forbidden => 9,
            Self::Conflict => 10,
            Self::OnHold => 11,
            Self::Infrastructure => 12,
            Self::Connection => 13,
        }
    }

    /// The word that `--json` errors carry.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotSignedIn => "not_signed_in",
            Self::Server => "server_error",
            Self::NotFound => "not_found",
            Self::Canceled => "canceled",
            Self::Invalid => "invalid",
            Self::TimedOut => "timed_out",
            Self::Forbidden => "forbidden",
            Self::Conflict => "conflict",
            Self::OnHold => "on_hold",
            Self::Infrastructure => "infrastructure",
            Self::Connection => "connection",
        }
    }

    /// The exit that an HTTP status stands for.
    pub fn of_http(status: u16) -> Self {
        match status {
            200..=299 => Self::Success,
            401 => Self::NotSignedIn,
            403 => Self::Forbidden,
            404 | 410 => Self::NotFound,
            409 | 412 => Self::Conflict,
            400 | 422 => Self::Invalid,
            _ => Self::Server,
        }
    }

    /// The exit that a workflow's status stands for.
    pub fn of_status(status: &str) -> Self {
        match status {
            "success" => Self::Success,
            "canceled" => Self::Canceled,
            "error" | "unauthorized" => Self::Infrastructure,
            _ => Self::Failed,
        }
    }
}

/// Why a command did not do what was asked; the text says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    message: String,
}

impl Failure {
    /// A failure with its text.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Failed, error.to_string())
    }
}
