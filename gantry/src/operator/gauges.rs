//! Gauges that are counted when somebody looks: between two scrapes they cost nothing.

use crate::{databases::uses, serve::ROLES};
use eventstore::Databases;
use sqlx::{AssertSqlSafe, PgPool};
use std::{fs, time::Duration};
use tokio_util::sync::CancellationToken;

/// Between two counts for statsd, which nobody scrapes.
const PERIOD: Duration = Duration::from_secs(10);
/// Bytes of a page and ticks of a second, on every Linux that this runs on.
const PAGE: f64 = 4096.0;
const TICKS: f64 = 100.0;

/// Counts now and then, for metrics that are sent.
pub async fn count_regularly(databases: Databases, roles: Vec<&'static str>, stop: CancellationToken) {
    loop {
        if let Err(error) = count(&databases, &roles).await {
            tracing::debug!("gauges were not counted: {error:#}");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Counts queues, workflows, dead letters, connections and this process: of services in databases that this process, which
/// runs `roles`, uses.
///
/// # Errors
/// The database is away; the gauges of the process are set all the same.
pub async fn count(databases: &Databases, roles: &[&str]) -> anyhow::Result<()> {
    process();
    let (open, idle) = databases
        .pools()
        .fold((0, 0), |(open, idle), pool| (open + u64::from(pool.size()), idle + pool.num_idle() as u64));
    metrics::gauge!("gantry.database.connections").set(open as f64);
    metrics::gauge!("gantry.database.connections_idle").set(idle as f64);
    if uses(databases, roles, "dispatcher") {
        tasks(databases.of("dispatcher")).await?;
    }
    if uses(databases, roles, "conductor") {
        workflows(databases.of("conductor")).await?;
    }
    for service in ROLES.into_iter().filter(|service| uses(databases, roles, service)) {
        let schema = eventstore::schema_of(service);
        let sql = format!(
            "SELECT (SELECT count(*) FROM {schema}.dead_letters), (SELECT count(*) FROM {schema}.parked),
                    (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(died_at)), 0)::float8 FROM {schema}.dead_letters)"
        );
        let (dead, parked, age): (i64, i64, f64) =
            sqlx::query_as(AssertSqlSafe(sql)).fetch_one(databases.of(service)).await?;
        metrics::gauge!("gantry.bus.dead_letters_waiting", "service" => service).set(dead as f64);
        metrics::gauge!("gantry.bus.parked_waiting", "service" => service).set(parked as f64);
        metrics::gauge!("gantry.bus.oldest_dead_letter_seconds", "service" => service).set(age);
    }
    Ok(())
}

/// The dispatcher's queue.
async fn tasks(pool: &PgPool) -> sqlx::Result<()> {
    let mut runnable = 0;
    for state in ["waiting", "queued", "leased"] {
        let (count, age): (i64, f64) = sqlx::query_as(
            "SELECT count(*), coalesce(extract(epoch FROM max(clock_timestamp() - created_at)), 0)::float8
             FROM dispatcher.tasks WHERE state = $1",
        )
        .bind(state)
        .fetch_one(pool)
        .await?;
        metrics::gauge!("gantry.dispatcher.tasks", "state" => state).set(count as f64);
        runnable += if state == "leased" { 0 } else { count };
        metrics::gauge!("gantry.dispatcher.oldest_task_seconds", "state" => state).set(age);
    }
    metrics::gauge!("gantry.dispatcher.runnable").set(runnable as f64);
    let (jobs, tasks, classes): (i64, i64, i64) = sqlx::query_as(
        "SELECT count(DISTINCT job_id), count(*), count(DISTINCT resource_class)
         FROM dispatcher.tasks WHERE state IN ('waiting', 'queued')",
    )
    .fetch_one(pool)
    .await?;
    for (of, count) in [("jobs", jobs), ("tasks", tasks), ("classes", classes)] {
        metrics::gauge!("gantry.dispatcher.queue", "of" => of).set(count as f64);
    }
    Ok(())
}

/// The conductor's workflows that go on.
async fn workflows(pool: &PgPool) -> sqlx::Result<()> {
    for status in ["running", "failing", "on_hold", "queued"] {
        let (count, age): (i64, f64) = sqlx::query_as(
            "SELECT count(*), coalesce(extract(epoch FROM max(clock_timestamp() - created_at)), 0)::float8
             FROM conductor.workflows WHERE ended_at IS NULL AND status = $1",
        )
        .bind(status)
        .fetch_one(pool)
        .await?;
        metrics::gauge!("gantry.conductor.workflows", "status" => status).set(count as f64);
        metrics::gauge!("gantry.conductor.oldest_workflow_seconds", "status" => status).set(age);
    }
    Ok(())
}

/// Memory and processor time of this process, from `/proc`.
fn process() {
    if let Ok(text) = fs::read_to_string("/proc/self/statm")
        && let Some(pages) = text.split(' ').nth(1).and_then(|word| word.parse::<f64>().ok())
    {
        metrics::gauge!("process.resident_memory_bytes").set(pages * PAGE);
    }
    // The second field is the program's name in parentheses and may hold spaces.
    if let Ok(text) = fs::read_to_string("/proc/self/stat")
        && let Some((_, rest)) = text.rsplit_once(") ")
    {
        let ticks: f64 = rest.split(' ').skip(11).take(2).filter_map(|word| word.parse::<f64>().ok()).sum();
        metrics::gauge!("process.cpu_seconds").set(ticks / TICKS);
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        metrics::gauge!("process.open_fds").set(files.count() as f64);
    }
}
