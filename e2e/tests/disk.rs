//! A full data disk (reliability F23): new work is refused with the reason, nothing that was accepted is lost,
//! and work goes on by itself. A runner's full disk (F20): the job says so. On file systems of their own, so that the
//! machine's is not filled; that needs root.

use anyhow::{Context, bail, ensure};
use gantry_e2e::{Suite, until};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statvfs::statvfs,
    unistd::geteuid,
};
use serde_json::{Value, json};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

/// A small file system in memory; gone with its guard.
struct Small(PathBuf);

impl Small {
    fn new(path: &Path, mib: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(path)?;
        let options = format!("size={mib}m,mode=0755");
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self(path.to_owned()))
    }

    fn free(&self) -> anyhow::Result<u64> {
        let found = statvfs(&self.0)?;
        Ok(found.blocks_available() * found.fragment_size())
    }

    /// Leaves `left` bytes free.
    fn fill(&self, ballast: &Path, left: u64) -> anyhow::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(ballast)?;
        let block = vec![0u8; usize::try_from(MIB)?];
        while self.free()? > left {
            let part = usize::try_from((self.free()? - left).min(MIB))?;
            // Something else may have taken the last bytes meanwhile.
            if file.write_all(&block[..part]).is_err() {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

async fn new_work(suite: &Suite) -> anyhow::Result<Value> {
    let ready = suite.get("/readyz").await?;
    ready.pointer("/checks/new_work").cloned().context("readiness says nothing of new work")
}

/// The project's only pipeline; a view may show it a little after the push.
async fn only_pipeline(suite: &Suite, project: &str) -> anyhow::Result<String> {
    let path = format!("/api/v2/project/git/local/{project}/pipeline");
    until("the pipeline", LIMIT, async || {
        let items = suite.items(&path).await?;
        Ok(items.first().and_then(|item| Some(item.get("id")?.as_str()?.to_owned())))
    })
    .await
}

async fn pipeline_status(suite: &Suite, id: &str) -> anyhow::Result<String> {
    let workflows = suite.items(&format!("/api/v2/pipeline/{id}/workflow")).await?;
    let status = workflows.first().and_then(|found| found.get("status")?.as_str());
    Ok(status.unwrap_or_default().to_owned())
}

/// A file system for a test; says why there is none.
fn small(path: &Path, mib: u64) -> Option<Small> {
    if !geteuid().is_root() {
        eprintln!("NOT TESTED: a full disk needs a file system of its own, which only root may mount");
        return None;
    }
    Small::new(path, mib)
        .inspect_err(|error| {
            eprintln!("NOT TESTED: a full disk; no file system can be mounted here: {error:#}")
        })
        .ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_finds_a_runners_disk_full_says_so() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let data = dir.path().join("data");
    fs::create_dir_all(&data)?;
    let Some(_small) = small(&data.join("tasks"), 24) else { return Ok(()) };
    let suite = Suite::up(&data, &[]).await?;
    let files = dir.path().join("files");
    fs::create_dir_all(files.join(".circleci"))?;
    let config = r#"version: 2.1
jobs:
  prints: { machine: true, steps: [{ run: { name: work, command: "for i in $(seq 400000); do echo line $i of some length, so that there are many bytes of them; done" } }] }
  writes: { machine: true, steps: [{ run: { name: work, command: "echo begun; head -c 100000000 /dev/zero > file" } }] }
  after: { machine: true, steps: [{ run: echo hello }] }
workflows:
  main: { jobs: [prints, { writes: { requires: [{ prints: terminal }] } }, { after: { requires: [{ writes: terminal }] } }] }
"#;
    fs::write(files.join(".circleci/config.yml"), config)?;
    suite.push(dir.path(), "room", &files, "refs/heads/main").await?;
    let id = only_pipeline(&suite, "room").await?;
    until("the workflow's end", LIMIT, async || {
        let status = pipeline_status(&suite, &id).await?;
        Ok(["success", "failed"].contains(&status.as_str()).then_some(()))
    })
    .await?;
    let workflow = suite.items(&format!("/api/v2/pipeline/{id}/workflow")).await?[0]["id"].clone();
    let workflow = workflow.as_str().context("no workflow")?;
    let jobs = suite.items(&format!("/api/v2/workflow/{workflow}/job")).await?;
    for (name, status) in
        [("prints", "infrastructure_fail"), ("writes", "infrastructure_fail"), ("after", "success")]
    {
        let job = jobs.iter().find(|job| job["name"] == name).context("no job")?;
        ensure!(job["status"] == status, "{job}");
        if status == "success" {
            continue;
        }
        let path = format!("/api/v1.1/project/git/local/room/{}", job["job_number"]);
        let build = suite.get(&path).await?;
        let step = build["steps"].as_array().into_iter().flatten().find(|step| step["name"] == "work");
        let step = &step.context("no step")?["actions"][0];
        let log = suite.bytes(&format!("/logs/{}/raw", step["step_id"].as_str().context("no id")?)).await?;
        let text = String::from_utf8(log)?;
        let (before, said) =
            text.split_once("The step could not be run: ").context("the log does not say it")?;
        ensure!(said.starts_with("disk_full: ") && said.contains("/tasks/"), "{said}");
        let lines: Vec<&str> = before.lines().collect();
        match name {
            "writes" => ensure!(lines.first() == Some(&"begun"), "{before}"),
            // Every line but the last is whole, and none is missing.
            _ => {
                ensure!(lines.len() > 10_000, "{} lines", lines.len());
                for (at, line) in lines[..lines.len() - 1].iter().enumerate() {
                    ensure!(line.starts_with(&format!("line {} of ", at + 1)), "line {at}: {line}");
                }
            }
        }
    }
    suite.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_new_work_and_loses_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(small) = small(&dir.path().join("small"), 600) else { return Ok(()) };
    let config = dir.path().join("gantry.toml");
    fs::write(&config, "[disk]\nmin_free_mib = 100\n")?;
    let config = config.to_str().context("a path in UTF-8")?.to_owned();
    let suite = Suite::up(&small.0.join("data"), &["--config", &config]).await?;
    let go = dir.path().join("go");
    let files = dir.path().join("files");
    fs::create_dir_all(files.join(".circleci"))?;
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::write(
        files.join(".circleci/config.yml"),
        format!(
            "version: 2.1\njobs:\n  build:\n    machine: true\n    steps:\n      - run: |\n          echo begun\n          for i in $(seq 600); do echo \"line $i\"; [ -e {go} ] && exit 0; sleep 0.2; done\n          exit 1\nworkflows:\n  main:\n    jobs: [build]\n",
            go = go.display()
        ),
    )?;
    suite.push(dir.path(), "disk", &files, "refs/heads/main").await?;
    let first = only_pipeline(&suite, "disk").await?;
    until("the job runs", LIMIT, async || {
        Ok((pipeline_status(&suite, &first).await? == "running").then_some(()))
    })
    .await?;

    let ballast = small.0.join("ballast");
    small.fill(&ballast, 50 * MIB)?;
    let said = until("new work is refused", LIMIT, async || {
        let new_work = new_work(&suite).await?;
        Ok((new_work["ok"] == false).then_some(new_work))
    })
    .await?;
    ensure!(said["reason"].as_str().is_some_and(|text| text.contains("min_free_mib")), "{said}");
    let (status, answer) =
        suite.post("/api/v2/project/git/local/disk/pipeline", &json!({ "branch": "main" })).await?;
    ensure!(status == 503 && answer.to_string().contains("is full"), "{status} {answer}");
    let Err(refused) = suite.push(dir.path(), "disk", &files, "refs/heads/main").await else {
        bail!("a push was accepted with a full disk")
    };
    ensure!(format!("{refused:#}").contains("is full"), "{refused:#}");
    ensure!(pipeline_status(&suite, &first).await? == "running", "what runs goes on");

    // To the last byte, and a while of it: the database may fall, the job's output waits with its agent.
    small.fill(&ballast, 0)?;
    until("something cannot be written", LIMIT, async || {
        let free = small.free()?;
        small.fill(&ballast, 0)?;
        Ok((free < 64 * 1024).then_some(()))
    })
    .await?;
    fs::write(&go, "")?;
    fs::remove_file(&ballast)?;
    until("new work is taken again", LIMIT, async || {
        Ok((new_work(&suite).await?["ok"] == true).then_some(()))
    })
    .await?;
    until("the job has ended", LIMIT, async || {
        Ok((pipeline_status(&suite, &first).await? == "success").then_some(()))
    })
    .await?;
    let (status, answer) =
        suite.post("/api/v2/project/git/local/disk/pipeline", &json!({ "branch": "main" })).await?;
    ensure!(status == 201, "{status} {answer}");
    let second = answer["id"].as_str().context("no id")?.to_owned();
    until("the next run ends", LIMIT, async || {
        Ok((pipeline_status(&suite, &second).await? == "success").then_some(()))
    })
    .await?;
    let report = suite.get("/internal/verify").await?;
    ensure!(report["clean"] == true, "{report}");
    suite.down().await
}
