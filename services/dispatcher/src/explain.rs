//! What a job's tasks wait for, in words and numbers.

use crate::{
    config::Config,
    line, runners,
    state::State,
    store::{self},
};
use contracts::{RequestError, conductor::Wait, request::Refusal};
use ids::{JobId, Timestamp};
use model::queue::{self, Barrier};
use sqlx::PgConnection;
use std::collections::HashMap;
use uuid::Uuid;

/// Of so many waiting tasks of each owner the place is told exactly.
const EXACT: i64 = 10_000;

#[derive(sqlx::FromRow)]
struct Task {
    task_id: Uuid,
    index: i32,
    state: String,
    org_id: Uuid,
    project_id: Option<Uuid>,
    resource_class: String,
    requeues: i32,
    cancel_requested: bool,
    placement: Option<String>,
    silent: bool,
    created_at: Timestamp,
    queued_at: Option<Timestamp>,
    renewed_at: Option<Timestamp>,
}

/// One entry for each task that waits or does not answer; a task that runs, or has ended, waits for nothing.
pub async fn explain(state: &State, job: JobId) -> Result<Vec<Wait>, RequestError> {
    let failed = |error: sqlx::Error| bus::failed(store::SERVICE)(error);
    let mut conn = state.store.pool().acquire().await.map_err(failed)?;
    let tasks: Vec<Task> = sqlx::query_as(
        "SELECT task_id, index, state, org_id, project_id, resource_class, requeues, cancel_requested, placement, created_at, queued_at, \
             renewed_at, state = 'leased' AND coalesce(renewed_at + $2 < clock_timestamp(), false) AS silent \
         FROM dispatcher.tasks WHERE job_id = $1 ORDER BY index",
    )
    .bind(job.uuid())
    .bind(state.config.unreachable)
    .fetch_all(&mut *conn)
    .await
    .map_err(failed)?;
    if tasks.is_empty() {
        let known: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM dispatcher.runs WHERE job_id = $1)")
                .bind(job.uuid())
                .fetch_one(&mut *conn)
                .await
                .map_err(failed)?;
        return if known { Ok(Vec::new()) } else { Err(Refusal::not_found("job").into()) };
    }
    if let Err(closed) = state.bus.admission().check()
        && tasks.iter().any(|task| task.state == "waiting")
    {
        return Ok(vec![Wait {
            kind: closed.code,
            text: format!("no task starts: {}", closed.message),
            ..Wait::default()
        }]);
    }
    let waits = |task: &Task| task.state == "waiting";
    if let Some(first) =
        tasks.iter().find(|task| waits(task) && runners::is_self_hosted(&task.resource_class))
    {
        let class = runners::served(&mut conn, first.org_id, &first.resource_class).await.map_err(failed)?;
        let line = runner_line(&mut conn, first).await.map_err(failed)?;
        let one = |task: &Task| match waits(task) {
            true => Some(for_runner(task, &class, &line)),
            false => wait(task, None, &state.config),
        };
        return Ok(tasks.iter().filter_map(one).collect());
    }
    let line =
        if tasks.iter().any(waits) { Some(Line::read(&mut conn).await.map_err(failed)?) } else { None };
    Ok(tasks.iter().filter_map(|task| wait(task, line.as_ref(), &state.config)).collect())
}

/// The whole line, as it stands.
struct Line {
    held: queue::Held,
    places: HashMap<Uuid, u64>,
}

impl Line {
    async fn read(conn: &mut PgConnection) -> sqlx::Result<Self> {
        let held = line::held(conn).await?;
        let order = queue::order(line::waiting(conn, EXACT).await?, &held);
        Ok(Self { held, places: order.into_iter().zip(1..).collect() })
    }
}

fn wait(task: &Task, line: Option<&Line>, config: &Config) -> Option<Wait> {
    let base = Wait { index: u32::try_from(task.index).ok(), ..Wait::default() };
    let what = format!("task {}", task.index);
    Some(match task.state.as_str() {
        "waiting" => in_line(task, line?, config, base),
        "queued" => {
            let again = match task.requeues {
                0 => String::new(),
                n => format!("; it was queued again {n} times because no agent came"),
            };
            match &task.placement {
                Some(why) => {
                    let text = format!("{what} has a slot and waits for a machine{again}: {why}");
                    Wait { kind: "placement".into(), text, since: task.queued_at, ..base }
                }
                None => {
                    let text = format!("{what} has a slot and waits for its agent to start{again}");
                    Wait { kind: "runner".into(), text, since: task.queued_at, ..base }
                }
            }
        }
        "leased" if task.silent => {
            let text = format!(
                "{what} runs, and its agent has not been heard of; without news it is given up when its lease ends"
            );
            Wait { kind: "runner".into(), text, since: task.renewed_at, ..base }
        }
        "leased" if task.cancel_requested => {
            Wait { kind: "stop".into(), text: format!("{what} was told to stop"), since: None, ..base }
        }
        _ => return None,
    })
}

/// Tasks that wait for runners of the class, in their order.
async fn runner_line(conn: &mut PgConnection, task: &Task) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar(
        "SELECT task_id FROM dispatcher.tasks WHERE state = 'waiting' AND resource_class LIKE '%/%' AND org_id = $1 \
             AND resource_class = $2 ORDER BY position LIMIT $3",
    )
    .bind(task.org_id)
    .bind(&task.resource_class)
    .bind(EXACT)
    .fetch_all(conn)
    .await
}

fn for_runner(task: &Task, class: &runners::Served, line: &[Uuid]) -> Wait {
    let name = &task.resource_class;
    let place = line.iter().position(|id| *id == task.task_id).and_then(|at| u64::try_from(at + 1).ok());
    let count = u64::try_from(line.len()).ok();
    let why = match (class.known, class.connected, &class.last) {
        (false, ..) => format!(
            "the organisation has no such class; `gantry runner resource-class create {name}` makes it, and a runner with \
             a token of it then takes the task"
        ),
        (true, 0, None) => "no runner has ever connected; start one with a token of the class \
                            (`gantry runner token create`)"
            .to_owned(),
        (true, 0, Some((runner, at))) => {
            let at = at.format("%Y-%m-%d %H:%M:%S UTC");
            format!("no runner is connected; {runner} was last heard of at {at}: start it again")
        }
        (true, n, _) => {
            let place = place.map_or_else(|| "far back".to_owned(), |place| format!("number {place}"));
            format!("{n} connected, none free; it is {place} of {} in line", count.unwrap_or_default())
        }
    };
    Wait {
        kind: "runner".into(),
        text: format!("task {} waits for a runner of the resource class {name}: {why}", task.index),
        since: Some(task.created_at),
        place,
        line: count,
        index: u32::try_from(task.index).ok(),
        ..Wait::default()
    }
}

fn in_line(task: &Task, line: &Line, config: &Config, base: Wait) -> Wait {
    let limits = config.limits();
    let owner = line::owner(task.org_id, task.project_id, task.resource_class.clone());
    let class = if owner.class.is_empty() { "default" } else { &owner.class };
    let (kind, key, held_up) = match line.held.barrier(&owner, &limits) {
        Some(Barrier::Org) => (
            "org_limit",
            "dispatcher.org_slots",
            format!(
                "its organisation holds all {} slots that it may have",
                limits.per_org.unwrap_or_default()
            ),
        ),
        Some(Barrier::Project) => (
            "project_limit",
            "dispatcher.project_slots",
            format!(
                "its project holds all {} slots that it may have",
                limits.per_project.unwrap_or_default()
            ),
        ),
        Some(Barrier::Class) => (
            "class_limit",
            "dispatcher.class_slots",
            format!(
                "all {} slots of the resource class {class} are taken",
                limits.per_class.get(&owner.class).copied().unwrap_or_default()
            ),
        ),
        Some(Barrier::Slots) | None => {
            ("slot", "dispatcher.slots", format!("all {} slots are taken", limits.slots))
        }
    };
    let place = line.places.get(&task.task_id).copied();
    let count = u64::try_from(line.places.len()).ok();
    let number = place.map_or_else(|| "far back".to_owned(), |place| format!("number {place}"));
    let text = format!(
        "task {} is {number} of {} in line for a slot: {held_up} (`{key}`)",
        task.index,
        count.unwrap_or_default()
    );
    Wait {
        kind: kind.into(),
        text,
        since: Some(task.created_at),
        place,
        line: count,
        key: Some(key.into()),
        ..base
    }
}
