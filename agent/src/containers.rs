//! Preparing the containers of a task, and following what they say (execution §22).

use crate::{bounds, control::Control, output::Output, own_step::OwnStep, registries, steps::Reports};
use agent_api::{CONTAINERS_FILE, Engine as Launched, Lease, Secrets};
use executors_docker::{Docker, Engine, Error, Log, Order, Service};
use model::plan::{Container, Executor};
use std::{path::Path, sync::Arc};
use tokio::{io::AsyncReadExt, task::JoinSet};

const NO_ENGINE: &str = "this machine has no container engine for jobs: the configuration of a runner names one with `runner.engine`";

/// The containers that a task asks for.
pub(crate) fn asked(lease: &Lease) -> &[Container] {
    match &lease.spec.definition.executor {
        Executor::Docker { containers } => containers,
        Executor::Machine { .. } | Executor::Macos { .. } => &[],
    }
}

async fn connect(engine: &Launched) -> Result<Engine, Error> {
    Engine::connect(engine.clone().try_into()?).await
}

/// Removes what an agent that came to a sudden end has left of a placement, if it had made containers.
///
/// # Errors
/// The engine refused, or does not answer.
pub(crate) async fn sweep(dir: &Path, engine: &Launched, placement: &str) -> Result<(), Error> {
    if !dir.join(CONTAINERS_FILE).exists() {
        return Ok(());
    }
    executors_docker::sweep(&connect(engine).await?, placement).await
}

/// Starts the containers; the spin-up step says what happens. The error is a reason for the job's end, already said
/// there. Nothing is left of what could not be started as a whole.
pub(crate) async fn prepare(
    dir: &Path,
    engine: Option<&Launched>,
    lease: &Lease,
    control: &Control,
    secrets: Option<&Secrets>,
    spin_up: &mut OwnStep,
) -> Result<(Docker, Vec<Service>), String> {
    let engine = engine.ok_or(NO_ENGINE)?;
    let mut containers = asked(lease).to_vec();
    let variables = secrets.map(|secrets| secrets.variables.as_slice()).unwrap_or_default();
    registries::log_in(&mut containers, variables, spin_up).await?;
    let order = Order {
        placement: bounds::placement(lease),
        task: lease.task_id.to_string(),
        containers,
        limits: bounds::limits(lease),
        program: std::env::current_exe().map_err(|error| error.to_string())?,
    };
    let engine = connect(engine).await.map_err(|error| error.to_string())?;
    // Before anything is made: whoever finds the folder of a dead agent asks the engine too.
    std::fs::write(dir.join(CONTAINERS_FILE), "").map_err(|error| error.to_string())?;
    let _ = spin_up.write(format!("Resource class {}\n", lease.spec.resources.class).as_bytes());
    let (log, mut texts) = Log::new();
    let started = {
        let mut starting = std::pin::pin!(executors_docker::start(&engine, &order, &log));
        loop {
            tokio::select! {
                started = &mut starting => break started.map_err(|error| error.to_string()),
                Some(text) = texts.recv() => drop(spin_up.write(text.as_bytes())),
                _ = control.until_stopped() => break Err("the task was stopped".to_owned()),
            }
        }
    };
    while let Ok(text) = texts.try_recv() {
        let _ = spin_up.write(text.as_bytes());
    }
    if started.is_err()
        && let Err(error) = executors_docker::sweep(&engine, &order.placement).await
    {
        tracing::error!(%error, "containers that could not all be started are left to the sweep");
    }
    started
}

/// Shows what service containers say, each in a step of its own, until they end.
pub(crate) fn follow(services: Vec<Service>, output: &Output, reports: &Arc<Reports>) -> JoinSet<()> {
    let mut all = JoinSet::new();
    for (number, service) in (1..).zip(services) {
        let name = format!("Container {}", service.name);
        match OwnStep::open(output, reports, number, &output.mask(&name), true) {
            Ok(step) => drop(all.spawn(relay(service, step, Arc::clone(&output.budget)))),
            Err(error) => tracing::error!(%error, name, "what a service says cannot be kept"),
        }
    }
    all
}

async fn relay(mut service: Service, mut step: OwnStep, budget: Arc<crate::output::Budget>) {
    let mut buffer = vec![0u8; 32 * 1024];
    loop {
        budget.room().await;
        match service.output.read(&mut buffer).await {
            Ok(n @ 1..) if step.write(&buffer[..n]).is_ok() => {}
            _ => break,
        }
    }
    // Whether it ended by itself or with the job: neither fails the job.
    let code = service.exit.await.ok().flatten();
    let _ = code
        .is_some_and(|code| code != 137)
        .then(|| step.note(&format!("The container ended with exit code {}", code.unwrap_or_default())));
    let _ = step.end(if code.is_none_or(|code| code == 0 || code == 137) { "success" } else { "failed" });
}
