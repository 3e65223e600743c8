//! Whole behaviour: a repository's files beside their expected outcome, run through the real suite by its public
//! API only. One suite serves all at once; each scenario has a project of its own.

mod actions;
mod expected;
mod jobs;
mod requests;
mod run;

use anyhow::ensure;
use futures::{StreamExt, stream};
use gantry_e2e::Suite;
use std::{fs, path::Path, time::Instant};

/// Scenarios that are under way at once.
const AT_ONCE: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_ends_as_its_author_expects() -> anyhow::Result<()> {
    let work = tempfile::tempdir()?;
    let suite = Suite::up_with(&work.path().join("data"), &[], &[("GANTRY_DISPATCHER_SLOTS", "10")]).await?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let only = std::env::var("GANTRY_SCENARIO").ok();
    let mut names: Vec<_> =
        fs::read_dir(&folder)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.retain(|name| only.as_ref().is_none_or(|only| only.split(',').any(|only| only == name)));
    names.sort();
    ensure!(!names.is_empty(), "there are no scenarios");
    let begun = Instant::now();
    let (server, place) = (&suite, work.path());
    let results: Vec<_> = stream::iter(&names)
        .map(|name| {
            let folder = folder.join(name);
            async move {
                let begun = Instant::now();
                let result = run::run(server, place, &folder, name).await;
                let took = begun.elapsed().as_millis();
                match &result {
                    Ok(()) => println!("ok   {name} ({took} ms)"),
                    Err(error) => println!("FAIL {name} ({took} ms): {error:#}"),
                }
                (name, result.is_ok())
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let failures: Vec<_> = results.iter().filter(|(_, ok)| !ok).map(|(name, _)| name.as_str()).collect();
    suite.down().await?;
    // A panic, not an error: the list is what the reader needs, a trace of this loop is not.
    assert!(failures.is_empty(), "failed: {}", failures.join(", "));
    println!("{} scenarios in {} s", names.len(), begun.elapsed().as_secs());
    Ok(())
}
