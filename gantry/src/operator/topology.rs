//! Who talks to whom, how far each has come, and what waits: for the question "where does it hang?".

mod table;

pub use table::{picture, table};

use super::wiring::{Asks, Wiring};
use crate::serve::ROLES;
use bus::{
    Behind, Bus,
    broker::{Depth, Watched},
};
use eventstore::{Databases, Position};
use ids::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool, Row};
use std::collections::BTreeMap;

/// The suite as it stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    /// What carries messages.
    pub bus: BusState,
    /// Every service, with what it reads.
    pub services: Vec<Service>,
    /// Who asks whom.
    pub asks: Vec<Asks>,
    /// Services that agents call.
    pub agents: Vec<String>,
}

/// What carries messages between services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BusState {
    /// `local`, where groups read the event tables, or `amqp`.
    pub kind: String,
    /// Why the broker says nothing of its queues.
    pub error: Option<String>,
}

/// A service and its groups.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub service: String,
    /// Events in its log, about; negative: nobody has counted yet.
    pub events: i64,
    /// Its own events that the broker has not been given; `None`: there is no broker.
    pub unpublished: Option<Behind>,
    /// Requests that wait for it in the broker; `None`: no broker, or nobody answers.
    pub requests: Option<Depth>,
    /// Messages that failed and are tried again, and those that wait behind them.
    pub parked: i64,
    /// Messages given up.
    pub dead_letters: i64,
    /// Who acts for its roles: rows of `leaders`.
    pub leaders: Vec<Value>,
    /// What it reads.
    pub groups: Vec<Group>,
}

/// A group and one source of its events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub group: String,
    /// The service whose events it handles.
    pub source: String,
    /// What it has not handled.
    pub behind: Behind,
    /// As of the service.
    pub parked: i64,
    /// As of the service.
    pub dead_letters: i64,
    /// What lies in its queues; `None`: there is no broker, or no queue yet.
    pub queue: Option<Depth>,
    /// Where its lanes stand.
    pub lanes: Vec<Lane>,
}

/// A part of a group with a position of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lane {
    /// Its number.
    pub lane: i32,
    /// Transaction of the last event that was handled.
    pub xid: u64,
    /// Number of that event.
    pub seq: i64,
    /// When that was.
    pub updated: Timestamp,
}

/// Name under which a relay keeps its position.
const RELAY: &str = "relay";

/// The suite as it stands.
///
/// # Errors
/// The database is away. A broker that is away is told in the answer.
pub async fn topology(databases: &Databases, bus: &Bus) -> anyhow::Result<Topology> {
    let wiring = Wiring::of_this_build()?;
    let mut services = Vec::with_capacity(ROLES.len());
    for name in ROLES {
        services.push(service(databases, name, &wiring).await?);
    }
    let bus = queues(bus, &mut services).await;
    if bus.kind == "local" {
        // Of a time when there was a broker.
        services.iter_mut().for_each(|service| service.unpublished = None);
    }
    Ok(Topology { bus, services, asks: wiring.asks, agents: wiring.agents })
}

async fn service(databases: &Databases, name: &str, wiring: &Wiring) -> anyhow::Result<Service> {
    let (pool, schema) = (databases.of(name), eventstore::schema_of(name));
    let sql = format!(
        "SELECT (SELECT reltuples::bigint FROM pg_class WHERE oid = '{schema}.events'::regclass) AS events,
                (SELECT coalesce(jsonb_agg(jsonb_build_object('role', role, 'holder', holder, 'epoch', epoch,
                   'deadline', deadline) ORDER BY role), '[]') FROM {schema}.leaders) AS leaders"
    );
    let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(pool).await?;
    let leaders: Value = row.try_get("leaders")?;
    let mut found = Service {
        service: name.to_owned(),
        events: row.try_get("events")?,
        leaders: leaders.as_array().cloned().unwrap_or_default(),
        ..Service::default()
    };
    let (parked, dead) =
        (waiting(pool, &schema, "parked").await?, waiting(pool, &schema, "dead_letters").await?);
    found.parked = parked.values().sum();
    found.dead_letters = dead.values().sum();
    for ((group, source), lanes) in lanes(pool, &schema).await? {
        let at: Vec<Position> = lanes.iter().map(|lane| Position { xid: lane.xid, seq: lane.seq }).collect();
        if group == RELAY {
            found.unpublished = Some(bus::behind(databases.of(&source), &source, &at, None).await?);
            continue;
        }
        let behind = bus::behind(databases.of(&source), &source, &at, wiring.wanted(&group, &source)).await?;
        let key = (group, source);
        let of = |counts: &BTreeMap<(String, String), i64>| counts.get(&key).copied().unwrap_or_default();
        let (parked, dead_letters) = (of(&parked), of(&dead));
        let (group, source) = key;
        found.groups.push(Group { group, source, behind, parked, dead_letters, queue: None, lanes });
    }
    Ok(found)
}

/// Rows of a table by group and source.
async fn waiting(pool: &PgPool, schema: &str, table: &str) -> sqlx::Result<BTreeMap<(String, String), i64>> {
    let sql = format!("SELECT group_name, source, count(*) FROM {schema}.{table} GROUP BY 1, 2");
    let rows: Vec<(String, String, i64)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await?;
    Ok(rows.into_iter().map(|(group, source, count)| ((group, source), count)).collect())
}

/// Lanes by group and source, in the order of their numbers.
async fn lanes(pool: &PgPool, schema: &str) -> anyhow::Result<BTreeMap<(String, String), Vec<Lane>>> {
    let sql = format!(
        "SELECT group_name, source, lane, xid::text, seq, updated FROM {schema}.cursors ORDER BY group_name, source, lanes, lane"
    );
    let rows: Vec<(String, String, i32, String, i64, Timestamp)> =
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(pool).await?;
    let mut all: BTreeMap<_, Vec<Lane>> = BTreeMap::new();
    for (group, source, lane, xid, seq, updated) in rows {
        all.entry((group, source)).or_default().push(Lane { lane, xid: xid.parse()?, seq, updated });
    }
    Ok(all)
}

/// Fills in what lies in the broker.
async fn queues(bus: &Bus, services: &mut [Service]) -> BusState {
    let mut asked = Vec::new();
    for service in services.iter() {
        asked.push(Watched::Requests { service: service.service.clone() });
        for group in &service.groups {
            let several = group.lanes.len() > 1;
            asked.extend(group.lanes.iter().map(|lane| Watched::Group {
                group: group.group.clone(),
                source: group.source.clone(),
                lane: several.then_some(lane.lane),
            }));
        }
    }
    let depths = match bus.depths(&asked).await {
        None => return BusState { kind: "local".to_owned(), error: None },
        Some(Err(error)) => return BusState { kind: "amqp".to_owned(), error: Some(error.to_string()) },
        Some(Ok(depths)) => depths,
    };
    let mut depths = depths.into_iter();
    for service in services {
        service.requests = sum(depths.by_ref().take(1));
        for group in &mut service.groups {
            group.queue = sum(depths.by_ref().take(group.lanes.len()));
        }
    }
    BusState { kind: "amqp".to_owned(), error: None }
}

/// All queues that exist, together.
fn sum(depths: impl Iterator<Item = Option<Depth>>) -> Option<Depth> {
    depths.flatten().fold(None, |all: Option<Depth>, depth| {
        let all = all.unwrap_or_default();
        Some(Depth { messages: all.messages + depth.messages, consumers: all.consumers + depth.consumers })
    })
}

/// Tasks that hold a slot, with their leases.
///
/// # Errors
/// The database is away.
pub async fn leases(databases: &Databases) -> anyhow::Result<Value> {
    let rows = sqlx::query(
        "SELECT jsonb_build_object('task_id', task_id, 'job_id', job_id, 'state', state, 'epoch', epoch,
            'agent_version', agent_version, 'granted_at', granted_at, 'renewed_at', renewed_at, 'deadline', deadline)
         FROM dispatcher.tasks WHERE state IN ('queued', 'leased') ORDER BY position LIMIT 1000",
    )
    .fetch_all(databases.of("dispatcher"))
    .await?;
    let leases = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<Value>, _>>()?;
    Ok(json!({ "leases": leases }))
}
