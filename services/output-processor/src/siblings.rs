//! How far the other tasks of a job are: a deploy step waits for them (execution §14.4).

use crate::{
    http::{Refused, lease, on_task},
    hub::Hub,
};
use agent_api::Siblings;
use axum::{
    Json,
    extract::{Path, Query, State},
    http::HeaderMap,
};
use ids::TaskId;
use serde::Deserialize;
use std::{collections::HashMap, sync::Arc};

#[derive(Deserialize)]
pub(crate) struct Asked {
    /// Number of the step.
    step: u32,
}

pub(crate) async fn siblings(
    State(hub): State<Arc<Hub>>,
    Path(task_id): Path<TaskId>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Result<Json<Siblings>, Refused> {
    let lease = lease(&hub, &headers, task_id)?;
    on_task(&hub, task_id, |task| task.check(&lease)).await?;
    let steps = hub.steps_of(lease.job_id).await.map_err(|error| Refused::unavailable(&error))?;
    // Only what a task did last of a step counts: an attempt that was repeated did not fail it.
    let mut last: HashMap<(u32, u32), &str> = HashMap::new();
    for step in steps.iter().filter(|step| step.index > 0 && !step.background && step.number <= asked.step) {
        last.insert((step.index, step.number), step.status.as_str());
    }
    let mut found = Siblings::default();
    let mut indexes: Vec<u32> = last.keys().map(|(index, _)| *index).collect();
    indexes.sort_unstable();
    indexes.dedup();
    for index in indexes {
        let failed =
            last.iter().any(|((of, _), status)| *of == index && !matches!(*status, "success" | "running"));
        if failed {
            found.failed += 1;
        } else if last.get(&(index, asked.step)) == Some(&"success") {
            found.arrived += 1;
        }
    }
    Ok(Json(found))
}
