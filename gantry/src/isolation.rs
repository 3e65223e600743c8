//! What keeps host jobs from the server's own files (architecture §7).

use crate::config::HostIsolation;
use anyhow::bail;
use nix::unistd::{User, geteuid};
use std::process::{Command, Stdio};

/// The user that jobs run as when the server is root.
const JOB_USER: &str = "gantry-job";

/// How host jobs are kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Jobs run as another user.
    User {
        /// Its user id.
        uid: u32,
        /// Its group id.
        gid: u32,
    },
    /// Jobs run in namespaces in which the data folder does not exist.
    Namespace,
    /// Nothing keeps them apart; asked for by configuration.
    None,
}

impl Isolation {
    /// Word of the ready line (outside §1).
    pub const fn word(&self) -> &'static str {
        match self {
            Self::User { .. } => "user",
            Self::Namespace => "namespace",
            Self::None => "none",
        }
    }

    /// The best that this machine offers.
    ///
    /// # Errors
    /// Neither another user nor namespaces can be had, and `none` was not asked for.
    pub fn choose(wanted: HostIsolation) -> anyhow::Result<Self> {
        if wanted == HostIsolation::None {
            return Ok(Self::None);
        }
        if geteuid().is_root()
            && let Ok(Some(user)) = User::from_name(JOB_USER)
        {
            return Ok(Self::User { uid: user.uid.as_raw(), gid: user.gid.as_raw() });
        }
        if namespaces_work() {
            return Ok(Self::Namespace);
        }
        bail!(
            "nothing would keep jobs from the server's own files: there is no user {JOB_USER} (made by scripts/up as root) and \
             namespaces are not allowed here; set [executors] host_isolation = \"none\" to go on without"
        )
    }
}

fn namespaces_work() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "true"]);
    probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}
