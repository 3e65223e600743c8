//! SQL of tasks; that of what agents upload is in [`crate::stores`].

use contracts::dispatcher::TaskQueued;
use ids::TaskId;
use sqlx::{PgConnection, PgPool};
use std::collections::HashMap;
use uuid::Uuid;

/// What is known of a task beside its journal.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    pub(crate) closed_to: i64,
    pub(crate) index: Option<u32>,
}

/// Fences and indexes of tasks; of those without a row nothing.
pub(crate) async fn known(pool: &PgPool, tasks: &[TaskId]) -> sqlx::Result<HashMap<TaskId, Known>> {
    let ids: Vec<Uuid> = tasks.iter().map(|task| task.uuid()).collect();
    let rows: Vec<(Uuid, Option<i64>, Option<i32>)> = sqlx::query_as(
        "SELECT t.id, f.closed_to, k.index FROM unnest($1::uuid[]) AS t (id)
         LEFT JOIN output_processor.fences f ON f.task_id = t.id
         LEFT JOIN output_processor.tasks k ON k.task_id = t.id",
    )
    .bind(ids)
    .fetch_all(pool)
    .await?;
    let known = rows.into_iter().map(|(id, closed_to, index)| {
        let index = index.and_then(|index| u32::try_from(index).ok());
        (TaskId(id), Known { closed_to: closed_to.unwrap_or_default(), index })
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
