//! The task itself: its environment, the permit, the secrets, the steps.

use crate::{
    bounds,
    client::Failure,
    containers,
    control::{Control, Gone, Stop},
    environment::{self, Environment, Places},
    output::Output,
    own_step::OwnStep,
    registries,
    sealed::TaskKey,
    ssh::Ssh,
    ssh_keys, state,
    steps::{Reports, Runner, go_duration},
    task::{Preparing, keep_report},
};
use agent_api::{FinalReport, LaunchFile, Lease, SealedSecrets, Secrets, SshListen};
use chrono::TimeDelta;
use executors::Environment as _;
use model::status::JobStatus;
use std::{
    path::Path,
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::time::timeout;

const NO_KEYS: &str = "Nobody can enter this job by SSH: who asked for the rerun had no SSH key registered. \
    `gantry user-key add` registers one; then rerun the job with SSH again.";

/// Prepares the environment and runs the steps; the error is a reason why neither came to its end.
pub(crate) async fn execute(
    dir: &Path,
    launch: &LaunchFile,
    lease: &Lease,
    control: &Arc<Control>,
    key: &TaskKey,
    preparing: Preparing,
) -> Result<FinalReport, String> {
    let spool = |e: std::io::Error| format!("output cannot be spooled: {e}");
    let none = masking::Secrets::new::<&str>(&[]);
    let output = Arc::new(Output::new(Arc::clone(control), none, &state::spool(dir)).map_err(spool)?);
    let reports = Arc::new(Reports::new(Arc::clone(control)));
    let mut spin_up = OwnStep::open(&output, &reports, 0, "Spin up environment", false).map_err(spool)?;
    let version = format!("gantry-runner version {}\n", env!("CARGO_PKG_VERSION"));
    spin_up.write(version.as_bytes()).map_err(spool)?;
    if let Some(ahead) = control.clock.machine_is_ahead_by() {
        let by = go_duration(Duration::from_secs(ahead.num_seconds().unsigned_abs()));
        let way = if ahead > TimeDelta::zero() { "ahead" } else { "behind" };
        let said = format!("This machine's clock is {by} {way}. Times that are shown are the suite's.");
        spin_up.note(&said).map_err(spool)?;
    }
    let stood = stand(dir, launch, lease, control, key, preparing, &mut spin_up).await;
    let Stood { environment, services, secrets } = match stood {
        Ok(stood) => stood,
        Err(halt) => {
            let (Halt::Unauthorized(reason) | Halt::Failed(reason)) = &halt;
            let _ = spin_up.note(reason);
            drop(spin_up);
            output.settle().await;
            reports.settle().await;
            return match halt {
                Halt::Unauthorized(reason) => {
                    Ok(FinalReport { status: JobStatus::Unauthorized, reason: Some(reason), settled: false })
                }
                Halt::Failed(reason) => Err(reason),
            };
        }
    };
    let (tokens, values): (Vec<_>, Vec<_>) =
        secrets.variables.iter().partition(|(name, _)| environment::TOKENS.contains(&name.as_str()));
    let keys = secrets.ssh_keys.iter().chain(&secrets.checkout_key);
    let values: Vec<&str> =
        values.iter().map(|(_, value)| value.as_str()).chain(keys.flat_map(ssh_keys::secret_lines)).collect();
    let tokens: Vec<&str> = tokens.iter().map(|(_, token)| token.as_str()).collect();
    output.hide(masking::Secrets::new(&values).with_tokens(&tokens));
    drop((values, tokens));
    let mut services = containers::follow(services, &output, &reports);
    let own = (&output, &reports);
    let listen = launch.ssh.as_ref();
    let ran = run_steps(dir, lease, control, &environment, &secrets, own, (spin_up, listen)).await;
    environment.end().await;
    while services.join_next().await.is_some() {}
    output.settle().await;
    reports.settle().await;
    environment.remove().await;
    ran
}

/// Why no code may run.
enum Halt {
    /// A context does not exist, or whoever started the job may not use it (execution §27).
    Unauthorized(String),
    /// The environment or the suite.
    Failed(String),
}

impl From<String> for Halt {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

/// An environment in which code may run.
struct Stood {
    environment: Arc<dyn executors::Environment>,
    services: Vec<executors_docker::Service>,
    secrets: Secrets,
}

/// Has the environment stand, the start permit given and the secrets delivered: secrets are for tasks that may run
/// (security §4.3). On the machine the permit came with the claim, and the secrets are fetched while the environment is made.
/// Containers come before the permit, which is also for their images to be there, unless a registry wants credentials.
async fn stand(
    dir: &Path,
    launch: &LaunchFile,
    lease: &Lease,
    control: &Control,
    key: &TaskKey,
    preparing: Preparing,
    spin_up: &mut OwnStep,
) -> Result<Stood, Halt> {
    if !lease.spec.containers {
        let ready = async {
            permit(lease, control).await?;
            fetch_secrets(lease, control, key, spin_up).await
        };
        let (sandbox, ready) = tokio::join!(preparing.ready(), ready);
        let environment = sandbox.map_err(|e| e.to_string())?;
        let bound = bounds::hold(&environment, lease, spin_up).await.map_err(Halt::Failed);
        return match bound.and(ready) {
            Ok(secrets) => Ok(Stood { environment: Arc::new(environment), services: Vec::new(), secrets }),
            Err(reason) => {
                environment.end().await;
                environment.remove().await;
                Err(reason)
            }
        };
    }
    // Made while the suite was asked what is to be run; not needed after all.
    preparing.discard().await;
    let early = registries::want_secrets(containers::asked(lease));
    let mut secrets = None;
    if early {
        permit(lease, control).await?;
        secrets = Some(fetch_secrets(lease, control, key, spin_up).await?);
    }
    let engine = launch.engine.as_ref();
    let (docker, services) =
        containers::prepare(dir, engine, lease, control, secrets.as_ref(), spin_up).await?;
    let environment: Arc<dyn executors::Environment> = Arc::new(docker);
    let ready = async {
        match secrets {
            Some(secrets) => Ok(secrets),
            None => {
                permit(lease, control).await?;
                fetch_secrets(lease, control, key, spin_up).await
            }
        }
    };
    match ready.await {
        Ok(secrets) => Ok(Stood { environment, services, secrets }),
        Err(reason) => {
            environment.remove().await;
            Err(reason)
        }
    }
}

/// Waits for the start permit, without which no code of the job may run (reliability §7).
async fn permit(lease: &Lease, control: &Control) -> Result<(), String> {
    if lease.permit {
        return Ok(());
    }
    match control.post("start", &serde_json::json!({})).await {
        Ok(_) => Ok(()),
        Err(Gone::Refused(failure)) if failure.code() == "canceled" => {
            control.stop(Stop::Canceled);
            Err("the task was canceled".into())
        }
        Err(e) => Err(format!("the task may not start: {e}")),
    }
}

/// Runs the steps.
async fn run_steps(
    dir: &Path,
    lease: &Lease,
    control: &Arc<Control>,
    sandbox: &Arc<dyn executors::Environment>,
    secrets: &Secrets,
    (output, reports): (&Arc<Output>, &Arc<Reports>),
    (mut spin_up, listen): (OwnStep, Option<&SshListen>),
) -> Result<FinalReport, String> {
    let spec = &lease.spec;
    let facts = sandbox.facts().clone();
    let places = Places::of(&facts, spec);
    let environment = Environment::build(spec, secrets, &places, &facts)?;
    sandbox
        .write(&places.bash_env, "", 0o600)
        .await
        .map_err(|e| format!("the files of the task cannot be made: {e}"))?;
    let executor = if spec.containers { "Docker" } else { "Host" };
    let text = format!(
        "{executor} executor; isolation: {}\nHome folder {}\n",
        facts.isolation,
        places.home.display()
    );
    let spool = |e: std::io::Error| format!("output cannot be spooled: {e}");
    spin_up.write(text.as_bytes()).map_err(spool)?;
    if spec.ssh.as_ref().is_some_and(|access| access.keys.is_empty()) {
        spin_up.note(NO_KEYS).map_err(spool)?;
    }
    spin_up.end("success").map_err(spool)?;
    OwnStep::show(output, reports, 99, "Preparing environment variables", &environment.shown)
        .map_err(spool)?;
    let runner = Arc::new(Runner::new(
        Arc::clone(control),
        Arc::clone(sandbox),
        spec.clone(),
        (Arc::clone(output), Arc::clone(reports)),
        places,
        environment,
        secrets,
    ));
    let failed: Arc<OnceLock<String>> = Arc::default();
    let watching = {
        let (sandbox, control, failed) = (Arc::clone(sandbox), Arc::clone(control), Arc::clone(&failed));
        tokio::spawn(async move {
            let why = sandbox.failed().await;
            let _ = failed.set(why);
            control.stop(Stop::Interrupted);
        })
    };
    let texts = (output.as_ref(), reports);
    let ssh = match &spec.ssh {
        Some(access) => Ssh::open(listen, access, &runner, texts).await.map_err(spool)?,
        None => None,
    };
    tracing::debug!("the steps begin");
    let mut settled = false;
    let work = async {
        let result = runner.run().await;
        if let Some(ssh) = ssh {
            if control.stopped().is_none() {
                settled = true;
                // How the job ends is known from here on, whatever ends the wait.
                let report = FinalReport { status: result.status, reason: result.reason.clone(), settled };
                keep_report(dir, &report).await;
                if let Err(e) = ssh.wait(texts).await {
                    tracing::error!(error = %e, "what happens to sessions cannot be shown");
                }
            }
            ssh.close().await;
        }
        result
    };
    let result = tokio::select! {
        result = work => result,
        // Everything ends at once; nobody is asked.
        () = control.until_fenced() => {
            runner.end().await;
            return Err("the lease was lost".into());
        }
    };
    watching.abort();
    let reason = match (result.status, failed.get()) {
        (JobStatus::InfrastructureFail, Some(why)) => Some(why.clone()),
        _ => result.reason,
    };
    let report = FinalReport { status: result.status, reason, settled };
    tracing::debug!(status = %report.status, "the steps are over");
    // Known from here on, even if the agent dies before the suite has it.
    tokio::join!(keep_report(dir, &report), runner.end());
    Ok(report)
}

/// Nobody sees a job stand still for longer without being told why (reliability F4, F33).
const UNTOLD: Duration = Duration::from_secs(5);

async fn fetch_secrets(
    lease: &Lease,
    control: &Control,
    key: &TaskKey,
    spin_up: &mut OwnStep,
) -> Result<Secrets, Halt> {
    if !lease.spec.has_secrets {
        return Ok(Secrets::default());
    }
    let mut asked = pin!(control.get("secrets"));
    let answer = match timeout(UNTOLD, &mut asked).await {
        Ok(answer) => answer,
        Err(_) => {
            let _ = spin_up
                .note("Waiting for variables and keys: the service that has them does not give them now.");
            let answer = asked.await;
            if answer.is_ok() {
                let _ = spin_up.note("They are here.");
            }
            answer
        }
    };
    let sealed: SealedSecrets = answer.map_err(|gone| match gone {
        Gone::Refused(Failure::Problem { problem, .. })
            if matches!(problem.code.as_str(), "context_not_found" | "context_unauthorized") =>
        {
            Halt::Unauthorized(problem.message)
        }
        other => Halt::Failed(format!("the secrets are not available: {other}")),
    })?;
    key.open(control.task, &sealed).map_err(|e| Halt::Failed(e.to_string()))
}
