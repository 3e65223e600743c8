//! SQL of the views. Each statement is guarded by the version of its aggregate, so that a batch which is
//! handed over again changes nothing.

use crate::Changed;
use contracts::{
    Envelope,
    conductor::{
        CancelRequested, JobEnded, JobNode, JobOnHold, JobReady, JobRunning, JobsAdded, TurnWanted,
        WorkflowCreated, WorkflowFinished, WorkflowStatusChanged,
    },
    dispatcher::{TaskFinished, TaskQueued, TaskStarted},
    domain::{Project, ProjectCreated},
    output::StepReported,
    pipelines::PipelineCreated,
    retention::PipelineExpired,
};
use ids::{JobId, PipelineId, WorkflowId};
use model::{plan::Executor, status::WorkflowStatus};
use sqlx::{PgConnection, PgPool};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Why an event has no place in the views.
#[derive(Debug)]
pub enum Unprojected {
    /// Its body is not what its type promises.
    Unreadable(serde_json::Error),
    /// The database did not take it.
    Db(sqlx::Error),
}

impl From<serde_json::Error> for Unprojected {
    fn from(error: serde_json::Error) -> Self {
        Self::Unreadable(error)
    }
}

impl From<sqlx::Error> for Unprojected {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error)
    }
}

type Done = Result<(), Unprojected>;

pub async fn project_created(db: &mut PgConnection, event: &Envelope) -> Done {
    let project = event.body_as::<ProjectCreated>()?.project;
    sqlx::query(
        "INSERT INTO projector.projects AS p (id, org_id, org, name, slug, default_branch, created_at, version)
         VALUES ($1,$2,$3,$4,$5,$6,$7,$8)
         ON CONFLICT (id) DO UPDATE SET org = excluded.org, name = excluded.name, slug = excluded.slug,
            default_branch = excluded.default_branch, version = excluded.version
         WHERE p.version < excluded.version",
    )
    .bind(project.id.uuid())
    .bind(project.org_id.uuid())
    .bind(project.org)
    .bind(project.name)
    .bind(project.slug)
    .bind(project.default_branch)
    .bind(event.occurred_at)
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

/// Also of one that is continued: that event's body has the same form, and the later version counts.
pub async fn pipeline_created(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<PipelineCreated>()?;
    let subject = event.personal.as_ref().and_then(|p| p.get("subject")).and_then(|s| s.as_str());
    sqlx::query(
        "INSERT INTO projector.pipelines AS p (id, project_id, org_id, slug, number, state, errors, trigger,
            actor, revision, branch, tag, subject, created_at, version)
         VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15)
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, errors = excluded.errors,
            subject = excluded.subject, version = excluded.version
         WHERE p.version < excluded.version",
    )
    .bind(body.pipeline_id.uuid())
    .bind(body.project.id.uuid())
    .bind(body.project.org_id.uuid())
    .bind(&body.project.slug)
    .bind(body.number)
    .bind(match (body.errors.is_empty(), body.setup) {
        (false, _) => "errored",
        (true, true) => "setup",
        (true, false) => "created",
    })
    .bind(serde_json::to_value(&body.errors)?)
    .bind(serde_json::to_value(&body.trigger)?)
    .bind(body.trigger.actor.map(ids::UserId::uuid))
    .bind(&body.vcs.revision)
    .bind(&body.vcs.branch)
    .bind(&body.vcs.tag)
    .bind(subject)
    .bind(event.occurred_at)
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

/// It goes from every view, and what is said of it later shows nothing.
pub async fn pipeline_expired(db: &mut PgConnection, event: &Envelope) -> Done {
    let pipeline = event.body_as::<PipelineExpired>()?.pipeline_id.uuid();
    for sql in [
        "INSERT INTO projector.expired (id) VALUES ($1) ON CONFLICT DO NOTHING",
        "DELETE FROM projector.steps s USING projector.jobs j WHERE j.pipeline_id = $1 AND s.job_id = j.id",
        "DELETE FROM projector.tasks t USING projector.jobs j WHERE j.pipeline_id = $1 AND t.job_id = j.id",
        "DELETE FROM projector.jobs WHERE pipeline_id = $1",
        "DELETE FROM projector.workflows WHERE pipeline_id = $1",
        "DELETE FROM projector.pipelines WHERE id = $1",
    ] {
        sqlx::query(sql).bind(pipeline).execute(&mut *db).await?;
    }
    Ok(())
}

pub async fn workflow_created(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<WorkflowCreated>()?;
    let version = event.aggregate.version;
    sqlx::query(
        "INSERT INTO projector.workflows (id, pipeline_id, pipeline_number, project_id, org_id, slug, name,
            status, started_by, rerun_of, created_at, version)
         SELECT $1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12
         WHERE NOT EXISTS (SELECT 1 FROM projector.expired WHERE id = $2) ON CONFLICT (id) DO NOTHING",
    )
    .bind(body.workflow_id.uuid())
    .bind(body.pipeline_id.uuid())
    .bind(body.pipeline_number)
    .bind(body.project.id.uuid())
    .bind(body.project.org_id.uuid())
    .bind(&body.project.slug)
    .bind(&body.name)
    .bind(WorkflowStatus::Running.as_str())
    .bind(body.started_by.map(ids::UserId::uuid))
    .bind(body.rerun_of.map(WorkflowId::uuid))
    .bind(event.occurred_at)
    .bind(version)
    .execute(&mut *db)
    .await?;
    let place =
        Place { workflow: body.workflow_id, pipeline: body.pipeline_id, project: &body.project, from: 0 };
    insert_jobs(db, event, &place, &body.jobs).await
}

pub async fn jobs_added(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<JobsAdded>()?;
    let place = Place {
        workflow: body.workflow_id,
        pipeline: body.pipeline_id,
        project: &body.project,
        from: body.from,
    };
    insert_jobs(db, event, &place, &body.jobs).await?;
    for more in &body.edges {
        sqlx::query(
            "UPDATE projector.jobs SET requires = requires || $2, version = $3 WHERE id = $1 AND version < $3",
        )
        .bind(more.job_id.uuid())
        .bind(serde_json::to_value(&more.requires)?)
        .bind(event.aggregate.version)
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// Where jobs belong.
struct Place<'a> {
    workflow: WorkflowId,
    pipeline: PipelineId,
    project: &'a Project,
    /// Place in the file of the first of them.
    from: u32,
}

/// One statement for all jobs: a workflow may have thousands.
async fn insert_jobs(db: &mut PgConnection, event: &Envelope, place: &Place<'_>, jobs: &[JobNode]) -> Done {
    let mut ids = Vec::with_capacity(jobs.len());
    let (mut names, mut kinds, mut states, mut edges, mut ended) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for job in jobs {
        ids.push(job.job_id.uuid());
        names.push(job.name.clone());
        kinds.push(job.kind.clone());
        states.push(job.status.as_str().to_owned());
        edges.push(serde_json::to_value(&job.requires)?);
        ended.push(job.status.is_terminal().then_some(event.occurred_at));
    }
    sqlx::query(
        "INSERT INTO projector.jobs (id, workflow_id, pipeline_id, project_id, org_id, position, name, kind,
            status, requires, created_at, stopped_at, version)
         SELECT j.id, $1, $2, $3, $4, ($13 + j.ordinal - 1)::int, j.name, j.kind, j.status, j.requires, $11, j.ended, $12
         FROM unnest($5::uuid[], $6::text[], $7::text[], $8::text[], $9::jsonb[], $10::timestamptz[])
            WITH ORDINALITY AS j (id, name, kind, status, requires, ended, ordinal)
         WHERE NOT EXISTS (SELECT 1 FROM projector.expired WHERE id = $2)
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(place.workflow.uuid())
    .bind(place.pipeline.uuid())
    .bind(place.project.id.uuid())
    .bind(place.project.org_id.uuid())
    .bind(ids)
    .bind(names)
    .bind(kinds)
    .bind(states)
    .bind(edges)
    .bind(ended)
    .bind(event.occurred_at)
    .bind(event.aggregate.version)
    .bind(i64::from(place.from))
    .execute(db)
    .await?;
    Ok(())
}

/// A job that has everything but its turn in a serial group is queued for people.
pub async fn turn_wanted(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<TurnWanted>()?;
    sqlx::query(
        "UPDATE projector.jobs SET status = 'queued', queued_at = coalesce(queued_at, $2), version = $3
         WHERE id = $1 AND version <= $3 AND stopped_at IS NULL",
    )
    .bind(body.job_id.uuid())
    .bind(event.occurred_at)
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

pub async fn job_ready(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<JobReady>()?;
    let executor = match &body.definition.executor {
        Executor::Machine { .. } => "machine",
        Executor::Macos { .. } => "macos",
        Executor::Docker { .. } => "docker",
    };
    sqlx::query(
        "UPDATE projector.jobs SET status = 'queued', number = $2, contexts = $3, executor = $4,
            resource_class = $5, parallelism = $6, queued_at = $7, version = $8
         WHERE id = $1 AND version <= $8 AND stopped_at IS NULL",
    )
    .bind(body.job_id.uuid())
    .bind(body.number)
    .bind(&body.contexts)
    .bind(executor)
    .bind(&body.definition.resource_class)
    .bind(i32::try_from(body.definition.parallelism).unwrap_or(i32::MAX))
    .bind(event.occurred_at)
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

pub async fn job_on_hold(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<JobOnHold>()?;
    sqlx::query(
        "UPDATE projector.jobs SET status = 'on_hold', queued_at = $2, version = $3
         WHERE id = $1 AND version <= $3 AND stopped_at IS NULL",
    )
    .bind(body.job_id.uuid())
    .bind(event.occurred_at)
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

pub async fn job_running(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<JobRunning>()?;
    sqlx::query(
        "UPDATE projector.jobs SET status = 'running', started_at = $2, version = $3
         WHERE id = $1 AND version <= $3 AND stopped_at IS NULL",
    )
    .bind(body.job_id.uuid())
    .bind(body.at)
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

pub async fn job_ended(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<JobEnded>()?;
    sqlx::query(
        "UPDATE projector.jobs SET status = $2, reason = $3, approved_by = $4, stopped_at = $5, version = $6
         WHERE id = $1 AND version <= $6 AND stopped_at IS NULL",
    )
    .bind(body.job_id.uuid())
    .bind(body.status.as_str())
    .bind(&body.reason)
    .bind(body.approved_by.map(ids::UserId::uuid))
    .bind(body.at)
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

pub async fn cancel_requested(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<CancelRequested>()?;
    let Some(user) = event.actor.user() else { return Ok(()) };
    match body.job_id {
        Some(job) => {
            sqlx::query("UPDATE projector.jobs SET canceled_by = $2 WHERE id = $1 AND stopped_at IS NULL")
                .bind(job.uuid())
                .bind(user.uuid())
                .execute(&mut *db)
                .await?;
        }
        None => {
            sqlx::query("UPDATE projector.workflows SET canceled_by = $2 WHERE id = $1")
                .bind(event.aggregate.id)
                .bind(user.uuid())
                .execute(&mut *db)
                .await?;
        }
    }
    Ok(())
}

pub async fn workflow_status(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<WorkflowStatusChanged>()?;
    sqlx::query(
        "UPDATE projector.workflows SET status = $2, version = $3
         WHERE id = $1 AND version < $3 AND stopped_at IS NULL",
    )
    .bind(event.aggregate.id)
    .bind(body.status.as_str())
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

pub async fn workflow_finished(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<WorkflowFinished>()?;
    sqlx::query(
        "UPDATE projector.workflows SET status = $2, stopped_at = $3, version = $4
         WHERE id = $1 AND version < $4",
    )
    .bind(event.aggregate.id)
    .bind(body.status.as_str())
    .bind(body.at)
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

/// The workflow's row carries the aggregate's version, so that a client that holds a version from a mutation
/// can tell whether the view has it. Once for all events of a batch.
pub async fn workflows_seen(db: &mut PgConnection, versions: &BTreeMap<Uuid, i64>) -> sqlx::Result<()> {
    let (ids, versions): (Vec<Uuid>, Vec<i64>) = versions.iter().unzip();
    sqlx::query(
        "UPDATE projector.workflows w SET version = n.version
         FROM unnest($1::uuid[], $2::bigint[]) AS n(id, version) WHERE w.id = n.id AND w.version < n.version",
    )
    .bind(ids)
    .bind(versions)
    .execute(db)
    .await?;
    Ok(())
}

/// Marks the pipelines of which a batch spoke, so that followers can go on after a break.
pub async fn pipelines_changed(db: &mut PgConnection, changed: &Changed) -> sqlx::Result<()> {
    let pipelines: Vec<Uuid> = changed.pipelines.iter().map(|id| id.uuid()).collect();
    let workflows: Vec<Uuid> = changed.workflows.iter().map(|id| id.uuid()).collect();
    let jobs: Vec<Uuid> = changed.jobs.iter().map(|id| id.uuid()).collect();
    if pipelines.is_empty() && workflows.is_empty() && jobs.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "UPDATE projector.pipelines SET changed_at = clock_timestamp() WHERE id IN (
            SELECT unnest($1::uuid[]) UNION SELECT pipeline_id FROM projector.workflows WHERE id = ANY($2)
            UNION SELECT pipeline_id FROM projector.jobs WHERE id = ANY($3))",
    )
    .bind(pipelines)
    .bind(workflows)
    .bind(jobs)
    .execute(db)
    .await?;
    Ok(())
}

pub async fn task_queued(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<TaskQueued>()?;
    sqlx::query(
        "INSERT INTO projector.tasks AS t (id, job_id, index, status, version) VALUES ($1,$2,$3,'queued',$4)
         ON CONFLICT (id) DO UPDATE SET status = 'queued', started_at = NULL, version = excluded.version
         WHERE t.version < excluded.version AND t.stopped_at IS NULL",
    )
    .bind(body.task_id.uuid())
    .bind(body.job_id.uuid())
    .bind(i32::try_from(body.index).unwrap_or(i32::MAX))
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

pub async fn task_started(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<TaskStarted>()?;
    sqlx::query(
        "UPDATE projector.tasks SET status = 'running', started_at = $2, version = $3
         WHERE id = $1 AND version < $3 AND stopped_at IS NULL",
    )
    .bind(body.task_id.uuid())
    .bind(body.at)
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

pub async fn task_finished(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<TaskFinished>()?;
    sqlx::query(
        "UPDATE projector.tasks SET status = $2, reason = $3, stopped_at = $4, version = $5
         WHERE id = $1 AND version < $5",
    )
    .bind(body.task_id.uuid())
    .bind(body.status.as_str())
    .bind(&body.reason)
    .bind(body.at)
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

pub async fn step_reported(db: &mut PgConnection, event: &Envelope) -> Done {
    let body = event.body_as::<StepReported>()?;
    let step = body.step;
    sqlx::query(
        "INSERT INTO projector.steps AS s (id, task_id, job_id, index, number, name, status, bash_command,
            exit_code, background, started_at, ended_at, bytes, log_state, sha256, version)
         VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16)
         ON CONFLICT (id) DO UPDATE SET status = excluded.status, exit_code = excluded.exit_code,
            ended_at = excluded.ended_at, bytes = excluded.bytes, log_state = excluded.log_state,
            sha256 = excluded.sha256, version = excluded.version
         WHERE s.version < excluded.version",
    )
    .bind(step.step_id.uuid())
    .bind(body.task_id.uuid())
    .bind(body.job_id.uuid())
    .bind(i32::try_from(step.index).unwrap_or(i32::MAX))
    .bind(i32::try_from(step.number).unwrap_or(i32::MAX))
    .bind(&step.name)
    .bind(&step.status)
    .bind(&step.bash_command)
    .bind(step.exit_code)
    .bind(step.background)
    .bind(step.started_at)
    .bind(step.ended_at)
    .bind(i64::try_from(step.bytes).unwrap_or(i64::MAX))
    .bind(&step.log_state)
    .bind(&step.sha256)
    .bind(event.aggregate.version)
    .execute(db)
    .await?;
    Ok(())
}

/// Pipelines to which these workflows and jobs belong.
pub async fn pipelines_of(
    db: &PgPool,
    workflows: &[WorkflowId],
    jobs: &[JobId],
) -> Result<Vec<PipelineId>, sqlx::Error> {
    let workflows: Vec<_> = workflows.iter().map(|id| id.uuid()).collect();
    let jobs: Vec<_> = jobs.iter().map(|id| id.uuid()).collect();
    let found: Vec<uuid::Uuid> = sqlx::query_scalar(
        "SELECT pipeline_id FROM projector.workflows WHERE id = ANY($1)
         UNION SELECT pipeline_id FROM projector.jobs WHERE id = ANY($2)",
    )
    .bind(workflows)
    .bind(jobs)
    .fetch_all(db)
    .await?;
    Ok(found.into_iter().map(PipelineId).collect())
}
