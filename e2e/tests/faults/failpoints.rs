//! Every commit, acknowledgement, rename and sync is hit by a kill once.

use crate::support::{Fan, LIMIT, Place};
use anyhow::{Context, bail, ensure};
use gantry_e2e::{Suite, binary, until};
use serde_json::json;
use std::time::Duration;

/// It passes every point: it takes turns and reports tests as well.
const FAN: Fan = Fan {
    jobs: 3,
    lines: 5,
    between: "true",
    class: None,
    more: (
        ", serial-group: failpoints/turns",
        "run: mkdir -p reports && echo '<testsuite><testcase name=\"a\" time=\"1\"/></testsuite>' > reports/a.xml\n      - store_test_results: { path: reports }",
    ),
};

/// Points that are only passed while the first administrator is made.
fn at_the_first_start(point: &str) -> bool {
    point.starts_with("permissions.") || point.starts_with("contexts.grants.")
}

async fn points() -> anyhow::Result<Vec<String>> {
    let output = tokio::process::Command::new(binary()).args(["admin", "failpoints"]).output().await?;
    ensure!(output.status.success(), "gantry admin failpoints: {}", String::from_utf8_lossy(&output.stderr));
    let all: Vec<_> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
    ensure!(all.len() > 30, "there are {} points only", all.len());
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_every_failpoint_loses_nothing_and_repeats_nothing() -> anyhow::Result<()> {
    let only = std::env::var("GANTRY_FAILPOINT").ok();
    let mut all = points().await?;
    all.retain(|point| only.as_ref().is_none_or(|only| point.contains(only.as_str())));
    let (first, later): (Vec<_>, Vec<_>) = all.into_iter().partition(|point| at_the_first_start(point));
    let (left, right) = later.split_at(later.len() / 2);
    // Two instances at once: most of the time is spent waiting for the disk and for agents.
    let (left, right, first) =
        tokio::join!(one_after_another(left), one_after_another(right), at_first(&first));
    left.and(right).and(first)
}

/// All points on one data folder: what one kill left is the next start's to finish.
async fn one_after_another(points: &[String]) -> anyhow::Result<()> {
    let place = Place::new()?;
    for (index, point) in points.iter().enumerate() {
        hit(&place, point, &format!("p{index}")).await.with_context(|| format!("failpoint {point}"))?;
    }
    let suite = place.up(&[]).await?;
    for (index, point) in points.iter().enumerate() {
        settled(&place, &suite, &format!("p{index}")).await.with_context(|| format!("failpoint {point}"))?;
    }
    place.verify().await?;
    suite.down().await
}

/// Each point on a data folder of its own.
async fn at_first(points: &[String]) -> anyhow::Result<()> {
    for point in points {
        let place = Place::new()?;
        let run = async {
            hit(&place, point, "first").await?;
            let suite = place.up(&[]).await?;
            settled(&place, &suite, "first").await?;
            place.verify().await?;
            suite.down().await
        };
        run.await.with_context(|| format!("failpoint {point}"))?;
    }
    Ok(())
}

/// Starts with the point armed and gives the suite work until it dies of it.
async fn hit(place: &Place, point: &str, project: &str) -> anyhow::Result<()> {
    let from = place.said_length();
    let mark = format!("failpoint {point}: killed");
    if let Ok(suite) = place.up(&[("GANTRY_FAILPOINTS", &format!("{point}=kill"))]).await {
        let work = async {
            // Whatever was asked of a server that dies has no answer.
            let _ = place.push(&suite, project, &FAN).await;
            let path = format!("/api/v2/project/git/local/{project}/envvar");
            let _ = suite.post(&path, &json!({ "name": "KEY", "value": "some value" })).await;
            let path = format!("/api/v2/project/git/local/{project}/settings");
            let _ = suite
                .request("PATCH", &path)
                .json(&json!({ "advanced": { "autocancel_builds": true } }))
                .send()
                .await;
            until("the kill", LIMIT, || async { Ok(place.said(from).contains(&mark).then_some(())) }).await
        };
        work.await?;
        suite.ended(Duration::from_secs(30)).await?;
    }
    place.prepare(project, &FAN).await?;
    let said = place.said(from);
    ensure!(said.contains(&mark), "it was never passed: {said}");
    if let Some(line) = said.lines().find(|line| line.contains("not in the table of failpoints")) {
        bail!("{line}");
    }
    println!("hit  {point}");
    Ok(())
}

/// A push whose answer was lost is repeated: either way there is one pipeline, and each job ran once.
async fn settled(place: &Place, suite: &Suite, project: &str) -> anyhow::Result<()> {
    place.push_again(suite, project).await?;
    until("the pipeline", LIMIT, || async {
        let found = suite.items(&format!("/api/v2/project/git/local/{project}/pipeline")).await?;
        Ok((!found.is_empty()).then_some(()))
    })
    .await?;
    let verdict = place.judge(suite, project, &FAN).await?;
    ensure!(verdict.status == "success", "{project} is {}, lost jobs: {:?}", verdict.status, verdict.lost);
    Ok(())
}
