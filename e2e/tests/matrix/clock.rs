//! A service whose clock is wrong: no lease, order or token of the suite depends on it (reliability §14).

use crate::world::Case;
use anyhow::{Context, ensure};
use std::fs;

/// More than a lease, less than what S3 allows between two clocks.
const STEPS: [&str; 2] = ["+5m", "-5m"];

/// One service is five minutes ahead, and in the middle of the work five minutes behind, or the other way round; whole jobs
/// run meanwhile.
pub async fn stepped(case: &Case<'_>) -> anyhow::Result<()> {
    let Some(library) = testkit::faketime() else {
        case.saw("NOT TESTED: there is no libfaketime");
        case.back();
        return Ok(());
    };
    let stack = &case.world.stack;
    let role = case.pick(&["api", "conductor", "contexts", "dispatcher", "output-processor", "scheduler"]);
    let name = stack.of(role)?.into_iter().next().context("no process")?;
    let clock = stack.folder.join("clock");
    let [first, second] = if case.draw(2) == 0 { STEPS } else { [STEPS[1], STEPS[0]] };
    fs::write(&clock, first)?;
    let false_time = format!(
        "LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_CACHE_DURATION=1 FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1",
        library.display(),
        clock.display()
    );
    stack.stop(&name, "TERM").await?;
    stack.start_with(&name, &false_time).await?;
    stack.ready(&name).await?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", stack.pid(&name)?))?;
    ensure!(maps.contains("libfaketime"), "{name} has the machine's own clock");
    case.saw(format!("{name} at {first} with {} jobs begun", case.ran()?));
    case.push_meanwhile().await;
    case.world.probe(&format!("{}-first", case.project)).await.context("a job with the first wrong time")?;
    case.last().await;
    fs::write(&clock, second)?;
    case.saw(format!("then at {second} with {} jobs begun", case.ran()?));
    case.push_meanwhile().await;
    case.last().await;
    case.world
        .probe(&format!("{}-second", case.project))
        .await
        .context("a job with the second wrong time")?;
    case.none_failed().await;
    stack.stop(&name, "TERM").await?;
    case.back();
    stack.start(&name).await
}
