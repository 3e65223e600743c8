//! What other services ask.

use crate::{
    explain, line, placements, rules, runners,
    state::State,
    store::{self, RunRow},
};
use anyhow::Context as _;
use bus::Responder;
use contracts::{
    NewEvent, Request, RequestError,
    dispatcher::{ExplainJob, JobFinished, ReportPlacements, RevokeJobs, TaskFinished, TaskRevoked},
    request::Ask,
};
use eventstore::{Key, Tx};
use ids::{JobId, TaskId, Timestamp};
use model::status::JobStatus;
use std::{collections::HashMap, sync::Arc};
use uuid::Uuid;

/// Jobs that one transaction revokes: each brings a lock and one for each of its tasks.
const AT_A_TIME: usize = 100;

/// Answers the dispatcher's requests.
pub struct Requests(pub Arc<State>);

#[async_trait::async_trait]
impl Responder for Requests {
    async fn respond(&self, req: Request) -> Result<serde_json::Value, RequestError> {
        let state = &self.0;
        match req.name.as_str() {
            RevokeJobs::NAME => {
                bus::route::<RevokeJobs, _, _>(&req, |ask, _| async move {
                    revoke(state, &ask.job_ids).await.map_err(failed)
                })
                .await
            }
            ReportPlacements::NAME => {
                bus::route::<ReportPlacements, _, _>(&req, |ask, _| async move {
                    placements::report(state, ask.placements).await.map_err(failed)
                })
                .await
            }
            ExplainJob::NAME => {
                bus::route::<ExplainJob, _, _>(&req, |ask, _| async move {
                    explain::explain(state, ask.job_id).await
                })
                .await
            }
            _ => runners::respond(state, req).await,
        }
    }
}

fn failed(error: anyhow::Error) -> RequestError {
    bus::failed(store::SERVICE)(format!("{error:#}"))
}

/// Revokes all tasks of these jobs. After it has returned none of them is handed out. A repeat changes nothing.
async fn revoke(state: &State, jobs: &[JobId]) -> anyhow::Result<()> {
    for chunk in jobs.chunks(AT_A_TIME) {
        let ids: Vec<Uuid> = chunk.iter().map(|job| job.uuid()).collect();
        // Tasks of a job may be made between our look and our locks: then look again.
        let mut attempts = 0;
        while !revoke_once(state, &ids).await? {
            attempts += 1;
            anyhow::ensure!(attempts < 10, "the jobs' tasks keep changing");
        }
    }
    state.due.notify_one();
    Ok(())
}

async fn tasks_of(state: &State, jobs: &[Uuid]) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar("SELECT task_id FROM dispatcher.tasks WHERE job_id = ANY($1) AND state <> 'finished'")
        .bind(jobs)
        .fetch_all(state.store.pool())
        .await
}

#[derive(sqlx::FromRow)]
struct Ended {
    task_id: Uuid,
    job_id: Uuid,
    index: i32,
    epoch: i64,
    queued_at: Option<Timestamp>,
    finished_at: Timestamp,
}

/// `false`: the jobs have tasks whose locks were not taken.
async fn revoke_once(state: &State, jobs: &[Uuid]) -> anyhow::Result<bool> {
    let known = tasks_of(state, jobs).await?;
    let locks: Vec<Key> = jobs
        .iter()
        .map(|job| Key::new("run", *job))
        .chain(known.iter().map(|task| Key::new("task", *task)))
        .chain([store::slots()])
        .collect();
    let mut tx = state.store.begin(&locks).await?;
    let unknown: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM dispatcher.tasks WHERE job_id = ANY($1) AND state <> 'finished' AND task_id <> ALL($2)",
    )
    .bind(jobs)
    .bind(&known)
    .fetch_one(tx.conn())
    .await?;
    if unknown > 0 {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO dispatcher.revocations (job_id) SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING",
    )
    .bind(jobs)
    .execute(tx.conn())
    .await?;
    let ended: Vec<Ended> = sqlx::query_as(
        "UPDATE dispatcher.tasks SET state = 'finished', status = 'canceled', cancel_requested = true, \
             finished_at = clock_timestamp(), next_action_at = NULL \
         WHERE job_id = ANY($1) AND state IN ('waiting', 'queued') RETURNING task_id, job_id, index, epoch, queued_at, finished_at",
    )
    .bind(jobs)
    .fetch_all(tx.conn())
    .await?;
    let stopping: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "UPDATE dispatcher.tasks SET cancel_requested = true \
         WHERE job_id = ANY($1) AND state = 'leased' AND NOT cancel_requested RETURNING task_id, job_id",
    )
    .bind(jobs)
    .fetch_all(tx.conn())
    .await?;
    let runs = runs_of(&mut tx, jobs).await?;
    let mut events = Vec::new();
    for task in &ended {
        let run = runs.get(&task.job_id).context("a task without a run")?;
        let body = TaskFinished {
            task_id: TaskId(task.task_id),
            job_id: run.job(),
            index: u32::try_from(task.index).unwrap_or_default(),
            epoch: task.epoch,
            status: JobStatus::Canceled,
            reason: None,
            at: task.finished_at,
        };
        tx.tell(store::task_span(run, &body, task.queued_at.unwrap_or(task.finished_at)));
        events.push(run.event("task", task.task_id, &body));
    }
    for (task_id, job_id) in &stopping {
        let run = runs.get(job_id).context("a task without a run")?;
        events.push(run.event(
            "task",
            *task_id,
            &TaskRevoked { task_id: TaskId(*task_id), job_id: run.job() },
        ));
    }
    events.extend(finish_runs(&mut tx, &runs, jobs).await?);
    events.extend(line::fill(&mut tx, state).await?);
    tx.append(&events).await?;
    tx.commit().await?;
    state.wake(stopping.into_iter().map(|(task, _)| TaskId(task)));
    Ok(true)
}

async fn runs_of(tx: &mut Tx, jobs: &[Uuid]) -> sqlx::Result<HashMap<Uuid, RunRow>> {
    let rows: Vec<RunRow> = sqlx::query_as(
        "SELECT job_id, workflow_id, org_id, project_id, pipeline_id, state, trace FROM dispatcher.runs WHERE job_id = ANY($1)",
    )
    .bind(jobs)
    .fetch_all(tx.conn())
    .await?;
    Ok(rows.into_iter().map(|run| (run.job_id, run)).collect())
}

/// Ends the runs all of whose tasks have ended now.
async fn finish_runs(
    tx: &mut Tx,
    runs: &HashMap<Uuid, RunRow>,
    jobs: &[Uuid],
) -> anyhow::Result<Vec<NewEvent>> {
    let done: Vec<(Uuid, String, Timestamp, Timestamp)> = sqlx::query_as(
        "UPDATE dispatcher.runs r SET state = 'finished', status = 'canceled', finished_at = clock_timestamp() \
         WHERE r.job_id = ANY($1) AND r.state <> 'finished' AND NOT EXISTS \
             (SELECT 1 FROM dispatcher.tasks t WHERE t.job_id = r.job_id AND t.state <> 'finished') \
         RETURNING r.job_id, coalesce(r.ready ->> 'name', ''), r.created_at, r.finished_at",
    )
    .bind(jobs)
    .fetch_all(tx.conn())
    .await?;
    done.into_iter()
        .map(|(job_id, name, created_at, at)| {
            let run = runs.get(&job_id).context("a run that was not read")?;
            let (status, reason) = rules::job_outcome(vec![(JobStatus::Canceled, None)]);
            let (job_id, workflow_id) = (run.job(), run.workflow());
            let body = JobFinished { job_id, workflow_id, status, reason, settled: false, at };
            tx.tell(store::run_span(run, &name, &body, created_at));
            Ok(run.event("run", run.job_id, &body))
        })
        .collect()
}
