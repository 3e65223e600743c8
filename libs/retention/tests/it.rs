//! Histories that leave the log, on a real PostgreSQL.

use async_trait::async_trait;
use blobs::{Blobs, FsBlobs};
use contracts::{Actor, Envelope, Event, NewEvent};
use eventstore::{Key, NO_MIGRATIONS, Store, Tx};
use gantry_retention::{Done, Entry, Fold, Owner, Sealed, State, Sweeper, Unit, audit, fitting, read};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgPool;
use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use testkit::until;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(30);
const FOLDS: [Fold; 1] = [Fold { aggregate: "thing", event: "thing.done", value: "outcome" }];

#[derive(Serialize, Deserialize)]
struct ThingDone {
    outcome: String,
}
contracts::event!(ThingDone, "thing.done", 1);

#[derive(Serialize, Deserialize)]
struct ThingMoved {}
contracts::event!(ThingMoved, "thing.moved", 1);

#[derive(Serialize, Deserialize)]
struct ThingExpired {
    events: i64,
}
contracts::event!(ThingExpired, "thing.expired", 1);

/// Owner of things; a thing that is done may go.
#[derive(Clone)]
struct Things {
    store: Store,
    /// How many at a time.
    batch: i64,
    /// Never returns from what happens between archive and removal.
    dies: Arc<AtomicBool>,
    reached: Arc<AtomicUsize>,
    /// Moved once more in between.
    moved: Arc<std::sync::Mutex<Option<Uuid>>>,
}

#[async_trait]
impl Owner for Things {
    fn store(&self) -> &Store {
        &self.store
    }

    async fn due(&self, skip: &HashSet<Uuid>) -> anyhow::Result<Vec<Unit>> {
        let skip: Vec<Uuid> = skip.iter().copied().collect();
        let ids: Vec<Uuid> = sqlx::query_scalar(
            "SELECT id FROM things.things WHERE outcome IS NOT NULL AND id <> ALL($1) ORDER BY id LIMIT $2",
        )
        .bind(skip)
        .bind(self.batch)
        .fetch_all(self.store.pool())
        .await?;
        Ok(fitting(ids.into_iter().map(|id| Unit { id, keys: vec![Key::new("thing", id)] }).collect()))
    }

    async fn states(&self, units: &[Unit]) -> anyhow::Result<Vec<State>> {
        let ids: Vec<Uuid> = units.iter().map(|unit| unit.id).collect();
        let rows: Vec<(Uuid, Value)> =
            sqlx::query_as("SELECT id, to_jsonb(t) FROM things.things t WHERE id = ANY($1)")
                .bind(ids)
                .fetch_all(self.store.pool())
                .await?;
        Ok(rows.into_iter().map(|(id, row)| State { kind: "thing".into(), id, row }).collect())
    }

    async fn prepare(&self, _units: &[Unit]) -> anyhow::Result<()> {
        self.reached.fetch_add(1, Ordering::SeqCst);
        if self.dies.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let moved = self.moved.lock().unwrap().take();
        if let Some(id) = moved {
            append(&self.store, id, &ThingMoved {}, None).await;
        }
        Ok(())
    }

    async fn remove(&self, tx: &mut Tx, units: &[Unit], sealed: &Sealed) -> anyhow::Result<Vec<NewEvent>> {
        let ids: Vec<Uuid> = units.iter().map(|unit| unit.id).collect();
        let done = sqlx::query("DELETE FROM things.things WHERE id = ANY($1) AND outcome IS NOT NULL")
            .bind(&ids)
            .execute(tx.conn())
            .await?;
        anyhow::ensure!(done.rows_affected() == ids.len() as u64);
        Ok(ids
            .into_iter()
            .map(|id| {
                let body = ThingExpired { events: sealed.archived(Key::new("thing", id)).events };
                NewEvent::new("thing", id, Actor::service("things"), &body)
            })
            .collect())
    }
}

async fn append<E: Event>(store: &Store, id: Uuid, body: &E, personal: Option<Value>) {
    let mut tx = store.begin(&[Key::new("thing", id)]).await.unwrap();
    let event = NewEvent::new("thing", id, Actor::service("things"), body);
    tx.append(&[match personal {
        Some(part) => event.with_personal(part),
        None => event,
    }])
    .await
    .unwrap();
    tx.commit().await.unwrap();
}

struct World {
    pool: PgPool,
    things: Things,
    blobs: Arc<dyn Blobs>,
    folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let pool = testkit::postgres().await.pool;
        let store = Store::open(pool.clone(), "things", &NO_MIGRATIONS).await.unwrap();
        sqlx::query("CREATE TABLE things.things (id uuid PRIMARY KEY, outcome text)")
            .execute(&pool)
            .await
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let blobs: Arc<dyn Blobs> = Arc::new(FsBlobs::open(folder.path(), &["key"]).await.unwrap());
        let things =
            Things { store, batch: 4, dies: Arc::default(), reached: Arc::default(), moved: Arc::default() };
        Self { pool, things, blobs, folder }
    }

    fn sweeper(&self) -> Sweeper {
        Sweeper::new(Arc::new(self.things.clone()), Arc::clone(&self.blobs))
    }

    /// A thing with `moves` events, and its end if it has one.
    async fn thing(&self, moves: usize, outcome: Option<&str>) -> Uuid {
        let id = ids::MessageId::new().uuid();
        sqlx::query("INSERT INTO things.things VALUES ($1, $2)")
            .bind(id)
            .bind(outcome)
            .execute(&self.pool)
            .await
            .unwrap();
        for n in 0..moves {
            let personal = (n == 0).then(|| json!({ "name": "Ada", "of": id }));
            append(&self.things.store, id, &ThingMoved {}, personal).await;
        }
        if let Some(outcome) = outcome {
            append(&self.things.store, id, &ThingDone { outcome: outcome.into() }, None).await;
        }
        id
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// Every archived event, by aggregate; each aggregate lies in one archive only.
    async fn archived(&self) -> BTreeMap<Uuid, Vec<Envelope>> {
        let rows: Vec<(Uuid, String)> =
            sqlx::query_as("SELECT id, blob FROM things.event_archives WHERE sealed_at IS NOT NULL")
                .fetch_all(&self.pool)
                .await
                .unwrap();
        let mut all: BTreeMap<Uuid, Vec<Envelope>> = BTreeMap::new();
        for (id, blob) in rows {
            let keys: Vec<(String, Uuid, Vec<u8>)> = sqlx::query_as(
                "SELECT aggregate_kind, aggregate_id, key FROM things.archive_keys WHERE archive_id = $1",
            )
            .bind(id)
            .fetch_all(&self.pool)
            .await
            .unwrap();
            let keys = keys.into_iter().map(|(kind, id, key)| ((kind, id), key)).collect();
            let key = blobs::Key::new(blob).unwrap();
            let bytes = self.blobs.get(&key, None).await.unwrap().bytes().await.unwrap();
            let mut here: BTreeMap<Uuid, Vec<Envelope>> = BTreeMap::new();
            read(&bytes, ("things", id), &keys, |entry| {
                if let Entry::Event(event) = entry {
                    here.entry(event.aggregate.id).or_default().push(*event);
                }
                Ok(())
            })
            .unwrap();
            for (id, events) in here {
                assert!(all.insert(id, events).is_none(), "thing {id} lies in two archives");
            }
        }
        all
    }

    async fn findings(&self) -> Vec<String> {
        audit(&self.pool, "things", self.blobs.as_ref(), &FOLDS).await.unwrap().findings
    }

    /// Blobs in the store.
    fn files(&self) -> usize {
        let objects = std::fs::read_dir(self.folder.path().join("objects")).unwrap();
        objects.map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count()).sum()
    }
}

#[tokio::test]
async fn what_is_over_goes_and_its_archive_tells_the_same() {
    let world = World::new().await;
    let store = &world.things.store;
    let mut before = BTreeMap::new();
    for moves in 0..9 {
        let id = world.thing(moves, Some("well")).await;
        before.insert(id, store.history("thing", id, 0).await.unwrap());
    }
    let open = world.thing(3, None).await;

    let done = world.sweeper().sweep(None).await.unwrap().unwrap();
    assert_eq!(done, Done { gone: 9, failed: 0, more: false });
    assert_eq!(world.archived().await, before, "events, versions, times and personal parts");
    assert_eq!(store.history("thing", open, 0).await.unwrap().len(), 3, "it is not over");
    assert_eq!(world.count("SELECT count(*) FROM things.things").await, 1);
    for (id, events) in &before {
        let left = store.history("thing", *id, 0).await.unwrap();
        let expected = i64::try_from(events.len()).unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].aggregate.version, expected + 1, "its last word goes on from the archive");
        assert_eq!(left[0].body_as::<ThingExpired>().unwrap().events, expected);
    }
    assert_eq!(world.findings().await, [] as [String; 0]);
    assert_eq!(world.sweeper().sweep(None).await.unwrap(), Some(Done::default()), "nothing is left to do");
}

#[tokio::test]
async fn the_personal_part_is_readable_until_its_key_is_destroyed() {
    let world = World::new().await;
    let (ada, bob) = (world.thing(1, Some("well")).await, world.thing(1, Some("well")).await);
    world.sweeper().sweep(None).await.unwrap();
    for file in walk(world.folder.path()) {
        let bytes = std::fs::read(&file).unwrap();
        let text = zstd_of(&bytes);
        assert!(!text.contains("Ada"), "{} shows a name", file.display());
    }
    sqlx::query("DELETE FROM things.archive_keys WHERE aggregate_id = $1")
        .bind(ada)
        .execute(&world.pool)
        .await
        .unwrap();
    let archived = world.archived().await;
    assert_eq!(archived[&ada][0].personal, None);
    assert_eq!(archived[&bob][0].personal, Some(json!({ "name": "Ada", "of": bob })));
    assert_eq!(world.findings().await, [] as [String; 0], "what was erased is not missing");
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

/// What is in a file that holds compressed text somewhere.
fn zstd_of(bytes: &[u8]) -> String {
    let magic = [0x28, 0xb5, 0x2f, 0xfd];
    let Some(at) = bytes.windows(4).position(|window| window == magic) else {
        return String::from_utf8_lossy(bytes).into_owned();
    };
    let mut text = Vec::new();
    // The frame ends before what the store adds to a file.
    std::io::Read::read_to_end(&mut zstd::Decoder::new(&bytes[at..]).unwrap().single_frame(), &mut text)
        .unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_crash_between_archive_and_removal_loses_nothing_and_doubles_nothing() {
    let world = World::new().await;
    let mut before = BTreeMap::new();
    for _ in 0..3 {
        let id = world.thing(2, Some("well")).await;
        before.insert(id, world.things.store.history("thing", id, 0).await.unwrap());
    }
    world.things.dies.store(true, Ordering::SeqCst);
    let sweeper = world.sweeper();
    let dying = tokio::spawn(async move { sweeper.sweep(None).await });
    until("the archive is written", LIMIT, async || world.things.reached.load(Ordering::SeqCst) > 0).await;
    dying.abort();
    assert!(dying.await.unwrap_err().is_cancelled());
    assert_eq!(world.files(), 1, "the archive is stored");
    for (id, events) in &before {
        assert_eq!(&world.things.store.history("thing", *id, 0).await.unwrap(), events, "nothing has gone");
    }
    assert_eq!(world.findings().await, [] as [String; 0], "a plan is no archive");

    // Another process, once the leadership of the first has run out.
    world.things.dies.store(false, Ordering::SeqCst);
    assert_eq!(world.sweeper().sweep(None).await.unwrap(), None, "the first may still live");
    sqlx::query("UPDATE things.leaders SET deadline = clock_timestamp() - interval '1 ms'")
        .execute(&world.pool)
        .await
        .unwrap();
    let done = world.sweeper().sweep(None).await.unwrap().unwrap();
    assert_eq!(done.gone, 3);
    assert_eq!(world.archived().await, before);
    assert_eq!(world.files(), 1, "what the first had stored was thrown away");
    assert_eq!(world.count("SELECT count(*) FROM things.event_archives").await, 1);
    assert_eq!(world.findings().await, [] as [String; 0]);
}

#[tokio::test]
async fn several_sweepers_at_once_take_each_thing_once() {
    let world = World::new().await;
    let mut before = BTreeMap::new();
    for moves in 0..40 {
        let id = world.thing(moves % 3, Some("well")).await;
        before.insert(id, world.things.store.history("thing", id, 0).await.unwrap());
    }
    let sweepers: Vec<_> = (0..3).map(|_| world.sweeper()).collect();
    let sweeps = sweepers.iter().map(async |sweeper| {
        let mut gone = 0;
        for _ in 0..200 {
            gone += sweeper.sweep(Some(Duration::ZERO)).await.unwrap().map_or(0, |done| done.gone);
            gone += sweeper.sweep(None).await.unwrap().map_or(0, |done| done.gone);
            if world.count("SELECT count(*) FROM things.things").await == 0 {
                break;
            }
        }
        gone
    });
    let gone: u64 = futures::future::join_all(sweeps).await.into_iter().sum();
    assert_eq!(gone, 40);
    assert_eq!(world.archived().await, before);
    assert_eq!(world.findings().await, [] as [String; 0]);
}

#[tokio::test]
async fn what_changes_after_it_was_archived_stays_and_keeps_nothing_else() {
    let world = World::new().await;
    let (late, other) = (world.thing(1, Some("well")).await, world.thing(1, Some("well")).await);
    *world.things.moved.lock().unwrap() = Some(late);
    // The batch fails for what came late, and each is tried alone: by then the archive is whole again.
    let done = world.sweeper().sweep(None).await.unwrap().unwrap();
    assert_eq!((done.gone, done.failed), (2, 0));
    let archived = world.archived().await;
    assert_eq!((archived[&late].len(), archived[&other].len()), (3, 2), "what came late is in the archive");

    let alone = world.thing(1, Some("well")).await;
    *world.things.moved.lock().unwrap() = Some(alone);
    let done = world.sweeper().sweep(None).await.unwrap().unwrap();
    assert_eq!((done.gone, done.failed), (0, 1));
    assert_eq!(world.things.store.history("thing", alone, 0).await.unwrap().len(), 3, "it stays whole");
    assert_eq!(world.findings().await, [] as [String; 0]);
    assert_eq!(world.sweeper().sweep(None).await.unwrap().unwrap().gone, 1);
    assert_eq!(world.findings().await, [] as [String; 0]);
}

#[tokio::test]
async fn nobody_else_deletes_events() {
    let world = World::new().await;
    world.thing(1, Some("well")).await;
    let error = sqlx::query("DELETE FROM things.events").execute(&world.pool).await.unwrap_err();
    assert!(error.to_string().contains("retention only"), "{error}");
}

#[tokio::test]
async fn an_audit_finds_what_is_wrong_with_an_archive() {
    let world = World::new().await;
    let id = world.thing(1, Some("well")).await;
    sqlx::query("UPDATE things.things SET outcome = 'badly'").execute(&world.pool).await.unwrap();
    world.sweeper().sweep(None).await.unwrap();
    let found = world.findings().await;
    assert!(found[0].contains("events say \"well\", its row says \"badly\""), "{found:?}");

    let copy = "INSERT INTO things.events (id, kind, schema, occurred_at, producer, aggregate_kind, aggregate_id, version, actor, body) \
                SELECT id, kind, schema, occurred_at, producer, aggregate_kind, aggregate_id, 1, actor, body FROM things.events";
    sqlx::query(copy).execute(&world.pool).await.unwrap();
    let found = world.findings().await;
    assert!(
        found.iter().any(|what| what.contains(&format!("1 of its events of thing {id} are in the log too"))),
        "{found:?}"
    );

    sqlx::query("UPDATE things.event_archives SET events = events + 1").execute(&world.pool).await.unwrap();
    let found = world.findings().await;
    assert!(
        found.iter().any(|what| what.contains("2 events of 1 aggregates, its row says 3 of 1")),
        "{found:?}"
    );

    sqlx::query("UPDATE things.event_archives SET sha256 = repeat('0', 64)")
        .execute(&world.pool)
        .await
        .unwrap();
    let found = world.findings().await;
    assert!(found[0].contains("another digest"), "{found:?}");

    let blob: String =
        sqlx::query_scalar("SELECT blob FROM things.event_archives").fetch_one(&world.pool).await.unwrap();
    world.blobs.delete(&blobs::Key::new(blob).unwrap()).await.unwrap();
    let found = world.findings().await;
    assert!(found[0].contains("there is no blob"), "{found:?}");
}
