//! `[dispatcher]`: slots and leases.

use super::{Invalid, Span};
use serde::{Deserialize, Serialize};

/// The longest that a machine may be out of reach.
const LONGEST_AWAY: std::time::Duration = std::time::Duration::from_secs(3600);

/// `[dispatcher]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dispatcher {
    /// Tasks that run at once; 0: twice the processors.
    pub slots: u32,
    /// Of those, at most so many for one organisation; 0: no limit of its own.
    pub org_slots: u32,
    /// At most so many for one project; 0: no limit of its own.
    pub project_slots: u32,
    /// At most so many for a resource class: `class_slots = { large = 2 }`.
    pub class_slots: std::collections::BTreeMap<String, u32>,
    /// For machines of a resource class that may be out of reach for longer than `self_stop`, at most an hour:
    /// `disconnect_tolerance = { "acme/gpu" = "30m" }`. A runner of that class that is lost is noticed so much later.
    pub disconnect_tolerance: std::collections::BTreeMap<String, Span>,
    /// Length of a lease.
    pub lease: Span,
    /// Between two renewals.
    pub renew: Span,
    /// Without a renewal for so long, a task is shown as unreachable.
    pub unreachable: Span,
    /// An agent that could not renew for so long ends its task.
    pub self_stop: Span,
    /// After a start, nothing is declared lost for so long.
    pub recovery_grace: Span,
    /// A task that no agent claims within this is placed again.
    pub claim_timeout: Span,
    /// A task that waits for a slot, or for a runner of its class, for so long ends its job as `timedout`; 0: it waits.
    pub queue_timeout: Span,
    /// Longest run of a job.
    pub job_timeout: Span,
    /// Between SIGTERM and SIGKILL.
    pub grace: Span,
}

impl Default for Dispatcher {
    fn default() -> Self {
        Self {
            slots: 0,
            org_slots: 0,
            project_slots: 0,
            class_slots: std::collections::BTreeMap::new(),
            disconnect_tolerance: std::collections::BTreeMap::new(),
            lease: Span::secs(180),
            renew: Span::secs(10),
            unreachable: Span::secs(45),
            self_stop: Span::secs(150),
            recovery_grace: Span::secs(60),
            claim_timeout: Span::secs(60),
            queue_timeout: Span::secs(0),
            job_timeout: Span::secs(5 * 3600),
            grace: Span::secs(10),
        }
    }
}

impl Dispatcher {
    /// Agent self-stop must come before the server gives the lease to another.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let margin = self.lease.0 / 12;
        if self.self_stop.0 + margin > self.lease.0 {
            return Err(Invalid::new(format!(
                "dispatcher.self_stop ({}) must be at least a twelfth of dispatcher.lease ({}) shorter than it",
                humantime::format_duration(self.self_stop.0),
                humantime::format_duration(self.lease.0)
            )));
        }
        for (class, tolerance) in &self.disconnect_tolerance {
            if tolerance.0 > LONGEST_AWAY || tolerance.0 < self.self_stop.0 {
                return Err(Invalid::new(format!(
                    "dispatcher.disconnect_tolerance of {class} is at least dispatcher.self_stop ({}) and at most an hour",
                    humantime::format_duration(self.self_stop.0)
                )));
            }
        }
        if self.renew.0 * 3 > self.self_stop.0 {
            return Err(Invalid::new(
                "dispatcher.renew must be at most a third of dispatcher.self_stop".to_owned(),
            ));
        }
        Ok(())
    }
}
