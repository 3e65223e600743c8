//! One transaction: events, state rows and progress.

use crate::{Error, Key, MESSAGE_LIMIT, Result, Store, failpoint, store::lock_number, trace};
use contracts::{Actor, Aggregate, Envelope, NewEvent, trace::Trace};
use ids::{MessageId, OrgId, PipelineId, Timestamp};
use serde_json::Value;
use sha2::{Digest, Sha256};
use spans::Span;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Postgres, Row, Transaction};
use std::{
    collections::{HashMap, HashSet},
    fmt::Write,
};
use uuid::Uuid;

/// How a transaction begins whose commit waits for the disk. Its limits of time are the connection's
/// ([`crate::open_pool`]).
const DURABLE: &str = "BEGIN";
/// How one begins whose commit does not.
const RELAXED: &str = "BEGIN; SET LOCAL synchronous_commit = off";

/// SHA-256 of a request's body, lower-case hex, for [`Tx::answered`].
pub fn digest(body: &Value) -> String {
    hex::encode(Sha256::digest(body.to_string().as_bytes()))
}

/// Something worth recording that changes no aggregate.
#[derive(Clone, Debug)]
pub struct Act {
    /// Dotted name, for example `login.refused`.
    pub kind: &'static str,
    /// Who.
    pub actor: Actor,
    /// Organisation.
    pub org_id: Option<OrgId>,
    /// Of what: kind and id.
    pub subject: Option<(&'static str, Uuid)>,
    /// Causing message.
    pub causation_id: Option<MessageId>,
    /// The pipeline that it belongs to.
    pub correlation_id: Option<PipelineId>,
    /// The rest.
    pub detail: Value,
}

impl Act {
    /// An act.
    pub fn new(kind: &'static str, actor: Actor, detail: Value) -> Self {
        Self { kind, actor, org_id: None, subject: None, causation_id: None, correlation_id: None, detail }
    }

    /// Names what it was done to.
    #[must_use]
    pub fn on(mut self, kind: &'static str, id: impl Into<Uuid>) -> Self {
        self.subject = Some((kind, id.into()));
        self
    }
}

/// A transaction. Dropped without [`Tx::commit`], it has no effect. It calls nothing outside Postgres while it is
/// open, and Postgres ends it after 5 s of idleness, because an open one holds back every reader of the log.
#[derive(Debug)]
pub struct Tx {
    inner: Transaction<'static, Postgres>,
    store: Store,
    locked: HashSet<(&'static str, Uuid)>,
    appended: bool,
    /// Whether its commit waits for the disk.
    durable: bool,
    /// What is told of when it is committed, if anybody records it; else one word.
    told: Option<Box<Told>>,
}

#[derive(Debug, Default)]
struct Told(Vec<Span>);

impl Tx {
    pub(crate) async fn begin(store: &Store, locks: &[Key], relaxed: bool) -> Result<Self> {
        let mut numbers: Vec<i64> =
            locks.iter().map(|key| aggregate_lock(store.service(), key.kind, key.id)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        // In a task of its own: a BEGIN whose caller goes away before it is answered would leave the connection
        // to the pool with a transaction open, into which the next user's writes would vanish.
        let pool = store.pool().clone();
        let begun =
            tokio::spawn(async move { pool.begin_with(if relaxed { RELAXED } else { DURABLE }).await });
        let mut inner = begun.await.map_err(|_| sqlx::Error::WorkerCrashed)??;
        if !numbers.is_empty() {
            // This assigns no transaction id, so that a transaction which waits for a lock neither holds back
            // readers nor gets an id older than that of the one it waits for.
            let mut sql = String::with_capacity(48 * numbers.len());
            for (i, number) in numbers.iter().enumerate() {
                let _ =
                    write!(sql, "{}pg_advisory_xact_lock({number})", if i == 0 { "SELECT " } else { ", " });
            }
            // Not prepared: the text is never the same again.
            inner.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        }
        let locked = locks.iter().map(|key| (key.kind, key.id)).collect();
        Ok(Self { inner, store: store.clone(), locked, appended: false, durable: !relaxed, told: None })
    }

    /// The connection, for the service's own SQL.
    pub fn conn(&mut self) -> &mut PgConnection {
        &mut self.inner
    }

    /// The store that it belongs to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Appends events: gives each an id, the next version of its aggregate and the time.
    ///
    /// # Errors
    /// [`Error::NotLocked`]: an aggregate exists and its lock was not taken; [`Error::Conflict`]: another
    /// transaction made the same aggregate; [`Error::Oversize`].
    pub async fn append(&mut self, events: &[NewEvent]) -> Result<Vec<Envelope>> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let n = events.len();
        let (mut ids, mut kinds, mut schemas) =
            (Vec::with_capacity(n), Vec::with_capacity(n), Vec::with_capacity(n));
        let (mut aggregates, mut aggregate_ids, mut nths) =
            (Vec::with_capacity(n), Vec::with_capacity(n), Vec::with_capacity(n));
        let (mut orgs, mut projects, mut causes, mut correlations) = (
            Vec::<Option<Uuid>>::with_capacity(n),
            Vec::<Option<Uuid>>::with_capacity(n),
            Vec::<Option<Uuid>>::with_capacity(n),
            Vec::<Option<Uuid>>::with_capacity(n),
        );
        let (mut actors, mut bodies, mut personals) =
            (Vec::with_capacity(n), Vec::with_capacity(n), Vec::<Option<String>>::with_capacity(n));
        let mut traces = Vec::with_capacity(n);
        let here = trace::current();
        let mut seen: HashMap<(&str, Uuid), i64> = HashMap::new();
        for event in events {
            let body = event.body.to_string();
            let personal = event.personal.as_ref().map(Value::to_string);
            let size = body.len() + personal.as_ref().map_or(0, String::len);
            if size > MESSAGE_LIMIT {
                return Err(Error::Oversize { kind: event.kind, size });
            }
            let nth = seen.entry((event.aggregate, event.aggregate_id)).or_default();
            *nth += 1;
            let id = MessageId::new();
            ids.push(id.uuid());
            // What nothing traced has caused is where a trace begins.
            traces.push(
                event.trace.clone().unwrap_or_else(|| here.unwrap_or_else(|| Trace::root(id)).to_string()),
            );
            kinds.push(event.kind);
            schemas.push(i32::try_from(event.schema).unwrap_or(i32::MAX));
            aggregates.push(event.aggregate);
            aggregate_ids.push(event.aggregate_id);
            nths.push(*nth);
            orgs.push(event.org_id.map(|id| id.uuid()));
            projects.push(event.project_id.map(|id| id.uuid()));
            causes.push(event.causation_id.map(|id| id.uuid()));
            correlations.push(event.correlation_id.map(|id| id.uuid()));
            actors.push(serde_json::to_string(&event.actor)?);
            bodies.push(body);
            personals.push(personal);
        }
        let (service, schema) = (self.store.service(), self.store.schema());
        let sql = format!(
            "INSERT INTO {schema}.events (id, kind, schema, occurred_at, producer, aggregate_kind, aggregate_id, version, \
                 org_id, project_id, causation_id, correlation_id, actor, body, personal, trace) \
             SELECT e.id, e.kind, e.schema, clock_timestamp(), '{service}', e.ak, e.aid, \
                 coalesce((SELECT max(x.version) FROM {schema}.events x \
                           WHERE x.aggregate_kind = e.ak AND x.aggregate_id = e.aid), 0) + e.nth, \
                 e.org, e.project, e.cause, e.correlation, e.actor::json, e.body::json, e.personal::json, e.trace \
             FROM unnest($1::uuid[], $2::text[], $3::int4[], $4::text[], $5::uuid[], $6::int8[], $7::uuid[], $8::uuid[], \
                         $9::uuid[], $10::uuid[], $11::text[], $12::text[], $13::text[], $14::text[]) WITH ORDINALITY \
                 AS e(id, kind, schema, ak, aid, nth, org, project, cause, correlation, actor, body, personal, trace, ord) \
             ORDER BY e.ord RETURNING id, version, occurred_at"
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(&ids)
            .bind(&kinds)
            .bind(&schemas)
            .bind(&aggregates)
            .bind(&aggregate_ids)
            .bind(&nths)
            .bind(&orgs)
            .bind(&projects)
            .bind(&causes)
            .bind(&correlations)
            .bind(&actors)
            .bind(&bodies)
            .bind(&personals)
            .bind(&traces)
            .fetch_all(&mut *self.inner)
            .await?;
        let mut placed: HashMap<Uuid, (i64, Timestamp)> = HashMap::with_capacity(n);
        for row in &rows {
            placed.insert(row.try_get("id")?, (row.try_get("version")?, row.try_get("occurred_at")?));
        }
        let mut envelopes = Vec::with_capacity(n);
        for (((event, id), nth), trace) in events.iter().zip(ids).zip(nths).zip(traces) {
            let (version, occurred_at) = placed.remove(&id).ok_or(sqlx::Error::RowNotFound)?;
            // Who makes an aggregate may write it to the end of the transaction: nobody else can know its id.
            if version != nth && !self.locked.contains(&(event.aggregate, event.aggregate_id)) {
                return Err(Error::NotLocked { kind: event.aggregate.to_owned(), id: event.aggregate_id });
            }
            envelopes.push(Envelope {
                id: MessageId(id),
                kind: event.kind.to_owned(),
                schema: event.schema,
                occurred_at,
                producer: service.to_owned(),
                trace: Some(trace),
                aggregate: Aggregate { kind: event.aggregate.to_owned(), id: event.aggregate_id, version },
                org_id: event.org_id,
                project_id: event.project_id,
                causation_id: event.causation_id,
                correlation_id: event.correlation_id,
                actor: event.actor.clone(),
                body: event.body.clone(),
                personal: event.personal.clone(),
            });
        }
        for event in events {
            self.locked.insert((event.aggregate, event.aggregate_id));
        }
        if spans::recorded() {
            let spans = envelopes.iter().filter_map(|event| trace::committed(event, service, here));
            self.told.get_or_insert_default().0.extend(spans);
        }
        self.appended = true;
        Ok(envelopes)
    }

    /// Tells of a span that has ended, once this is committed. Nothing is told of what is not.
    pub fn tell(&mut self, span: Option<Span>) {
        if let Some(span) = span {
            self.told.get_or_insert_default().0.push(span);
        }
    }

    /// From here on this transaction may delete what is final: rows and events that are past their retention.
    ///
    /// # Errors
    /// The database is away.
    pub async fn for_retention(&mut self) -> Result<()> {
        self.inner.execute("SET LOCAL gantry.retention = 'on'").await?;
        Ok(())
    }

    /// Removes the events of these aggregates up to the version that is given with each; how many. After
    /// [`Tx::for_retention`], and after what is appended to the same aggregates: versions go on from what is there.
    ///
    /// # Errors
    /// The database is away.
    pub async fn forget(&mut self, aggregates: &[(Key, i64)]) -> Result<u64> {
        let sql = format!(
            "DELETE FROM {}.events e USING unnest($1::text[], $2::uuid[], $3::int8[]) AS a(kind, id, version) \
             WHERE e.aggregate_kind = a.kind AND e.aggregate_id = a.id AND e.version <= a.version",
            self.store.schema()
        );
        let kinds: Vec<&str> = aggregates.iter().map(|(key, _)| key.kind).collect();
        let ids: Vec<Uuid> = aggregates.iter().map(|(key, _)| key.id).collect();
        let versions: Vec<i64> = aggregates.iter().map(|(_, version)| *version).collect();
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(&kinds)
            .bind(&ids)
            .bind(&versions)
            .execute(&mut *self.inner)
            .await?;
        Ok(done.rows_affected())
    }

    /// Records an act.
    ///
    /// # Errors
    /// The database is away.
    pub async fn act(&mut self, act: Act) -> Result<()> {
        let sql = format!(
            "INSERT INTO {}.acts (id, kind, org_id, subject_kind, subject_id, causation_id, correlation_id, actor, detail, trace) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::json, $9::text::json, $10)",
            self.store.schema()
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(MessageId::new().uuid())
            .bind(act.kind)
            .bind(act.org_id.map(|id| id.uuid()))
            .bind(act.subject.map(|(kind, _)| kind))
            .bind(act.subject.map(|(_, id)| id))
            .bind(act.causation_id.map(|id| id.uuid()))
            .bind(act.correlation_id.map(|id| id.uuid()))
            .bind(serde_json::to_string(&act.actor)?)
            .bind(act.detail.to_string())
            .bind(trace::current().map(|trace| trace.to_string()))
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// The answer recorded for this key of this actor within 24 h. Ask before the first write; `None` means that
    /// this transaction is the one to execute the command.
    ///
    /// # Errors
    /// [`Error::KeyReused`]: it was recorded for another body; [`Error::InProgress`]: another transaction is
    /// executing it.
    pub async fn answered(&mut self, key: &str, actor: &Actor, digest: &str) -> Result<Option<Value>> {
        let actor = actor_text(actor);
        let (service, schema) = (self.store.service(), self.store.schema());
        let number = lock_number(&[b"idempotency", service.as_bytes(), actor.as_bytes(), key.as_bytes()]);
        // Two statements: the second must see what the holder of the lock has committed.
        let free: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)")
            .bind(number)
            .fetch_one(&mut *self.inner)
            .await?;
        if !free {
            return Err(Error::InProgress);
        }
        let sql = format!(
            "SELECT digest, answer FROM {schema}.idempotency \
             WHERE actor = $1 AND key = $2 AND recorded > clock_timestamp() - interval '24 hours'"
        );
        let row: Option<(String, Value)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(&actor)
            .bind(key)
            .fetch_optional(&mut *self.inner)
            .await?;
        match row {
            Some((recorded, _)) if recorded != digest => Err(Error::KeyReused),
            Some((_, answer)) => Ok(Some(answer)),
            None => Ok(None),
        }
    }

    /// Records the answer of a command in the transaction of its effect.
    ///
    /// # Errors
    /// [`Error::Conflict`]: an answer is recorded already.
    pub async fn record_answer(
        &mut self,
        key: &str,
        actor: &Actor,
        digest: &str,
        answer: &Value,
    ) -> Result<()> {
        let sql = format!(
            "INSERT INTO {}.idempotency AS i (actor, key, digest, answer) VALUES ($1, $2, $3, $4::text::json) \
             ON CONFLICT (actor, key) DO UPDATE SET digest = $3, answer = EXCLUDED.answer, recorded = clock_timestamp() \
             WHERE i.recorded <= clock_timestamp() - interval '24 hours'",
            self.store.schema()
        );
        let done = sqlx::query(AssertSqlSafe(sql))
            .bind(actor_text(actor))
            .bind(key)
            .bind(digest)
            .bind(answer.to_string())
            .execute(&mut *self.inner)
            .await?;
        if done.rows_affected() == 0 { Err(Error::Conflict) } else { Ok(()) }
    }

    /// Lets the commit return before it is on disk. Only for what can be made again from events.
    ///
    /// # Errors
    /// The database is away.
    pub async fn relaxed(&mut self) -> Result<()> {
        self.inner.execute("SET LOCAL synchronous_commit = off").await?;
        self.durable = false;
        Ok(())
    }

    /// Commits, then wakes the readers of the log if events were appended.
    ///
    /// # Errors
    /// The database refused, or the connection broke and the outcome is unknown: a repeat of the command finds
    /// out by its key.
    pub async fn commit(self) -> Result<()> {
        failpoint(&format!("{}.commit.before", self.store.service())).await?;
        self.inner.commit().await?;
        let kind = if self.durable { "durable" } else { "relaxed" };
        metrics::counter!("gantry.store.commits", "service" => self.store.service(), "kind" => kind)
            .increment(1);
        if let Some(told) = self.told {
            told.0.into_iter().for_each(Span::record);
        }
        if self.appended {
            self.store.woke();
        }
        failpoint(&format!("{}.commit.after", self.store.service())).await?;
        Ok(())
    }
}

fn actor_text(actor: &Actor) -> String {
    match actor {
        Actor::User { id } => format!("user:{id}"),
        Actor::Service { name } => format!("service:{name}"),
    }
}

pub(crate) fn aggregate_lock(service: &str, kind: &str, id: Uuid) -> i64 {
    lock_number(&[b"aggregate", service.as_bytes(), kind.as_bytes(), id.as_bytes()])
}
