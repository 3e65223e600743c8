//! `kill -9` of agents while their jobs run: those jobs end as lost, nothing of them is left, and the rest goes on.

use crate::support::{Fan, LIMIT, Place, agents, processes};
use anyhow::{Context, ensure};
use gantry_e2e::until;
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

/// What a dead agent's task leaves must be gone within this time.
const SWEPT: Duration = Duration::from_secs(60);

// Rules: agent.lost
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_killed_agent_s_task_and_the_rest_goes_on() -> anyhow::Result<()> {
    let place = Place::new()?;
    // A number that no other process sleeps for.
    let mark = 9_000_000 + std::process::id();
    let between: &'static str =
        format!("if test $i = 1; then setsid sleep {mark} < /dev/null > /dev/null 2>&1 & fi; sleep 0.1")
            .leak();
    let fan = Fan { jobs: 30, lines: 20, between, class: None, more: ("", "") };
    let left = || processes(|line| line.starts_with(&format!("sleep {mark}")));
    let suite = place.up(&[]).await?;
    place.push(&suite, "lost", &fan).await?;
    // The first job is through: the fan is under way.
    place.begun(6).await?;
    until("what the jobs started", LIMIT, || async { Ok((left().len() >= 3).then_some(())) }).await?;
    let killed = agents(&place.data);
    ensure!(!killed.is_empty(), "no agent runs");
    let orphans = left();
    for pid in &killed {
        // One may have ended by itself.
        let _ = kill(*pid, Signal::SIGKILL);
    }
    until("the end of what the killed agents left", SWEPT, || async {
        let still = left();
        Ok((!orphans.iter().any(|pid| still.contains(pid))).then_some(()))
    })
    .await?;
    let verdict = place.judge(&suite, "lost", &fan).await?;
    ensure!(verdict.status == "failed", "the workflow is {}", verdict.status);
    ensure!(
        (1..=killed.len()).contains(&verdict.lost.len()),
        "{:?} of {} agents' jobs were lost",
        verdict.lost,
        killed.len()
    );
    until("the end of everything", SWEPT, || async { Ok(left().is_empty().then_some(())) }).await?;
    place.verify().await?;
    suite.down().await
}

/// The first run waits for its end, the second one knows that it is another.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_author_says_so_runs_again_when_its_agent_was_lost() -> anyhow::Result<()> {
    let place = Place::new()?;
    // Jobs run as another user.
    let begun = place.work.path().join("begun");
    fs::write(&begun, "")?;
    fs::set_permissions(&begun, fs::Permissions::from_mode(0o666))?;
    let command = format!(
        "if test $CIRCLE_WORKFLOW_ID = $CIRCLE_WORKFLOW_WORKSPACE_ID; then echo yes > {}; sleep 1000; fi",
        begun.display()
    );
    let config = json!({
        "version": 2.1,
        "jobs": { "build": {
            "machine": true, "auto_rerun_on_infra_fail": 1, "steps": [{ "run": command }],
        } },
        "workflows": { "main": { "jobs": ["build"] } },
    });
    let files = place.work.path().join("again-files");
    fs::create_dir_all(files.join(".circleci"))?;
    fs::write(files.join(".circleci/config.yml"), config.to_string())?;

    let suite = place.up(&[]).await?;
    suite.push(place.work.path(), "again", &files, "refs/heads/main").await?;
    until("the first run", LIMIT, || async { Ok((fs::metadata(&begun)?.len() > 0).then_some(())) }).await?;
    for pid in agents(&place.data) {
        kill(pid, Signal::SIGKILL)?;
    }
    let pipelines = suite.items("/api/v2/project/git/local/again/pipeline").await?;
    let id = pipelines.first().and_then(|pipeline| pipeline["id"].as_str()).context("no pipeline")?;
    let path = format!("/api/v2/pipeline/{id}/workflow");
    let ended = until("the end of the second run", LIMIT, || async {
        let all = suite.items(&path).await?;
        let ended = all.len() == 2 && all.iter().all(|workflow| workflow["stopped_at"].is_string());
        Ok(ended.then_some(all))
    })
    .await?;
    let mut statuses: Vec<_> = ended.iter().filter_map(|workflow| workflow["status"].as_str()).collect();
    statuses.sort_unstable();
    ensure!(statuses == ["failed", "success"], "{statuses:?}");
    place.verify().await?;
    suite.down().await
}
