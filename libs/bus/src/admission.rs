//! Whether the installation takes new work.
//!
//! Closed while something is missing that new work would need and running work must not lose, such as room on
//! the disk. Running work goes on; what is asked for is refused with the reason, and nothing that was accepted
//! is dropped.

use contracts::Refusal;
use std::{fmt, sync::Arc};
use tokio::sync::watch;

/// Requests that begin new work.
const NEW_WORK: [&str; 2] = ["pipeline.trigger", "workflow.rerun"];

/// The gate; clones are the same gate.
#[derive(Clone)]
pub struct Admission(Arc<watch::Sender<Option<Refusal>>>);

impl Default for Admission {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Admission").field(&*self.0.borrow()).finish()
    }
}

impl Admission {
    /// Refuses new work for this reason from now on; whether it was taken before.
    pub fn close(&self, code: &str, message: impl Into<String>) -> bool {
        self.0.send_replace(Some(Refusal::new(code, message))).is_none()
    }

    /// Takes new work again; whether it was refused before.
    pub fn open(&self) -> bool {
        self.0.send_replace(None).is_some()
    }

    /// Lets new work in.
    ///
    /// # Errors
    /// The gate is closed, and why.
    pub fn check(&self) -> Result<(), Refusal> {
        self.0.borrow().clone().map_or(Ok(()), Err)
    }

    /// Returns when new work is taken.
    pub async fn opened(&self) {
        // The sender lives as long as this gate.
        let _ = self.0.subscribe().wait_for(Option::is_none).await;
    }

    pub(crate) fn check_request(&self, name: &str) -> Result<(), Refusal> {
        if NEW_WORK.contains(&name) { self.check() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_work_is_refused_and_only_while_closed() {
        let gate = Admission::default();
        assert!(gate.close("disk_full", "4 MiB are left"));
        assert!(!gate.close("disk_full", "3 MiB are left"), "it was closed already");
        assert_eq!(gate.check_request("pipeline.trigger").unwrap_err().message, "3 MiB are left");
        assert_eq!(gate.check_request("workflow.cancel"), Ok(()));
        assert!(gate.open());
        assert_eq!(gate.check_request("pipeline.trigger"), Ok(()));
    }
}
