//! Named failpoints at the boundaries where a crash hurts: every commit, acknowledgement, rename and sync
//! (reliability §17).
//!
//! `GANTRY_FAILPOINTS="conductor.commit.before=error:2,scheduler.commit.after=kill:5"`. Inert unless set.
//! Actions: `kill[:n]` at the n-th passing, `panic`, `delay[:ms]` and `error[:n]` for the first n passings.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

/// Every point that is not a commit. Each role has `ROLE.commit.before` and `ROLE.commit.after` besides.
pub const POINTS: &[&str] = &[
    // A group has committed and does not know it yet.
    "conductor.jobs.ack",
    "conductor.pipelines.ack",
    "conductor.serial.ack",
    "conductor.settings.ack",
    "conductor.turns.ack",
    "contexts.grants.ack",
    "contexts.jobs.ack",
    "dispatcher.jobs.ack",
    "output-processor.jobs.ack",
    "output-processor.tasks.ack",
    "permissions.users.ack",
    "pipelines.deliveries.ack",
    "projector.views.ack",
    "scheduler.placements.ack",
    "test-results.jobs.ack",
    "test-results.reports.ack",
    // A blob is on disk without its name, or with a name that is not on disk.
    "blobs.publish.before",
    "blobs.publish.after",
    // Output is written and not synced, or synced and not acknowledged.
    "output-processor.journal.before",
    "output-processor.journal.after",
    // A task's folder without, or with, what its agent is to do.
    "compute.launch.before",
    "compute.launch.after",
    // `instance.json`, by which others find the instance.
    "instance.rename.before",
    "instance.rename.after",
];

/// Points that are passed only where a broker carries the events.
const WITH_A_BROKER: &[&str] = &["bus.relay.confirmed"];

/// Points that are passed only where something is past its retention.
const WITH_RETENTION: &[&str] = &[
    "conductor.expired.ack",
    "dispatcher.expired.ack",
    "output-processor.expired.ack",
    "scheduler.expired.ack",
    "test-results.expired.ack",
    // An archive is stored, and what it holds is still in the log.
    "conductor.archive.stored",
    "dispatcher.archive.stored",
    "output-processor.archive.stored",
    "pipelines.archive.stored",
];

/// A point whose action is `error`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failpoint {0}")]
pub struct Hit(pub String);

impl From<Hit> for std::io::Error {
    fn from(hit: Hit) -> Self {
        Self::other(hit)
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Kill(u32),
    Panic,
    Delay(Duration),
    Error(u32),
}

fn parse(text: &str) -> HashMap<String, Action> {
    let mut points = HashMap::new();
    for item in text.split([',', ';']).map(str::trim).filter(|item| !item.is_empty()) {
        let Some((name, action)) = item.split_once('=') else { continue };
        let (verb, number) = action.split_once(':').unwrap_or((action, ""));
        let action = match verb {
            "kill" => Action::Kill(number.parse().unwrap_or(1)),
            "panic" => Action::Panic,
            "delay" => Action::Delay(Duration::from_millis(number.parse().unwrap_or(100))),
            "error" => Action::Error(number.parse().unwrap_or(u32::MAX)),
            _ => {
                tracing::warn!(item, "this failpoint is not understood");
                continue;
            }
        };
        points.insert(name.to_owned(), action);
    }
    points
}

static ARMED: LazyLock<Option<Mutex<HashMap<String, Action>>>> =
    LazyLock::new(|| std::env::var("GANTRY_FAILPOINTS").ok().map(|text| Mutex::new(parse(&text))));

/// What is to be done now, if anything; a kill or a panic does not return.
fn pass(name: &str) -> Result<Option<Duration>, Hit> {
    let Some(armed) = &*ARMED else { return Ok(None) };
    let commit = name.ends_with(".commit.before") || name.ends_with(".commit.after");
    let known = [POINTS, WITH_A_BROKER, WITH_RETENTION].iter().any(|points| points.contains(&name));
    if !commit && !known {
        tracing::error!(name, "this failpoint is not in the table of failpoints");
    }
    let mut armed = armed.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(action) = armed.get_mut(name) else { return Ok(None) };
    match action {
        Action::Kill(0 | 1) => {
            eprintln!("failpoint {name}: killed");
            std::process::abort()
        }
        Action::Kill(left) => {
            *left -= 1;
            Ok(None)
        }
        Action::Panic => panic!("failpoint {name}"),
        Action::Delay(time) => Ok(Some(*time)),
        Action::Error(0) => Ok(None),
        Action::Error(left) => {
            *left -= 1;
            Err(Hit(name.to_owned()))
        }
    }
}

/// Does what `GANTRY_FAILPOINTS` says about this point; nothing, unless it is set.
///
/// # Errors
/// The point's action is `error` and its count is not used up.
pub async fn failpoint(name: &str) -> Result<(), Hit> {
    if let Some(time) = pass(name)? {
        tokio::time::sleep(time).await;
    }
    Ok(())
}

/// The same where nothing can be awaited.
///
/// # Errors
/// As [`failpoint`].
pub fn failpoint_blocking(name: &str) -> Result<(), Hit> {
    if let Some(time) = pass(name)? {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test asks for exactly this pause, in a process of its own"
        )]
        std::thread::sleep(time);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_and_nonsense_is_left_out() {
        let points = parse("a.b=kill, c=delay:20;d=error:3,e=what,f,g=kill:7");
        assert_eq!(points["a.b"], Action::Kill(1));
        assert_eq!(points["g"], Action::Kill(7));
        assert_eq!(points["c"], Action::Delay(Duration::from_millis(20)));
        assert_eq!(points["d"], Action::Error(3));
        assert_eq!(points.len(), 4);
    }

    #[test]
    fn no_point_is_listed_twice() {
        let mut names = POINTS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), POINTS.len());
    }
}
