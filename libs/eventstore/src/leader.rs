//! Leadership of a role by a fenced row (reliability §7).

use crate::{Error, Result, Store, Tx};
use ids::InstanceId;
use sqlx::AssertSqlSafe;
use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

const TTL: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_secs(3);

/// A candidate for a role. At most one candidate leads at a time; one that was overtaken can no longer commit,
/// because [`Leader::fence`] checks the row in the transaction of the write.
#[derive(Debug)]
pub struct Leader {
    store: Store,
    role: String,
    holder: InstanceId,
    /// Epoch while leading, else 0.
    epoch: AtomicI64,
}

impl Leader {
    /// A new candidate.
    pub fn new(store: &Store, role: impl Into<String>) -> Self {
        Self { store: store.clone(), role: role.into(), holder: InstanceId::new(), epoch: AtomicI64::new(0) }
    }

    /// The epoch, while this candidate believes that it leads.
    pub fn epoch(&self) -> Option<i64> {
        Some(self.epoch.load(Ordering::Acquire)).filter(|epoch| *epoch > 0)
    }

    /// Takes or renews leadership for 10 s; says whether this candidate leads now.
    ///
    /// # Errors
    /// The database is away; then the candidate leads only until its last deadline.
    pub async fn hold(&self) -> Result<bool> {
        let sql = format!(
            "INSERT INTO {s}.leaders AS l (role, holder, epoch, deadline) \
             VALUES ($1, $2, 1, clock_timestamp() + make_interval(secs => $3)) \
             ON CONFLICT (role) DO UPDATE SET holder = $2, deadline = EXCLUDED.deadline, \
                 epoch = l.epoch + CASE WHEN l.holder = $2 AND l.epoch = $4 THEN 0 ELSE 1 END \
             WHERE (l.holder = $2 AND l.epoch = $4) OR l.deadline < clock_timestamp() \
             RETURNING epoch",
            s = self.store.schema()
        );
        let epoch: Option<i64> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(&self.role)
            .bind(self.holder.uuid())
            .bind(TTL.as_secs_f64())
            .bind(self.epoch.load(Ordering::Acquire))
            .fetch_optional(self.store.pool())
            .await?;
        self.epoch.store(epoch.unwrap_or(0), Ordering::Release);
        Ok(epoch.is_some())
    }

    /// Tries to lead, and renews, every 3 s. Never returns: select it against a stop token.
    pub async fn keep(&self) {
        loop {
            if let Err(error) = self.hold().await {
                tracing::warn!(
                    role = self.role,
                    error = &error as &dyn std::error::Error,
                    "leadership not renewed"
                );
            }
            tokio::time::sleep(RENEW).await;
        }
    }

    /// Checks in the transaction of a write that this candidate still leads, and keeps it so until the commit.
    ///
    /// # Errors
    /// [`Error::Fenced`]: another leads, or the deadline has passed.
    pub async fn fence(&self, tx: &mut Tx) -> Result<()> {
        let sql = format!(
            "SELECT true FROM {}.leaders WHERE role = $1 AND holder = $2 AND epoch = $3 \
             AND deadline > clock_timestamp() FOR SHARE",
            self.store.schema()
        );
        let leads: Option<bool> = sqlx::query_scalar(AssertSqlSafe(sql))
            .bind(&self.role)
            .bind(self.holder.uuid())
            .bind(self.epoch.load(Ordering::Acquire))
            .fetch_optional(tx.conn())
            .await?;
        leads.map(|_| ()).ok_or_else(|| Error::Fenced { role: self.role.clone() })
    }

    /// Gives the role up, so that another need not wait for the deadline.
    ///
    /// # Errors
    /// The database is away.
    pub async fn release(&self) -> Result<()> {
        let sql = format!(
            "UPDATE {}.leaders SET deadline = clock_timestamp() - interval '1 ms' WHERE role = $1 AND holder = $2 AND epoch = $3",
            self.store.schema()
        );
        let epoch = self.epoch.swap(0, Ordering::AcqRel);
        sqlx::query(AssertSqlSafe(sql))
            .bind(&self.role)
            .bind(self.holder.uuid())
            .bind(epoch)
            .execute(self.store.pool())
            .await?;
        Ok(())
    }
}
