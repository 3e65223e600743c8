//! Limits and durations. Those of leases may be shortened together by one factor.

use crate::classes::Classes;
use model::queue::Limits;
use std::{collections::BTreeMap, time::Duration};

/// Keys of the dispatcher.
#[derive(Clone, Debug)]
pub struct Config {
    /// Tasks that may run at once; exact.
    pub slots: u32,
    /// Of those, at most so many for one organisation.
    pub org_slots: Option<u32>,
    /// At most so many for one project.
    pub project_slots: Option<u32>,
    /// At most so many for a resource class, by its name.
    pub class_slots: BTreeMap<String, u32>,
    /// Between renewals of a lease.
    pub renew: Duration,
    /// After how long without renewal an agent is called unreachable.
    pub unreachable: Duration,
    /// After how long without renewal an agent ends its task itself; less than `lease`.
    pub self_stop: Duration,
    /// Length of a lease.
    pub lease: Duration,
    /// Instead of `self_stop`, where that is shorter, for resource classes whose machines may be out of reach for longer.
    pub disconnect_tolerance: BTreeMap<String, Duration>,
    /// After a start or an outage nothing is declared lost for so long.
    pub recovery_grace: Duration,
    /// How long a queued task waits for its agent before it is queued again.
    pub claim_timeout: Duration,
    /// How long a task may wait for a slot or for a runner of its class, if there is a limit (execution §30).
    pub queue_timeout: Option<Duration>,
    /// How often a task is queued again before it is given up.
    pub max_requeues: u32,
    /// Between SIGTERM and SIGKILL of a step.
    pub grace: Duration,
    /// Longest run of a job.
    pub job_timeout: Duration,
    /// Bytes that an agent may hold on disk while the suite is away.
    pub spool_bytes: u64,
    /// How long a job that can be entered stays after its steps without a session (execution §30).
    pub ssh_idle: Duration,
    /// The same, in all.
    pub ssh_total: Duration,
    /// What a job that asks for a container does.
    pub docker: Docker,
    /// How long an agent may prepare an environment before its task is queued again.
    pub permit_timeout: Duration,
    /// What resource classes mean.
    pub classes: Classes,
    /// Between two looks for jobs whose pipeline is past its retention, if none is announced.
    pub retention_sweep: Duration,
}

/// What a job that asks for a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Docker {
    /// Gets its containers from the engine of the agent's machine.
    Engine,
    /// Runs on the machine itself.
    Host,
    /// Ends with `infrastructure_fail`.
    Refuse,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            slots: u32::try_from(cores * 2).unwrap_or(u32::MAX),
            org_slots: None,
            project_slots: None,
            class_slots: BTreeMap::new(),
            renew: Duration::from_secs(10),
            unreachable: Duration::from_secs(45),
            self_stop: Duration::from_secs(150),
            lease: Duration::from_secs(180),
            disconnect_tolerance: BTreeMap::new(),
            recovery_grace: Duration::from_secs(60),
            claim_timeout: Duration::from_secs(60),
            queue_timeout: None,
            max_requeues: 3,
            grace: Duration::from_secs(10),
            job_timeout: Duration::from_secs(5 * 3600),
            spool_bytes: 256 << 20,
            ssh_idle: Duration::from_secs(10 * 60),
            ssh_total: Duration::from_secs(2 * 3600),
            docker: Docker::Refuse,
            permit_timeout: Duration::from_secs(600),
            classes: Classes::default(),
            retention_sweep: Duration::from_secs(3600),
        }
    }
}

impl Config {
    /// The limits on tasks that hold a slot.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            slots: self.slots,
            per_org: self.org_slots,
            per_project: self.project_slots,
            per_class: self.class_slots.clone(),
        }
    }

    /// After how long without renewal an agent of a resource class ends its task itself.
    fn self_stop_of(&self, class: &str) -> Duration {
        self.disconnect_tolerance
            .get(class)
            .map_or(self.self_stop, |tolerance| self.self_stop.max(*tolerance))
    }

    /// Length of a lease of a resource class: as much longer than the agent waits as everywhere.
    pub(crate) fn lease_of(&self, class: &str) -> Duration {
        self.self_stop_of(class) + self.lease.saturating_sub(self.self_stop)
    }

    /// What an agent is told, so that both sides derive their deadlines from the same values.
    pub(crate) fn timing(&self, class: &str) -> agent_api::Timing {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        agent_api::Timing {
            renew_ms: ms(self.renew),
            self_stop_ms: ms(self.self_stop_of(class)),
            lease_ms: ms(self.lease_of(class)),
            grace_ms: ms(self.grace),
            job_timeout_ms: ms(self.job_timeout),
            spool_bytes: self.spool_bytes,
            ssh_idle_ms: ms(self.ssh_idle),
            ssh_total_ms: ms(self.ssh_total),
        }
    }

    /// What passing the lease's end by so much says about us rather than about an agent.
    pub(crate) fn slack(&self) -> Duration {
        self.lease.saturating_sub(self.self_stop) / 2
    }

    pub(crate) fn validate(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.slots > 0, "slots must be at least 1");
        let zero = self.org_slots == Some(0) || self.project_slots == Some(0);
        anyhow::ensure!(!zero, "org_slots and project_slots must be at least 1 where they are set");
        anyhow::ensure!(self.renew < self.self_stop, "renew must be shorter than self_stop");
        anyhow::ensure!(self.self_stop < self.lease, "self_stop must be shorter than lease (R-17)");
        Ok(())
    }
}
