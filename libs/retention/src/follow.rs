//! Services whose rows belong to jobs hear here that their workflows are gone.

use async_trait::async_trait;
use bus::{Fault, Group};
use contracts::{Envelope, Event as _, retention::WorkflowExpired};
use eventstore::{Key, Tx};
use sqlx::AssertSqlSafe;
use std::sync::Arc;
use tokio::sync::Notify;
use uuid::Uuid;

/// Runs statements with the ids of jobs that are gone, `$1`: to note them for a sweep, or to delete what is theirs.
#[derive(Debug)]
pub struct ExpiredJobs {
    /// Name of the group, for example `dispatcher.expired`.
    pub name: &'static str,
    /// One after another; each must bear to be run again.
    pub statements: &'static [&'static str],
    /// Told once they are committed.
    pub wake: Option<Arc<Notify>>,
}

#[async_trait]
impl Group for ExpiredJobs {
    fn name(&self) -> &'static str {
        self.name
    }

    fn wants(&self) -> &'static [&'static str] {
        &[WorkflowExpired::TYPE]
    }

    fn batch(&self) -> usize {
        64
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            let jobs = message.body_as::<WorkflowExpired>()?.jobs;
            let jobs: Vec<Uuid> = jobs.iter().map(|job| job.uuid()).collect();
            for statement in self.statements {
                sqlx::query(AssertSqlSafe(*statement)).bind(&jobs).execute(tx.conn()).await?;
            }
        }
        Ok(())
    }

    async fn after_commit(&self, _: &[Envelope]) {
        if let Some(wake) = &self.wake {
            wake.notify_one();
        }
    }
}
