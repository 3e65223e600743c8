//! The order in which histories go.

use crate::{
    Owner, Unit,
    archive::{Keys, Writer, Written},
};
use anyhow::{Context, ensure};
use blobs::{Blobs, Put};
use contracts::retention::Archived;
use eventstore::{Key, Leader, Store, failpoint};
use sqlx::AssertSqlSafe;
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// After a sweep that could not do everything, the next comes at the latest then.
const AGAIN: Duration = Duration::from_secs(30);

/// The archive of a batch.
#[derive(Debug)]
pub struct Sealed {
    id: Uuid,
    versions: BTreeMap<(String, Uuid), i64>,
}

impl Sealed {
    /// Where the history of one of its aggregates lies.
    pub fn archived(&self, key: Key) -> Archived {
        let events = self.versions.get(&(key.kind.to_owned(), key.id)).copied().unwrap_or_default();
        Archived { archive: self.id, events }
    }
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Units that went.
    pub gone: u64,
    /// Units that may go and could not; the log says why.
    pub failed: u64,
    /// The time was over before everything was gone.
    pub more: bool,
}

/// Lets the units of an owner go; of several processes one at a time.
pub struct Sweeper {
    owner: Arc<dyn Owner>,
    blobs: Arc<dyn Blobs>,
    leader: Leader,
}

impl std::fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sweeper({:?})", self.owner.store())
    }
}

impl Sweeper {
    /// A candidate for the role `<service>.retention`.
    pub fn new(owner: Arc<dyn Owner>, blobs: Arc<dyn Blobs>) -> Self {
        let leader = Leader::new(owner.store(), format!("{}.retention", owner.store().service()));
        Self { owner, blobs, leader }
    }

    /// Sweeps at the start, every `period` and whenever it is woken, until `stop`.
    pub async fn run(self, period: Duration, wake: Arc<Notify>, stop: CancellationToken) {
        let service = self.owner.store().service();
        while !stop.is_cancelled() {
            let swept = tokio::select! {
                () = stop.cancelled() => break,
                swept = self.sweep(None) => swept,
            };
            let wait = match swept {
                Ok(Some(Done { gone, failed, .. })) => {
                    if gone > 0 {
                        tracing::info!(service, gone, "archived and removed what is past its retention");
                    }
                    if failed > 0 { AGAIN.min(period) } else { period }
                }
                Ok(None) => AGAIN.min(period),
                Err(error) => {
                    tracing::warn!(
                        service,
                        error = format!("{error:#}"),
                        "what is past its retention stays for now"
                    );
                    AGAIN.min(period)
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
                () = wake.notified() => {}
            }
        }
        if let Err(error) = self.leader.release().await {
            tracing::debug!(service, %error, "the role was not given up");
        }
    }

    /// One sweep, for at most `limit`; `None`: another process sweeps now.
    ///
    /// # Errors
    /// A store is away.
    pub async fn sweep(&self, limit: Option<Duration>) -> anyhow::Result<Option<Done>> {
        if !self.leader.hold().await? {
            return Ok(None);
        }
        let done = tokio::select! {
            done = self.all(limit) => done,
            // A large batch takes longer than leadership lasts by itself.
            () = self.leader.keep() => anyhow::bail!("leadership ended"),
        };
        self.leader.release().await?;
        done.map(Some)
    }

    async fn all(&self, limit: Option<Duration>) -> anyhow::Result<Done> {
        let began = Instant::now();
        self.discard_plans().await?;
        let (mut done, mut failed) = (Done::default(), HashSet::new());
        loop {
            let units = self.owner.due(&failed).await?;
            if units.is_empty() {
                break;
            }
            if limit.is_some_and(|limit| began.elapsed() >= limit) {
                done.more = true;
                break;
            }
            match self.expire(&units).await {
                Ok(()) => done.gone += units.len() as u64,
                // Whichever it is must not keep the others.
                Err(error) if units.len() > 1 => {
                    tracing::debug!(error = format!("{error:#}"), "a batch is taken apart");
                    for unit in units {
                        self.alone(unit, &mut done, &mut failed).await;
                    }
                }
                Err(error) => self.failed(&units[0], &error, &mut done, &mut failed),
            }
        }
        let service = self.owner.store().service();
        metrics::counter!("gantry.retention.gone", "service" => service).increment(done.gone);
        Ok(done)
    }

    async fn alone(&self, unit: Unit, done: &mut Done, failed: &mut HashSet<Uuid>) {
        match self.expire(std::slice::from_ref(&unit)).await {
            Ok(()) => done.gone += 1,
            Err(error) => self.failed(&unit, &error, done, failed),
        }
    }

    fn failed(&self, unit: &Unit, error: &anyhow::Error, done: &mut Done, failed: &mut HashSet<Uuid>) {
        let service = self.owner.store().service();
        tracing::warn!(service, id = %unit.id, error = format!("{error:#}"), "it is past its retention and stays for now");
        done.failed += 1;
        failed.insert(unit.id);
    }

    /// Takes away what a sweep left that did not come to its end. Only this process sweeps.
    async fn discard_plans(&self) -> anyhow::Result<()> {
        let store = self.owner.store();
        let sql = format!("SELECT id, blob FROM {}.event_archives WHERE sealed_at IS NULL", store.schema());
        let left: Vec<(Uuid, String)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(store.pool()).await?;
        for (id, blob) in left {
            // Its row last: a crash between leaves no blob that nobody knows.
            self.blobs.delete(&blobs::Key::new(blob)?).await?;
            let sql =
                format!("DELETE FROM {}.event_archives WHERE id = $1 AND sealed_at IS NULL", store.schema());
            sqlx::query(AssertSqlSafe(sql)).bind(id).execute(store.pool()).await?;
        }
        Ok(())
    }

    async fn expire(&self, units: &[Unit]) -> anyhow::Result<()> {
        let store = self.owner.store();
        let keys: Vec<Key> = units.iter().flat_map(|unit| unit.keys.iter().copied()).collect();
        let id = ids::ObjectId::new().uuid();
        let mut writer = Writer::new(store.service(), id)?;
        for state in self.owner.states(units).await? {
            writer.state(state)?;
        }
        store.histories(&keys, |event| writer.event(event)).await?;
        let (bytes, written) = writer.finish()?;
        // What never had a history needs no archive.
        let archived = written.events > 0;
        if archived {
            let sha256 = blobs::digest(&bytes);
            self.plan(id, (bytes.len(), &sha256), &written).await?;
            let put = self.blobs.put(&place(store, id)?, blobs::body(bytes), sha256).await?;
            ensure!(matches!(put, Put::Stored(_)), "archive {id} is there already");
            failpoint(&format!("{}.archive.stored", store.service())).await?;
        }
        self.owner.prepare(units).await?;

        let versions: Vec<(Key, i64)> = keys
            .iter()
            .map(|key| {
                (*key, written.versions.get(&(key.kind.to_owned(), key.id)).copied().unwrap_or_default())
            })
            .collect();
        let sealed = Sealed { id, versions: written.versions };
        let mut tx = store.begin(&keys).await?;
        tx.for_retention().await?;
        self.leader.fence(&mut tx).await?;
        let announced = self.owner.remove(&mut tx, units, &sealed).await?;
        // Before the history goes, for versions to go on from it.
        tx.append(&announced).await?;
        let forgotten = tx.forget(&versions).await?;
        ensure!(
            i64::try_from(forgotten) == Ok(written.events),
            "{forgotten} of {} archived events were in the log",
            written.events
        );
        let left = left(&mut tx, &keys).await?;
        ensure!(left == announced.len() as i64, "{left} events came after the archive was written");
        if archived {
            let sql = format!(
                "UPDATE {}.event_archives SET sealed_at = clock_timestamp() WHERE id = $1 AND sealed_at IS NULL",
                store.schema()
            );
            let done = sqlx::query(AssertSqlSafe(sql)).bind(id).execute(tx.conn()).await?;
            ensure!(done.rows_affected() == 1, "the plan of archive {id} is gone");
        }
        Ok(tx.commit().await?)
    }

    async fn plan(
        &self,
        id: Uuid,
        (size, sha256): (usize, &blobs::Digest),
        written: &Written,
    ) -> anyhow::Result<()> {
        let store = self.owner.store();
        let mut tx = store.begin(&[]).await?;
        self.leader.fence(&mut tx).await?;
        let sql = format!(
            "INSERT INTO {}.event_archives (id, blob, sha256, size, events, aggregates) VALUES ($1, $2, $3, $4, $5, $6)",
            store.schema()
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(id)
            .bind(place(store, id)?.as_str())
            .bind(hex::encode(sha256))
            .bind(i64::try_from(size)?)
            .bind(written.events)
            .bind(i64::try_from(written.versions.len())?)
            .execute(tx.conn())
            .await?;
        if !written.keys.is_empty() {
            let sql = format!(
                "INSERT INTO {}.archive_keys (archive_id, aggregate_kind, aggregate_id, key) \
                 SELECT $1, * FROM unnest($2::text[], $3::uuid[], $4::bytea[])",
                store.schema()
            );
            let kinds: Vec<&str> = written.keys.keys().map(|(kind, _)| kind.as_str()).collect();
            let ids: Vec<Uuid> = written.keys.keys().map(|(_, id)| *id).collect();
            let keys: Vec<&[u8]> = written.keys.values().map(Vec::as_slice).collect();
            sqlx::query(AssertSqlSafe(sql))
                .bind(id)
                .bind(kinds)
                .bind(ids)
                .bind(keys)
                .execute(tx.conn())
                .await?;
        }
        Ok(tx.commit().await?)
    }
}

fn place(store: &Store, id: Uuid) -> anyhow::Result<blobs::Key> {
    blobs::Key::new(format!("archive/{}/{id}", store.service())).context("the name of an archive")
}

async fn left(tx: &mut eventstore::Tx, keys: &[Key]) -> anyhow::Result<i64> {
    let sql = format!(
        "SELECT count(*) FROM unnest($1::text[], $2::uuid[]) AS a(kind, id) \
         JOIN {}.events e ON e.aggregate_kind = a.kind AND e.aggregate_id = a.id",
        tx.store().schema()
    );
    let (kinds, ids): (Vec<&str>, Vec<Uuid>) = keys.iter().map(|key| (key.kind, key.id)).unzip();
    Ok(sqlx::query_scalar(AssertSqlSafe(sql)).bind(kinds).bind(ids).fetch_one(tx.conn()).await?)
}

/// Keys of the personal parts of an archive that nobody has destroyed.
pub(crate) async fn keys_of(pool: &sqlx::PgPool, schema: &str, archive: Uuid) -> sqlx::Result<Keys> {
    let sql =
        format!("SELECT aggregate_kind, aggregate_id, key FROM {schema}.archive_keys WHERE archive_id = $1");
    let rows: Vec<(String, Uuid, Vec<u8>)> =
        sqlx::query_as(AssertSqlSafe(sql)).bind(archive).fetch_all(pool).await?;
    Ok(rows.into_iter().map(|(kind, id, key)| ((kind, id), key)).collect())
}
