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
    collections::{BTreeMap, BTreeSet},
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
        let Some(inner) = Weak::upgrade(&bus) else { return Self { me, all } };
        let mut told = crate::Bus(Arc::clone(&inner)).woken(&news(&store));
        let (leaving, parting) = (inner.leaving.clone(), inner.parting.clone());
        parting.spawn(async move {
            let mut first = true;
            while Weak::strong_count(&bus) > 0 && !sender.is_closed() {
                told.borrow_and_update();
                match beat(&store, me, std::mem::take(&mut first)).await {
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
                tokio::select! {
                    () = sleep(BEAT) => {}
                    Ok(()) = told.changed() => {}
                    () = leaving.cancelled() => break,
                }
            }
            if let Err(error) = part(&store, me).await {
                tracing::debug!(service = store.service(), %error, "the others notice by themselves");
            }
        });
        Self { me, all }
    }

    /// Which of `lanes` lanes this process takes.
    pub(crate) fn lanes(&self, group: &str, source: &str, lanes: i32) -> BTreeSet<i32> {
        let all = Arc::clone(&self.all.borrow());
        let owners = owners(&all, group, source, lanes);
        (0..lanes).zip(owners).filter(|(_, owner)| *owner == self.me).map(|(lane, _)| lane).collect()
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

/// Who takes each lane: the process with the highest score for it, of those that do not have their share yet. None has more
/// than one lane more than another, and when a process comes or goes few other lanes move.
fn owners(all: &BTreeSet<Uuid>, group: &str, source: &str, lanes: i32) -> Vec<Uuid> {
    let score = |process: &Uuid, lane: i32| {
        // Keys are fixed: all processes must agree.
        let mut hash = std::hash::DefaultHasher::new();
        hash.write(process.as_bytes());
        hash.write(group.as_bytes());
        hash.write_u8(0xff);
        hash.write(source.as_bytes());
        hash.write_i32(lane);
        hash.finish()
    };
    let mut taken: BTreeMap<Uuid, i32> = all.iter().map(|process| (*process, 0)).collect();
    let mut owners = Vec::new();
    for lane in 0..lanes {
        let least = taken.values().min().copied().unwrap_or_default();
        let free = taken.iter().filter(|(_, count)| **count == least).map(|(process, _)| *process);
        let Some(owner) = free.max_by_key(|process| score(process, lane)) else { break };
        taken.entry(owner).and_modify(|count| *count += 1);
        owners.push(owner);
    }
    owners
}

/// Channel on which processes of a service say that they come or go.
fn news(store: &Store) -> String {
    format!("members:{}", store.service())
}

/// Takes this process out of the list.
async fn part(store: &Store, me: Uuid) -> eventstore::Result<()> {
    let mut tx = store.begin(&[]).await?;
    sqlx::query(AssertSqlSafe(format!("DELETE FROM {}.instances WHERE id = $1", store.schema())))
        .bind(me)
        .execute(tx.conn())
        .await?;
    tell(&mut tx, store, me).await?;
    tx.commit().await
}

/// Lets the others look at once.
async fn tell(tx: &mut eventstore::Tx, store: &Store, me: Uuid) -> eventstore::Result<()> {
    let text = format!("{me} {}", news(store));
    sqlx::query("SELECT pg_notify($1, $2)").bind(crate::COMMITTED).bind(text).execute(tx.conn()).await?;
    Ok(())
}

async fn beat(store: &Store, me: Uuid, first: bool) -> eventstore::Result<BTreeSet<Uuid>> {
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
    if first {
        tell(&mut tx, store, me).await?;
    }
    tx.commit().await?;
    seen.insert(me);
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_shared_evenly_and_few_of_those_that_stay_move() {
        let three: BTreeSet<Uuid> = (1..=3).map(Uuid::from_u128).collect();
        let two: BTreeSet<Uuid> = (1..=2).map(Uuid::from_u128).collect();
        for (group, source) in [("g", "s"), ("h", "s"), ("g", "t"), ("i", "u")] {
            for (all, most) in [(&three, 2), (&two, 2)] {
                let owners = owners(all, group, source, 4);
                assert_eq!(owners.len(), 4);
                for process in all {
                    let mine = owners.iter().filter(|owner| *owner == process).count();
                    assert!((1..=most).contains(&mine), "{process} has {mine} of {owners:?}");
                }
            }
        }
        assert_eq!(owners(&BTreeSet::from([Uuid::nil()]), "g", "s", 4), [Uuid::nil(); 4]);
        let single: BTreeSet<Uuid> =
            (0..40).flat_map(|source| owners(&two, "g", &source.to_string(), 1)).collect();
        assert_eq!(single, two, "lanes of groups that have one are with both");
    }
}
