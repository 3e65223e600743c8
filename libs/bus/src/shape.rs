//! Who reads whom in this process, how far behind a group is, and what lies in the broker: for whoever asks where it
//! hangs. Nothing that the suite decides depends on it.

use crate::{
    Bus, Group,
    broker::{BrokerError, Depth, Watched},
    lane::lane_of,
};
use eventstore::{Position, schema_of};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool};
use std::{
    sync::{PoisonError, Weak},
    time::Duration,
};
use tokio::time::timeout;
use uuid::Uuid;

/// Events that are counted at most, from where the slowest lane stands: a group that stood still for a week must not
/// make the question itself expensive.
const COUNTED: i64 = 5000;
/// Time that a broker has to say what lies in all the queues.
const PATIENCE: Duration = Duration::from_secs(3);

/// A group that was started in this process, with one source. Weak, since groups hold the bus.
pub(crate) struct Started {
    /// Whose it is.
    pub(crate) service: &'static str,
    /// What it reads.
    pub(crate) source: &'static str,
    /// Itself, while it runs.
    pub(crate) group: Weak<dyn Group>,
}

/// A group and one source of its events.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subscription {
    /// Service that the group belongs to.
    pub service: String,
    /// Name of the group.
    pub group: String,
    /// Service whose events it handles.
    pub source: String,
    /// Types of events that it wants.
    pub events: Vec<String>,
}

/// How far a group is behind in a source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Behind {
    /// Events that it wants and has not handled.
    pub events: usize,
    /// There are more than were counted.
    pub at_least: bool,
    /// Age of the oldest of them; `None`: there is none.
    pub oldest_seconds: Option<f64>,
}

impl Bus {
    /// What the groups of this process read, and which of these types of events they want.
    pub fn subscriptions(&self, kinds: &[String]) -> Vec<Subscription> {
        let groups = self.0.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = groups
            .iter()
            .filter_map(|started| {
                let group = started.group.upgrade()?;
                Some(Subscription {
                    service: started.service.to_owned(),
                    group: group.name().to_owned(),
                    source: started.source.to_owned(),
                    events: kinds
                        .iter()
                        .filter(|kind| group.wants().contains(&kind.as_str()))
                        .cloned()
                        .collect(),
                })
            })
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// What lies in queues of the broker, in the order of the question; `None` without a broker.
    ///
    /// # Errors
    /// The broker is away, or does not say it in time.
    pub async fn depths(&self, queues: &[Watched]) -> Option<Result<Vec<Option<Depth>>, BrokerError>> {
        let broker = self.broker()?;
        let asked = timeout(PATIENCE, broker.depths(queues)).await;
        Some(asked.unwrap_or_else(|_| Err(BrokerError::Unavailable("it did not answer in time".to_owned()))))
    }
}

/// How far a group is behind in the log of `source`. `lanes` are the positions of all its lanes, by number; events of other
/// types than `wanted` do not count.
///
/// # Errors
/// The database is away, or the source has no schema.
pub async fn behind(
    pool: &PgPool,
    source: &str,
    lanes: &[Position],
    wanted: Option<&[String]>,
) -> Result<Behind, sqlx::Error> {
    let Some(from) = lanes.iter().min() else { return Ok(Behind::default()) };
    let sql = format!(
        "SELECT xid::text, seq, aggregate_kind, aggregate_id, $4::text[] IS NULL OR kind = ANY ($4),
                extract(epoch FROM clock_timestamp() - occurred_at)::float8
         FROM {}.events WHERE (xid, seq) > ($1::text::xid8, $2) ORDER BY xid, seq LIMIT $3",
        schema_of(source)
    );
    let rows: Vec<(String, i64, String, Uuid, bool, f64)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(from.xid.to_string())
        .bind(from.seq)
        .bind(COUNTED)
        .bind(wanted)
        .fetch_all(pool)
        .await?;
    let at_least = i64::try_from(rows.len()).is_ok_and(|count| count >= COUNTED);
    let number = i32::try_from(lanes.len()).unwrap_or(1);
    let mut found = Behind { at_least, ..Behind::default() };
    for (xid, seq, kind, id, wanted, age) in rows {
        let at = Position { xid: xid.parse().unwrap_or(0), seq };
        let lane = usize::try_from(lane_of(&kind, id, number)).unwrap_or(0);
        if wanted && lanes.get(lane).is_some_and(|lane| *lane < at) {
            found.events += 1;
            found.oldest_seconds = Some(found.oldest_seconds.unwrap_or(0.0).max(age));
        }
    }
    Ok(found)
}
