//! `gantry admin verify`: the events must lead to exactly the state rows, every version must be there, and every
//! blob must have the digest that it was stored under.

use crate::{adapters::Stored, serve::ROLES};
use eventstore::Databases;
use retention::Fold;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, Row};

/// A comparison of a service's events with its state rows: the service, a name, and a query that finds each
/// disagreement as one text.
const FOLDS: [(&str, &str, &str); 9] = [
    (
        "domain",
        "project row differs from its event",
        "SELECT format('project %s: events say %s, its row says %s', e.body->'project'->>'id', e.body->'project'->>'name', coalesce(p.name, 'nothing'))
         FROM domain.events e LEFT JOIN domain.projects p ON p.id = (e.body->'project'->>'id')::uuid
         WHERE e.kind = 'project.created' AND p.name IS DISTINCT FROM e.body->'project'->>'name'",
    ),
    (
        "pipelines",
        "pipeline row differs from its event",
        "SELECT format('pipeline %s: events say number %s, its row says %s', e.aggregate_id, e.body->>'number', coalesce(p.number::text, 'nothing'))
         FROM pipelines.events e LEFT JOIN pipelines.pipelines p ON p.id = e.aggregate_id
         WHERE e.kind = 'pipeline.created' AND p.number IS DISTINCT FROM (e.body->>'number')::bigint",
    ),
    (
        "pipelines",
        "pipeline numbers have a hole",
        "SELECT format('project %s: %s pipelines, numbered %s to %s', project_id, count(*), min(number), max(number))
         FROM (SELECT project_id, number FROM pipelines.pipelines UNION ALL SELECT project_id, number FROM pipelines.expired) p
         GROUP BY project_id HAVING min(number) <> 1 OR max(number) <> count(*)",
    ),
    (
        "conductor",
        "workflow row differs from its events",
        "SELECT format('workflow %s: events say %s, its row says %s', w.id, coalesce(e.body->>'status', 'not ended'), w.status)
         FROM conductor.workflows w
         LEFT JOIN conductor.events e ON e.aggregate_kind = 'workflow' AND e.aggregate_id = w.id AND e.kind = 'workflow.finished'
         WHERE (w.ended_at IS NOT NULL OR e.id IS NOT NULL) AND w.status IS DISTINCT FROM e.body->>'status'",
    ),
    (
        "conductor",
        "workflow's version differs from its events",
        "SELECT format('workflow %s: %s events, its row says version %s', w.id, count(e.id), w.version)
         FROM conductor.workflows w LEFT JOIN conductor.events e ON e.aggregate_kind = 'workflow' AND e.aggregate_id = w.id
         GROUP BY w.id HAVING count(e.id) <> w.version",
    ),
    (
        "conductor",
        "job row differs from its events",
        "SELECT format('job %s (%s): events say %s, its row says %s', j.id, j.name, coalesce(e.body->>'status', 'not ended'), j.status)
         FROM conductor.jobs j
         LEFT JOIN conductor.events e ON e.aggregate_kind = 'workflow' AND e.aggregate_id = j.workflow_id
              AND e.kind = 'workflow.job_ended' AND e.body->>'job_id' = j.id::text
         WHERE j.carried_from IS NULL AND (j.ended_at IS NOT NULL OR e.id IS NOT NULL) AND j.status IS DISTINCT FROM e.body->>'status'",
    ),
    (
        "conductor",
        "workflow's counts differ from its jobs",
        "SELECT format('workflow %s: %s jobs, counts say %s', w.id, count(j.id), w.counts)
         FROM conductor.workflows w LEFT JOIN conductor.jobs j ON j.workflow_id = w.id
         GROUP BY w.id
         HAVING count(j.id) <> (SELECT coalesce(sum(value::bigint), 0) FROM jsonb_each_text(w.counts))
             OR EXISTS (SELECT 1 FROM jsonb_each_text(w.counts) c
                        WHERE c.value::bigint <> (SELECT count(*) FROM conductor.jobs k WHERE k.workflow_id = w.id AND k.status = c.key))",
    ),
    (
        "dispatcher",
        "task row differs from its events",
        "SELECT format('task %s: events say %s, its row says %s', t.task_id, coalesce(e.body->>'status', 'not ended'), coalesce(t.status, 'not ended'))
         FROM dispatcher.tasks t
         LEFT JOIN dispatcher.events e ON e.aggregate_kind = 'task' AND e.aggregate_id = t.task_id AND e.kind = 'task.finished'
         WHERE t.status IS DISTINCT FROM e.body->>'status'",
    ),
    (
        "dispatcher",
        "run row differs from its events",
        "SELECT format('job %s at the dispatcher: events say %s, its row says %s', r.job_id, coalesce(e.body->>'status', 'not ended'), coalesce(r.status, 'not ended'))
         FROM dispatcher.runs r
         LEFT JOIN dispatcher.events e ON e.aggregate_kind = 'run' AND e.aggregate_id = r.job_id AND e.kind = 'job.finished'
         WHERE r.status IS DISTINCT FROM e.body->>'status'",
    ),
];

/// What the events of an archived aggregate and its last row must agree on.
const ARCHIVED: [Fold; 4] = [
    Fold { aggregate: "pipeline", event: "pipeline.created", value: "number" },
    Fold { aggregate: "workflow", event: "workflow.finished", value: "status" },
    Fold { aggregate: "task", event: "task.finished", value: "status" },
    Fold { aggregate: "run", event: "job.finished", value: "status" },
];

/// What verification found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Nothing was found.
    pub clean: bool,
    /// Blobs whose bytes were read.
    pub blobs: u64,
    /// Archives of what is past its retention whose events were refolded.
    #[serde(default)]
    pub archives: u64,
    /// Each disagreement.
    pub findings: Vec<Finding>,
}

/// One disagreement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// What was compared.
    pub check: String,
    /// What differs.
    pub what: String,
}

/// Runs every check over a database and the blobs.
///
/// # Errors
/// The database or the blobs cannot be read.
pub async fn verify(databases: &Databases, blobs: &Stored) -> anyhow::Result<Report> {
    let mut findings = Vec::new();
    let mut found = |check: &str, what: String| findings.push(Finding { check: check.to_owned(), what });
    for service in ROLES {
        let schema = eventstore::schema_of(service);
        // A history of which nothing is left but its end goes on from its archive.
        let query = format!(
            "SELECT format('%s %s: %s events, versions %s to %s', aggregate_kind, aggregate_id, count(*), min(version), max(version))
             FROM {schema}.events GROUP BY aggregate_kind, aggregate_id
             HAVING max(version) - min(version) + 1 <> count(*)
                 OR min(version) <> 1 + coalesce(((array_agg(body ORDER BY version))[1] #>> '{{archived,events}}')::bigint, 0)"
        );
        for row in sqlx::query(AssertSqlSafe(query)).fetch_all(databases.of(service)).await? {
            found("an event is missing", row.try_get(0)?);
        }
    }
    for (service, name, query) in FOLDS {
        for row in sqlx::query(query).fetch_all(databases.of(service)).await? {
            found(name, row.try_get(0)?);
        }
    }
    let (mut archives, port) = (0, blobs.port());
    for service in ROLES {
        let audited = retention::audit(databases.of(service), service, port.as_ref(), &ARCHIVED).await?;
        archives += audited.archives;
        for what in audited.findings {
            found("an archive differs from its row", what);
        }
    }
    let (read, damaged) = blobs.audit().await?;
    for blob in damaged {
        let key = blob.key.unwrap_or_else(|| "of an unreadable name".to_owned());
        found("a blob is damaged", format!("blob {key} in {}", blob.place));
    }
    Ok(Report { clean: findings.is_empty(), blobs: read, archives, findings })
}
