//! Rows of runs and tasks, and the changes that several operations share.
//!
//! Locks: whoever takes or frees a slot holds [`slots`]; whoever changes a task holds the task's and the run's.

use crate::rules;
use contracts::{
    Actor, Event, NewEvent,
    conductor::JobReady,
    dispatcher::{JobFinished, TaskFinished},
    trace::Trace,
};
use eventstore::{Key, Tx};
use ids::{JobId, OrgId, PipelineId, ProjectId, TaskId, Timestamp, WorkflowId};
use model::{
    lease::{self, Stage},
    status::JobStatus,
};
use spans::{Kind, Name, Span};
use sqlx::PgPool;
use uuid::Uuid;

/// Name of the schema and of the service.
pub const SERVICE: &str = "dispatcher";

/// The lock under which slots are counted and taken.
pub fn slots() -> Key {
    Key::new("slots", Uuid::nil())
}

/// The locks of one task.
pub fn of_task(task: &TaskRow) -> [Key; 2] {
    [Key::new("run", task.job_id), Key::new("task", task.task_id)]
}

/// A job that is being executed.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct RunRow {
    pub job_id: Uuid,
    pub workflow_id: Uuid,
    pub org_id: Uuid,
    pub project_id: Uuid,
    pub pipeline_id: Uuid,
    pub state: String,
    /// The trace of the message that asked for it.
    pub trace: Option<String>,
}

impl RunRow {
    pub fn job(&self) -> JobId {
        JobId(self.job_id)
    }

    pub fn workflow(&self) -> WorkflowId {
        WorkflowId(self.workflow_id)
    }

    /// What belongs to this run carries this.
    pub fn within(&self) -> Option<Trace> {
        Some(self.asked()?.of(self.job_id))
    }

    /// What belongs to one of its tasks carries this.
    pub fn within_task(&self, task: Uuid) -> Option<Trace> {
        Some(self.asked()?.of(task))
    }

    fn asked(&self) -> Option<Trace> {
        self.trace.as_deref()?.parse().ok()
    }

    /// An event of this run or of a task of it.
    pub fn event<E: Event>(&self, aggregate: &'static str, id: Uuid, body: &E) -> NewEvent {
        NewEvent::new(aggregate, id, Actor::service(SERVICE), body)
            .in_project(OrgId(self.org_id), ProjectId(self.project_id))
            .of_pipeline(PipelineId(self.pipeline_id))
            .traced(
                if aggregate == "task" { self.within_task(id) } else { self.within() }
                    .map(|at| at.to_string()),
            )
    }
}

/// A task.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct TaskRow {
    pub task_id: Uuid,
    pub job_id: Uuid,
    pub index: i32,
    pub total: i32,
    pub state: String,
    pub epoch: i64,
    pub requeues: i32,
    pub cancel_requested: bool,
    pub claim_id: Option<Uuid>,
    pub public_key: Option<String>,
    pub permit_at: Option<Timestamp>,
    pub deadline: Option<Timestamp>,
    pub next_action_at: Option<Timestamp>,
    pub reported: bool,
}

impl TaskRow {
    pub fn task(&self) -> TaskId {
        TaskId(self.task_id)
    }

    /// What decides about it.
    pub fn lease(&self) -> lease::Task {
        let permit = self.permit_at.is_some();
        let stage = match (self.state.as_str(), self.claim_id) {
            ("waiting", _) => Stage::Waiting,
            ("leased", Some(claim)) => Stage::Leased { claim, permit },
            ("finished", _) => Stage::Finished { reported: self.reported },
            _ => Stage::Queued,
        };
        lease::Task {
            stage,
            epoch: self.epoch,
            requeues: u32::try_from(self.requeues).unwrap_or(u32::MAX),
            cancel_requested: self.cancel_requested,
        }
    }

    pub fn index(&self) -> u32 {
        u32::try_from(self.index).unwrap_or_default()
    }

    pub fn total(&self) -> u32 {
        u32::try_from(self.total).unwrap_or(1)
    }
}

const TASK: &str = "SELECT task_id, job_id, index, total, state, epoch, requeues, cancel_requested, claim_id, public_key, \
                    permit_at, deadline, next_action_at, reported FROM dispatcher.tasks WHERE task_id = $1";

/// A task, outside of any transaction: to know its locks, or to refuse early.
pub async fn peek(pool: &PgPool, task: TaskId) -> sqlx::Result<Option<TaskRow>> {
    sqlx::query_as(TASK).bind(task.uuid()).fetch_optional(pool).await
}

/// A task whose lock is held.
pub async fn task(tx: &mut Tx, task: TaskId) -> sqlx::Result<TaskRow> {
    sqlx::query_as(TASK).bind(task.uuid()).fetch_one(tx.conn()).await
}

/// A run.
pub async fn run(tx: &mut Tx, job_id: Uuid) -> sqlx::Result<RunRow> {
    sqlx::query_as(
        "SELECT job_id, workflow_id, org_id, project_id, pipeline_id, state, trace FROM dispatcher.runs WHERE job_id = $1",
    )
    .bind(job_id)
    .fetch_one(tx.conn())
    .await
}

/// The event that asked for a run, and the trace in which it did.
pub async fn ready(pool: &PgPool, job_id: Uuid) -> anyhow::Result<(JobReady, Option<Trace>)> {
    let (body, trace): (serde_json::Value, Option<String>) =
        sqlx::query_as("SELECT ready, trace FROM dispatcher.runs WHERE job_id = $1")
            .bind(job_id)
            .fetch_one(pool)
            .await?;
    Ok((serde_json::from_value(body)?, trace.and_then(|trace| trace.parse().ok())))
}

/// The database's clock: the only one that decides.
pub async fn now(tx: &mut Tx) -> sqlx::Result<Timestamp> {
    sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(tx.conn()).await
}

/// How a task ended.
pub struct Outcome {
    pub status: JobStatus,
    pub reason: Option<String>,
    /// Whether its agent said so.
    pub reported: bool,
    /// Whether its steps had ended when it was stopped.
    pub settled: bool,
}

/// Ends a task, and its run with it if it was the last. Frees the slot: needs [`slots`].
pub async fn finish(
    tx: &mut Tx,
    run: &RunRow,
    task: &TaskRow,
    outcome: Outcome,
) -> anyhow::Result<Vec<NewEvent>> {
    let (queued_at, at): (Option<Timestamp>, Timestamp) = sqlx::query_as(
        "UPDATE dispatcher.tasks SET state = 'finished', status = $2, reason = $3, reported = $4, settled = $5, \
             finished_at = clock_timestamp(), next_action_at = NULL WHERE task_id = $1 RETURNING queued_at, finished_at",
    )
    .bind(task.task_id)
    .bind(outcome.status.as_str())
    .bind(&outcome.reason)
    .bind(outcome.reported)
    .bind(outcome.settled)
    .fetch_one(tx.conn())
    .await?;
    let ended = TaskFinished {
        task_id: task.task(),
        job_id: run.job(),
        index: task.index(),
        epoch: task.epoch,
        status: outcome.status,
        reason: outcome.reason,
        at,
    };
    tx.tell(task_span(run, &ended, queued_at.unwrap_or(at)));
    if ended.status == JobStatus::InfrastructureFail {
        metrics::counter!("gantry.dispatcher.infrastructure_failures").increment(1);
    }
    let mut events = vec![run.event("task", task.task_id, &ended)];
    let tasks: Vec<(String, Option<String>, Option<String>, bool)> = sqlx::query_as(
        "SELECT state, status, reason, settled FROM dispatcher.tasks WHERE job_id = $1 ORDER BY index",
    )
    .bind(run.job_id)
    .fetch_all(tx.conn())
    .await?;
    if tasks.iter().all(|(state, ..)| state == "finished") {
        let settled = tasks.iter().all(|(.., settled)| *settled);
        let outcomes = tasks
            .into_iter()
            .map(|(_, status, reason, _)| {
                let status = status.as_deref().and_then(JobStatus::parse);
                Ok((
                    status
                        .ok_or_else(|| anyhow::anyhow!("a finished task of {} has no status", run.job_id))?,
                    reason,
                ))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let (status, reason) = rules::job_outcome(outcomes);
        events.push(finish_run(tx, run, status, reason, settled).await?);
    }
    Ok(events)
}

/// Ends a run.
pub async fn finish_run(
    tx: &mut Tx,
    run: &RunRow,
    status: JobStatus,
    reason: Option<String>,
    settled: bool,
) -> sqlx::Result<NewEvent> {
    let (name, created_at, at): (String, Timestamp, Timestamp) = sqlx::query_as(
        "UPDATE dispatcher.runs SET state = 'finished', status = $2, reason = $3, finished_at = clock_timestamp() \
         WHERE job_id = $1 RETURNING coalesce(ready ->> 'name', ''), created_at, finished_at",
    )
    .bind(run.job_id)
    .bind(status.as_str())
    .bind(&reason)
    .fetch_one(tx.conn())
    .await?;
    let body = JobFinished { job_id: run.job(), workflow_id: run.workflow(), status, reason, settled, at };
    tx.tell(run_span(run, &name, &body, created_at));
    Ok(run.event("run", run.job_id, &body))
}

/// A task that ended, as a span from when it got its slot.
pub fn task_span(run: &RunRow, ended: &TaskFinished, queued_at: Timestamp) -> Option<Span> {
    let (context, parent) = (run.within_task(ended.task_id.uuid())?, run.within()?.span);
    let span = Span::known(context, Some(parent), SERVICE, Kind::Internal, "task")?
        .with("gantry.pipeline.id", run.pipeline_id)
        .with("gantry.job.id", run.job_id)
        .with("gantry.task.id", ended.task_id.uuid())
        .with("gantry.task.index", ended.index)
        .with("gantry.task.epoch", ended.epoch)
        .with("gantry.status", ended.status.as_str());
    Some(span.failing(failing(ended.status)).lasted(queued_at, ended.at))
}

/// A run that ended, as a span from when its job was ready.
pub fn run_span(run: &RunRow, name: &str, ended: &JobFinished, created_at: Timestamp) -> Option<Span> {
    let (context, parent) = (run.within()?, run.asked()?.span);
    let span = Span::known(context, Some(parent), SERVICE, Kind::Internal, Name::of("job", name))?
        .with("gantry.pipeline.id", run.pipeline_id)
        .with("gantry.workflow.id", run.workflow_id)
        .with("gantry.job.id", run.job_id)
        .with("gantry.job.name", Name::chosen(name))
        .with("gantry.status", ended.status.as_str());
    Some(span.failing(failing(ended.status)).lasted(created_at, ended.at))
}

/// Whether a status is one that somebody should look at.
fn failing(status: JobStatus) -> bool {
    !matches!(status, JobStatus::Success | JobStatus::Canceled)
}
