//! One task from claim to acknowledged report.

use crate::{
    client::{Call, Client},
    control::{Control, Gone, Stop, backoff, boottime_ms, decode, encode},
    execute::execute,
    output::Output,
    sealed::TaskKey,
    state::{self, Held, Kept},
};
use agent_api::{Claim, FinalReport, LAUNCH_FILE, LaunchFile, Lease};
use anyhow::Context;
use executors::{Environment as _, Identity, Isolation, Options, Sandbox};
use hyper::Method;
use ids::{ClaimId, InstanceId};
use model::status::JobStatus;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::task::AbortOnDropHandle;

pub(crate) async fn run(dir: &Path) -> anyhow::Result<()> {
    let dir = &std::fs::canonicalize(dir).with_context(|| dir.display().to_string())?;
    let mut launch: LaunchFile = state::kept(dir, LAUNCH_FILE)
        .with_context(|| format!("{} cannot be read", dir.join(LAUNCH_FILE).display()))?;
    let client = Client::new(&launch.endpoint)?;
    if let Some(held) = state::kept::<Held>(dir, state::LEASE) {
        return resume(dir, client, held).await;
    }
    tracing::debug!("the agent starts");
    let key = TaskKey::generate()?;
    // The environment is made while the suite is asked for the task, and then for its secrets.
    let preparing = Preparing::start(dir, &launch);
    if launch.token.is_empty() {
        let Some(token) = awaited().await? else {
            tracing::debug!("there is no task for this agent");
            preparing.discard().await;
            state::clear(dir);
            return Ok(());
        };
        launch.token = token;
    }
    let (mut lease, claimed_at) = match claim(&client, &launch, &key).await {
        Ok(claimed) => claimed,
        Err(e) => {
            preparing.discard().await;
            return Err(e);
        }
    };
    tracing::debug!(task = %lease.task_id, "claimed");
    let most = &mut lease.timing.job_timeout_ms;
    *most = launch.max_run_ms.map_or(*most, |limit| limit.min(*most));
    // From here on the task may have begun to run, whatever happens.
    state::keep(dir, state::LEASE, &Held { lease: lease.clone(), claimed_at }, false)?;
    let control = Control::new(client, &lease, claimed_at);
    let listening = hold(&control)?;
    let timeout = Duration::from_millis(lease.timing.job_timeout_ms);
    let limited = Arc::clone(&control);
    tokio::spawn(async move {
        tokio::time::sleep(timeout).await;
        limited.stop(Stop::TimedOut);
    });
    let ran = Box::pin(execute(dir, &launch, &lease, &control, &key, preparing)).await;
    let report = match ran {
        Ok(report) => report,
        Err(reason) => interrupted(&control, reason),
    };
    drop(listening);
    deliver(dir, &control, report).await
}

/// The token of the task that an agent stands ready for, from whoever started it (execution §25); none comes when that one is gone.
async fn awaited() -> anyhow::Result<Option<String>> {
    let mut token = String::new();
    let mut input = BufReader::new(tokio::io::stdin());
    input.read_line(&mut token).await.context("the token of the task cannot be read")?;
    // Half of one: who wrote it died meanwhile.
    Ok(token.strip_suffix('\n').map(str::to_owned))
}

/// How a task ended that did not come to the end of its steps.
fn interrupted(control: &Control, reason: String) -> FinalReport {
    match control.stopped() {
        Some(Stop::Canceled) => FinalReport { status: JobStatus::Canceled, reason: None, settled: false },
        Some(Stop::TimedOut) => {
            FinalReport { status: JobStatus::Timedout, reason: Some(reason), settled: false }
        }
        _ => FinalReport { status: JobStatus::InfrastructureFail, reason: Some(reason), settled: false },
    }
}

/// Keeps the lease, and listens for reasons to stop as long as the answer is kept: past the end of the steps nothing changes
/// their outcome, and who listened while the report is taken would hear that the lease is over before that is answered.
fn hold(control: &Arc<Control>) -> anyhow::Result<AbortOnDropHandle<()>> {
    tokio::spawn(Arc::clone(control).keep_lease());
    tokio::spawn(Arc::clone(control).watch_lease());
    let listening = AbortOnDropHandle::new(tokio::spawn(Arc::clone(control).listen()));
    let mut terminate = signal(SignalKind::terminate())?;
    let control = Arc::clone(control);
    tokio::spawn(async move {
        if terminate.recv().await.is_some() {
            control.stop(Stop::Interrupted);
        }
    });
    Ok(listening)
}

fn identity(launch: &LaunchFile) -> Option<Identity> {
    match (launch.isolation.as_str(), launch.job_user) {
        ("user", Some(user)) => Some(Identity { uid: user.uid, gid: user.gid }),
        _ => None,
    }
}

/// The environment of the task, on its way.
pub(crate) struct Preparing(JoinHandle<anyhow::Result<Sandbox>>);

impl Preparing {
    fn start(dir: &Path, launch: &LaunchFile) -> Self {
        let (dir, launch) = (dir.to_owned(), launch.clone());
        Self(tokio::spawn(async move { prepare(&dir, &launch).await }))
    }

    pub(crate) async fn ready(self) -> anyhow::Result<Sandbox> {
        self.0.await?
    }

    /// Takes it away again: there is nothing to run in it.
    pub(crate) async fn discard(self) {
        if let Ok(sandbox) = self.ready().await {
            sandbox.end().await;
            sandbox.remove().await;
        }
    }
}

async fn prepare(dir: &Path, launch: &LaunchFile) -> anyhow::Result<Sandbox> {
    let isolation = match (launch.isolation.as_str(), identity(launch)) {
        ("user", Some(id)) => Isolation::User(id),
        ("namespace", _) => Isolation::Namespace,
        ("none", _) => Isolation::None,
        (other, _) => anyhow::bail!("isolation {other:?} is not known, or names no user"),
    };
    let work = dir.join("work");
    std::fs::create_dir_all(&work)?;
    let short = InstanceId::new().to_string();
    let short = short.rsplit('-').next().unwrap_or_default();
    // Not the agent's own folder for temporary files: steps must be able to enter it.
    let place = Path::new("/tmp").join(format!("gantry-{}", nix::unistd::geteuid()));
    let own_place = Path::new("/tmp").join(format!("gantry-{short}"));
    let _ = std::fs::remove_file(dir.join(state::PLACE));
    std::os::unix::fs::symlink(&own_place, dir.join(state::PLACE))?;
    let options = Options {
        program: program()?,
        isolation,
        work,
        place,
        own_place,
        hide: launch.hide.iter().map(PathBuf::from).collect(),
        cgroup: launch.cgroup.as_ref().map(PathBuf::from),
    };
    Ok(Sandbox::start(options).await?)
}

fn program() -> std::io::Result<PathBuf> {
    std::env::current_exe()
}

/// Asks for the task until there is an answer: the suite may be restarting.
async fn claim(client: &Client, launch: &LaunchFile, key: &TaskKey) -> anyhow::Result<(Lease, u64)> {
    let body = encode(&Claim {
        claim_id: ClaimId::new(),
        instance_id: InstanceId::new(),
        token: launch.token.clone(),
        public_key: key.public()?,
        version: env!("CARGO_PKG_VERSION").into(),
    });
    for pause in backoff(client) {
        let sent_at = boottime_ms();
        let call = Call {
            method: Method::POST,
            path: "/v1/claim",
            bearer: None,
            header: None,
            body: body.clone(),
            timeout: Duration::from_secs(10),
        };
        match client.call(call).await {
            Ok(answer) => return Ok((decode(&answer)?, sent_at)),
            Err(failure) if failure.is_temporary() && failure.status() != Some(401) => {
                tracing::warn!(error = %failure, "the task could not be claimed yet");
            }
            Err(failure) => return Err(failure).context("the task is not ours"),
        }
        tokio::time::sleep(pause).await;
    }
    anyhow::bail!("the pauses between claims never end")
}

pub(crate) async fn keep_report(dir: &Path, report: &FinalReport) {
    let (dir, kept) = (dir.to_owned(), Kept { report: report.clone() });
    let kept = tokio::task::spawn_blocking(move || state::keep(&dir, state::REPORT, &kept, true));
    if let Ok(Err(e)) = kept.await {
        tracing::error!(error = %e, "the report cannot be kept on disk");
    }
}

/// Tells the suite how it ended, until it has understood.
async fn deliver(dir: &Path, control: &Control, report: FinalReport) -> anyhow::Result<()> {
    if control.stopped().is_none_or(|why| !why.is_fenced()) {
        if !dir.join(state::REPORT).exists() {
            keep_report(dir, &report).await;
        }
        match control.post("finish", &report).await {
            Ok(_) => tracing::info!(status = %report.status, "the task is finished"),
            Err(Gone::Fenced) => tracing::warn!("the task is no longer ours"),
            Err(Gone::Refused(failure)) => {
                state::clear(dir);
                return Err(failure).context("the final report was refused");
            }
        }
    }
    state::clear(dir);
    Ok(())
}

/// An agent before this one died while it held the task. What it reported stands; what it did not report is
/// lost, because nothing is ever run twice.
async fn resume(dir: &Path, client: Client, held: Held) -> anyhow::Result<()> {
    let kept: Option<Kept> = state::kept(dir, state::REPORT);
    let report = kept.map(|k| k.report).unwrap_or(FinalReport {
        status: JobStatus::InfrastructureFail,
        reason: Some("the agent died".into()),
        settled: false,
    });
    let control = Control::new(client, &held.lease, boottime_ms());
    let listening = hold(&control)?;
    let none = masking::Secrets::new::<&str>(&[]);
    let output = Output::new(Arc::clone(&control), none, &state::spool(dir))?;
    match output.recover() {
        Ok(()) => output.settle().await,
        Err(e) => tracing::error!(error = %e, "what the dead agent had spooled is lost"),
    }
    drop(listening);
    deliver(dir, &control, report).await
}
