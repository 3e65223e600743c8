//! Which tests of a job failed, for the job that runs only those again (execution §9).

use crate::{
    State,
    timings::{Refused, holder, unknown},
};
use agent_api::stores::FailedTests;
use axum::{
    Json,
    extract::{Path, State as Shared},
    http::{HeaderMap, StatusCode},
};
use ids::TaskId;
use std::sync::Arc;
use uuid::Uuid;

/// Most failed tests that a job is told: beyond, all tests are run again.
const FAILED: usize = 50_000;

pub(crate) async fn failed_tests(
    Shared(state): Shared<Arc<State>>,
    Path(task): Path<TaskId>,
    headers: HeaderMap,
) -> Result<Json<FailedTests>, Refused> {
    let job = holder(&state, &headers, task)?;
    let pool = state.store.pool();
    let known: Option<Option<Uuid>> =
        sqlx::query_scalar("SELECT failed_tests_of FROM test_results.jobs WHERE job_id = $1")
            .bind(job)
            .fetch_optional(pool)
            .await?;
    let Some(before) = known.ok_or_else(unknown)? else { return Ok(Json(FailedTests::default())) };
    let unread: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM test_results.reports WHERE job_id = $1 AND state = 'waiting')",
    )
    .bind(before)
    .fetch_one(pool)
    .await?;
    if unread {
        // All tasks of the job must be told the same.
        let message = "the reports of the job before are still being read".to_owned();
        return Err(Refused(StatusCode::SERVICE_UNAVAILABLE, "reports_unread", message));
    }
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT DISTINCT file, classname, name FROM test_results.tests \
         WHERE job_id = $1 AND result IN ('failure', 'error') LIMIT $2",
    )
    .bind(before)
    .bind(i64::try_from(FAILED + 1).unwrap_or(i64::MAX))
    .fetch_all(pool)
    .await?;
    let mut failed = FailedTests::default();
    if rows.len() > FAILED {
        return Ok(Json(failed));
    }
    for (file, class, name) in rows {
        failed.files.extend((!file.is_empty()).then_some(file));
        failed.classes.extend((!class.is_empty()).then_some(class));
        failed.tests.extend((!name.is_empty()).then_some(name));
    }
    Ok(Json(failed))
}
