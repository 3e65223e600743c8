//! Placements go with their job when its pipeline is past its retention.

use async_trait::async_trait;
use bus::{Fault, Group};
use contracts::{Envelope, Event as _, retention::WorkflowExpired};
use eventstore::{Key, Tx};
use uuid::Uuid;

/// Forgets placements of jobs that are gone.
pub struct Expired;

#[async_trait]
impl Group for Expired {
    fn name(&self) -> &'static str {
        "scheduler.expired"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[WorkflowExpired::TYPE]
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            let jobs = message.body_as::<WorkflowExpired>()?.jobs;
            let jobs: Vec<Uuid> = jobs.iter().map(|job| job.uuid()).collect();
            sqlx::query("DELETE FROM scheduler.placements WHERE job_id = ANY($1) AND state = 'gone'")
                .bind(&jobs)
                .execute(tx.conn())
                .await?;
            let left: i64 =
                sqlx::query_scalar("SELECT count(*) FROM scheduler.placements WHERE job_id = ANY($1)")
                    .bind(&jobs)
                    .fetch_one(tx.conn())
                    .await?;
            if left > 0 {
                // Its row is how an agent is ended that is still there.
                return Err(Fault::Retry(anyhow::anyhow!(
                    "{left} agents of jobs that are gone have not been ended yet"
                )));
            }
        }
        Ok(())
    }
}
