//! Whole behaviour: a repository's files beside their expected outcome, run through the real suite by its public
//! API only. One suite serves all at once; each scenario has a project of its own. `GANTRY_TEST_STACK=1` chooses the stack of
//! `scripts/stack` instead of `gantry up`.

mod actions;
mod expected;
mod jobs;
mod requests;
mod run;

use anyhow::{Context, ensure};
use expected::Expected;
use futures::{StreamExt, stream};
use gantry_e2e::Suite;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// Scenarios that are under way at once.
const AT_ONCE: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_ends_as_its_author_expects() -> anyhow::Result<()> {
    let work = tempfile::tempdir()?;
    let suite = match Suite::stack().await? {
        Some(suite) => suite,
        None => Suite::up_with(&work.path().join("data"), &[], &[("GANTRY_DISPATCHER_SLOTS", "14")]).await?,
    };
    all(suite, work.path(), wanted(|expected| expected.host)?, None).await
}

/// The same outcome where `machine: true` is a container of the test engine's image, but for scenarios with a reason in
/// `host_only`.
#[tokio::test(flavor = "multi_thread")]
async fn scenarios_that_say_so_end_alike_in_containers() -> anyhow::Result<()> {
    // The stack has the engine that it was started with, or none.
    if std::env::var_os("GANTRY_TEST_STACK").is_some() {
        return Ok(());
    }
    let Some(engine) = testkit::docker::engine() else { return Ok(()) };
    let names = wanted(Expected::runs_in_containers)?;
    if names.is_empty() {
        return Ok(());
    }
    let work = tempfile::tempdir()?;
    let socket = engine.socket.display().to_string();
    engine.docker_image(testkit::docker::DOCKER_IMAGE);
    let environment = [
        ("GANTRY_DISPATCHER_SLOTS", "6"),
        ("GANTRY_EXECUTORS_DOCKER", "engine"),
        ("GANTRY_EXECUTORS_ENGINE_SOCKET", &socket),
        ("GANTRY_EXECUTORS_ENGINE_PULL", "never"),
        ("GANTRY_EXECUTORS_ENGINE_REMOTE_DOCKER_IMAGE", testkit::docker::DOCKER_IMAGE),
    ];
    let suite = Suite::up_with(&work.path().join("data"), &[], &environment).await?;
    all(suite, work.path(), names, Some(testkit::docker::IMAGE)).await
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

/// Names of the scenarios that `GANTRY_SCENARIO` asks for, all without it, and that fit.
fn wanted(fits: impl Fn(&Expected) -> bool) -> anyhow::Result<Vec<String>> {
    let only = std::env::var("GANTRY_SCENARIO").ok();
    let mut names: Vec<_> =
        fs::read_dir(folder())?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names.retain(|name| only.as_ref().is_none_or(|only| only.split(',').any(|only| only == name)));
    ensure!(!names.is_empty(), "there are no scenarios");
    let mut fitting = Vec::new();
    for name in names {
        let text = fs::read_to_string(folder().join(&name).join("expected.yml"))?;
        let expected = serde_saphyr::from_str(&text).with_context(|| name.clone())?;
        if fits(&expected) {
            fitting.push(name);
        }
    }
    Ok(fitting)
}

async fn all(suite: Suite, place: &Path, names: Vec<String>, image: Option<&str>) -> anyhow::Result<()> {
    let begun = Instant::now();
    let server = &suite;
    let results: Vec<_> = stream::iter(&names)
        .map(|name| async move {
            let begun = Instant::now();
            let result = run::run(server, place, &folder().join(name), name, image).await;
            let took = begun.elapsed().as_millis();
            match &result {
                Ok(()) => println!("ok   {name} ({took} ms)"),
                Err(error) => println!("FAIL {name} ({took} ms): {error:#}"),
            }
            (name, result.is_ok())
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let failures: Vec<_> = results.iter().filter(|(_, ok)| !ok).map(|(name, _)| name.as_str()).collect();
    suite.down().await?;
    // Without the panic hook: the list is what the reader needs last, a trace of this loop is not.
    if !failures.is_empty() {
        println!("{} of {} failed: {}", failures.len(), names.len(), failures.join(", "));
        std::panic::resume_unwind(Box::new(()));
    }
    println!("{} scenarios in {} s", names.len(), begun.elapsed().as_secs());
    Ok(())
}
