//! Kills while jobs run: nothing is lost, nothing runs twice.

use anyhow::{Context, ensure};
use gantry_e2e::{Suite, until};
use std::{fs, time::Duration};

const LIMIT: Duration = Duration::from_secs(120);

/// A fan of jobs that each append to a ledger outside of the product, so that it counts how often user code ran.
fn config(ledger: &str) -> String {
    let mut text = String::from("version: 2.1\njobs:\n");
    for job in 0..8 {
        text.push_str(&format!(
            "  j{job}:\n    machine: true\n    steps:\n      - run:\n          name: work\n          command: |\n            echo j{job} >> {ledger}\n            for i in $(seq 1 20); do echo \"line $i of j{job}\"; sleep 0.1; done\n"
        ));
    }
    text.push_str("workflows:\n  main:\n    jobs: [j0, j1, j2, j3, j4, j5, j6, j7]\n");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_and_repeats_nothing() -> anyhow::Result<()> {
    let work = tempfile::tempdir()?;
    let data = work.path().join("data");
    let ledger = work.path().join("ledger");
    fs::write(&ledger, "")?;
    // Jobs may run as another user: the ledger is theirs to append to.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(&ledger, fs::Permissions::from_mode(0o666))?;
    let files = work.path().join("files");
    fs::create_dir_all(files.join(".circleci"))?;
    fs::write(files.join(".circleci/config.yml"), config(&ledger.display().to_string()))?;

    let suite = Suite::up(&data, &[]).await?;
    suite.push(work.path(), "kill", &files, "refs/heads/main").await?;
    until("user code runs", LIMIT, || async { Ok((!fs::read_to_string(&ledger)?.is_empty()).then_some(())) })
        .await?;
    suite.kill().await?;

    let suite = Suite::up(&data, &[]).await?;
    let pipeline =
        suite.items("/api/v2/project/git/local/kill/pipeline").await?.pop().context("no pipeline")?;
    let id = pipeline["id"].as_str().context("no id")?;
    let workflow = until("the workflow's end", LIMIT, || async {
        let found = suite.items(&format!("/api/v2/pipeline/{id}/workflow")).await?;
        Ok(found.into_iter().next().filter(|workflow| !workflow["stopped_at"].is_null()))
    })
    .await?;
    ensure!(workflow["status"] == "success", "the workflow is {}", workflow["status"]);

    let mut ran: Vec<String> = fs::read_to_string(&ledger)?.lines().map(str::to_owned).collect();
    ran.sort();
    ensure!(ran == (0..8).map(|job| format!("j{job}")).collect::<Vec<_>>(), "user code ran {ran:?}");
    for job in
        suite.items(&format!("/api/v2/workflow/{}/job", workflow["id"].as_str().unwrap_or_default())).await?
    {
        let (name, number) =
            (job["name"].as_str().unwrap_or_default(), job["job_number"].as_i64().context("no number")?);
        let build = suite.get(&format!("/api/v1.1/project/git/local/kill/{number}")).await?;
        let step = build["steps"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|step| step["name"] == "work")
            .context("no step")?;
        let log = suite
            .bytes(&format!("/logs/{}/raw", step["actions"][0]["step_id"].as_str().unwrap_or_default()))
            .await?;
        let whole: String = (1..=20).map(|line| format!("line {line} of {name}\n")).collect();
        ensure!(log == whole.as_bytes(), "the log of {name} is {:?}", String::from_utf8_lossy(&log));
    }
    suite.down().await
}
