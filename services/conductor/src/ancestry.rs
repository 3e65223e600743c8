//! Which jobs are upstream of a job: what its workspace is made of (execution §16).

use crate::{State, error::Result};
use contracts::conductor::{Ancestor, JobAncestry};

impl State {
    pub(crate) async fn ancestry(&self, ask: JobAncestry) -> Result<Vec<Ancestor>> {
        let rows: Vec<(String, Vec<String>)> = sqlx::query_as(
            "WITH RECURSIVE up (id) AS ( \
                 SELECT upstream FROM conductor.edges WHERE job = $1 \
                 UNION SELECT e.upstream FROM conductor.edges e JOIN up ON e.job = up.id) \
             SELECT j.name, ARRAY(SELECT u.name FROM conductor.edges e JOIN conductor.jobs u ON u.id = e.upstream \
                                  WHERE e.job = j.id ORDER BY u.position) \
             FROM up JOIN conductor.jobs j ON j.id = up.id ORDER BY j.position",
        )
        .bind(ask.job_id.uuid())
        .fetch_all(self.store.pool())
        .await?;
        Ok(rows.into_iter().map(|(name, requires)| Ancestor { name, requires }).collect())
    }
}
