//! A step of a large workflow touches as many rows as one of a small one.

use crate::support::{LIMIT, World, build, definition, id_of, until, workflow};
use ids::{JobId, WorkflowId};
use model::{
    plan::{JobKind, JobPlan},
    status::JobStatus,
};
use sqlx::{Row, types::Json};

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

/// Makes a workflow larger by jobs that wait for each other in a line, behind `after`.
async fn enlarge(world: &World, workflow: WorkflowId, after: JobId, n: i32) {
    let plan = JobPlan {
        name: "x".into(),
        kind: JobKind::Build { definition: Box::new(definition()) },
        requires: Vec::new(),
        contexts: Vec::new(),
        serial_group: None,
    };
    sqlx::query(
        "INSERT INTO conductor.jobs (id, workflow_id, position, name, kind, status, unmet, plan) \
         SELECT gen_random_uuid(), $1, 100 + n, 'x' || n, 'build', 'blocked', 1, $2 FROM generate_series(1, $3) n",
    )
    .bind(workflow.uuid())
    .bind(Json(plan))
    .bind(n)
    .execute(&world.pool)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO conductor.edges (upstream, job, accepts) \
         SELECT coalesce(u.id, $2), j.id, '{success}' FROM conductor.jobs j \
         LEFT JOIN conductor.jobs u ON u.workflow_id = $1 AND u.position = j.position - 1 AND u.position > 100 \
         WHERE j.workflow_id = $1 AND j.position > 100",
    )
    .bind(workflow.uuid())
    .bind(after.uuid())
    .execute(&world.pool)
    .await
    .unwrap();
    sqlx::query(
        "UPDATE conductor.workflows SET counts = jsonb_set(counts, '{blocked}', \
             to_jsonb(coalesce((counts->>'blocked')::int, 0) + $2)) WHERE id = $1",
    )
    .bind(workflow.uuid())
    .bind(n)
    .execute(&world.pool)
    .await
    .unwrap();
    sqlx::query("ANALYZE conductor.jobs, conductor.edges, conductor.workflows")
        .execute(&world.pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_step_of_10_000_jobs_touches_no_more_rows_than_one_of_three() {
    let mut world = World::new().await;
    let jobs = || vec![build("a", &[]), build("b", &["a"]), build("c", &["b"])];
    let mut results = Vec::new();
    for large in [false, true] {
        let created = world.push(vec![workflow("main", jobs())]).await.remove(0);
        let id = created.workflow_id;
        if large {
            enlarge(&world, id, id_of(&created, "c"), 9_997).await;
        }
        let before = settled(&world).await;
        world.job_started(id, id_of(&created, "a")).await;
        world.job_finished(id, id_of(&created, "a"), JobStatus::Success).await;
        // Without reads of our own: its events are in another table.
        until("b begins", LIMIT, async || {
            world.history(id).await.iter().filter(|event| event.kind == "workflow.job_ready").count() == 2
        })
        .await;
        let after = settled(&world).await;
        results.push((after.0 - before.0, after.1 - before.1));
    }
    eprintln!(
        "rows read and written in two steps: of 3 jobs {:?}, of 10,000 jobs {:?}",
        results[0], results[1]
    );
    assert_eq!(results[0].1, results[1].1, "rows written");
    assert!(results[1].0 <= results[0].0 + 10, "rows read: {results:?}");
    world.stop().await;
}
