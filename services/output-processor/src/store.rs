//! SQL of tasks; that of what agents upload is in [`crate::stores`].

use contracts::dispatcher::TaskQueued;
use ids::{JobId, TaskId};
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
