//! SQL of the edge: reads of the views, and its own deliveries.

use contracts::{
    delivery::{DeliveryReceived, GitRef},
    domain::Project,
    output::{StepPlace, StepRecord},
};
use ids::{JobId, OrgId, PipelineId, ProjectId, StepId, TaskId, Timestamp, UserId, WorkflowId};
use serde_json::Value;
use sqlx::{FromRow, PgConnection, PgPool, Postgres, QueryBuilder};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A project's row.
#[derive(Clone, Debug, FromRow)]
pub struct ProjectRow {
    pub id: Uuid,
    pub org_id: Uuid,
    pub org: String,
    pub name: String,
    pub slug: String,
    pub default_branch: String,
}

impl From<ProjectRow> for Project {
    fn from(row: ProjectRow) -> Self {
        Self {
            id: ProjectId(row.id),
            org_id: OrgId(row.org_id),
            org: row.org,
            name: row.name,
            slug: row.slug,
            default_branch: row.default_branch,
        }
    }
}

/// A pipeline's row.
#[derive(Clone, Debug, FromRow)]
pub struct PipelineRow {
    pub id: Uuid,
    pub project_id: Uuid,
    pub org_id: Uuid,
    pub slug: String,
    pub number: i64,
    pub state: String,
    pub errors: Value,
    pub trigger: Value,
    pub revision: String,
    pub branch: Option<String>,
    pub tag: Option<String>,
    pub subject: Option<String>,
    pub created_at: Timestamp,
    /// When it, or anything of it, changed last.
    pub changed_at: Timestamp,
}

/// A workflow's row.
#[derive(Clone, Debug, FromRow)]
pub struct WorkflowRow {
    pub id: Uuid,
    pub pipeline_id: Uuid,
    pub pipeline_number: i64,
    pub org_id: Uuid,
    pub slug: String,
    pub name: String,
    pub status: String,
    pub started_by: Option<Uuid>,
    pub canceled_by: Option<Uuid>,
    pub rerun_of: Option<Uuid>,
    pub created_at: Timestamp,
    pub stopped_at: Option<Timestamp>,
    pub version: i64,
}

/// A job's row.
#[derive(Clone, Debug, FromRow)]
pub struct JobRow {
    pub id: Uuid,
    pub workflow_id: Uuid,
    pub pipeline_id: Uuid,
    pub project_id: Uuid,
    pub org_id: Uuid,
    pub name: String,
    pub kind: String,
    pub status: String,
    pub reason: Option<String>,
    pub number: Option<i64>,
    pub requires: Value,
    pub contexts: Vec<String>,
    pub executor: Option<String>,
    pub resource_class: Option<String>,
    pub parallelism: i32,
    pub approved_by: Option<Uuid>,
    pub canceled_by: Option<Uuid>,
    pub created_at: Timestamp,
    pub queued_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub stopped_at: Option<Timestamp>,
}

/// A task's row.
#[derive(Clone, Debug, FromRow)]
pub struct TaskRow {
    pub index: i32,
    pub status: String,
}

/// A step's row.
#[derive(Clone, Debug, FromRow)]
pub struct StepRow {
    pub id: Uuid,
    pub job_id: Uuid,
    pub index: i32,
    pub number: i32,
    pub name: String,
    pub status: String,
    pub bash_command: Option<String>,
    pub exit_code: Option<i32>,
    pub background: bool,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub bytes: i64,
    pub log_state: String,
}

impl StepRow {
    /// From the record of its owner.
    pub fn from_record(job: Uuid, step: StepRecord) -> Self {
        Self {
            id: step.step_id.uuid(),
            job_id: job,
            index: i32::try_from(step.index).unwrap_or(i32::MAX),
            number: i32::try_from(step.number).unwrap_or(i32::MAX),
            name: step.name,
            status: step.status,
            bash_command: step.bash_command,
            exit_code: step.exit_code,
            background: step.background,
            started_at: step.started_at,
            ended_at: step.ended_at,
            bytes: i64::try_from(step.bytes).unwrap_or(i64::MAX),
            log_state: step.log_state,
        }
    }
}

/// A step as the view has it, with all that its owner says of it.
#[derive(FromRow)]
struct PlaceRow {
    task_id: Uuid,
    sha256: Option<String>,
    #[sqlx(flatten)]
    step: StepRow,
}

impl From<PlaceRow> for StepPlace {
    fn from(PlaceRow { task_id, sha256, step }: PlaceRow) -> Self {
        Self {
            job_id: JobId(step.job_id),
            task_id: TaskId(task_id),
            step: StepRecord {
                step_id: StepId(step.id),
                number: u32::try_from(step.number).unwrap_or_default(),
                index: u32::try_from(step.index).unwrap_or_default(),
                name: step.name,
                status: step.status,
                bash_command: step.bash_command,
                exit_code: step.exit_code,
                background: step.background,
                started_at: step.started_at,
                ended_at: step.ended_at,
                bytes: u64::try_from(step.bytes).unwrap_or_default(),
                log_state: step.log_state,
                sha256,
            },
        }
    }
}

/// Which pipelines of a list.
#[derive(Clone, Debug, Default)]
pub struct PipelineFilter {
    pub project: Option<Uuid>,
    /// `None`: of all organisations.
    pub orgs: Option<Vec<Uuid>>,
    pub branch: Option<String>,
    pub actor: Option<UserId>,
    /// Only what was made before (time, id) of this pipeline.
    pub before: Option<(Timestamp, Uuid)>,
}

/// Reads the views.
#[derive(Clone)]
pub struct Views {
    pool: PgPool,
}

type Found<T> = Result<T, sqlx::Error>;

impl Views {
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Whether the database answers.
    pub async fn project(&self, id: Uuid) -> Found<Option<ProjectRow>> {
        sqlx::query_as("SELECT * FROM projector.projects WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await
    }

    pub async fn project_by_slug(&self, slug: &str) -> Found<Option<ProjectRow>> {
        sqlx::query_as("SELECT * FROM projector.projects WHERE slug = $1")
            .bind(slug)
            .fetch_optional(&self.pool)
            .await
    }

    pub async fn projects(&self, orgs: &[Uuid], after: Option<&str>, limit: i64) -> Found<Vec<ProjectRow>> {
        sqlx::query_as(
            "SELECT * FROM projector.projects WHERE org_id = ANY($1) AND ($2::text IS NULL OR slug > $2)
             ORDER BY slug LIMIT $3",
        )
        .bind(orgs)
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
    }

    pub async fn projects_by_id(&self, ids: &[Uuid]) -> Found<Vec<ProjectRow>> {
        sqlx::query_as("SELECT * FROM projector.projects WHERE id = ANY($1)")
            .bind(ids)
            .fetch_all(&self.pool)
            .await
    }

    pub async fn pipeline(&self, id: PipelineId) -> Found<Option<PipelineRow>> {
        sqlx::query_as("SELECT * FROM projector.pipelines WHERE id = $1")
            .bind(id.uuid())
            .fetch_optional(&self.pool)
            .await
    }

    pub async fn pipeline_by_number(&self, project: Uuid, number: i64) -> Found<Option<PipelineRow>> {
        sqlx::query_as("SELECT * FROM projector.pipelines WHERE project_id = $1 AND number = $2")
            .bind(project)
            .bind(number)
            .fetch_optional(&self.pool)
            .await
    }

    pub async fn pipelines_by_id(&self, ids: &[Uuid]) -> Found<Vec<PipelineRow>> {
        sqlx::query_as("SELECT * FROM projector.pipelines WHERE id = ANY($1)")
            .bind(ids)
            .fetch_all(&self.pool)
            .await
    }

    /// Newest first.
    pub async fn pipelines(&self, filter: &PipelineFilter, limit: i64) -> Found<Vec<PipelineRow>> {
        // Only the conditions that are asked for: one that may be absent would keep its index from being used.
        let mut sql = QueryBuilder::<Postgres>::new("SELECT p.* FROM ");
        if let Some(orgs) = &filter.orgs {
            // Each organisation's newest, and of those the newest.
            sql.push("unnest(").push_bind(orgs).push("::uuid[]) AS o(id), LATERAL (SELECT p.* FROM ");
        }
        sql.push("projector.pipelines p WHERE ");
        sql.push(if filter.orgs.is_some() { "p.org_id = o.id" } else { "true" });
        if let Some(project) = filter.project {
            sql.push(" AND p.project_id = ").push_bind(project);
        }
        if let Some(branch) = &filter.branch {
            sql.push(" AND p.branch = ").push_bind(branch);
        }
        if let Some(actor) = filter.actor {
            sql.push(" AND p.actor = ").push_bind(actor.uuid());
        }
        if let Some((time, id)) = filter.before {
            sql.push(" AND (p.created_at, p.id) < (").push_bind(time).push(", ").push_bind(id).push(")");
        }
        let newest = " ORDER BY p.created_at DESC, p.id DESC LIMIT ";
        sql.push(newest).push_bind(limit);
        if filter.orgs.is_some() {
            sql.push(") p").push(newest).push_bind(limit);
        }
        sql.build_query_as().fetch_all(&self.pool).await
    }

    /// Of a project, or of organisations, what changed since a moment, oldest change first.
    pub async fn pipelines_changed_since(
        &self,
        project: Option<Uuid>,
        orgs: &[Uuid],
        since: Timestamp,
        limit: i64,
    ) -> Found<Vec<PipelineRow>> {
        let mut sql = QueryBuilder::<Postgres>::new("SELECT * FROM projector.pipelines WHERE changed_at >= ");
        sql.push_bind(since);
        match project {
            Some(project) => sql.push(" AND project_id = ").push_bind(project),
            None => sql.push(" AND org_id = ANY(").push_bind(orgs).push(")"),
        };
        sql.push(" ORDER BY changed_at LIMIT ").push_bind(limit);
        sql.build_query_as().fetch_all(&self.pool).await
    }

    pub async fn workflow(&self, id: WorkflowId) -> Found<Option<WorkflowRow>> {
        sqlx::query_as("SELECT * FROM projector.workflows WHERE id = $1")
            .bind(id.uuid())
            .fetch_optional(&self.pool)
            .await
    }

    pub async fn workflows_by_id(&self, ids: &[Uuid]) -> Found<Vec<WorkflowRow>> {
        sqlx::query_as("SELECT * FROM projector.workflows WHERE id = ANY($1)")
            .bind(ids)
            .fetch_all(&self.pool)
            .await
    }

    /// Newest first, by pipeline.
    pub async fn workflows_of(&self, pipelines: &[Uuid]) -> Found<Vec<WorkflowRow>> {
        sqlx::query_as(
            "SELECT * FROM projector.workflows WHERE pipeline_id = ANY($1) ORDER BY created_at DESC, id",
        )
        .bind(pipelines)
        .fetch_all(&self.pool)
        .await
    }

    pub async fn job(&self, id: JobId) -> Found<Option<JobRow>> {
        sqlx::query_as("SELECT * FROM projector.jobs WHERE id = $1")
            .bind(id.uuid())
            .fetch_optional(&self.pool)
            .await
    }

    pub async fn job_by_number(&self, project: Uuid, number: i64) -> Found<Option<JobRow>> {
        sqlx::query_as("SELECT * FROM projector.jobs WHERE project_id = $1 AND number = $2 LIMIT 1")
            .bind(project)
            .bind(number)
            .fetch_optional(&self.pool)
            .await
    }

    /// In file order, by workflow.
    pub async fn jobs_of(&self, workflows: &[Uuid]) -> Found<Vec<JobRow>> {
        sqlx::query_as(
            "SELECT * FROM projector.jobs WHERE workflow_id = ANY($1) ORDER BY workflow_id, position",
        )
        .bind(workflows)
        .fetch_all(&self.pool)
        .await
    }

    /// Jobs that have a number, newest first.
    pub async fn numbered_jobs(
        &self,
        project: Option<Uuid>,
        orgs: Option<&[Uuid]>,
        branch: Option<&str>,
        statuses: Option<&[String]>,
        limit: i64,
        offset: i64,
    ) -> Found<Vec<JobRow>> {
        let mut sql = QueryBuilder::<Postgres>::new("SELECT j.* FROM ");
        if let Some(orgs) = orgs {
            sql.push("unnest(").push_bind(orgs).push("::uuid[]) AS o(id), LATERAL (SELECT j.* FROM ");
        }
        sql.push("projector.jobs j WHERE j.number IS NOT NULL");
        if orgs.is_some() {
            sql.push(" AND j.org_id = o.id");
        }
        if let Some(project) = project {
            sql.push(" AND j.project_id = ").push_bind(project);
        }
        if let Some(branch) = branch {
            sql.push(
                " AND EXISTS (SELECT 1 FROM projector.pipelines p WHERE p.id = j.pipeline_id AND p.branch = ",
            );
            sql.push_bind(branch).push(")");
        }
        if let Some(statuses) = statuses {
            sql.push(" AND j.status = ANY(").push_bind(statuses).push(")");
        }
        let newest = " ORDER BY j.created_at DESC, j.number DESC LIMIT ";
        if orgs.is_some() {
            sql.push(newest).push_bind(limit.saturating_add(offset)).push(") j");
        }
        sql.push(newest).push_bind(limit).push(" OFFSET ").push_bind(offset);
        sql.build_query_as().fetch_all(&self.pool).await
    }

    pub async fn tasks_of(&self, job: JobId) -> Found<Vec<TaskRow>> {
        sqlx::query_as("SELECT * FROM projector.tasks WHERE job_id = $1 ORDER BY index")
            .bind(job.uuid())
            .fetch_all(&self.pool)
            .await
    }

    /// By index and number.
    pub async fn steps_of(&self, jobs: &[Uuid]) -> Found<Vec<StepRow>> {
        sqlx::query_as(
            "SELECT * FROM projector.steps WHERE job_id = ANY($1) ORDER BY job_id, number, index, started_at",
        )
        .bind(jobs)
        .fetch_all(&self.pool)
        .await
    }

    /// A step and where it belongs.
    pub async fn step(&self, id: StepId) -> Found<Option<StepPlace>> {
        let row: Option<PlaceRow> = sqlx::query_as("SELECT * FROM projector.steps WHERE id = $1")
            .bind(id.uuid())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(StepPlace::from))
    }
}

/// Remembers that the git server holds this repository.
pub async fn hold_repository(db: &mut PgConnection, project: &Project) -> Found<()> {
    let value = serde_json::to_value(project).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query(
        "INSERT INTO api.repositories (project_id, project) VALUES ($1, $2)
         ON CONFLICT (project_id) DO UPDATE SET project = excluded.project",
    )
    .bind(project.id.uuid())
    .bind(value)
    .execute(db)
    .await
    .map(drop)
}

/// Repositories that the git server holds.
pub async fn repositories(pool: &PgPool) -> Found<Vec<Project>> {
    let rows: Vec<Value> = sqlx::query_scalar("SELECT project FROM api.repositories").fetch_all(pool).await?;
    Ok(rows.into_iter().filter_map(|row| serde_json::from_value(row).ok()).collect())
}

/// Refs as of their last delivery.
pub async fn delivered_refs(db: &mut PgConnection, project: ProjectId) -> Found<BTreeMap<String, String>> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT name, revision FROM api.refs WHERE project_id = $1")
            .bind(project.uuid())
            .fetch_all(db)
            .await?;
    Ok(rows.into_iter().collect())
}

/// A ref is now delivered at this revision.
pub async fn ref_delivered(
    db: &mut PgConnection,
    project: ProjectId,
    name: &str,
    revision: &str,
) -> Found<()> {
    sqlx::query(
        "INSERT INTO api.refs (project_id, name, revision) VALUES ($1,$2,$3)
         ON CONFLICT (project_id, name) DO UPDATE SET revision = excluded.revision",
    )
    .bind(project.uuid())
    .bind(name)
    .bind(revision)
    .execute(db)
    .await
    .map(drop)
}

/// A ref is gone.
pub async fn ref_deleted(db: &mut PgConnection, project: ProjectId, name: &str) -> Found<()> {
    sqlx::query("DELETE FROM api.refs WHERE project_id = $1 AND name = $2")
        .bind(project.uuid())
        .bind(name)
        .execute(db)
        .await
        .map(drop)
}

/// Writes a delivery's row.
pub async fn delivery(db: &mut PgConnection, event: &DeliveryReceived, pusher: Option<UserId>) -> Found<()> {
    let reference = match &event.reference {
        GitRef::Branch(name) => format!("refs/heads/{name}"),
        GitRef::Tag(name) => format!("refs/tags/{name}"),
    };
    sqlx::query(
        "INSERT INTO api.deliveries (id, project_id, reference, before, revision, skip, pusher)
         VALUES ($1,$2,$3,$4,$5,$6,$7)",
    )
    .bind(event.delivery_id.uuid())
    .bind(event.project.id.uuid())
    .bind(reference)
    .bind(&event.before)
    .bind(&event.revision)
    .bind(event.skip)
    .bind(pusher.map(UserId::uuid))
    .execute(db)
    .await
    .map(drop)
}
