//! What lies in the broker, in one place. Declared by whoever uses it; a queue that exists with other arguments is
//! used as it is, because the difference may be an operator's decision (reliability §5.3).

use bus::broker::{LaneQueue, Watched};
use lapin::types::{AMQPValue, FieldTable, LongString};

/// The topic exchange of all events. Routing key: `<source>.<lane>.<event type>`.
pub const EVENTS: &str = "gantry.events";
/// The exchange of messages that were delivered too often.
pub const DEAD: &str = "gantry.dead";
/// The queue of what was delivered too often. The log still has it, and groups read it from there.
pub const DEAD_QUEUE: &str = "gantry.dead";
/// Every event goes here too when no group wants it: so that an event that is returned means a broken topology.
/// Nothing reads it; it keeps one message.
pub const CATCH_ALL: &str = "gantry.all";

/// Deliveries of one message before the broker gives it up.
const DELIVERY_LIMIT: i64 = 20;
/// Messages that a queue holds. When it is full it loses the oldest, and the group reads them from the log: no
/// optional consumer, however far behind, may slow a publish.
const MAX_LENGTH: i64 = 50_000;

/// Milliseconds after which a queue of requests goes that a restart of the broker brought back and nobody reads any more.
const REQUESTS_EXPIRE: i32 = 60_000;

/// Services that work cannot go on without: a full queue of theirs refuses, and the relay waits.
const HOT: [&str; 4] = ["pipelines", "conductor", "dispatcher", "scheduler"];
const MAX_LENGTH_HOT: i64 = 1_000_000;

/// Name of a group's queue.
pub fn queue_name(queue: &LaneQueue) -> String {
    name_of(queue.group, queue.source, queue.lane)
}

/// Name of a queue that somebody wants to look at.
pub fn watched_name(queue: &Watched) -> String {
    match queue {
        Watched::Group { group, source, lane } => name_of(group, source, *lane),
        Watched::Requests { service } => request_queue(service),
    }
}

fn name_of(group: &str, source: &str, lane: Option<i32>) -> String {
    match lane {
        Some(lane) => format!("{group}:{source}:{lane}"),
        None => format!("{group}:{source}"),
    }
}

/// The patterns of what goes into a group's queue: one for each type of event that it wants.
pub fn bindings(queue: &LaneQueue) -> impl Iterator<Item = String> {
    let part = match queue.lane {
        Some(lane) => format!("{}.{lane}", queue.source),
        None => format!("{}.*", queue.source),
    };
    queue.kinds.iter().map(move |kind| format!("{part}.{kind}"))
}

/// The pattern of all types. Until 2026-11 queues were bound by it, and in a broker that was in use then they still are.
pub fn unfiltered(queue: &LaneQueue) -> String {
    match queue.lane {
        Some(lane) => format!("{}.{lane}.#", queue.source),
        None => format!("{}.#", queue.source),
    }
}

/// Routing key of an event.
pub fn routing_key(source: &str, lane: i32, kind: &str) -> String {
    format!("{source}.{lane}.{kind}")
}

/// Queue of the requests to a service: it exists while somebody answers.
pub fn request_queue(service: &str) -> String {
    format!("gantry.requests.{service}")
}

/// Arguments of a service's queue of requests.
pub fn request_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-expires".into(), AMQPValue::LongInt(REQUESTS_EXPIRE));
    arguments
}

/// Arguments of a group's queue.
pub fn group_arguments(queue: &LaneQueue) -> FieldTable {
    let hot = HOT.iter().any(|service| queue.group.split('.').next() == Some(service));
    let mut arguments = quorum();
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    if hot {
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(MAX_LENGTH_HOT));
        arguments.insert("x-overflow".into(), text("reject-publish"));
        arguments.insert("x-dead-letter-exchange".into(), text(DEAD));
        arguments.insert("x-dead-letter-routing-key".into(), text(&queue_name(queue)));
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    } else {
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(MAX_LENGTH));
        arguments.insert("x-overflow".into(), text("drop-head"));
    }
    arguments
}

/// Arguments of the queue of what was delivered too often.
pub fn dead_arguments() -> FieldTable {
    quorum()
}

/// Arguments of the queue that makes every event routable.
pub fn catch_all_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    arguments.insert("x-overflow".into(), text("drop-head"));
    arguments
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}
