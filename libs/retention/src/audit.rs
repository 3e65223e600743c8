//! Checks archives: each must have the digest and the content that its row says, its events must lead to its rows, and
//! nothing of it may still be in the log.

use crate::{Entry, archive, sweep};
use blobs::{Blobs, Error, Key};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A value that the last event of a type and the final row of its aggregate must agree on.
#[derive(Clone, Copy, Debug)]
pub struct Fold {
    /// Kind of the aggregate and of its row.
    pub aggregate: &'static str,
    /// Type of the event.
    pub event: &'static str,
    /// Name of the value in the event's body and of the row's column.
    pub value: &'static str,
}

/// What was read and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Archives that were read.
    pub archives: u64,
    /// Each thing that is wrong, in words.
    pub findings: Vec<String>,
}

type Row = (Uuid, String, String, i64, i64);

/// Reads and checks every sealed archive of a service.
///
/// # Errors
/// The database or the blobs cannot be read.
pub async fn audit(
    pool: &PgPool,
    service: &str,
    blobs: &dyn Blobs,
    folds: &[Fold],
) -> anyhow::Result<Audited> {
    let schema = eventstore::schema_of(service);
    let sql = format!(
        "SELECT id, blob, sha256, events, aggregates FROM {schema}.event_archives WHERE sealed_at IS NOT NULL ORDER BY id"
    );
    let rows: Vec<Row> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await?;
    let mut audited = Audited::default();
    for (id, blob, sha256, events, aggregates) in rows {
        audited.archives += 1;
        let mut wrong = |what: String| audited.findings.push(format!("archive {id} of {service}: {what}"));
        let bytes = match blobs.get(&Key::new(&blob)?, None).await {
            Ok(get) => get.bytes().await,
            Err(Error::Missing(key)) => {
                wrong(format!("there is no blob {key}"));
                continue;
            }
            Err(error) => Err(error),
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(Error::Damaged(key)) => {
                wrong(format!("the blob {key} is damaged"));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if hex::encode(blobs::digest(&bytes)) != sha256 {
            wrong(format!("the blob {blob} has another digest than its row"));
            continue;
        }
        let keys = sweep::keys_of(pool, &schema, id).await?;
        let mut read = Content::default();
        let done = archive::read(&bytes, (service, id), &keys, |entry| {
            read.take(entry, folds);
            Ok(())
        });
        if let Err(error) = done {
            wrong(format!("it cannot be read: {error:#}"));
            continue;
        }
        if (read.events, read.versions.len() as i64) != (events, aggregates) {
            wrong(format!(
                "{} events of {} aggregates, its row says {events} of {aggregates}",
                read.events,
                read.versions.len()
            ));
        }
        read.disagreements().for_each(&mut wrong);
        for (kind, aggregate, count) in in_the_log(pool, &schema, &read.versions).await? {
            wrong(format!("{count} of its events of {kind} {aggregate} are in the log too"));
        }
    }
    Ok(audited)
}

#[derive(Default)]
struct Content {
    events: i64,
    versions: BTreeMap<(String, Uuid), i64>,
    wrong: Vec<String>,
    /// By aggregate and fold: what rows and events say.
    rows: BTreeMap<(String, Uuid, &'static str), Value>,
    said: BTreeMap<(String, Uuid, &'static str), Value>,
}

impl Content {
    fn take(&mut self, entry: Entry, folds: &[Fold]) {
        match entry {
            Entry::State(state) => {
                for fold in folds.iter().filter(|fold| fold.aggregate == state.kind) {
                    let value = state.row.get(fold.value).cloned().unwrap_or_default();
                    self.rows.insert((state.kind.clone(), state.id, fold.event), value);
                }
            }
            Entry::Event(event) => {
                self.events += 1;
                let last =
                    self.versions.entry((event.aggregate.kind.clone(), event.aggregate.id)).or_default();
                if event.aggregate.version != *last + 1 {
                    let (kind, id) = (&event.aggregate.kind, event.aggregate.id);
                    self.wrong
                        .push(format!("{kind} {id}: version {} follows {last}", event.aggregate.version));
                }
                *last = event.aggregate.version;
                let of = |fold: &&Fold| fold.aggregate == event.aggregate.kind && fold.event == event.kind;
                for fold in folds.iter().filter(of) {
                    let value = event.body.get(fold.value).cloned().unwrap_or_default();
                    self.said.insert((event.aggregate.kind.clone(), event.aggregate.id, fold.event), value);
                }
            }
        }
    }

    fn disagreements(&self) -> impl Iterator<Item = String> {
        let nothing = Value::Null;
        let differs = self.rows.iter().filter_map(move |(place, row)| {
            let said = self.said.get(place).unwrap_or(&nothing);
            let (kind, id, _) = place;
            (said != row).then(|| format!("{kind} {id}: events say {said}, its row says {row}"))
        });
        self.wrong.iter().cloned().chain(differs)
    }
}

async fn in_the_log(
    pool: &PgPool,
    schema: &str,
    versions: &BTreeMap<(String, Uuid), i64>,
) -> sqlx::Result<Vec<(String, Uuid, i64)>> {
    let sql = format!(
        "SELECT a.kind, a.id, count(*) FROM unnest($1::text[], $2::uuid[], $3::int8[]) AS a(kind, id, version) \
         JOIN {schema}.events e ON e.aggregate_kind = a.kind AND e.aggregate_id = a.id AND e.version <= a.version \
         GROUP BY a.kind, a.id"
    );
    sqlx::query_as(AssertSqlSafe(sql))
        .bind(versions.keys().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>())
        .bind(versions.keys().map(|(_, id)| *id).collect::<Vec<_>>())
        .bind(versions.values().copied().collect::<Vec<_>>())
        .fetch_all(pool)
        .await
}
