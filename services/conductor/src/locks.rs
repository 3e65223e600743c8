//! Locks of job groups: a turn in a serial group that outlives the job which asked for it (execution §7).
//!
//! A job `lock` succeeds in its turn and keeps it while the jobs behind it run. It is given back when the job `unlock`
//! of the same key has ended, which requires them all, or when the workflow has: after a cancel nothing is passed on,
//! and jobs of the group may still be coming to their ends.

use crate::error::Result;
use ids::{JobId, WorkflowId};
use model::{
    plan::{JobKind, JobPlan},
    status::JobStatus,
    workflow::{Changes, Event, Job, Kind, Turn},
};
use sqlx::PgConnection;
use std::collections::{BTreeMap, HashMap, HashSet};
use uuid::Uuid;

/// Whether a job is a lock that has its turn.
pub(crate) fn is_held(job: &Job) -> bool {
    job.kind == Kind::Lock && job.status == JobStatus::Success && job.turn == Turn::Given
}

/// The locks that a step gives back, with the keys of their groups.
pub(crate) async fn released(
    conn: &mut PgConnection,
    workflow: WorkflowId,
    changes: &Changes,
) -> Result<BTreeMap<JobId, String>> {
    let finished = changes.events.iter().any(|event| matches!(event, Event::Finished { .. }));
    let unlocked: Vec<JobId> = changes
        .events
        .iter()
        .filter_map(|event| match event {
            // One that is canceled may end before the jobs that it requires.
            Event::JobEnded { job, status, .. } if *status != JobStatus::Canceled => Some(*job),
            _ => None,
        })
        .filter(|job| changes.jobs.get(job).is_some_and(|job| job.kind == Kind::Unlock))
        .collect();
    if !finished && unlocked.is_empty() {
        return Ok(BTreeMap::new());
    }
    // Those of this step are not stored yet.
    let new: Vec<Uuid> = changes.jobs.values().filter(|job| is_held(job)).map(|job| job.id.uuid()).collect();
    let unlocked: Vec<Uuid> = unlocked.iter().map(|job| job.uuid()).collect();
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "SELECT l.id, l.plan ->> 'serial_group' FROM conductor.jobs l \
         WHERE l.workflow_id = $1 AND l.kind = 'lock' AND (l.id = ANY($2) OR (l.turn = 'given' AND l.status = 'success')) \
           AND CASE WHEN $4 THEN \
               NOT EXISTS (SELECT 1 FROM conductor.jobs u WHERE u.workflow_id = $1 AND u.kind = 'unlock' \
                   AND u.ended_at IS NOT NULL AND u.status <> 'canceled' \
                   AND u.plan ->> 'serial_group' = l.plan ->> 'serial_group') \
               ELSE EXISTS (SELECT 1 FROM conductor.jobs u WHERE u.id = ANY($3) \
                   AND u.plan ->> 'serial_group' = l.plan ->> 'serial_group') END",
    )
    .bind(workflow.uuid())
    .bind(&new)
    .bind(&unlocked)
    .bind(finished)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(id, group)| (id.into(), group)).collect())
}

/// Adds to the jobs that run again the locks under which they do, and the unlocks behind them: a lock that was kept
/// from an earlier instance would hold nothing.
pub(crate) fn with_locks(jobs: &[JobPlan], runs: &mut HashSet<String>) {
    let by_name: HashMap<&str, &JobPlan> = jobs.iter().map(|job| (job.name.as_str(), job)).collect();
    for unlock in jobs.iter().filter(|job| matches!(job.kind, JobKind::Unlock)) {
        let above = ancestors(unlock, &by_name);
        let locks: Vec<&JobPlan> = above
            .iter()
            .filter_map(|name| by_name.get(name).copied())
            .filter(|job| matches!(job.kind, JobKind::Lock) && job.serial_group == unlock.serial_group)
            .collect();
        for lock in locks {
            let under = |name: &&&str| {
                by_name.get(**name).is_some_and(|job| ancestors(job, &by_name).contains(lock.name.as_str()))
            };
            if above.iter().filter(under).any(|name| runs.contains(*name)) {
                runs.insert(lock.name.clone());
                runs.insert(unlock.name.clone());
            }
        }
    }
}

/// Everything that a job requires, and what that requires.
fn ancestors<'p>(job: &'p JobPlan, by_name: &HashMap<&str, &'p JobPlan>) -> HashSet<&'p str> {
    let mut found = HashSet::new();
    let mut open = vec![job];
    while let Some(job) = open.pop() {
        for edge in &job.requires {
            if found.insert(edge.job.as_str()) {
                open.extend(by_name.get(edge.job.as_str()).copied());
            }
        }
    }
    found
}
