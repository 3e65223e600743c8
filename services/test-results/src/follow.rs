//! What other services say.

use crate::State;
use async_trait::async_trait;
use bus::{Fault, Group};
use contracts::{Envelope, Event, conductor::JobReady, stores::ReportsStored};
use eventstore::{Key, Tx};
use retention::ExpiredJobs;
use std::{sync::Arc, time::Duration};

/// Remembers ready jobs of several tasks, and those that run failed tests again.
pub(crate) struct Jobs;

#[async_trait]
impl Group for Jobs {
    fn name(&self) -> &'static str {
        "test-results.jobs"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[JobReady::TYPE]
    }

    fn batch(&self) -> usize {
        64
    }

    /// Asked for when a step splits its tests, or by people.
    fn gather(&self, _: &str, _: &str) -> Duration {
        Duration::from_millis(20)
    }

    fn relaxed(&self) -> bool {
        true // a copy: read again from the source after a crash
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            let job: JobReady = message.body_as()?;
            if job.definition.parallelism < 2 && job.failed_tests_of.is_none() {
                continue;
            }
            sqlx::query(
                "INSERT INTO test_results.jobs (job_id, project_id, name, branch, failed_tests_of) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            )
            .bind(job.job_id.uuid())
            .bind(job.project.id.uuid())
            .bind(&job.name)
            .bind(&job.vcs.branch)
            .bind(job.failed_tests_of.map(|of| of.uuid()))
            .execute(tx.conn())
            .await?;
        }
        Ok(())
    }
}

/// Forgets jobs whose pipeline is past its retention.
pub(crate) const fn expired() -> ExpiredJobs {
    ExpiredJobs {
        name: "test-results.expired",
        // Their tests go with the reports.
        statements: &[
            "DELETE FROM test_results.reports WHERE job_id = ANY($1)",
            "DELETE FROM test_results.jobs WHERE job_id = ANY($1)",
            "DELETE FROM test_results.snapshots WHERE job_id = ANY($1)",
        ],
        wake: None,
    }
}

/// Takes in uploads that are to be read: the blob store is not asked while a transaction is open.
pub(crate) struct Reports(pub(crate) Arc<State>);

#[async_trait]
impl Group for Reports {
    fn name(&self) -> &'static str {
        "test-results.reports"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[ReportsStored::TYPE]
    }

    fn batch(&self) -> usize {
        32
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            let stored: ReportsStored = message.body_as()?;
            sqlx::query(
                "INSERT INTO test_results.reports \
                     (object_id, job_id, index, project_id, job_name, branch, revision, blob, at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
            )
            .bind(stored.object)
            .bind(stored.job_id.uuid())
            .bind(i32::try_from(stored.index).unwrap_or(i32::MAX))
            .bind(stored.project_id.uuid())
            .bind(&stored.job_name)
            .bind(&stored.branch)
            .bind(&stored.revision)
            .bind(&stored.blob)
            .bind(stored.at)
            .execute(tx.conn())
            .await?;
        }
        Ok(())
    }

    async fn after_commit(&self, _: &[Envelope]) {
        self.0.waiting.notify_one();
    }
}
