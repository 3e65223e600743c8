//! What all processes of a task may use together: its resource class as limits of the machine (execution §22).

use crate::own_step::OwnStep;
use agent_api::Lease;
use cgroups::{Bounds, Limits, Unheld};
use executors::Sandbox;

/// Most processes and threads of a job on the machine (security §8).
const PROCESSES: u64 = 4096;

/// Under which name everything of a task is found again.
pub(crate) fn placement(lease: &Lease) -> String {
    std::env::var("GANTRY_PLACEMENT").unwrap_or_else(|_| format!("task-{}-{}", lease.task_id, lease.epoch))
}

/// What the resource class allows. Classes of self-hosted runners name machines and limit nothing.
pub(crate) fn limits(lease: &Lease) -> Limits {
    let class = &lease.spec.resources;
    Limits { cpu_millis: class.cpu_millis, memory_bytes: class.memory_bytes, processes: None }
}

/// Bounds an environment on the machine; the spin-up step says what holds. A machine that holds nothing runs jobs all the same.
pub(crate) async fn hold(sandbox: &Sandbox, lease: &Lease, spin_up: &mut OwnStep) -> Result<(), String> {
    let limits = limits(lease);
    if limits == Limits::default() {
        return Ok(());
    }
    let all = Limits { processes: Some(PROCESSES), ..limits };
    let (bounds, mut unheld) = Bounds::make(&placement(lease), &all);
    let mut text = format!("Resource class {}\nLimits: {limits}\n", lease.spec.resources.class);
    if !bounds.groups().is_empty()
        && let Err(e) = sandbox.bound(bounds).await
    {
        unheld.push(Unheld { what: "all kinds", why: e.to_string() });
    }
    text.extend(Unheld::warning(&unheld).map(|warning| warning + "\n"));
    spin_up.write(text.as_bytes()).map_err(|e| format!("output cannot be spooled: {e}"))
}
