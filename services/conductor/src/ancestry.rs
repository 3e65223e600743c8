//! Which jobs are upstream of a job: what its workspace is made of (execution §16).

use crate::{State, error::Result};
use contracts::conductor::{Ancestor, JobAncestry};
use ids::JobId;
use uuid::Uuid;

impl State {
    pub(crate) async fn ancestry(&self, ask: JobAncestry) -> Result<Vec<Ancestor>> {
        let rows: Vec<(String, Uuid, Vec<String>)> = sqlx::query_as(
            "WITH RECURSIVE up (id) AS ( \
                 SELECT upstream FROM conductor.edges WHERE job = $1 \
                 UNION SELECT e.upstream FROM conductor.edges e JOIN up ON e.job = up.id) \
             SELECT j.name, coalesce(j.carried_from, j.id), ARRAY(SELECT u.name FROM conductor.edges e JOIN conductor.jobs u ON u.id = e.upstream \
                                  WHERE e.job = j.id ORDER BY u.position) \
             FROM up JOIN conductor.jobs j ON j.id = up.id ORDER BY j.position",
        )
        .bind(ask.job_id.uuid())
        .fetch_all(self.store.pool())
        .await?;
        let ancestor =
            |(name, id, requires): (String, Uuid, _)| Ancestor { name, job_id: Some(JobId(id)), requires };
        Ok(rows.into_iter().map(ancestor).collect())
    }
}
