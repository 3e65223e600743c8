//! The promises of the suite that a query can show broken (reliability §15, §17).
//!
//! Each query finds what breaks one promise; on a healthy suite all find nothing. What is under way gets time:
//! a row counts only when it should have moved minutes ago.

use chrono::{DateTime, Utc};
use eventstore::Databases;
use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;
use std::time::Instant;
use uuid::Uuid;

/// Ids shown of each kind of violation.
const SAMPLES: usize = 20;

/// A promise and how what breaks it is found.
struct Invariant {
    id: &'static str,
    promise: &'static str,
    /// Services, which may be in databases of their own, and what is asked there one after the other. A query gives
    /// `id`s, and may give each a `note`; the next one finds them as the table `suspect (id, note)` and gives those
    /// that it does not clear.
    search: &'static [(&'static str, &'static str)],
}

const INVARIANTS: [Invariant; 17] = [
    Invariant {
        id: "R-6",
        promise: "pipeline numbers of a project begin at 1 and have no hole",
        search: &[(
            "pipelines",
            "SELECT project_id AS id
                FROM (SELECT project_id, number FROM pipelines.pipelines UNION ALL SELECT project_id, number FROM pipelines.expired) p
                GROUP BY project_id HAVING min(number) <> 1 OR max(number) <> count(*)",
        )],
    },
    Invariant {
        id: "R-7",
        promise: "views show what their owners decided",
        search: &[
            ("conductor", "SELECT id, status AS note FROM conductor.workflows WHERE ended_at < now() - interval '1 minute'"),
            (
                "projector",
                "SELECT s.id FROM suspect s LEFT JOIN projector.workflows v ON v.id = s.id WHERE v.status IS DISTINCT FROM s.note",
            ),
            ("conductor", "SELECT s.id, w.pipeline_id AS note FROM suspect s JOIN conductor.workflows w ON w.id = s.id"),
            (
                "pipelines",
                "SELECT s.id FROM suspect s WHERE NOT EXISTS (SELECT 1 FROM pipelines.expired x WHERE x.id = s.note::uuid)",
            ),
        ],
    },
    Invariant {
        id: "R-8.workflows",
        promise: "somebody looks after every workflow that has not ended",
        search: &[(
            "conductor",
            "SELECT id FROM conductor.workflows WHERE ended_at IS NULL AND next_action_at < now() - interval '5 minutes'",
        )],
    },
    Invariant {
        id: "R-8.tasks",
        promise: "somebody looks after every task that has not ended",
        search: &[(
            "dispatcher",
            "SELECT task_id AS id FROM dispatcher.tasks WHERE state IN ('queued', 'leased') AND next_action_at < now() - interval '5 minutes'",
        )],
    },
    Invariant {
        id: "R-8.jobs",
        promise: "every ready job is known to the dispatcher",
        search: &[
            (
                "conductor",
                "SELECT id FROM conductor.jobs
                 WHERE kind = 'build' AND ended_at IS NULL AND ready_at < now() - interval '5 minutes' AND NOT cancel_requested",
            ),
            (
                "dispatcher",
                "SELECT s.id FROM suspect s WHERE NOT EXISTS (SELECT 1 FROM dispatcher.runs r WHERE r.job_id = s.id)",
            ),
        ],
    },
    Invariant {
        id: "R-9.workflows",
        promise: "a workflow ends once",
        search: &[(
            "conductor",
            "SELECT aggregate_id AS id FROM conductor.events WHERE kind = 'workflow.finished' GROUP BY aggregate_id HAVING count(*) > 1",
        )],
    },
    Invariant {
        id: "R-9.tasks",
        promise: "a task ends once",
        search: &[(
            "dispatcher",
            "SELECT aggregate_id AS id FROM dispatcher.events WHERE aggregate_kind = 'task' AND kind = 'task.finished'
                GROUP BY aggregate_id HAVING count(*) > 1",
        )],
    },
    Invariant {
        id: "R-9.retention",
        promise: "of a pipeline that is past its retention nothing stays",
        search: &[
            ("pipelines", "SELECT id FROM pipelines.expired WHERE expired_at < now() - interval '1 hour'"),
            (
                "conductor",
                "SELECT s.id FROM suspect s WHERE EXISTS (SELECT 1 FROM conductor.workflows w WHERE w.pipeline_id = s.id)",
            ),
        ],
    },
    Invariant {
        id: "R-9.views",
        promise: "of a pipeline that is past its retention nothing is shown",
        search: &[
            ("pipelines", "SELECT id FROM pipelines.expired WHERE expired_at < now() - interval '1 hour'"),
            (
                "projector",
                "SELECT s.id FROM suspect s
                 WHERE EXISTS (SELECT 1 FROM projector.pipelines v WHERE v.id = s.id)
                    OR EXISTS (SELECT 1 FROM projector.workflows v WHERE v.pipeline_id = s.id)
                    OR EXISTS (SELECT 1 FROM projector.jobs v WHERE v.pipeline_id = s.id)",
            ),
        ],
    },
    Invariant {
        id: "R-10",
        promise: "a job starts after all that it requires has ended",
        search: &[(
            "conductor",
            "SELECT j.id FROM conductor.edges e JOIN conductor.jobs j ON j.id = e.job JOIN conductor.jobs u ON u.id = e.upstream
                WHERE j.started_at IS NOT NULL AND j.carried_from IS NULL AND u.carried_from IS NULL
                  AND (u.ended_at IS NULL OR u.ended_at > j.started_at)",
        )],
    },
    Invariant {
        id: "R-11",
        promise: "a workflow's counts are those of its jobs",
        search: &[(
            "conductor",
            "SELECT w.id FROM conductor.workflows w LEFT JOIN conductor.jobs j ON j.workflow_id = w.id GROUP BY w.id
                HAVING count(j.id) <> (SELECT coalesce(sum(value::bigint), 0) FROM jsonb_each_text(w.counts))",
        )],
    },
    Invariant {
        id: "R-12",
        promise: "a canceled workflow ends",
        search: &[
            (
                "conductor",
                "SELECT w.id FROM conductor.workflows w WHERE w.cancel AND w.ended_at IS NULL
                   AND (SELECT max(occurred_at) FROM conductor.events e WHERE e.aggregate_id = w.id) < now() - interval '5 minutes'",
            ),
            (
                "dispatcher",
                "SELECT s.id FROM suspect s
                 WHERE NOT EXISTS (SELECT 1 FROM dispatcher.runs r JOIN dispatcher.tasks t ON t.job_id = r.job_id
                                   WHERE r.workflow_id = s.id AND t.state IN ('queued', 'leased'))",
            ),
        ],
    },
    Invariant {
        id: "R-15",
        promise: "the epoch of a task only grows",
        search: &[(
            "dispatcher",
            "SELECT DISTINCT id FROM (
                  SELECT aggregate_id AS id, (body->>'epoch')::bigint AS epoch,
                         lag((body->>'epoch')::bigint) OVER (PARTITION BY aggregate_id ORDER BY version) AS before
                  FROM dispatcher.events WHERE aggregate_kind = 'task' AND kind = 'task.queued') q
                WHERE epoch <= before",
        )],
    },
    Invariant {
        id: "R-16",
        promise: "a lease that ended long ago has an outcome",
        search: &[(
            "dispatcher",
            "SELECT task_id AS id FROM dispatcher.tasks WHERE state = 'leased' AND deadline < now() - interval '5 minutes'",
        )],
    },
    Invariant {
        id: "R-21",
        promise: "no agent is left of a task that ended",
        search: &[
            ("scheduler", "SELECT task_id AS id FROM scheduler.placements WHERE state = 'started'"),
            (
                "dispatcher",
                "SELECT s.id FROM suspect s JOIN dispatcher.tasks t ON t.task_id = s.id
                 WHERE t.state = 'finished' AND t.finished_at < now() - interval '5 minutes'",
            ),
        ],
    },
    Invariant {
        id: "R-22",
        promise: "a job whose tasks have all ended has ended, and holds no slot",
        search: &[(
            "dispatcher",
            "SELECT r.job_id AS id FROM dispatcher.runs r WHERE r.state <> 'finished'
                  AND EXISTS (SELECT 1 FROM dispatcher.tasks t WHERE t.job_id = r.job_id)
                  AND NOT EXISTS (SELECT 1 FROM dispatcher.tasks t WHERE t.job_id = r.job_id
                                  AND (t.state <> 'finished' OR t.finished_at > now() - interval '5 minutes'))",
        )],
    },
    Invariant {
        id: "S-5",
        promise: "no receiver lets an older epoch write than the dispatcher ended",
        search: &[
            (
                "dispatcher",
                "SELECT task_id AS id, epoch AS note FROM dispatcher.tasks
                 WHERE state = 'finished' AND finished_at < now() - interval '5 minutes' AND reason IN ('runner_lost', 'no_runner')",
            ),
            (
                "output-processor",
                "SELECT s.id FROM suspect s JOIN output_processor.tasks o ON o.task_id = s.id
                 LEFT JOIN output_processor.fences f ON f.task_id = s.id
                 WHERE coalesce(f.closed_to, -1) < s.note::bigint",
            ),
        ],
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
/// A database is away.
pub async fn check(databases: &Databases) -> anyhow::Result<Vec<Checked>> {
    let mut all = Vec::with_capacity(INVARIANTS.len());
    for Invariant { id, promise, search } in INVARIANTS {
        let begun = Instant::now();
        let broken = broken(databases, search).await?;
        let violations = i64::try_from(broken.len()).unwrap_or(i64::MAX);
        metrics::gauge!("gantry.invariants.violations", "id" => id).set(violations as f64);
        all.push(Checked {
            id: id.to_owned(),
            promise: promise.to_owned(),
            violations,
            sample_ids: broken.iter().take(SAMPLES).map(Uuid::to_string).collect(),
            checked_at: Utc::now(),
            cost_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
    }
    Ok(all)
}

/// What breaks a promise.
async fn broken(databases: &Databases, search: &[(&str, &str)]) -> sqlx::Result<Vec<Uuid>> {
    let (mut ids, mut notes) = (Vec::new(), Vec::new());
    for (at, (service, query)) in search.iter().enumerate() {
        if at > 0 && ids.is_empty() {
            break;
        }
        let sql = format!(
            "WITH suspect (id, note) AS (SELECT * FROM unnest($1::uuid[], $2::text[]))
             SELECT q.id, to_jsonb(q) ->> 'note' FROM ({query}) q"
        );
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(&ids).bind(&notes);
        let found: Vec<(Uuid, Option<String>)> = query.fetch_all(databases.of(service)).await?;
        (ids, notes) = found.into_iter().unzip();
    }
    Ok(ids)
}
