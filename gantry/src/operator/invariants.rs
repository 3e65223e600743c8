//! The promises of the suite that a query can show broken (reliability §15, §17).
//!
//! Each query finds what breaks one promise; on a healthy suite all find nothing. What is under way gets time:
//! a row counts only when it should have moved minutes ago.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::time::Instant;

/// Ids shown of each kind of violation.
const SAMPLES: i64 = 20;

/// A promise and the query that finds what breaks it, as ids.
struct Invariant {
    id: &'static str,
    promise: &'static str,
    query: &'static str,
}

const INVARIANTS: [Invariant; 16] = [
    Invariant {
        id: "R-6",
        promise: "pipeline numbers of a project begin at 1 and have no hole",
        query: "SELECT project_id AS id
                FROM (SELECT project_id, number FROM pipelines.pipelines UNION ALL SELECT project_id, number FROM pipelines.expired) p
                GROUP BY project_id HAVING min(number) <> 1 OR max(number) <> count(*)",
    },
    Invariant {
        id: "R-7",
        promise: "views show what their owners decided",
        query: "SELECT w.id FROM conductor.workflows w LEFT JOIN projector.workflows v ON v.id = w.id
                WHERE w.ended_at < now() - interval '1 minute' AND v.status IS DISTINCT FROM w.status
                  AND NOT EXISTS (SELECT 1 FROM pipelines.expired x WHERE x.id = w.pipeline_id)",
    },
    Invariant {
        id: "R-8.workflows",
        promise: "somebody looks after every workflow that has not ended",
        query: "SELECT id FROM conductor.workflows WHERE ended_at IS NULL AND next_action_at < now() - interval '5 minutes'",
    },
    Invariant {
        id: "R-8.tasks",
        promise: "somebody looks after every task that has not ended",
        query: "SELECT task_id AS id FROM dispatcher.tasks WHERE state IN ('queued', 'leased') AND next_action_at < now() - interval '5 minutes'",
    },
    Invariant {
        id: "R-8.jobs",
        promise: "every ready job is known to the dispatcher",
        query: "SELECT j.id FROM conductor.jobs j LEFT JOIN dispatcher.runs r ON r.job_id = j.id
                WHERE j.kind = 'build' AND j.ended_at IS NULL AND j.ready_at < now() - interval '5 minutes'
                  AND NOT j.cancel_requested AND r.job_id IS NULL",
    },
    Invariant {
        id: "R-9.workflows",
        promise: "a workflow ends once",
        query: "SELECT aggregate_id AS id FROM conductor.events WHERE kind = 'workflow.finished' GROUP BY aggregate_id HAVING count(*) > 1",
    },
    Invariant {
        id: "R-9.tasks",
        promise: "a task ends once",
        query: "SELECT aggregate_id AS id FROM dispatcher.events WHERE aggregate_kind = 'task' AND kind = 'task.finished'
                GROUP BY aggregate_id HAVING count(*) > 1",
    },
    Invariant {
        id: "R-9.retention",
        promise: "of a pipeline that is past its retention nothing stays",
        query: "SELECT x.id FROM pipelines.expired x WHERE x.expired_at < now() - interval '1 hour'
                  AND (EXISTS (SELECT 1 FROM conductor.workflows w WHERE w.pipeline_id = x.id)
                       OR EXISTS (SELECT 1 FROM projector.pipelines v WHERE v.id = x.id)
                       OR EXISTS (SELECT 1 FROM projector.workflows v WHERE v.pipeline_id = x.id)
                       OR EXISTS (SELECT 1 FROM projector.jobs v WHERE v.pipeline_id = x.id))",
    },
    Invariant {
        id: "R-10",
        promise: "a job starts after all that it requires has ended",
        query: "SELECT j.id FROM conductor.edges e JOIN conductor.jobs j ON j.id = e.job JOIN conductor.jobs u ON u.id = e.upstream
                WHERE j.started_at IS NOT NULL AND j.carried_from IS NULL AND u.carried_from IS NULL
                  AND (u.ended_at IS NULL OR u.ended_at > j.started_at)",
    },
    Invariant {
        id: "R-11",
        promise: "a workflow's counts are those of its jobs",
        query: "SELECT w.id FROM conductor.workflows w LEFT JOIN conductor.jobs j ON j.workflow_id = w.id GROUP BY w.id
                HAVING count(j.id) <> (SELECT coalesce(sum(value::bigint), 0) FROM jsonb_each_text(w.counts))",
    },
    Invariant {
        id: "R-12",
        promise: "a canceled workflow ends",
        query: "SELECT w.id FROM conductor.workflows w WHERE w.cancel AND w.ended_at IS NULL
                  AND NOT EXISTS (SELECT 1 FROM dispatcher.runs r JOIN dispatcher.tasks t ON t.job_id = r.job_id
                                  WHERE r.workflow_id = w.id AND t.state IN ('queued', 'leased'))
                  AND (SELECT max(occurred_at) FROM conductor.events e WHERE e.aggregate_id = w.id) < now() - interval '5 minutes'",
    },
    Invariant {
        id: "R-15",
        promise: "the epoch of a task only grows",
        query: "SELECT DISTINCT id FROM (
                  SELECT aggregate_id AS id, (body->>'epoch')::bigint AS epoch,
                         lag((body->>'epoch')::bigint) OVER (PARTITION BY aggregate_id ORDER BY version) AS before
                  FROM dispatcher.events WHERE aggregate_kind = 'task' AND kind = 'task.queued') q
                WHERE epoch <= before",
    },
    Invariant {
        id: "R-16",
        promise: "a lease that ended long ago has an outcome",
        query: "SELECT task_id AS id FROM dispatcher.tasks WHERE state = 'leased' AND deadline < now() - interval '5 minutes'",
    },
    Invariant {
        id: "R-21",
        promise: "no agent is left of a task that ended",
        query: "SELECT p.task_id AS id FROM scheduler.placements p JOIN dispatcher.tasks t ON t.task_id = p.task_id
                WHERE p.state = 'started' AND t.state = 'finished' AND t.finished_at < now() - interval '5 minutes'",
    },
    Invariant {
        id: "R-22",
        promise: "a job whose tasks have all ended has ended, and holds no slot",
        query: "SELECT r.job_id AS id FROM dispatcher.runs r WHERE r.state <> 'finished'
                  AND EXISTS (SELECT 1 FROM dispatcher.tasks t WHERE t.job_id = r.job_id)
                  AND NOT EXISTS (SELECT 1 FROM dispatcher.tasks t WHERE t.job_id = r.job_id
                                  AND (t.state <> 'finished' OR t.finished_at > now() - interval '5 minutes'))",
    },
    Invariant {
        id: "S-5",
        promise: "no receiver lets an older epoch write than the dispatcher ended",
        query: "SELECT t.task_id AS id FROM dispatcher.tasks t JOIN output_processor.tasks o ON o.task_id = t.task_id
                LEFT JOIN output_processor.fences f ON f.task_id = t.task_id
                WHERE t.state = 'finished' AND t.finished_at < now() - interval '5 minutes'
                  AND t.reason IN ('runner_lost', 'no_runner') AND coalesce(f.closed_to, -1) < t.epoch",
    },
];

/// One promise, checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// The promise's number.
    pub id: String,
    /// In words.
    pub promise: String,
    /// How many break it.
    pub violations: i64,
    /// Ids of some of them.
    pub sample_ids: Vec<String>,
    /// When.
    pub checked_at: DateTime<Utc>,
    /// How long the check took.
    pub cost_ms: u64,
}

/// Checks every promise.
///
/// # Errors
/// The database is away.
pub async fn check(pool: &PgPool) -> anyhow::Result<Vec<Checked>> {
    let mut all = Vec::with_capacity(INVARIANTS.len());
    for Invariant { id, promise, query } in INVARIANTS {
        let begun = Instant::now();
        let sql = format!("SELECT q.id::text, count(*) OVER () FROM ({query}) q LIMIT {SAMPLES}");
        let rows: Vec<(String, i64)> = sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(pool).await?;
        let violations = rows.first().map_or(0, |(_, count)| *count);
        metrics::gauge!("gantry.invariants.violations", "id" => id).set(violations as f64);
        all.push(Checked {
            id: id.to_owned(),
            promise: promise.to_owned(),
            violations,
            sample_ids: rows.into_iter().map(|(id, _)| id).collect(),
            checked_at: Utc::now(),
            cost_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
    }
    Ok(all)
}
