//! `gantry try --docker`: a database beside a job, a cache, artifacts, and tests that are split by what they took before.

use super::Sample;
use crate::{
    Exit, Failure, Global,
    commands::{log, text},
};
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;
use std::path::PathBuf;

/// The image of the job and of the database; it has git, bash and the database's programs.
pub(in crate::commands) const IMAGE: &str = "cimg/postgres:17.2";

const CONFIG: &str = include_str!("docker.yml");
/// One that takes long and many that do not: a split by timings gives the long one a node of its own.
const TESTS: [(&str, &str); 8] = [
    ("a", "0.05"),
    ("b", "0.05"),
    ("c", "0.05"),
    ("d", "1.5"),
    ("e", "0.05"),
    ("f", "0.05"),
    ("g", "0.05"),
    ("h", "0.05"),
];
/// The test that takes long.
const LONG: &str = "tests/d.sh";

/// Pushes the sample twice and shows what the second run made of the first.
pub(in crate::commands) async fn run(
    global: &Global,
    dir: Option<PathBuf>,
    image: &str,
) -> Result<Exit, Failure> {
    let sample = Sample::new(global, "git/local/sample-docker", dir).await?;
    sample.write(".circleci/config.yml", &CONFIG.replace("IMAGE", image))?;
    sample.write("lock", "one 1.0\n")?;
    for (name, seconds) in TESTS {
        sample.write(&format!("tests/{name}.sh"), &format!("sleep {seconds}\n"))?;
    }
    eprintln!("Pushing a sample project to {}; its jobs are containers of {image}.", sample.slug);
    let (_, first) = sample.push("Add a sample project").await?;
    if first != Exit::Success {
        return Ok(first);
    }
    eprintln!("\nPushing it again: the cache is there, and it is known what each test takes.");
    let (pipeline, second) = sample.push("Again").await?;
    if second != Exit::Success {
        return Ok(second);
    }
    show(&sample, &pipeline).await
}

/// Says what the run of a pipeline left, and whether it is what this sample is to show.
async fn show(sample: &Sample<'_>, pipeline: &Value) -> Result<Exit, Failure> {
    let workflows =
        sample.client.items(&format!("/api/v2/pipeline/{}/workflow", text(pipeline, "id")), 1).await?;
    let workflow = workflows.first().map(|workflow| text(workflow, "id")).unwrap_or_default();
    let jobs = sample.client.items(&format!("/api/v2/workflow/{workflow}/job"), 10).await?;
    let number = |name: &str| {
        let job = jobs.iter().find(|job| text(job, "name") == name);
        job.and_then(|job| job["job_number"].as_i64())
            .ok_or_else(|| Failure::new(Exit::NotFound, format!("there is no job {name}")))
    };
    let (prepare, test) = (number("prepare")?, number("test")?);

    let restored = outputs(sample, prepare, "Look for the dependencies").await?.concat();
    let hit = restored.contains("Found a cache");
    eprintln!("\nCache: {}", restored.lines().next().unwrap_or("nothing was said"));
    let artifacts =
        sample.client.items(&format!("/api/v2/project/{}/{prepare}/artifacts", sample.slug), 100).await?;
    eprintln!("Artifacts of job {prepare}:");
    for artifact in &artifacts {
        eprintln!("  {}  {}", text(artifact, "path"), text(artifact, "url"));
    }
    let tests = sample.client.items(&format!("/api/v2/project/{}/{test}/tests", sample.slug), 100).await?;
    eprintln!("Test results of job {test}: {}", tests.len());
    let mut alone = false;
    for (index, node) in outputs(sample, test, "Test a part").await?.iter().enumerate() {
        let ran: Vec<_> = node.lines().filter(|line| line.starts_with("tests/")).collect();
        eprintln!("  node {index}: {}", ran.join(", "));
        alone |= ran.len() == 1 && ran[0].starts_with(LONG);
    }
    let lacks: Vec<&str> = [
        (hit, "a cache of the first run"),
        (!artifacts.is_empty(), "an artifact"),
        (tests.len() == TESTS.len(), "the result of each test"),
        (alone, "a node that has the long test alone"),
    ]
    .into_iter()
    .filter_map(|(there, what)| (!there).then_some(what))
    .collect();
    if !lacks.is_empty() {
        eprintln!("\nThe second run lacks {}.", lacks.join(", "));
        return Ok(Exit::Failed);
    }
    eprintln!("\nGreen. Look at it: {}/", sample.client.server());
    Ok(Exit::Success)
}

/// What a step printed, one text per node.
async fn outputs(sample: &Sample<'_>, job: i64, step: &str) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for action in log::actions(&sample.client, sample.slug, job).await? {
        if text(&action, "name") == step {
            let output = sample.client.bytes(&format!("/logs/{}/raw", text(&action, "step_id"))).await?;
            let parts: Vec<_> = std::pin::pin!(output).by_ref().try_collect().await?;
            found.push(String::from_utf8_lossy(&parts.concat()).into_owned());
        }
    }
    Ok(found)
}
