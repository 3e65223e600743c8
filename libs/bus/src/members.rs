//! Which processes run the groups of a service now, and who of them takes which lane.
//!
//! Every process says so in a row, every 3 s, and reads the others. Each computes by itself who takes a lane; while
//! two disagree, a lane may be run twice or not at all for some seconds, and the lane's revision sees to it that
//! no effect happens twice.

use crate::Inner;
use eventstore::Store;
use ids::InstanceId;
use sqlx::AssertSqlSafe;
use std::{
    collections::BTreeSet,
    hash::Hasher,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use uuid::Uuid;

const BEAT: Duration = Duration::from_secs(3);
/// A process that was silent for so long is gone.
const GONE_SECONDS: f64 = 10.0;

/// The processes that were seen lately, with this one.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    me: Uuid,
    all: watch::Receiver<Arc<BTreeSet<Uuid>>>,
}

impl Members {
    /// Begins to say that this process is here.
    pub(crate) fn join(bus: Weak<Inner>, store: Store) -> Self {
        let me = InstanceId::new().uuid();
        let (sender, all) = watch::channel(Arc::new(BTreeSet::from([me])));
        tokio::spawn(async move {
            while Weak::strong_count(&bus) > 0 && !sender.is_closed() {
                match beat(&store, me).await {
                    Ok(seen) => {
                        sender.send_if_modified(|known| {
                            let changed = known.as_ref() != &seen;
                            if changed {
                                tracing::info!(
                                    service = store.service(),
                                    processes = seen.len(),
                                    "processes of this service"
                                );
                                *known = Arc::new(seen);
                            }
                            changed
                        });
                    }
                    Err(error) => {
                        tracing::warn!(service = store.service(), %error, "the other processes are not known")
                    }
                }
                sleep(BEAT).await;
            }
        });
        Self { me, all }
    }

    /// Which of `lanes` lanes this process takes.
    pub(crate) fn lanes(&self, group: &str, source: &str, lanes: i32) -> BTreeSet<i32> {
        let all = Arc::clone(&self.all.borrow());
        (0..lanes).filter(|lane| owner(&all, group, source, *lane) == Some(self.me)).collect()
    }

    /// Returns when the lanes of this process are no longer `taken`.
    pub(crate) async fn moved(&mut self, group: &str, source: &str, lanes: i32, taken: &BTreeSet<i32>) {
        loop {
            self.all.mark_unchanged();
            if self.lanes(group, source, lanes) != *taken {
                return;
            }
            if self.all.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The process with the highest score for the lane: when one comes or goes, only its own lanes move.
fn owner(all: &BTreeSet<Uuid>, group: &str, source: &str, lane: i32) -> Option<Uuid> {
    let score = |process: &Uuid| {
        // Keys are fixed: all processes must agree.
        let mut hash = std::hash::DefaultHasher::new();
        hash.write(process.as_bytes());
        hash.write(group.as_bytes());
        hash.write_u8(0xff);
        hash.write(source.as_bytes());
        hash.write_i32(lane);
        hash.finish()
    };
    all.iter().copied().max_by_key(score)
}

async fn beat(store: &Store, me: Uuid) -> eventstore::Result<BTreeSet<Uuid>> {
    let schema = store.schema();
    let sql = format!(
        "WITH mine AS (INSERT INTO {schema}.instances (id, seen) VALUES ($1, clock_timestamp()) \
                       ON CONFLICT (id) DO UPDATE SET seen = EXCLUDED.seen), \
              gone AS (DELETE FROM {schema}.instances WHERE seen < clock_timestamp() - interval '1 hour') \
         SELECT id FROM {schema}.instances WHERE seen > clock_timestamp() - make_interval(secs => $2)"
    );
    let mut tx = store.begin(&[]).await?;
    tx.relaxed().await?;
    let mut seen: BTreeSet<Uuid> = sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(me)
        .bind(GONE_SECONDS)
        .fetch_all(tx.conn())
        .await?
        .into_iter()
        .collect();
    tx.commit().await?;
    seen.insert(me);
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_leaves_moves_its_own_lanes_only() {
        let three: BTreeSet<Uuid> = (1..=3).map(Uuid::from_u128).collect();
        let two: BTreeSet<Uuid> = (1..=2).map(Uuid::from_u128).collect();
        let mut counts = std::collections::HashMap::<Uuid, u32>::new();
        for lane in 0..300 {
            let before = owner(&three, "g", "s", lane).unwrap();
            let after = owner(&two, "g", "s", lane).unwrap();
            *counts.entry(before).or_default() += 1;
            assert!(before == after || before == Uuid::from_u128(3));
        }
        assert!(counts.values().all(|count| *count > 60), "{counts:?}");
    }
}
