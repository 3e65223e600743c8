//! SQL of tasks; that of what agents upload is in [`crate::stores`].

use contracts::{Event, dispatcher::TaskQueued, output::StepReported};
use ids::{JobId, StepId, TaskId, Timestamp};
use sqlx::{PgConnection, PgPool};
use std::collections::HashMap;
use uuid::Uuid;

/// What is known of a task beside its journal.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    pub(crate) closed_to: i64,
    pub(crate) index: Option<u32>,
    /// The journal that holds it.
    pub(crate) owner: Option<Uuid>,
}

/// A task whose record is complete up to an epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fence {
    pub(crate) task: TaskId,
    pub(crate) closed_to: i64,
}

fn fences(rows: Vec<(Uuid, i64)>) -> Vec<Fence> {
    rows.into_iter().map(|(task, closed_to)| Fence { task: TaskId(task), closed_to }).collect()
}

/// A journal, and where its process is reached.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Journal {
    pub(crate) id: Uuid,
    pub(crate) url: String,
}

/// Fences and indexes of tasks; of those without a row nothing.
pub(crate) async fn known(pool: &PgPool, tasks: &[TaskId]) -> sqlx::Result<HashMap<TaskId, Known>> {
    let ids: Vec<Uuid> = tasks.iter().map(|task| task.uuid()).collect();
    type Row = (Uuid, Option<i64>, Option<i32>, Option<Uuid>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT t.id, f.closed_to, k.index, o.journal FROM unnest($1::uuid[]) AS t (id)
         LEFT JOIN output_processor.fences f ON f.task_id = t.id
         LEFT JOIN output_processor.tasks k ON k.task_id = t.id
         LEFT JOIN output_processor.owners o ON o.task_id = t.id",
    )
    .bind(ids)
    .fetch_all(pool)
    .await?;
    let known = rows.into_iter().map(|(id, closed_to, index, owner)| {
        let index = index.and_then(|index| u32::try_from(index).ok());
        (TaskId(id), Known { closed_to: closed_to.unwrap_or_default(), index, owner })
    });
    Ok(known.collect())
}

/// Records that the record of these epochs is complete and nothing more is accepted.
pub(crate) async fn close(pool: &PgPool, task: TaskId, epoch: i64) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO output_processor.fences AS f (task_id, closed_to) VALUES ($1, $2)
         ON CONFLICT (task_id) DO UPDATE SET closed_to = excluded.closed_to, closed_at = clock_timestamp()
         WHERE f.closed_to < excluded.closed_to",
    )
    .bind(task.uuid())
    .bind(epoch)
    .execute(pool)
    .await?;
    Ok(())
}

/// Fences in the order of their tasks, after one of them.
pub(crate) async fn fences_after(
    pool: &PgPool,
    after: Option<TaskId>,
    limit: i64,
) -> sqlx::Result<Vec<Fence>> {
    let rows = sqlx::query_as(
        "SELECT task_id, closed_to FROM output_processor.fences WHERE task_id > $1 ORDER BY task_id LIMIT $2",
    )
    .bind(after.map_or_else(Uuid::nil, |task| task.uuid()))
    .bind(limit)
    .fetch_all(pool)
    .await?;
    Ok(fences(rows))
}

/// Fences that closed before a time.
pub(crate) async fn closed_before(pool: &PgPool, before: Timestamp, limit: i64) -> sqlx::Result<Vec<Fence>> {
    let rows = sqlx::query_as(
        "SELECT task_id, closed_to FROM output_processor.fences WHERE closed_at < $1 ORDER BY closed_at LIMIT $2",
    )
    .bind(before)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    Ok(fences(rows))
}

/// Fences of a job's tasks.
pub(crate) async fn fences_of_job(pool: &PgPool, job: JobId) -> sqlx::Result<Vec<Fence>> {
    let rows = sqlx::query_as(
        "SELECT f.task_id, f.closed_to FROM output_processor.tasks t JOIN output_processor.fences f USING (task_id)
         WHERE t.job_id = $1",
    )
    .bind(job.uuid())
    .fetch_all(pool)
    .await?;
    Ok(fences(rows))
}

/// Of these tasks, each with its job if that is known, those that are kept: their job is not about to go, and they were
/// closed since a time, if one is given. With the epoch that they are closed up to.
pub(crate) async fn kept(
    pool: &PgPool,
    tasks: &[(TaskId, Option<JobId>)],
    since: Option<Timestamp>,
) -> sqlx::Result<HashMap<TaskId, i64>> {
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT t.id, f.closed_to FROM unnest($1::uuid[], $2::uuid[]) AS t (id, job)
         JOIN output_processor.fences f ON f.task_id = t.id
         LEFT JOIN output_processor.tasks k ON k.task_id = t.id
         WHERE ($3::timestamptz IS NULL OR f.closed_at >= $3)
           AND NOT EXISTS (SELECT FROM output_processor.expiring x WHERE x.id IN (t.job, k.job_id))",
    )
    .bind(tasks.iter().map(|(task, _)| task.uuid()).collect::<Vec<_>>())
    .bind(tasks.iter().map(|(_, job)| job.map(|job| job.uuid())).collect::<Vec<_>>())
    .bind(since)
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|(task, closed_to)| (TaskId(task), closed_to)).collect())
}

/// Steps of tasks, as the events tell of them: all that a complete record has.
pub(crate) async fn told(pool: &PgPool, tasks: &[TaskId]) -> sqlx::Result<HashMap<TaskId, Vec<StepId>>> {
    let rows: Vec<(Uuid, Uuid)> = sqlx::query_as(
        "SELECT DISTINCT aggregate_id, (body #>> '{step,step_id}')::uuid FROM output_processor.events
         WHERE aggregate_kind = 'record' AND aggregate_id = ANY($1) AND kind = $2",
    )
    .bind(tasks.iter().map(|task| task.uuid()).collect::<Vec<_>>())
    .bind(StepReported::TYPE)
    .fetch_all(pool)
    .await?;
    let mut told: HashMap<TaskId, Vec<StepId>> = HashMap::new();
    for (task, step) in rows {
        told.entry(TaskId(task)).or_default().push(StepId(step));
    }
    Ok(told)
}

/// Journals beside this one that hold tasks.
pub(crate) async fn holders(pool: &PgPool, me: Uuid) -> sqlx::Result<Vec<Journal>> {
    sqlx::query_as(
        "SELECT DISTINCT o.journal AS id, coalesce(j.url, '') AS url FROM output_processor.owners o
         LEFT JOIN output_processor.journals j ON j.id = o.journal WHERE o.journal <> $1",
    )
    .bind(me)
    .fetch_all(pool)
    .await
}

/// Says where the process of a journal is reached.
pub(crate) async fn opened(pool: &PgPool, journal: Uuid, url: &str) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO output_processor.journals (id, url) VALUES ($1, $2)
         ON CONFLICT (id) DO UPDATE SET url = excluded.url, opened = clock_timestamp()",
    )
    .bind(journal)
    .bind(url)
    .execute(pool)
    .await?;
    Ok(())
}

/// All journals but this one.
pub(crate) async fn journals(pool: &PgPool, but: Uuid) -> sqlx::Result<Vec<Journal>> {
    sqlx::query_as("SELECT id, url FROM output_processor.journals WHERE id <> $1 ORDER BY id")
        .bind(but)
        .fetch_all(pool)
        .await
}

/// Whose a task is, if it is anybody's.
pub(crate) async fn owner(pool: &PgPool, task: TaskId) -> sqlx::Result<Option<Journal>> {
    sqlx::query_as(
        "SELECT o.journal AS id, coalesce(j.url, '') AS url FROM output_processor.owners o
         LEFT JOIN output_processor.journals j ON j.id = o.journal WHERE o.task_id = $1",
    )
    .bind(task.uuid())
    .fetch_optional(pool)
    .await
}

/// Makes a task this journal's unless it is somebody's; whose it is then.
pub(crate) async fn claim(pool: &PgPool, task: TaskId, me: Uuid) -> sqlx::Result<Journal> {
    sqlx::query_as(
        "WITH row AS (INSERT INTO output_processor.owners AS o (task_id, journal) VALUES ($1, $2)
                      ON CONFLICT (task_id) DO UPDATE SET journal = o.journal RETURNING o.journal)
         SELECT row.journal AS id, coalesce(j.url, '') AS url FROM row
         LEFT JOIN output_processor.journals j ON j.id = row.journal",
    )
    .bind(task.uuid())
    .bind(me)
    .fetch_one(pool)
    .await
}

/// The same for tasks that are nobody's.
pub(crate) async fn claim_all(pool: &PgPool, tasks: &[TaskId], me: Uuid) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO output_processor.owners (task_id, journal) SELECT id, $2 FROM unnest($1::uuid[]) AS t (id)
         ON CONFLICT (task_id) DO NOTHING",
    )
    .bind(tasks.iter().map(|task| task.uuid()).collect::<Vec<_>>())
    .bind(me)
    .execute(pool)
    .await?;
    Ok(())
}

/// Makes tasks of this journal nobody's: all that is left of them lies in the records.
pub(crate) async fn disown(pool: &PgPool, tasks: &[TaskId], me: Uuid) -> sqlx::Result<()> {
    if tasks.is_empty() {
        return Ok(());
    }
    sqlx::query("DELETE FROM output_processor.owners WHERE task_id = ANY($1) AND journal = $2")
        .bind(tasks.iter().map(|task| task.uuid()).collect::<Vec<_>>())
        .bind(me)
        .execute(pool)
        .await?;
    Ok(())
}

/// Gives all tasks of a journal to another.
pub(crate) async fn hand_over(pool: &PgPool, from: Uuid, to: Uuid) -> sqlx::Result<()> {
    let mut tx = pool.begin().await?;
    sqlx::query("UPDATE output_processor.owners SET journal = $2 WHERE journal = $1")
        .bind(from)
        .bind(to)
        .execute(&mut *tx)
        .await?;
    sqlx::query("DELETE FROM output_processor.journals WHERE id = $1").bind(from).execute(&mut *tx).await?;
    tx.commit().await
}

/// Journals beside this one that hold tasks of a job.
pub(crate) async fn owners_of_job(pool: &PgPool, job: JobId, me: Uuid) -> sqlx::Result<Vec<Journal>> {
    sqlx::query_as(
        "SELECT DISTINCT j.id, j.url FROM output_processor.tasks t
         JOIN output_processor.owners o USING (task_id) JOIN output_processor.journals j ON j.id = o.journal
         WHERE t.job_id = $1 AND o.journal <> $2",
    )
    .bind(job.uuid())
    .bind(me)
    .fetch_all(pool)
    .await
}

/// Of these tasks those that another journal holds, and which.
pub(crate) async fn held_elsewhere(
    pool: &PgPool,
    tasks: &[TaskId],
    me: Uuid,
) -> sqlx::Result<HashMap<TaskId, Journal>> {
    let rows: Vec<(Uuid, Uuid, String)> = sqlx::query_as(
        "SELECT o.task_id, j.id, j.url FROM output_processor.owners o
         JOIN output_processor.journals j ON j.id = o.journal WHERE o.task_id = ANY($1) AND o.journal <> $2",
    )
    .bind(tasks.iter().map(|task| task.uuid()).collect::<Vec<_>>())
    .bind(me)
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|(task, id, url)| (TaskId(task), Journal { id, url })).collect())
}

/// Remembers the parallel indexes of tasks.
pub(crate) async fn learn(conn: &mut PgConnection, tasks: &[TaskQueued]) -> sqlx::Result<()> {
    let ids: Vec<Uuid> = tasks.iter().map(|task| task.task_id.uuid()).collect();
    let jobs: Vec<Uuid> = tasks.iter().map(|task| task.job_id.uuid()).collect();
    let indexes: Vec<i32> = tasks.iter().map(|task| i32::try_from(task.index).unwrap_or_default()).collect();
    sqlx::query(
        "INSERT INTO output_processor.tasks (task_id, job_id, index)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int[]) ON CONFLICT (task_id) DO NOTHING",
    )
    .bind(ids)
    .bind(jobs)
    .bind(indexes)
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets tasks that are past their retention. Their lease tokens expired long ago.
pub(crate) async fn forget(pool: &PgPool, tasks: &[Uuid]) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM output_processor.tasks WHERE task_id = ANY($1)")
        .bind(tasks)
        .execute(pool)
        .await?;
    sqlx::query("DELETE FROM output_processor.fences WHERE task_id = ANY($1)")
        .bind(tasks)
        .execute(pool)
        .await?;
    Ok(())
}
