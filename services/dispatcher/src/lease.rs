//! Claim, renew and finish: the life of a lease.

use crate::{
    http::Refused,
    line, rules,
    state::{State, Told},
    store::{self, Outcome, TaskRow},
};
use agent_api::{Claim, Commands, FinalReport, Lease, Renewed, Source};
use contracts::{
    dispatcher::{JobStarted, TaskStarted},
    trace::Trace,
};
use ids::{JobId, TaskId, Timestamp};
use kit::keys::{FenceClaims, PlacementClaims, SourceClaims};
use spans::{Kind, Open, Span};
use std::time::Duration;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, timeout_at},
};
use uuid::Uuid;

/// Longest wait of a poll, for commands as for a runner's task.
pub(crate) const LONGEST_POLL: Duration = Duration::from_secs(25);

/// So long after its limit a job's lease is renewed: the agent ends the job at the limit, and then tells.
const OVERTIME: Duration = Duration::from_secs(15 * 60);

/// Gives the task that the token was made for to the agent. A repeat with the same claim id returns the same
/// lease, so that an answer that was lost costs nothing.
pub async fn claim(state: &State, claim: &Claim) -> Result<Lease, Refused> {
    let placement: PlacementClaims =
        state.keys.open_claims("placement", &claim.token).ok_or(Refused::Unauthorized)?;
    let known = store::peek(state.store.pool(), placement.task_id).await?.ok_or(Refused::NotFound)?;
    let (ready, trace) = store::ready(state.store.pool(), known.job_id).await?;
    let trace = trace.map(|trace| trace.of(known.task_id));
    let prepared = rules::is_prepared(&ready.definition, state.config.docker);
    let class = &ready.definition.resource_class;
    let lease = state.config.lease_of(class);
    let timing = state.config.timing(class);
    let taken = take(state, claim, &placement, &known, (lease, !prepared));
    let (task, deadline) = traced(trace, "claim", known.task_id, taken).await?;
    let (index, total) = (task.index(), task.total());
    let claims = FenceClaims {
        task_id: task.task(),
        job_id: JobId(task.job_id),
        epoch: task.epoch,
        expires_at: deadline.timestamp_millis(),
        public_key: task.public_key,
        trace: trace.map(|trace| trace.to_string()),
    };
    Ok(Lease {
        task_id: claims.task_id,
        epoch: claims.epoch,
        fence: state.fence(&claims),
        permit: task.permit_at.is_some(),
        timing,
        // The database's clock, as everything that is decided about leases.
        granted_at: Some(deadline - lease),
        spec: rules::spec(ready, index, total, &state.public_url, &state.config),
    })
}

/// Answers a call of an agent as a part of its task's trace.
pub async fn traced<T>(
    trace: Option<Trace>,
    what: &'static str,
    task: Uuid,
    answer: impl Future<Output = Result<T, Refused>>,
) -> Result<T, Refused> {
    let span = trace.and_then(|trace| Span::begin(Some(trace), store::SERVICE, Kind::Server, what));
    let span = Open::new(span.map(|span| span.with("gantry.task.id", task)));
    let answer = eventstore::trace::within(span.context().or(trace), answer).await;
    span.end(answer.is_err());
    answer
}

/// The same of a call that shows a fence token.
pub async fn fenced<T>(
    fence: &FenceClaims,
    what: &'static str,
    answer: impl Future<Output = Result<T, Refused>>,
) -> Result<T, Refused> {
    let trace = fence.trace.as_deref().and_then(|trace| trace.parse().ok());
    traced(trace, what, fence.task_id.uuid(), answer).await
}

/// One commit: revocation and epoch are read, lease and (where nothing is to be prepared) permit written, the start
/// announced.
async fn take(
    state: &State,
    claim: &Claim,
    placement: &PlacementClaims,
    known: &TaskRow,
    (lease, permit): (Duration, bool),
) -> Result<(TaskRow, Timestamp), Refused> {
    let mut tx = state.store.begin(&store::of_task(known)).await?;
    let mut task = store::task(&mut tx, placement.task_id).await?;
    match (model::lease::claim(&task.lease(), placement.epoch, claim.claim_id.uuid()), task.deadline) {
        (model::lease::Claim::Grant, _) => {}
        (model::lease::Claim::Repeat, Some(deadline)) => return Ok((task, deadline)),
        (model::lease::Claim::Repeat, None) => return Err(Refused::Stale("the lease has no end")),
        (model::lease::Claim::Stale(why), _) => return Err(Refused::Stale(why)),
    }
    let (at, deadline, waited): (Timestamp, Timestamp, f64) = sqlx::query_as(
        "UPDATE dispatcher.tasks t SET state = 'leased', claim_id = $2, instance_id = $3, public_key = $4, agent_version = $5, \
             granted_at = n.at, permit_at = CASE WHEN $7 THEN n.at END, renewed_at = n.at, deadline = n.at + $6, next_action_at = n.at + $6, \
             lease = $6 \
         FROM (SELECT clock_timestamp() AS at) n WHERE t.task_id = $1 RETURNING t.granted_at, t.deadline, \
             extract(epoch FROM n.at - t.created_at)::float8",
    )
    .bind(task.task_id)
    .bind(claim.claim_id.uuid())
    .bind(claim.instance_id.uuid())
    .bind(&claim.public_key)
    .bind(&claim.version)
    .bind(lease)
    .bind(permit)
    .fetch_one(tx.conn())
    .await?;
    task.permit_at = permit.then_some(at);
    task.public_key = Some(claim.public_key.clone());
    let run = store::run(&mut tx, task.job_id).await?;
    let started = TaskStarted { task_id: task.task(), job_id: run.job(), index: task.index(), at };
    let mut events = vec![run.event("task", task.task_id, &started)];
    if run.state == "queued" {
        sqlx::query("UPDATE dispatcher.runs SET state = 'running', started_at = $2 WHERE job_id = $1")
            .bind(run.job_id)
            .bind(at)
            .execute(tx.conn())
            .await?;
        let started = JobStarted { job_id: run.job(), workflow_id: run.workflow(), at };
        events.push(run.event("run", run.job_id, &started));
    }
    tx.append(&events).await?;
    tx.commit().await?;
    metrics::histogram!("gantry.dispatcher.claim_seconds").record(waited);
    Ok((task, deadline))
}

/// Moves the lease's end. Losing this write in a crash is harmless: a restart extends every live lease.
pub async fn renew(state: &State, fence: &FenceClaims) -> Result<Renewed, Refused> {
    let mut tx = state.store.begin(&[]).await?;
    tx.relaxed().await?;
    let renewed: Option<(Uuid, Option<String>, bool, Timestamp, Timestamp, Timestamp)> = sqlx::query_as(
        "UPDATE dispatcher.tasks t SET renewed_at = n.at, deadline = n.at + coalesce(t.lease, $3), \
             next_action_at = CASE WHEN t.permit_at IS NULL THEN least(n.at + coalesce(t.lease, $3), t.granted_at + $4) \
                 ELSE n.at + coalesce(t.lease, $3) END \
         FROM (SELECT clock_timestamp() AS at) n WHERE t.task_id = $1 AND t.epoch = $2 AND t.state = 'leased' \
         RETURNING t.job_id, t.public_key, t.cancel_requested, n.at, t.deadline, \
             coalesce(t.permit_at, t.granted_at)",
    )
    .bind(fence.task_id.uuid())
    .bind(fence.epoch)
    .bind(state.config.lease)
    .bind(state.config.permit_timeout)
    .fetch_optional(tx.conn())
    .await?;
    let (job_id, public_key, cancel, at, deadline, began) =
        renewed.ok_or(Refused::Stale("the lease has ended"))?;
    // The agent stops at the limit by itself; one that does not is not believed for ever (security §8).
    let longest = state.config.job_timeout + OVERTIME;
    if at > began + longest {
        let (ready, _) = store::ready(state.store.pool(), job_id).await?;
        if ready.ssh.is_none() || at > began + longest + state.config.ssh_total {
            return Err(Refused::Stale("the job ran past its limit"));
        }
    }
    tx.commit().await?;
    let claims = FenceClaims {
        task_id: fence.task_id,
        job_id: JobId(job_id),
        epoch: fence.epoch,
        expires_at: deadline.timestamp_millis(),
        public_key,
        trace: fence.trace.clone(),
    };
    Ok(Renewed { fence: state.fence(&claims), cancel })
}

/// The task of a fence token, if it is leased under that epoch.
pub async fn live(state: &State, fence: &FenceClaims) -> Result<TaskRow, Refused> {
    let task = store::peek(state.store.pool(), fence.task_id).await?.ok_or(Refused::NotFound)?;
    let live = model::lease::holds(&task.lease(), fence.epoch);
    live.then_some(task).ok_or(Refused::Stale("the lease has ended"))
}

/// Waits for a command.
pub async fn commands(state: &State, fence: &FenceClaims, wait: Duration) -> Result<Commands, Refused> {
    // Listen before looking, or a cancel between the two is missed.
    let mut told = state.commands.subscribe();
    let until = Instant::now() + wait.min(LONGEST_POLL);
    loop {
        let cancel = live(state, fence).await?.cancel_requested;
        if cancel {
            return Ok(Commands { cancel });
        }
        let told = tokio::select! {
            told = told_of(&mut told, fence.task_id, until) => told,
            () = state.stop.cancelled() => false,
        };
        if !told {
            return Ok(Commands { cancel });
        }
    }
}

/// Whether something was told of the task before the time is up.
async fn told_of(told: &mut broadcast::Receiver<Told>, task: TaskId, until: Instant) -> bool {
    loop {
        match timeout_at(until, told.recv()).await {
            Ok(Ok(Told::Of(other))) if other != task => {}
            Ok(Ok(_) | Err(RecvError::Lagged(_))) => return true,
            Ok(Err(RecvError::Closed)) | Err(_) => return false,
        }
    }
}

/// Where the task's repository is now, with a token that reads it until the lease ends.
pub async fn source(state: &State, fence: &FenceClaims) -> Result<Source, Refused> {
    let task = live(state, fence).await?;
    let project = store::ready(state.store.pool(), task.job_id).await?.0.project;
    let expires_at = task.deadline.map_or(fence.expires_at, |deadline| deadline.timestamp_millis());
    let url = rules::repository_url(&state.git_url, &project.org, &project.name);
    let password = state.keys.seal_claims("source", &SourceClaims { project_slug: project.slug, expires_at });
    Ok(Source { url, username: "x-token".to_owned(), password })
}

/// Takes the final report: closes the epoch at the receivers, then commits the outcome. Counts once per task and
/// epoch.
pub async fn finish(state: &State, fence: &FenceClaims, report: FinalReport) -> Result<(), Refused> {
    if !report.status.is_terminal() {
        return Err(Refused::Invalid(format!("{} is not how a task ends", report.status)));
    }
    let known = store::peek(state.store.pool(), fence.task_id).await?.ok_or(Refused::NotFound)?;
    if !open(&known, fence)? {
        return Ok(());
    }
    state.close_epoch(&known).await.map_err(|error| Refused::Unavailable(error.into()))?;
    let [run, task] = store::of_task(&known);
    let mut tx = state.store.begin(&[store::slots(), run, task]).await?;
    let task = store::task(&mut tx, fence.task_id).await?;
    if !open(&task, fence)? {
        return Ok(());
    }
    let run = store::run(&mut tx, task.job_id).await?;
    let settled = report.settled;
    let (status, reason) = rules::reported_outcome(task.cancel_requested, report);
    let outcome = Outcome { status, reason, reported: true, settled };
    let mut events = store::finish(&mut tx, &run, &task, outcome).await?;
    events.extend(line::fill(&mut tx, state).await?);
    tx.append(&events).await?;
    tx.commit().await?;
    state.wake([task.task()]);
    state.due.notify_one();
    Ok(())
}

/// Whether the report is still awaited; a repeat is not, and not refused either.
fn open(task: &TaskRow, fence: &FenceClaims) -> Result<bool, Refused> {
    match model::lease::report(&task.lease(), fence.epoch) {
        model::lease::Report::Accept => Ok(true),
        model::lease::Report::Repeat => Ok(false),
        model::lease::Report::Stale => Err(Refused::Stale("the task ended without this report")),
    }
}

/// Keeps a report that came too late, as evidence.
pub async fn keep_late_report(
    state: &State,
    fence: &FenceClaims,
    report: &FinalReport,
) -> anyhow::Result<()> {
    sqlx::query(
        "INSERT INTO dispatcher.late_reports (task_id, epoch, report) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
    )
    .bind(fence.task_id.uuid())
    .bind(fence.epoch)
    .bind(serde_json::to_value(report)?)
    .execute(state.store.pool())
    .await?;
    Ok(())
}
