//! Rows of workflows, jobs and edges; the only place with SQL.

use crate::error::{Error, Result};
use contracts::{
    conductor::WorkflowState,
    domain::Project,
    pipelines::{Trigger, Vcs},
    trace::Trace,
};
use ids::{JobId, PipelineId, ProjectId, Timestamp, UserId, WorkflowId};
use model::{
    plan::JobPlan,
    ssh::Access,
    status::{JobStatus, WorkflowStatus},
    workflow::{Approver, Changes, Dependant, Event, Job, Kind, Root, StatusSet, Turn},
};
use sqlx::{PgConnection, Row, postgres::PgRow, types::Json};
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

/// A workflow that has not ended is looked at after so many days at the latest, and then canceled.
pub(crate) const DAYS: i32 = 90;

/// What is stored of a workflow beside its jobs.
#[derive(Clone, Debug)]
pub(crate) struct Workflow {
    pub id: WorkflowId,
    pub version: i64,
    pub pipeline_id: PipelineId,
    pub pipeline_number: i64,
    pub project: Project,
    pub name: String,
    pub root: Root,
    pub started_by: Option<UserId>,
    pub rerun_of: Option<WorkflowId>,
    pub workspace_id: WorkflowId,
    pub max_auto_reruns: i32,
    pub auto_rerun: i32,
    pub vcs: Vcs,
    pub trigger: Trigger,
    /// Of a plan that was too large for a message: where it lies.
    pub plan_digest: Option<String>,
    /// Who may enter its jobs by SSH, if it was rerun so.
    pub ssh: Option<Access>,
    pub created_at: Timestamp,
    /// The trace in which it began, and the span that it is below; `None`: of a version that did not keep it.
    pub trace: Option<Trace>,
}

impl Workflow {
    /// What becomes of it carries this, whoever moves it: a person who approves and another pipeline that leaves a serial
    /// group have traces of their own.
    pub fn within(&self) -> Option<Trace> {
        Some(self.trace?.of(self.id.uuid()))
    }

    /// Whether it is a rerun that was asked for, and not one that came by itself.
    pub fn was_asked_for(&self) -> bool {
        self.rerun_of.is_some() && self.auto_rerun == 0
    }

    /// As mutations return it.
    pub fn state(&self) -> WorkflowState {
        WorkflowState { id: self.id, version: self.version, status: self.root.status }
    }
}

/// A job that begins: what the dispatcher needs of it.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub name: String,
    pub plan: JobPlan,
    /// Upstream jobs, those that were carried over as the jobs that really ran.
    pub upstream: Vec<JobId>,
    /// The job whose failed tests are all that it runs.
    pub failed_tests_of: Option<JobId>,
}

/// A job that is stored for the first time.
#[derive(Debug)]
pub(crate) struct NewJob<'a> {
    pub job: &'a Job,
    pub plan: &'a JobPlan,
    pub requires: Vec<(JobId, StatusSet)>,
    /// Of a job whose success is kept: the job it was, and its number.
    pub carried: Option<(JobId, Option<i64>)>,
    /// The job whose failed tests are all that it runs.
    pub failed_tests_of: Option<JobId>,
}

/// A job of a workflow that is to be run again.
#[derive(Debug)]
pub(crate) struct Former {
    pub id: JobId,
    pub status: JobStatus,
    /// The job of an earlier instance whose success it kept.
    pub carried_from: Option<JobId>,
    pub number: Option<i64>,
    pub plan: JobPlan,
}

fn bad(table: &'static str, column: &'static str, id: Uuid, value: impl Into<String>) -> Error {
    Error::Row { table, column, id, value: value.into() }
}

fn workflow_of(row: &PgRow) -> Result<Workflow> {
    let id: Uuid = row.try_get("id")?;
    let status: String = row.try_get("status")?;
    let Json(counts) = row.try_get("counts")?;
    let Json(project) = row.try_get("project")?;
    let Json(vcs) = row.try_get("vcs")?;
    let Json(trigger) = row.try_get("trigger")?;
    Ok(Workflow {
        id: id.into(),
        version: row.try_get("version")?,
        pipeline_id: row.try_get::<Uuid, _>("pipeline_id")?.into(),
        pipeline_number: row.try_get("pipeline_number")?,
        project,
        name: row.try_get("name")?,
        root: Root {
            status: WorkflowStatus::parse(&status).ok_or_else(|| bad("workflows", "status", id, status))?,
            counts,
            turns: row.try_get::<i32, _>("turns")?.unsigned_abs(),
            cancel: row.try_get("cancel")?,
            error: row.try_get("error")?,
            ended_at: row.try_get("ended_at")?,
        },
        started_by: row.try_get::<Option<Uuid>, _>("started_by")?.map(Into::into),
        rerun_of: row.try_get::<Option<Uuid>, _>("rerun_of")?.map(Into::into),
        workspace_id: row.try_get::<Uuid, _>("workspace_id")?.into(),
        max_auto_reruns: row.try_get("max_auto_reruns")?,
        auto_rerun: row.try_get("auto_rerun")?,
        vcs,
        trigger,
        plan_digest: row.try_get("plan_digest")?,
        ssh: row.try_get::<Option<Json<Access>>, _>("ssh")?.map(|Json(access)| access),
        created_at: row.try_get("created_at")?,
        trace: row.try_get::<Option<String>, _>("trace")?.and_then(|trace| trace.parse().ok()),
    })
}

fn job_of(row: &PgRow) -> Result<Job> {
    let id: Uuid = row.try_get("id")?;
    let kind: String = row.try_get("kind")?;
    let status: String = row.try_get("status")?;
    let unmet: i32 = row.try_get("unmet")?;
    let turn: String = row.try_get("turn")?;
    let approver: Option<Uuid> = row.try_get("approver")?;
    let approver_at: Option<Timestamp> = row.try_get("approver_at")?;
    Ok(Job {
        id: id.into(),
        kind: Kind::parse(&kind).ok_or_else(|| bad("jobs", "kind", id, kind))?,
        status: JobStatus::parse(&status).ok_or_else(|| bad("jobs", "status", id, status))?,
        unmet: u32::try_from(unmet).map_err(|_| bad("jobs", "unmet", id, unmet.to_string()))?,
        turn: Turn::parse(&turn).ok_or_else(|| bad("jobs", "turn", id, turn))?,
        cancel_requested: row.try_get("cancel_requested")?,
        approver: approver.zip(approver_at).map(|(user, at)| Approver { user: user.into(), at }),
        reason: row.try_get("reason")?,
    })
}

/// A workflow's root.
pub(crate) async fn workflow(conn: &mut PgConnection, id: WorkflowId) -> Result<Option<Workflow>> {
    sqlx::query("SELECT * FROM conductor.workflows WHERE id = $1")
        .bind(id.uuid())
        .fetch_optional(conn)
        .await?
        .as_ref()
        .map(workflow_of)
        .transpose()
}

/// A job, if it belongs to the workflow.
pub(crate) async fn job(conn: &mut PgConnection, workflow: WorkflowId, id: JobId) -> Result<Option<Job>> {
    sqlx::query(
        "SELECT id, kind, status, unmet, turn, cancel_requested, approver, approver_at, reason \
         FROM conductor.jobs WHERE id = $1 AND workflow_id = $2",
    )
    .bind(id.uuid())
    .bind(workflow.uuid())
    .fetch_optional(conn)
    .await?
    .as_ref()
    .map(job_of)
    .transpose()
}

/// The workflow of a job; it never changes.
pub(crate) async fn workflow_of_job(conn: &mut PgConnection, id: JobId) -> Result<Option<WorkflowId>> {
    let id: Option<Uuid> = sqlx::query_scalar("SELECT workflow_id FROM conductor.jobs WHERE id = $1")
        .bind(id.uuid())
        .fetch_optional(conn)
        .await?;
    Ok(id.map(Into::into))
}

/// The jobs that directly wait for each of these, in file order.
pub(crate) async fn dependants(
    conn: &mut PgConnection,
    upstream: &[JobId],
) -> Result<HashMap<JobId, Vec<Dependant>>> {
    let ids: Vec<Uuid> = upstream.iter().map(|id| id.uuid()).collect();
    let rows = sqlx::query(
        "SELECT e.upstream, e.accepts, j.id, j.kind, j.status, j.unmet, j.turn, j.cancel_requested, j.approver, \
                j.approver_at, j.reason \
         FROM conductor.edges e JOIN conductor.jobs j ON j.id = e.job \
         WHERE e.upstream = ANY($1) AND j.ended_at IS NULL ORDER BY j.position",
    )
    .bind(&ids)
    .fetch_all(conn)
    .await?;
    let mut all: HashMap<JobId, Vec<Dependant>> = HashMap::new();
    for row in &rows {
        let upstream: Uuid = row.try_get("upstream")?;
        let words: Vec<String> = row.try_get("accepts")?;
        let accepts = words
            .iter()
            .map(|word| JobStatus::parse(word).ok_or_else(|| bad("edges", "accepts", upstream, word)))
            .collect::<Result<StatusSet>>()?;
        all.entry(upstream.into()).or_default().push(Dependant { job: job_of(row)?, accepts });
    }
    Ok(all)
}

/// All jobs of a workflow that have not ended, in file order.
pub(crate) async fn open_jobs(conn: &mut PgConnection, workflow: WorkflowId) -> Result<Vec<Job>> {
    sqlx::query(
        "SELECT id, kind, status, unmet, turn, cancel_requested, approver, approver_at, reason \
         FROM conductor.jobs WHERE workflow_id = $1 AND ended_at IS NULL ORDER BY position",
    )
    .bind(workflow.uuid())
    .fetch_all(conn)
    .await?
    .iter()
    .map(job_of)
    .collect()
}

/// What the dispatcher needs of jobs that begin.
pub(crate) async fn beginnings(conn: &mut PgConnection, jobs: &[JobId]) -> Result<HashMap<JobId, Beginning>> {
    let ids: Vec<Uuid> = jobs.iter().map(|id| id.uuid()).collect();
    let rows = sqlx::query(
        "SELECT j.id, j.name, j.plan, j.failed_tests_of, \
                ARRAY(SELECT coalesce(u.carried_from, u.id) FROM conductor.edges e JOIN conductor.jobs u ON u.id = e.upstream \
                      WHERE e.job = j.id ORDER BY u.position) AS upstream \
         FROM conductor.jobs j WHERE j.id = ANY($1)",
    )
    .bind(&ids)
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let Json(plan) = row.try_get("plan")?;
            let upstream: Vec<Uuid> = row.try_get("upstream")?;
            let beginning = Beginning {
                name: row.try_get("name")?,
                plan,
                upstream: upstream.into_iter().map(Into::into).collect(),
                failed_tests_of: row.try_get::<Option<Uuid>, _>("failed_tests_of")?.map(Into::into),
            };
            Ok((row.try_get::<Uuid, _>("id")?.into(), beginning))
        })
        .collect()
}

/// Keys of the serial groups to which these jobs belong.
pub(crate) async fn serial_groups(conn: &mut PgConnection, jobs: &[JobId]) -> Result<HashMap<JobId, String>> {
    let ids: Vec<Uuid> = jobs.iter().map(|id| id.uuid()).collect();
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "SELECT id, plan ->> 'serial_group' FROM conductor.jobs \
         WHERE id = ANY($1) AND plan ->> 'serial_group' IS NOT NULL",
    )
    .bind(&ids)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(id, group)| (id.into(), group)).collect())
}

/// Job numbers that were taken together.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    of: BTreeMap<JobId, i64>,
    /// The last one of the branch before them.
    before: Option<i64>,
}

impl Numbers {
    pub(crate) fn get(&self, job: JobId) -> Option<i64> {
        self.of.get(&job).copied()
    }

    /// The one before on the branch (execution §11.3).
    pub(crate) fn previous(&self, number: i64) -> Option<i64> {
        let first = self.of.values().min();
        if first.is_some_and(|first| *first < number) { Some(number - 1) } else { self.before }
    }
}

/// Takes the next job numbers of a project. Others of the project wait until the transaction ends: numbers have no holes. The
/// last one of the branch is the one that was seen before that wait: if two take numbers at once, it may be an older one.
pub(crate) async fn take_numbers(
    conn: &mut PgConnection,
    project: ProjectId,
    branch: Option<&str>,
    jobs: &[JobId],
) -> Result<Numbers> {
    let n = i64::try_from(jobs.len()).map_err(|_| Error::Message("too many jobs at once".into()))?;
    let (last, before): (i64, Option<i64>) = sqlx::query_as(
        "WITH taken AS ( \
             INSERT INTO conductor.project_counters AS c (project_id, jobs) VALUES ($1, $2) \
             ON CONFLICT (project_id) DO UPDATE SET jobs = c.jobs + $2 RETURNING jobs \
         ), kept AS ( \
             INSERT INTO conductor.branch_numbers (project_id, branch, last) \
             SELECT $1, $3, jobs FROM taken WHERE $3 IS NOT NULL \
             ON CONFLICT (project_id, branch) DO UPDATE SET last = excluded.last \
         ) \
         SELECT jobs, (SELECT last FROM conductor.branch_numbers WHERE project_id = $1 AND branch = $3) FROM taken",
    )
    .bind(project.uuid())
    .bind(n)
    .bind(branch)
    .fetch_one(conn)
    .await?;
    Ok(Numbers { of: jobs.iter().copied().zip(last - n + 1..).collect(), before })
}

/// Stores a workflow that does not exist yet, with all its jobs.
pub(crate) async fn insert(conn: &mut PgConnection, workflow: &Workflow, jobs: &[NewJob<'_>]) -> Result<()> {
    sqlx::query(
        "INSERT INTO conductor.workflows (id, version, pipeline_id, pipeline_number, project_id, project, name, status, \
             counts, started_by, rerun_of, workspace_id, max_auto_reruns, auto_rerun, vcs, trigger, created_at, \
             next_action_at, branch, plan_digest, ssh, trace) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, \
             $17 + make_interval(days => $18), $19, $20, $21, $22)",
    )
    .bind(workflow.id.uuid())
    .bind(workflow.version)
    .bind(workflow.pipeline_id.uuid())
    .bind(workflow.pipeline_number)
    .bind(workflow.project.id.uuid())
    .bind(Json(&workflow.project))
    .bind(&workflow.name)
    .bind(workflow.root.status.as_str())
    .bind(Json(&workflow.root.counts))
    .bind(workflow.started_by.map(|id| id.uuid()))
    .bind(workflow.rerun_of.map(|id| id.uuid()))
    .bind(workflow.workspace_id.uuid())
    .bind(workflow.max_auto_reruns)
    .bind(workflow.auto_rerun)
    .bind(Json(&workflow.vcs))
    .bind(Json(&workflow.trigger))
    .bind(workflow.created_at)
    .bind(DAYS)
    .bind(&workflow.vcs.branch)
    .bind(&workflow.plan_digest)
    .bind(workflow.ssh.as_ref().map(Json))
    .bind(workflow.trace.map(|trace| trace.to_string()))
    .execute(&mut *conn)
    .await?;

    let n = jobs.len();
    let (mut ids, mut names, mut kinds, mut statuses) =
        (Vec::with_capacity(n), Vec::with_capacity(n), Vec::with_capacity(n), Vec::with_capacity(n));
    let (mut unmets, mut turns, mut plans, mut froms, mut numbers, mut ended) = (
        Vec::with_capacity(n),
        Vec::with_capacity(n),
        Vec::with_capacity(n),
        Vec::<Option<Uuid>>::with_capacity(n),
        Vec::<Option<i64>>::with_capacity(n),
        Vec::<Option<Timestamp>>::with_capacity(n),
    );
    let mut tests = Vec::<Option<Uuid>>::with_capacity(n);
    let (mut upstreams, mut downstreams, mut accepts) = (Vec::new(), Vec::new(), Vec::<String>::new());
    for NewJob { job, plan, requires, carried, failed_tests_of } in jobs {
        tests.push(failed_tests_of.map(|of| of.uuid()));
        ids.push(job.id.uuid());
        names.push(plan.name.as_str());
        kinds.push(job.kind.as_str());
        statuses.push(job.status.as_str());
        unmets.push(i32::try_from(job.unmet).unwrap_or(i32::MAX));
        turns.push(job.turn.as_str());
        plans.push(serde_json::to_string(plan)?);
        froms.push(carried.map(|(from, _)| from.uuid()));
        numbers.push(carried.and_then(|(_, number)| number));
        ended.push(job.status.is_terminal().then_some(workflow.created_at));
        for (upstream, set) in requires {
            upstreams.push(upstream.uuid());
            downstreams.push(job.id.uuid());
            // Arrays of arrays must have one length; a list in a word needs no more than a split.
            accepts.push(set.iter().map(JobStatus::as_str).collect::<Vec<_>>().join(","));
        }
    }
    sqlx::query(
        "INSERT INTO conductor.jobs (id, workflow_id, position, name, kind, status, unmet, plan, carried_from, number, ended_at, turn, \
             failed_tests_of) \
         SELECT j.id, $1, (j.position - 1)::int, j.name, j.kind, j.status, j.unmet, j.plan::jsonb, j.carried_from, j.number, \
             j.ended_at, j.turn, j.failed_tests_of \
         FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::int4[], $7::text[], $8::uuid[], $9::int8[], \
                     $10::timestamptz[], $11::text[], $12::uuid[]) \
             WITH ORDINALITY AS j(id, name, kind, status, unmet, plan, carried_from, number, ended_at, turn, \
                                  failed_tests_of, position)",
    )
    .bind(workflow.id.uuid())
    .bind(&ids)
    .bind(&names)
    .bind(&kinds)
    .bind(&statuses)
    .bind(&unmets)
    .bind(&plans)
    .bind(&froms)
    .bind(&numbers)
    .bind(&ended)
    .bind(&turns)
    .bind(&tests)
    .execute(&mut *conn)
    .await?;
    if !upstreams.is_empty() {
        sqlx::query(
            "INSERT INTO conductor.edges (upstream, job, accepts) \
             SELECT e.upstream, e.job, string_to_array(e.accepts, ',') \
             FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS e(upstream, job, accepts)",
        )
        .bind(&upstreams)
        .bind(&downstreams)
        .bind(&accepts)
        .execute(conn)
        .await?;
    }
    Ok(())
}

/// Stores what a step changed: the root and the jobs that it touched. `retry` is when a revocation is asked for
/// again, if one is due.
pub(crate) async fn save(
    conn: &mut PgConnection,
    workflow: &Workflow,
    changes: &Changes,
    numbers: &Numbers,
    retry: Option<Timestamp>,
    now: Timestamp,
) -> Result<()> {
    let root = &changes.root;
    let done = sqlx::query(
        "UPDATE conductor.workflows SET version = $2, status = $3, counts = $4, cancel = $5, error = $6, ended_at = $7, turns = $9, \
             next_action_at = CASE WHEN $7::timestamptz IS NULL THEN least(next_action_at, $8) END \
         WHERE id = $1 AND version < $2",
    )
    .bind(workflow.id.uuid())
    .bind(workflow.version)
    .bind(root.status.as_str())
    .bind(Json(&root.counts))
    .bind(root.cancel)
    .bind(root.error)
    .bind(root.ended_at)
    .bind(retry)
    .bind(i32::try_from(root.turns).unwrap_or(i32::MAX))
    .execute(&mut *conn)
    .await?;
    if done.rows_affected() != 1 {
        return Err(eventstore::Error::Conflict.into());
    }
    if changes.jobs.is_empty() {
        return Ok(());
    }

    let mut started: HashMap<JobId, Timestamp> = HashMap::new();
    let mut ended: HashMap<JobId, Timestamp> = HashMap::new();
    let mut wanted: HashMap<JobId, Timestamp> = HashMap::new();
    for event in &changes.events {
        match event {
            Event::JobRunning { job, at } => started.insert(*job, *at),
            Event::JobEnded { job, at, .. } => ended.insert(*job, *at),
            Event::TurnWanted { job } => wanted.insert(*job, now),
            _ => None,
        };
    }
    let n = changes.jobs.len();
    let (mut ids, mut statuses, mut unmets, mut cancels) =
        (Vec::with_capacity(n), Vec::with_capacity(n), Vec::with_capacity(n), Vec::with_capacity(n));
    let (mut approvers, mut approver_ats, mut reasons) = (
        Vec::<Option<Uuid>>::with_capacity(n),
        Vec::<Option<Timestamp>>::with_capacity(n),
        Vec::<Option<&str>>::with_capacity(n),
    );
    let (mut readies, mut starts, mut ends, mut numbered) = (
        Vec::<Option<Timestamp>>::with_capacity(n),
        Vec::<Option<Timestamp>>::with_capacity(n),
        Vec::<Option<Timestamp>>::with_capacity(n),
        Vec::<Option<i64>>::with_capacity(n),
    );
    let (mut turns, mut turns_wanted) = (Vec::with_capacity(n), Vec::<Option<Timestamp>>::with_capacity(n));
    for job in changes.jobs.values() {
        turns.push(job.turn.as_str());
        turns_wanted.push(wanted.get(&job.id).copied());
        ids.push(job.id.uuid());
        statuses.push(job.status.as_str());
        unmets.push(i32::try_from(job.unmet).unwrap_or(i32::MAX));
        cancels.push(job.cancel_requested);
        approvers.push(job.approver.map(|approver| approver.user.uuid()));
        approver_ats.push(job.approver.map(|approver| approver.at));
        reasons.push(job.reason.as_deref());
        readies.push(numbers.get(job.id).is_some().then_some(now));
        starts.push(started.get(&job.id).copied());
        ends.push(ended.get(&job.id).copied());
        numbered.push(numbers.get(job.id));
    }
    let done = sqlx::query(
        "UPDATE conductor.jobs j SET status = n.status, unmet = n.unmet, cancel_requested = n.cancel_requested, \
             approver = n.approver, approver_at = n.approver_at, reason = n.reason, \
             ready_at = coalesce(j.ready_at, n.ready_at), started_at = coalesce(j.started_at, n.started_at), \
             ended_at = n.ended_at, number = coalesce(j.number, n.number), turn = n.turn, \
             turn_wanted_at = coalesce(j.turn_wanted_at, n.turn_wanted_at), \
             since = CASE WHEN (j.status, j.turn) = (n.status, n.turn) THEN j.since ELSE $14 END \
         FROM unnest($1::uuid[], $2::text[], $3::int4[], $4::bool[], $5::uuid[], $6::timestamptz[], $7::text[], \
                     $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::int8[], $12::text[], $13::timestamptz[]) \
             AS n(id, status, unmet, cancel_requested, approver, approver_at, reason, ready_at, started_at, ended_at, number, \
                  turn, turn_wanted_at) \
         WHERE j.id = n.id",
    )
    .bind(&ids)
    .bind(&statuses)
    .bind(&unmets)
    .bind(&cancels)
    .bind(&approvers)
    .bind(&approver_ats)
    .bind(&reasons)
    .bind(&readies)
    .bind(&starts)
    .bind(&ends)
    .bind(&numbered)
    .bind(&turns)
    .bind(&turns_wanted)
    .bind(now)
    .execute(conn)
    .await?;
    if usize::try_from(done.rows_affected()).ok() != Some(n) {
        return Err(eventstore::Error::Conflict.into());
    }
    Ok(())
}

/// All jobs of a workflow, in file order, for a rerun.
pub(crate) async fn former_jobs(conn: &mut PgConnection, workflow: WorkflowId) -> Result<Vec<Former>> {
    let rows = sqlx::query(
        "SELECT id, status, number, plan, carried_from FROM conductor.jobs WHERE workflow_id = $1 ORDER BY position",
    )
    .bind(workflow.uuid())
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let id: Uuid = row.try_get("id")?;
            let status: String = row.try_get("status")?;
            let Json(plan) = row.try_get("plan")?;
            Ok(Former {
                id: id.into(),
                status: JobStatus::parse(&status).ok_or_else(|| bad("jobs", "status", id, status))?,
                carried_from: row.try_get::<Option<Uuid>, _>("carried_from")?.map(Into::into),
                number: row.try_get("number")?,
                plan,
            })
        })
        .collect()
}

/// A job because of which a workflow did not succeed.
pub(crate) struct Spoiler {
    /// How it ended.
    pub status: JobStatus,
    /// How often it may be run again if it was lost with its machine.
    pub reruns: i32,
}

/// What kept a workflow from success, jobs aside that only could not run any more.
pub(crate) async fn spoilers(conn: &mut PgConnection, workflow: WorkflowId) -> Result<Vec<Spoiler>> {
    let rows = sqlx::query(
        "SELECT id, status, coalesce((plan #>> '{kind,definition,auto_rerun_on_infra_fail}')::int, 0) AS reruns \
         FROM conductor.jobs WHERE workflow_id = $1 AND status NOT IN ('success', 'not_run')",
    )
    .bind(workflow.uuid())
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let (id, status): (Uuid, String) = (row.try_get("id")?, row.try_get("status")?);
            let status = JobStatus::parse(&status).ok_or_else(|| bad("jobs", "status", id, status))?;
            Ok(Spoiler { status, reruns: row.try_get("reruns")? })
        })
        .collect()
}

/// How many instances of a workflow there are, the first one included.
pub(crate) async fn instances(conn: &mut PgConnection, workspace: WorkflowId) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM conductor.workflows WHERE workspace_id = $1")
        .bind(workspace.uuid())
        .fetch_one(conn)
        .await?)
}

/// Workflows at which somebody has to look now.
pub(crate) async fn due(conn: &mut PgConnection, limit: i64) -> Result<Vec<WorkflowId>> {
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM conductor.workflows WHERE ended_at IS NULL AND next_action_at <= clock_timestamp() \
         ORDER BY next_action_at LIMIT $1",
    )
    .bind(limit)
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(Into::into).collect())
}

/// Jobs at the dispatcher that somebody canceled, themselves or with their workflow.
pub(crate) async fn to_revoke(conn: &mut PgConnection, workflow: WorkflowId) -> Result<Vec<JobId>> {
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "SELECT j.id FROM conductor.jobs j JOIN conductor.workflows w ON w.id = j.workflow_id \
         WHERE j.workflow_id = $1 AND j.ended_at IS NULL AND j.status IN ('queued', 'not_running', 'running') \
           AND j.turn <> 'wanted' AND (w.cancel OR j.cancel_requested) ORDER BY j.position",
    )
    .bind(workflow.uuid())
    .fetch_all(conn)
    .await?;
    Ok(ids.into_iter().map(Into::into).collect())
}

/// Sets when somebody looks at a workflow next, if it has not ended.
pub(crate) async fn look_again(conn: &mut PgConnection, workflow: WorkflowId, at: Timestamp) -> Result<()> {
    sqlx::query(
        "UPDATE conductor.workflows SET next_action_at = least($2, created_at + make_interval(days => $3)) \
         WHERE id = $1 AND ended_at IS NULL",
    )
    .bind(workflow.uuid())
    .bind(at)
    .bind(DAYS)
    .execute(conn)
    .await?;
    Ok(())
}
