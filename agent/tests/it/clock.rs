//! A machine whose clock is wrong (reliability F21).

use crate::suite::{Suite, lease, run};
use chrono::{DateTime, TimeDelta, Utc};

/// Runs two steps, with a jump of the machine's clock between them; what the spin-up says, and that all times are right.
async fn runs(library: &std::path::Path, before: &str, after: &str) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let (clock, began) = (scratch.path().join("clock"), scratch.path().join("began"));
    let go = scratch.path().join("go");
    std::fs::write(&clock, before).unwrap();
    let waits =
        format!("touch {}; until [ -e {} ]; do sleep 0.05; done; sleep 1.5", began.display(), go.display());
    let suite = Suite::new(lease(vec![run(&waits), run("echo after")]));
    let env = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let begun = Utc::now();
    let agent = suite.agent_as("none", None, vec![], None, &env);
    let id = agent.id().unwrap();
    suite.until("the first step", |seen| seen.steps.contains_key(&101) && began.exists()).await;
    let maps = std::fs::read_to_string(format!("/proc/{id}/maps")).unwrap();
    assert!(maps.contains("libfaketime"), "the agent has the machine's own clock");
    std::fs::write(&clock, after).unwrap();
    let renewals = suite.seen.lock().unwrap().renewals;
    std::fs::write(&go, "").unwrap();
    assert_eq!(suite.finished(agent).await, "success");
    let seen = suite.seen.lock().unwrap();
    assert!(seen.renewals > renewals, "it renewed after the jump");
    let right =
        |at: DateTime<Utc>| at > begun - TimeDelta::seconds(1) && at < Utc::now() + TimeDelta::seconds(1);
    for step in seen.steps.values() {
        let (from, to) = (step.started_at, step.ended_at.expect("it has ended"));
        assert!(right(from) && right(to) && from <= to, "{} ran from {from} to {to}", step.name);
    }
    drop(seen);
    suite.log(0)
}

#[tokio::test]
async fn times_are_the_suites_whatever_the_machine_has() {
    let Some(library) = testkit::faketime() else { return };
    let said = runs(&library, "-1d", "+1d").await;
    assert!(said.contains("clock is 24h0m0s behind") || said.contains("clock is 23h59m59s behind"), "{said}");
    let said = runs(&library, "+1d", "-1d").await;
    assert!(said.contains(" ahead. Times that are shown are the suite's."), "{said}");
    assert!(!runs(&library, "+0", "+0").await.contains("clock is"));
}
