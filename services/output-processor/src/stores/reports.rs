//! Test reports: stored here, read by `test-results` (execution §18).

use super::{
    Caller, bounded,
    objects::{self, Wanted},
    refuse,
};
use crate::http::Refused;
use agent_api::stores::{Committed, ObjectsCommit, TestsUpload, Uploads};
use chrono::Utc;
use contracts::{NewEvent, stores::ReportsStored};
use eventstore::Key;
use ids::{OrgId, ProjectId};
use uuid::Uuid;

pub(super) async fn upload(caller: Caller, ask: TestsUpload) -> Result<Uploads, Refused> {
    let limit = objects::config(&caller.hub).max_reports_bytes;
    if ask.size > limit {
        let message = format!("test reports have at most {limit} bytes, compressed");
        return Err(refuse("test_report_rejected", message));
    }
    let sha256 = super::digest(&ask.sha256)?;
    let wanted =
        vec![Wanted { kind: "reports", size: ask.size, sha256, content: None, path: None, parts: None }];
    Ok(Uploads { uploads: objects::promise(&caller, wanted).await? })
}

pub(super) async fn commit(caller: Caller, ask: ObjectsCommit) -> Result<Committed, Refused> {
    bounded(ask.objects.len())?;
    let promised = objects::own(&caller, "reports", &ask.objects).await?;
    objects::verify(&caller.hub, &promised).await?;
    let index = super::follow::index_of(&caller).await?;
    let _open = caller.in_time().await?;
    let task = caller.task.id;
    let mut tx =
        caller.hub.store.begin(&[Key::new("record", task.uuid())]).await.map_err(objects::unavailable)?;
    // A repeat changes nothing, and says nothing twice.
    let kept: Vec<Uuid> = sqlx::query_scalar(
        "UPDATE output_processor.objects SET state = 'live', due = $2 \
         WHERE object_id = ANY($1) AND state = 'promised' RETURNING object_id",
    )
    .bind(&ask.objects)
    .bind(objects::end_of(objects::config(&caller.hub).artifact_days))
    .fetch_all(tx.conn())
    .await?;
    let job = &caller.job;
    let events = kept.into_iter().map(|object| {
        let body = ReportsStored {
            task_id: task,
            job_id: caller.job_id(),
            index: u32::try_from(index).unwrap_or_default(),
            org_id: OrgId(job.org_id),
            project_id: ProjectId(job.project_id),
            job_name: job.name.clone(),
            branch: job.branch.clone(),
            revision: job.revision.clone(),
            object,
            blob: format!("stores/{object}"),
            at: Utc::now(),
        };
        NewEvent::new("record", task.uuid(), caller.actor(), &body)
    });
    tx.append(&events.collect::<Vec<_>>()).await.map_err(objects::unavailable)?;
    tx.commit().await.map_err(objects::unavailable)?;
    Ok(Committed::Stored)
}
