//! The line for slots, read from the rows: who waits, who holds what, and who gets a slot now. Tasks of self-hosted
//! runners, whose classes have a `/`, stand in lines of their own.

use crate::{classes::Classes, state::State, store::RunRow};
use contracts::{
    NewEvent,
    dispatcher::{Demand, TaskQueued},
};
use eventstore::Tx;
use ids::{OrgId, ProjectId, TaskId};
use model::queue::{self, Held, Owner, Waiting};
use sqlx::PgConnection;
use std::collections::HashMap;
use uuid::Uuid;

/// The slots that are held. Exact under the lock of slots.
pub async fn held(conn: &mut PgConnection) -> sqlx::Result<Held> {
    let rows: Vec<(Uuid, Option<Uuid>, String, i64)> = sqlx::query_as(
        "SELECT org_id, project_id, resource_class, count(*) FROM dispatcher.tasks \
         WHERE state IN ('queued', 'leased') AND resource_class NOT LIKE '%/%' GROUP BY 1, 2, 3",
    )
    .fetch_all(conn)
    .await?;
    let mut held = Held::default();
    for (org, project, class, n) in rows {
        held.add(&owner(org, project, class), u32::try_from(n).unwrap_or(u32::MAX));
    }
    Ok(held)
}

/// The oldest waiting tasks of each owner, at most `each` of one: a line of ten thousand costs no more than its head.
pub async fn waiting(conn: &mut PgConnection, each: i64) -> sqlx::Result<Vec<Waiting<Uuid>>> {
    let rows: Vec<(Uuid, Option<Uuid>, String, Uuid, i64)> = sqlx::query_as(
        "WITH RECURSIVE owners AS ( \
             (SELECT org_id, project_id, resource_class FROM dispatcher.tasks WHERE state = 'waiting' AND resource_class NOT LIKE '%/%' \
              ORDER BY org_id, project_id, resource_class LIMIT 1) \
             UNION ALL \
             SELECT n.org_id, n.project_id, n.resource_class FROM owners o, LATERAL ( \
                 SELECT t.org_id, t.project_id, t.resource_class FROM dispatcher.tasks t WHERE t.state = 'waiting' AND t.resource_class NOT LIKE '%/%' \
                     AND (t.org_id, t.project_id, t.resource_class) > (o.org_id, o.project_id, o.resource_class) \
                 ORDER BY t.org_id, t.project_id, t.resource_class LIMIT 1) n) \
         SELECT o.org_id, o.project_id, o.resource_class, t.task_id, t.position FROM owners o, LATERAL ( \
             SELECT task_id, position FROM dispatcher.tasks t WHERE t.state = 'waiting' AND t.org_id = o.org_id \
                 AND t.project_id = o.project_id AND t.resource_class = o.resource_class ORDER BY position LIMIT $1) t",
    )
    .bind(each)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(org, project, class, task, position)| Waiting {
            task,
            position,
            owner: owner(org, project, class),
        })
        .collect())
}

/// By what limits count a task.
pub fn owner(org: Uuid, project: Option<Uuid>, class: String) -> Owner {
    Owner { org: OrgId(org), project: ProjectId(project.unwrap_or_default()), class }
}

#[derive(sqlx::FromRow)]
struct Taken {
    task_id: Uuid,
    index: i32,
    epoch: i64,
    resource_class: String,
    executor: Option<String>,
    #[sqlx(flatten)]
    run: RunRow,
}

/// Gives free slots to those whose turn it is and announces them. Needs the lock of slots.
pub async fn fill(tx: &mut Tx, state: &State) -> sqlx::Result<Vec<NewEvent>> {
    // While no new work is taken everybody keeps their place in line; the sweeper looks again.
    if state.bus.admission().check().is_err() {
        return Ok(Vec::new());
    }
    let held = held(tx.conn()).await?;
    let limits = state.config.limits();
    let free = limits.slots.saturating_sub(held.total());
    if free == 0 {
        return Ok(Vec::new());
    }
    let waiting = waiting(tx.conn(), free.into()).await?;
    let granted = queue::grant(waiting, &held, &limits);
    if granted.is_empty() {
        return Ok(Vec::new());
    }
    let mut taken: Vec<Taken> = sqlx::query_as(
        "UPDATE dispatcher.tasks t SET state = 'queued', epoch = t.epoch + 1, queued_at = clock_timestamp(), \
             next_action_at = clock_timestamp() + $2 \
         FROM dispatcher.runs r WHERE t.task_id = ANY($1) AND t.state = 'waiting' AND r.job_id = t.job_id \
         RETURNING t.task_id, t.index, t.epoch, t.resource_class, r.ready #>> '{definition,executor,kind}' AS executor, \
             r.job_id, r.workflow_id, r.org_id, r.project_id, r.pipeline_id, r.state, r.trace",
    )
    .bind(&granted)
    .bind(state.config.claim_timeout)
    .fetch_all(tx.conn())
    .await?;
    let order: HashMap<Uuid, usize> = granted.into_iter().enumerate().map(|(at, task)| (task, at)).collect();
    taken.sort_by_key(|task| order.get(&task.task_id).copied());
    Ok(taken
        .into_iter()
        .map(|Taken { task_id, index, epoch, resource_class, executor, run }| {
            let demand = demand(&state.config.classes, &executor.unwrap_or_default(), &resource_class);
            let body = TaskQueued {
                task_id: TaskId(task_id),
                job_id: run.job(),
                workflow_id: run.workflow(),
                index: u32::try_from(index).unwrap_or_default(),
                epoch,
                resource_class,
                demand: Some(demand),
            };
            run.event("task", task_id, &body)
        })
        .collect())
}

/// What compute must find for a task. A class that is no longer known, which a job that was admitted may have, asks for
/// nothing in particular.
pub fn demand(classes: &Classes, executor: &str, class: &str) -> Demand {
    let resources = classes.named(executor, class).unwrap_or_default();
    Demand {
        executor: executor.to_owned(),
        class: resources.class,
        cpu_millis: resources.cpu_millis,
        memory_bytes: resources.memory_bytes,
    }
}
