//! How long the tests of a job took lately. All tasks of a job are told the same: else their shares would overlap.

use crate::State;
use agent_api::{Problem, stores::Timings};
use axum::{
    Json,
    extract::{Path, State as Shared},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::Utc;
use ids::TaskId;
use kit::keys::FenceClaims;
use sqlx::types::Json as Sql;
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

/// Most names of a kind that a job is told.
const NAMES: i64 = 50_000;

pub(crate) struct Refused(pub(crate) StatusCode, pub(crate) &'static str, pub(crate) String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let problem = Problem { code: self.1.to_owned(), message: self.2, next_offset: None };
        (self.0, Json(problem)).into_response()
    }
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        tracing::warn!(%error, "timings cannot be told now");
        Self(StatusCode::SERVICE_UNAVAILABLE, "dependency_unavailable", "try again".to_owned())
    }
}

pub(crate) async fn timings(
    Shared(state): Shared<Arc<State>>,
    Path(task): Path<TaskId>,
    headers: HeaderMap,
) -> Result<Json<Timings>, Refused> {
    let job = holder(&state, &headers, task)?;
    let known = snapshot(&state, job).await?;
    if let Some(Sql(timings)) = known {
        return Ok(Json(timings));
    }
    let named: Option<(Uuid, String, Option<String>)> =
        sqlx::query_as("SELECT project_id, name, branch FROM test_results.jobs WHERE job_id = $1")
            .bind(job)
            .fetch_optional(state.store.pool())
            .await?;
    let (project, name, branch) = named.ok_or_else(unknown)?;
    let runs = latest_runs(&state, job, project, &name, branch.as_deref()).await?;
    let timings = Timings {
        files: average(&state, &runs, "file").await?,
        classes: average(&state, &runs, "classname").await?,
        tests: average(&state, &runs, "name").await?,
    };
    // The first one counts for all.
    sqlx::query(
        "INSERT INTO test_results.snapshots (job_id, timings) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    )
    .bind(job)
    .bind(Sql(&timings))
    .execute(state.store.pool())
    .await?;
    let first = snapshot(&state, job).await?;
    Ok(Json(first.map_or(timings, |Sql(first)| first)))
}

/// The conductor's news may be a moment behind the agent's start.
pub(crate) fn unknown() -> Refused {
    let message = "nothing is known of this job yet".to_owned();
    Refused(StatusCode::SERVICE_UNAVAILABLE, "job_unknown", message)
}

/// The job of a task, if it is the task's agent that asks.
pub(crate) fn holder(state: &State, headers: &HeaderMap, task: TaskId) -> Result<Uuid, Refused> {
    let refused = |message: &str| Refused(StatusCode::UNAUTHORIZED, "unauthenticated", message.to_owned());
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer "));
    let claims: Option<FenceClaims> = token.and_then(|token| state.keys.open_claims("fence", token));
    let claims = claims.ok_or_else(|| refused("a fence token is needed"))?;
    if claims.task_id != task || claims.expires_at <= Utc::now().timestamp_millis() {
        return Err(refused("the fence token is of another task, or has run out"));
    }
    Ok(claims.job_id.uuid())
}

async fn snapshot(state: &State, job: Uuid) -> sqlx::Result<Option<Sql<Timings>>> {
    sqlx::query_scalar("SELECT timings FROM test_results.snapshots WHERE job_id = $1")
        .bind(job)
        .fetch_optional(state.store.pool())
        .await
}

/// The latest runs of the job's name: on its branch, filled up with those of other branches.
async fn latest_runs(
    state: &State,
    job: Uuid,
    project: Uuid,
    name: &str,
    branch: Option<&str>,
) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar(
        "SELECT job_id FROM ( \
             SELECT job_id, max(at) AS at, bool_or(branch IS NOT DISTINCT FROM $4) AS here \
             FROM (SELECT job_id, at, branch FROM test_results.reports \
                   WHERE project_id = $1 AND job_name = $2 AND state = 'read' AND job_id <> $3 \
                   ORDER BY at DESC LIMIT 5000) r \
             GROUP BY job_id) runs \
         ORDER BY here DESC, at DESC LIMIT $5",
    )
    .bind(project)
    .bind(name)
    .bind(job)
    .bind(branch)
    .bind(i64::from(state.config.timed_runs))
    .fetch_all(state.store.pool())
    .await
}

/// Milliseconds by name, averaged over the runs that have it.
async fn average(state: &State, runs: &[Uuid], by: &'static str) -> sqlx::Result<BTreeMap<String, u64>> {
    let text = match by {
        "file" => {
            "SELECT name, round(avg(spent) * 1000)::bigint FROM ( \
                 SELECT file AS name, sum(run_time) AS spent FROM test_results.tests \
                 WHERE job_id = ANY($1) AND file <> '' GROUP BY job_id, file) t \
             GROUP BY name ORDER BY name LIMIT $2"
        }
        "classname" => {
            "SELECT name, round(avg(spent) * 1000)::bigint FROM ( \
                 SELECT classname AS name, sum(run_time) AS spent FROM test_results.tests \
                 WHERE job_id = ANY($1) AND classname <> '' GROUP BY job_id, classname) t \
             GROUP BY name ORDER BY name LIMIT $2"
        }
        _ => {
            "SELECT name, round(avg(spent) * 1000)::bigint FROM ( \
                 SELECT name, sum(run_time) AS spent FROM test_results.tests \
                 WHERE job_id = ANY($1) AND name <> '' GROUP BY job_id, name) t \
             GROUP BY name ORDER BY name LIMIT $2"
        }
    };
    let rows: Vec<(String, i64)> =
        sqlx::query_as(text).bind(runs).bind(NAMES).fetch_all(state.store.pool()).await?;
    Ok(rows.into_iter().map(|(name, ms)| (name, u64::try_from(ms).unwrap_or_default())).collect())
}
