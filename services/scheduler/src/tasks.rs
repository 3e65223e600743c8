//! The loops. Each looks at the rows and moves them one step; running twice is harmless. They wake on a nudge and
//! on a timer, so that after a restart they go on where the rows say.

use crate::{
    placements::{self, Busy, Row, SERVICE},
    state::State,
};
use compute::Phase;
use contracts::{
    Actor,
    dispatcher::{PlacementNews, PlacementReport, ReportPlacements},
};
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use kit::keys::PlacementClaims;
use spans::{Kind, Open, Span};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The longest time between two looks without a nudge.
const AT_LEAST_EVERY: Duration = Duration::from_secs(10);
const AT_MOST_EVERY: Duration = Duration::from_millis(20);
/// Placements that are moved at the same time.
const AT_A_TIME: usize = 100;
/// After how long a folder that no placement knows is removed.
const STRANGER: Duration = Duration::from_secs(3600);
/// How often an agent that died is started again to report.
const REVIVALS: u32 = 2;

/// A phase as metrics name it.
fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Waits { .. } => "waits",
        Phase::Runs => "runs",
        Phase::Ended => "ended",
    }
}

/// Starts what is wanted.
pub async fn starter(state: Arc<State>, stop: CancellationToken) {
    mover(&state, Way { from: "wanted", to: "started" }, &state.wanted, stop).await;
}

/// Ends what is to end. A loop of its own: ending waits for processes, and starting must not wait for that.
pub async fn ender(state: Arc<State>, stop: CancellationToken) {
    mover(&state, Way { from: "ending", to: "gone" }, &state.ending, stop).await;
}

/// From which state to which.
#[derive(Clone, Copy)]
struct Way {
    from: &'static str,
    to: &'static str,
}

/// Moves all that is due in one state, many at a time: one whose cluster is silent holds up no other.
async fn mover(state: &State, way: Way, nudge: &Notify, stop: CancellationToken) {
    let mut moving = FuturesUnordered::new();
    let mut busy = Busy::default();
    loop {
        let wait = match take_up(state, way, &mut busy).await {
            Ok((rows, wait)) => {
                moving.extend(rows.into_iter().map(|row| async move { (step(state, way, &row).await, row) }));
                wait
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the scheduler could not look");
                Duration::from_secs(1)
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            Some(first) = moving.next() => {
                // What is ready together is committed together.
                let mut ended = vec![first];
                while let Some(Some(next)) = moving.next().now_or_never() {
                    ended.push(next);
                }
                if let Err(error) = put_down(state, way, &mut busy, ended).await {
                    tracing::warn!(error = format!("{error:#}"), "the scheduler could not write what it did");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            () = tokio::time::sleep(wait.clamp(AT_MOST_EVERY, AT_LEAST_EVERY)) => {}
            () = nudge.notified() => {}
        }
    }
    let ended = moving.collect().await;
    if let Err(error) = put_down(state, way, &mut busy, ended).await {
        tracing::warn!(error = format!("{error:#}"), "what was moved last is moved again at the next start");
    }
}

/// Takes up what is due and not moving yet, as far as there is room; and how long nothing more is.
async fn take_up(state: &State, way: Way, busy: &mut Busy) -> anyhow::Result<(Vec<Row>, Duration)> {
    let room = AT_A_TIME.saturating_sub(busy.len());
    if room == 0 {
        return Ok((Vec::new(), AT_LEAST_EVERY));
    }
    let rows = placements::due(state, way.from, busy, room).await?;
    if rows.is_empty() {
        let wait = placements::next_due(state, way.from, busy).await?;
        return Ok((rows, wait.unwrap_or(AT_LEAST_EVERY)));
    }
    for row in &rows {
        busy.insert(row);
    }
    // Mostly they are done before that, and it is looked again.
    Ok((rows, Duration::from_secs(1)))
}

/// Writes what became of those that were moved. What is not written is moved again: that is harmless.
async fn put_down(
    state: &State,
    way: Way,
    busy: &mut Busy,
    ended: Vec<(anyhow::Result<bool>, Row)>,
) -> anyhow::Result<()> {
    let mut done = Vec::with_capacity(ended.len());
    let mut failed = None;
    for (moved, row) in ended {
        busy.remove(&row);
        match moved {
            Ok(true) => done.push(row),
            Ok(false) => {}
            Err(error) => failed = Some(error),
        }
    }
    placements::advance(state, &done, way.from, way.to).await?;
    failed.map_or(Ok(()), Err)
}

/// Whether the placement is where it was to be; else it is tried again later.
async fn step(state: &State, way: Way, row: &Row) -> anyhow::Result<bool> {
    let done = match way.from {
        "wanted" => start(state, row).await,
        _ => state.compute.remove(&row.name()).await,
    };
    match done {
        Ok(()) => Ok(true),
        Err(error) => {
            if way.from == "wanted" {
                let why = format!("it cannot be started: {error}");
                tell(state, vec![report(row, PlacementNews::Waits { why })]).await;
            }
            let error = anyhow::Error::from(error);
            tracing::error!(
                placement = row.name(),
                error = format!("{error:#}"),
                "compute failed; it is tried again"
            );
            placements::postpone(state, row).await?;
            Ok(false)
        }
    }
}

async fn start(state: &State, row: &Row) -> Result<(), compute::Error> {
    let claims = PlacementClaims { task_id: row.task(), epoch: row.epoch };
    let span = row.trace().and_then(|trace| Span::begin(Some(trace), SERVICE, Kind::Internal, "place"));
    let span = span.map(|span| {
        span.with("gantry.task.id", row.task_id)
            .with("gantry.task.epoch", row.epoch)
            .with("gantry.attempt", i64::from(row.attempts) + 1)
    });
    let span = Open::new(span);
    let started = state.compute.start(&row.placement(state.keys.seal_claims("placement", &claims))).await;
    span.end(started.is_err());
    started
}

fn report(row: &Row, news: PlacementNews) -> PlacementReport {
    PlacementReport { task_id: row.task(), epoch: row.epoch, news }
}

/// Tells the dispatcher. What is not understood is told again at the next look.
async fn tell(state: &State, placements: Vec<PlacementReport>) {
    if placements.is_empty() {
        return;
    }
    let unplaced =
        placements.iter().filter(|report| matches!(report.news, PlacementNews::Waits { .. })).count();
    metrics::counter!("gantry.scheduler.unplaced").increment(unplaced as u64);
    let ask = ReportPlacements { placements };
    if let Err(error) = state.bus.ask(&Actor::service(SERVICE), &ask).await {
        tracing::warn!(%error, "the dispatcher was not told how placements stand");
    }
}

/// Compares what compute runs with what is wanted: ends what dead agents left, lets them report, tells of those that
/// wait for a machine, and forgets strangers.
pub async fn watcher(state: Arc<State>, stop: CancellationToken) {
    let mut revived = HashMap::new();
    while !stop.is_cancelled() {
        if let Err(error) = watch(&state, &mut revived).await {
            tracing::warn!(error = format!("{error:#}"), "the scheduler could not compare");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(state.config.watch) => {}
            () = state.compute.changed() => {}
        }
    }
}

/// `revived`: how often each agent was found dead.
async fn watch(state: &State, revived: &mut HashMap<String, u32>) -> anyhow::Result<()> {
    let listed = state.compute.list().await;
    metrics::gauge!("gantry.scheduler.poll_failed").set(if listed.is_err() { 1.0 } else { 0.0 });
    let running = match listed {
        Ok(running) => running,
        Err(error) => {
            // What cannot be seen may wait: that compute is away is not the tasks' fault.
            let why = format!("compute does not answer: {error}");
            let known = placements::all(state).await?;
            let live = known.values().filter(|known| ["wanted", "started"].contains(&known.state.as_str()));
            let news = live.map(|known| report(&known.row, PlacementNews::Waits { why: why.clone() }));
            tell(state, news.collect()).await;
            return Err(error.into());
        }
    };
    for name in ["waits", "runs", "ended"] {
        let count = running.iter().filter(|placement| phase_name(&placement.phase) == name).count();
        metrics::gauge!("gantry.scheduler.placements", "phase" => name).set(count as f64);
    }
    if running.is_empty() {
        revived.clear();
        return Ok(());
    }
    let known = placements::all(state).await?;
    let mut news = Vec::new();
    for placement in &running {
        match (known.get(&placement.name), &placement.phase) {
            (Some(known), Phase::Waits { why: Some(why) }) if known.state == "started" => {
                news.push(report(&known.row, PlacementNews::Waits { why: why.clone() }));
            }
            (Some(known), Phase::Ended) if known.state == "started" && state.compute.resumes() => {
                revive(state, &known.row, revived).await?
            }
            // Nobody can start it again where it was. If it never claimed its task, the task need not wait longer.
            (Some(known), Phase::Ended) if known.state == "started" => {
                news.push(report(&known.row, PlacementNews::Ended));
            }
            // Not one that was just started: its row may be written again after a crash of the database.
            (None, Phase::Ended) if placement.since.elapsed().is_ok_and(|age| age > STRANGER) => {
                state.compute.remove(&placement.name).await?;
            }
            _ => {}
        }
    }
    tell(state, news).await;
    revived.retain(|name, _| known.contains_key(name));
    placements::forget(state).await?;
    Ok(())
}

/// The agent is gone and its task has not ended. What it left ends now. Started again in its folder, an agent that
/// held a lease runs nothing: it delivers the report that the dead one kept, or says that it died.
async fn revive(state: &State, row: &Row, revived: &mut HashMap<String, u32>) -> anyhow::Result<()> {
    let name = row.name();
    // The first look does not count: it may have ended well, and the event that says so is on its way.
    let looks = revived.entry(name.clone()).and_modify(|looks| *looks += 1).or_default();
    if *looks == 0 || *looks > REVIVALS + 1 {
        return Ok(());
    }
    state.compute.stop(&name).await?;
    if *looks > REVIVALS {
        tracing::warn!(placement = name, "the agent keeps dying; its lease decides");
        return Ok(());
    }
    tracing::warn!(
        placement = name,
        "the agent is gone before its task ended; it is started again to report"
    );
    start(state, row).await?;
    Ok(())
}
