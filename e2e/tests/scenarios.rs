//! Whole behaviour: a repository's files beside their expected outcome, run through the real suite by its public
//! API only. One suite serves all; each scenario has a project of its own.

use anyhow::{Context, bail, ensure};
use gantry_e2e::{Suite, until};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

const LIMIT: Duration = Duration::from_secs(90);

/// `expected.yml`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    /// What the scenario guards, for example `execution §5`.
    #[allow(dead_code, reason = "read by the page that maps rules to scenarios")]
    rules: Vec<String>,
    /// Pushed ref; default `refs/heads/main`.
    #[serde(default = "main_branch")]
    push: String,
    /// Secrets of the project, set before the build.
    #[serde(default)]
    secrets: BTreeMap<String, String>,
    /// Contexts with their values, made before the build.
    #[serde(default)]
    contexts: BTreeMap<String, BTreeMap<String, String>>,
    /// Pipeline errors: each is a part of a message.
    #[serde(default)]
    errors: Vec<String>,
    /// No pipeline at all.
    #[serde(default)]
    skipped: bool,
    /// Commands once the workflow stands: `approve NAME`, `cancel-job NAME`, `cancel`.
    #[serde(default)]
    actions: Vec<String>,
    /// Workflows by name.
    #[serde(default)]
    workflows: BTreeMap<String, Workflow>,
    /// Pairs: the first job ended before the second started.
    #[serde(default)]
    order: Vec<(String, String)>,
}

fn main_branch() -> String {
    "refs/heads/main".to_owned()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Workflow {
    status: String,
    jobs: BTreeMap<String, Job>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Job {
    status: String,
    /// Step name → its status.
    #[serde(default)]
    steps: BTreeMap<String, String>,
    /// Step name → the whole output.
    #[serde(default)]
    output: BTreeMap<String, String>,
    /// Step name → parts of the output.
    #[serde(default)]
    contains: BTreeMap<String, Vec<String>>,
    /// Step name → what the output must not hold.
    #[serde(default)]
    lacks: BTreeMap<String, Vec<String>>,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_ends_as_its_author_expects() -> anyhow::Result<()> {
    let work = tempfile::tempdir()?;
    let suite = Suite::up(&work.path().join("data"), &[]).await?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let only = std::env::var("GANTRY_SCENARIO").ok();
    let mut names: Vec<_> =
        fs::read_dir(&folder)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.retain(|name| only.as_ref().is_none_or(|only| only == name));
    names.sort();
    ensure!(!names.is_empty(), "there are no scenarios");
    let mut failures = Vec::new();
    for name in &names {
        match run(&suite, work.path(), &folder.join(name), name).await {
            Ok(()) => println!("ok   {name}"),
            Err(error) => {
                println!("FAIL {name}: {error:#}");
                failures.push(name.clone());
            }
        }
    }
    suite.down().await?;
    // A panic, not an error: the list is what the reader needs, a trace of this loop is not.
    assert!(failures.is_empty(), "failed: {}", failures.join(", "));
    println!("{} scenarios", names.len());
    Ok(())
}

async fn run(suite: &Suite, work: &Path, folder: &Path, name: &str) -> anyhow::Result<()> {
    let expected: Expected = serde_saphyr::from_str(&fs::read_to_string(folder.join("expected.yml"))?)?;
    let slug = format!("git/local/{name}");
    prepare(suite, &expected, work, name, &slug).await?;
    let files = work.join("files").join(name);
    fs::create_dir_all(&files)?;
    gantry_e2e::copy_tree(&folder.join("repo"), &files)?;
    // A scenario that attacks the instance has to know where it lies.
    let config = files.join(".circleci/config.yml");
    fs::write(
        &config,
        fs::read_to_string(&config)?.replace("@DATA@", &work.join("data").display().to_string()),
    )?;
    let said = suite.push(&work.join("repositories"), name, &files, &expected.push).await?;
    if expected.skipped {
        ensure!(!said.contains("pipeline 1:"), "a pipeline was made: {said}");
        ensure!(
            suite.items(&format!("/api/v2/project/{slug}/pipeline")).await?.is_empty(),
            "a pipeline was made"
        );
        return Ok(());
    }
    ensure!(
        said.contains("pipeline ") && said.contains("http"),
        "the push does not name its pipeline: {said}"
    );
    let pipeline = until("the pipeline", LIMIT, || async {
        Ok(suite.items(&format!("/api/v2/project/{slug}/pipeline")).await?.into_iter().next())
    })
    .await?;
    let errors: Vec<String> =
        pipeline["errors"].as_array().into_iter().flatten().map(|e| e["message"].to_string()).collect();
    if !expected.errors.is_empty() {
        ensure!(pipeline["state"] == "errored", "the pipeline is {}", pipeline["state"]);
        for part in &expected.errors {
            ensure!(
                errors.iter().any(|error| error.contains(part.as_str())),
                "no error says \"{part}\": {errors:?}"
            );
        }
        return Ok(());
    }
    ensure!(errors.is_empty(), "the configuration was refused: {errors:?}");
    let id = pipeline["id"].as_str().context("no id")?;
    let listed = || async { suite.items(&format!("/api/v2/pipeline/{id}/workflow")).await };
    for act in &expected.actions {
        until(act, LIMIT, || async { Ok(perform(suite, act, &listed().await?).await?.then_some(())) })
            .await?;
    }
    let wanted = expected.workflows.len();
    let workflows = until("the end of every workflow", LIMIT, || async {
        let found = listed().await?;
        let ended = found.len() >= wanted && found.iter().all(|workflow| !workflow["stopped_at"].is_null());
        Ok(ended.then_some(found))
    })
    .await?;
    ensure!(
        workflows.len() == expected.workflows.len(),
        "{} workflows, expected {}",
        workflows.len(),
        expected.workflows.len()
    );
    let mut times: BTreeMap<String, (String, String)> = BTreeMap::new();
    for workflow in &workflows {
        let name = workflow["name"].as_str().unwrap_or_default();
        let wanted = expected.workflows.get(name).with_context(|| format!("unexpected workflow {name}"))?;
        let jobs = suite
            .items(&format!("/api/v2/workflow/{}/job", workflow["id"].as_str().unwrap_or_default()))
            .await?;
        let statuses: BTreeMap<&str, &str> =
            jobs.iter().filter_map(|j| Some((j["name"].as_str()?, j["status"].as_str()?))).collect();
        ensure!(
            workflow["status"] == wanted.status.as_str(),
            "workflow {name} is {}: {statuses:?}",
            workflow["status"]
        );
        ensure!(jobs.len() == wanted.jobs.len(), "workflow {name} has the jobs {statuses:?}");
        for job in &jobs {
            let job_name = job["name"].as_str().unwrap_or_default();
            let want = wanted.jobs.get(job_name).with_context(|| format!("unexpected job {job_name}"))?;
            ensure!(job["status"] == want.status.as_str(), "job {job_name} is {}", job["status"]);
            times.insert(
                job_name.to_owned(),
                (
                    job["started_at"].as_str().unwrap_or_default().to_owned(),
                    job["stopped_at"].as_str().unwrap_or_default().to_owned(),
                ),
            );
            check_job(suite, &slug, job, want).await.with_context(|| format!("job {job_name}"))?;
        }
    }
    for (first, second) in &expected.order {
        let (ended, started) = (&times[first].1, &times[second].0);
        ensure!(
            !ended.is_empty() && ended <= started,
            "{second} started at {started}, {first} ended at {ended}"
        );
    }
    Ok(())
}

/// Secrets and contexts need the project to exist: an empty push to a side ref makes it.
async fn prepare(
    suite: &Suite,
    expected: &Expected,
    work: &Path,
    name: &str,
    slug: &str,
) -> anyhow::Result<()> {
    if expected.secrets.is_empty() && expected.contexts.is_empty() {
        return Ok(());
    }
    let empty = work.join("empty");
    fs::create_dir_all(&empty)?;
    fs::write(empty.join("empty"), "")?;
    let side = work.join("side");
    let repository = side.join(name);
    fs::create_dir_all(&repository)?;
    gantry_e2e::git(&repository, &["init", "-q", "-b", "main"]).await?;
    gantry_e2e::copy_tree(&empty, &repository)?;
    gantry_e2e::git(&repository, &["add", "-A"]).await?;
    gantry_e2e::git(&repository, &["commit", "-q", "-m", "Begin [skip ci]"]).await?;
    let remote =
        format!("{}/git/local/{name}.git", suite.url.replacen("://", &format!("://x:{}@", suite.token), 1));
    gantry_e2e::git(&repository, &["push", &remote, "HEAD:refs/heads/side"]).await?;
    for (key, value) in &expected.secrets {
        let (status, answer) = suite
            .post(&format!("/api/v2/project/{slug}/envvar"), &json!({ "name": key, "value": value }))
            .await?;
        ensure!(status == 201, "setting {key}: {status} {answer}");
    }
    let orgs = suite.get("/api/v2/me/collaborations").await?;
    let org = orgs
        .as_array()
        .into_iter()
        .flatten()
        .find(|org| org["name"] == "local")
        .context("no organisation local")?["id"]
        .clone();
    for (context, values) in &expected.contexts {
        let (status, made) = suite
            .post(
                "/api/v2/context",
                &json!({ "name": context, "owner": { "id": org, "type": "organization" } }),
            )
            .await?;
        ensure!(status == 200 || status == 201, "making context {context}: {status} {made}");
        for (key, value) in values {
            let path = format!(
                "{}/api/v2/context/{}/environment-variable/{key}",
                suite.url,
                made["id"].as_str().unwrap_or_default()
            );
            let put = reqwest::Client::new()
                .put(path)
                .header("Circle-Token", &suite.token)
                .json(&json!({ "value": value }));
            put.send().await?.error_for_status()?;
        }
    }
    Ok(())
}

/// Performs an action as soon as it can be; whether it was.
async fn perform(suite: &Suite, act: &str, workflows: &[Value]) -> anyhow::Result<bool> {
    let (verb, name) = act.split_once(' ').unwrap_or((act, ""));
    for workflow in workflows {
        let id = workflow["id"].as_str().unwrap_or_default();
        let jobs = suite.items(&format!("/api/v2/workflow/{id}/job")).await?;
        let job = jobs.iter().find(|job| job["name"] == name);
        let path = match (verb, job) {
            ("approve", Some(job)) if job["status"] == "on_hold" => {
                format!("/api/v2/workflow/{id}/approve/{}", job["id"].as_str().unwrap_or_default())
            }
            ("cancel-job", Some(job))
                if ["running", "on_hold"].contains(&job["status"].as_str().unwrap_or_default()) =>
            {
                format!("/api/v2/jobs/{}/cancel", job["id"].as_str().unwrap_or_default())
            }
            ("cancel", _) if jobs.iter().any(|job| job["status"] == "running") => {
                format!("/api/v2/workflow/{id}/cancel")
            }
            ("approve" | "cancel-job" | "cancel", _) => continue,
            _ => bail!("no such action: {act}"),
        };
        let (status, answer) = suite.post(&path, &json!({})).await?;
        ensure!((200..300).contains(&status), "{act}: {status} {answer}");
        return Ok(true);
    }
    Ok(false)
}

async fn check_job(suite: &Suite, slug: &str, job: &Value, want: &Job) -> anyhow::Result<()> {
    if want.steps.is_empty() && want.output.is_empty() && want.contains.is_empty() && want.lacks.is_empty() {
        return Ok(());
    }
    let number = job["job_number"].as_i64().context("no job number")?;
    let build = suite.get(&format!("/api/v1.1/project/{slug}/{number}")).await?;
    let steps = build["steps"].as_array().context("no steps")?;
    let action = |name: &str| -> anyhow::Result<&Value> {
        let found = steps.iter().find(|step| step["name"] == name).map(|step| &step["actions"][0]);
        found.with_context(|| {
            format!(
                "no step \"{name}\": {:?}",
                steps.iter().map(|s| s["name"].to_string()).collect::<Vec<_>>()
            )
        })
    };
    for (name, status) in &want.steps {
        if status == "absent" {
            ensure!(action(name).is_err(), "step \"{name}\" ran");
            continue;
        }
        let found = action(name)?;
        ensure!(found["status"] == status.as_str(), "step \"{name}\" is {}", found["status"]);
    }
    let output = async |name: &str| -> anyhow::Result<String> {
        let step = action(name)?["step_id"].as_str().context("no step_id")?.to_owned();
        Ok(String::from_utf8_lossy(&suite.bytes(&format!("/logs/{step}/raw")).await?).into_owned())
    };
    for (name, whole) in &want.output {
        let found = output(name).await?;
        ensure!(&found == whole, "output of \"{name}\" is {found:?}");
    }
    for (name, parts) in &want.contains {
        let found = output(name).await?;
        for part in parts {
            ensure!(found.contains(part.as_str()), "output of \"{name}\" lacks {part:?}: {found}");
        }
    }
    for (name, parts) in &want.lacks {
        let found = output(name).await?;
        for part in parts {
            ensure!(!found.contains(part.as_str()), "output of \"{name}\" holds {part:?}");
        }
    }
    Ok(())
}
