//! A step of a large workflow touches as many rows as one of a small one.

use crate::support::{LIMIT, World, build, until, workflow};
use contracts::conductor::{JobNode, JobsAdded, WorkflowCreated};
use ids::{JobId, WorkflowId};
use model::{plan::JobPlan, status::JobStatus};
use sqlx::Row;
use std::collections::HashMap;

/// Rows that were read (by index and by scan) and written of the conductor's state tables.
async fn touched(world: &World) -> (i64, i64) {
    let mut conn = world.pool.acquire().await.unwrap();
    // Counts of idle sessions reach the view when they are told to; ask a fresh snapshot of it.
    let row = sqlx::query(
        "SELECT coalesce(sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)), 0)::bigint AS r, \
                coalesce(sum(n_tup_ins + n_tup_upd), 0)::bigint AS w \
         FROM pg_stat_user_tables WHERE schemaname = 'conductor' AND relname IN ('workflows', 'jobs', 'edges')",
    )
    .fetch_one(&mut *conn)
    .await
    .unwrap();
    (row.get("r"), row.get("w"))
}

/// The numbers once they have stopped moving: sessions report theirs with a delay.
async fn settled(world: &World) -> (i64, i64) {
    let mut last = touched(world).await;
    let mut same = 0;
    until("the counts stand still", LIMIT, async || {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let next = touched(world).await;
        same = if next == last { same + 1 } else { 0 };
        last = next;
        same >= 20
    })
    .await;
    last
}

/// `a`, `b` and `c` in a line, and behind them as many others as make `n`, each waiting for the one before.
fn line(n: usize) -> Vec<JobPlan> {
    let mut jobs = vec![build("a", &[]), build("b", &["a"]), build("c", &["b"])];
    for place in 3..n {
        let before = if place == 3 { "c".to_owned() } else { format!("x{}", place - 1) };
        jobs.push(build(&format!("x{place}"), &[&before]));
    }
    jobs
}

/// All jobs that the events of a workflow tell of, in their order.
async fn told(world: &World, created: &WorkflowCreated) -> Vec<JobNode> {
    let mut jobs = created.jobs.clone();
    for event in world.history(created.workflow_id).await {
        if event.is::<JobsAdded>() {
            let added: JobsAdded = event.body_as().unwrap();
            assert_eq!(added.from as usize, jobs.len(), "in file order");
            jobs.extend(added.jobs);
            for more in added.edges {
                let job = jobs.iter_mut().find(|job| job.job_id == more.job_id).unwrap();
                job.requires.extend(more.requires);
            }
        }
    }
    jobs
}

#[tokio::test]
async fn a_step_of_10_000_jobs_touches_no_more_rows_than_one_of_ten() {
    let mut world = World::new().await;
    let mut results = Vec::new();
    for n in [10, 1000, 10_000] {
        let created = world.push(vec![workflow("main", line(n))]).await.remove(0);
        assert_eq!(created.total as usize, n);
        let jobs = told(&world, &created).await;
        assert_eq!(jobs.len(), n, "every job is told of");
        assert_eq!(n >= 1000, created.plan_digest.is_some() && created.jobs.len() < n);
        let ids: HashMap<&str, JobId> = jobs.iter().map(|job| (job.name.as_str(), job.job_id)).collect();
        let id = created.workflow_id;
        sqlx::query("ANALYZE conductor.jobs, conductor.edges, conductor.workflows")
            .execute(&world.pool)
            .await
            .unwrap();
        let before = settled(&world).await;
        step(&world, id, ids["a"]).await;
        let after = settled(&world).await;
        results.push((after.0 - before.0, after.1 - before.1));
    }
    eprintln!("rows read and written in two steps of 10, 1,000 and 10,000 jobs: {results:?}");
    assert!(results.iter().all(|result| result.1 == results[0].1), "rows written: {results:?}");
    assert!(results.iter().all(|result| result.0 <= results[0].0 + 10), "rows read: {results:?}");
    world.check_rows().await;
    world.stop().await;
}

/// The first job starts and ends; returns when the second one has begun.
async fn step(world: &World, id: WorkflowId, first: JobId) {
    world.job_started(id, first).await;
    world.job_finished(id, first, JobStatus::Success).await;
    // Without reads of our own: its events are in another table.
    until("b begins", LIMIT, async || {
        world.history(id).await.iter().filter(|event| event.kind == "workflow.job_ready").count() == 2
    })
    .await;
}

#[tokio::test]
async fn a_fan_in_of_thousands_is_told_in_parts_and_begins_once() {
    let mut world = World::new().await;
    let names: Vec<String> = (0..2500).map(|n| format!("part{n}")).collect();
    let mut jobs: Vec<JobPlan> = names.iter().map(|name| crate::support::no_op(name, &[])).collect();
    let needed: Vec<&str> = names.iter().map(String::as_str).collect();
    jobs.push(build("all", &needed));
    let created = world.push(vec![workflow("main", jobs)]).await.remove(0);
    let told = told(&world, &created).await;
    assert_eq!(told.last().unwrap().requires.len(), 2500);
    assert_eq!(world.jobs(created.workflow_id).await["all"], "queued");
    let ends = world.run_to_end(created.workflow_id, &[]).await;
    assert_eq!(ends.as_str(), "success");
    world.check_rows().await;
    world.stop().await;
}
