//! One scenario from its push to its last request.

use crate::{actions, expected::Expected, jobs, requests};
use anyhow::{Context, bail, ensure};
use gantry_e2e::{Suite, until};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    time::Duration,
};

/// For anything that a scenario waits for: a loaded machine may be slow.
pub const LIMIT: Duration = Duration::from_secs(120);

/// What requests may name.
pub type Names = HashMap<String, String>;

/// Runs the scenario of a folder; with an image its machines are containers.
pub async fn run(
    suite: &Suite,
    work: &Path,
    folder: &Path,
    name: &str,
    image: Option<&str>,
) -> anyhow::Result<()> {
    let expected: Expected = serde_saphyr::from_str(&fs::read_to_string(folder.join("expected.yml"))?)?;
    let slug = format!("git/local/{name}");
    prepare(suite, &expected, work, name, &slug).await?;
    let files = work.join("files").join(name);
    fs::create_dir_all(&files)?;
    gantry_e2e::copy_tree(&folder.join("repo"), &files)?;
    // A scenario that attacks the instance has to know where it lies.
    let config = files.join(".circleci/config.yml");
    if config.exists() {
        let text = fs::read_to_string(&config)?;
        let mut text = text.replace("@DATA@", &work.join("data").display().to_string());
        if let Some(image) = image {
            text = text.replace("machine: true", &format!("docker: [{{ image: {image} }}]"));
        }
        fs::write(&config, text)?;
    }
    let mut names: Names = HashMap::from([("slug".to_owned(), slug.clone())]);
    names.insert("token".to_owned(), suite.token.clone());
    names.insert("url".to_owned(), suite.url.clone());
    requests::prepare(suite, &expected, &mut names).await.context("before the push")?;
    let repositories = work.join("repositories");
    for (reference, message) in &expected.earlier {
        suite.push_as(&repositories, name, &files, reference, message).await?;
    }
    for message in &expected.commits {
        gantry_e2e::commit(&repositories, name, &files, message).await?;
    }
    for option in &expected.push_options {
        let repository = gantry_e2e::commit(&repositories, name, &files, "Before it").await?;
        gantry_e2e::git(&repository, &["config", "--add", "push.pushOption", option]).await?;
    }
    let said = suite.push_as(&repositories, name, &files, &expected.push, &expected.message).await?;
    for part in &expected.says {
        ensure!(said.contains(part.as_str()), "the push does not say {part:?}: {said}");
    }
    if expected.skipped {
        ensure!(!said.contains("pipeline 1:"), "a pipeline was made: {said}");
        let found = suite.items(&format!("/api/v2/project/{slug}/pipeline")).await?;
        ensure!(found.is_empty(), "a pipeline was made");
        return requests::perform(suite, &expected, &mut names).await;
    }
    ensure!(
        said.contains("pipeline ") && said.contains("http"),
        "the push does not name its pipeline: {said}"
    );
    if let Some(body) = &expected.trigger {
        let (status, answer) = suite.post(&format!("/api/v2/project/{slug}/pipeline"), body).await?;
        ensure!(status == 201, "the trigger was answered {status} {answer}");
    }
    let number = expected.pipeline.unwrap_or(if expected.trigger.is_some() { 2 } else { 1 });
    let pipeline = until("the pipeline", LIMIT, || async {
        Ok(Some(suite.get(&format!("/api/v2/project/{slug}/pipeline/{number}")).await?))
    })
    .await?;
    let id = pipeline["id"].as_str().context("no id")?;
    names.insert("pipeline".to_owned(), id.to_owned());
    let errors: Vec<&str> =
        pipeline["errors"].as_array().into_iter().flatten().filter_map(|e| e["message"].as_str()).collect();
    if !expected.errors.is_empty() {
        ensure!(pipeline["state"] == "errored", "the pipeline is {}", pipeline["state"]);
        for part in &expected.errors {
            ensure!(
                errors.iter().any(|error| error.contains(part.as_str())),
                "no error says \"{part}\": {errors:?}"
            );
        }
        return requests::perform(suite, &expected, &mut names).await;
    }
    ensure!(errors.is_empty(), "the configuration was refused: {errors:?}");
    for act in &expected.actions {
        if let Some(reference) = act.strip_prefix("push ") {
            suite.push_as(&repositories, name, &files, reference, "Again").await?;
            continue;
        }
        if let Some(reference) = act.strip_prefix("delete ") {
            suite.delete(&repositories, name, reference).await?;
            continue;
        }
        until(act, LIMIT, || async { Ok(actions::perform(suite, &slug, id, act).await?.then_some(())) })
            .await?;
    }
    ended(suite, &expected, &slug, id, &mut names).await?;
    requests::perform(suite, &expected, &mut names).await
}

/// Waits for every workflow's end and judges it.
async fn ended(
    suite: &Suite,
    expected: &Expected,
    slug: &str,
    pipeline: &str,
    names: &mut Names,
) -> anyhow::Result<()> {
    let wanted = expected.workflows.len();
    let workflows = until("the end of every workflow", LIMIT, || async {
        let found = actions::workflows(suite, pipeline).await?;
        let ended =
            found.len() >= wanted && found.iter().all(|(_, workflow)| !workflow["stopped_at"].is_null());
        Ok(ended.then_some(found))
    })
    .await?;
    let found: Vec<_> = workflows.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(found.len() == wanted, "the workflows are {found:?}");
    let mut times: BTreeMap<String, (String, String)> = BTreeMap::new();
    for (name, workflow) in &workflows {
        let wanted = expected.workflows.get(name).with_context(|| format!("unexpected workflow {name}"))?;
        let id = workflow["id"].as_str().unwrap_or_default();
        names.insert(format!("workflow:{name}"), id.to_owned());
        let jobs = suite.items(&format!("/api/v2/workflow/{id}/job")).await?;
        let statuses: BTreeMap<&str, &str> =
            jobs.iter().filter_map(|j| Some((j["name"].as_str()?, j["status"].as_str()?))).collect();
        if workflow["status"] != wanted.status.as_str() {
            let why = jobs::failures(suite, slug, &jobs, wanted).await;
            bail!("workflow {name} is {}: {statuses:?}{why}", workflow["status"]);
        }
        ensure!(jobs.len() == wanted.jobs.len(), "workflow {name} has the jobs {statuses:?}");
        for job in &jobs {
            let job_name = job["name"].as_str().unwrap_or_default();
            let want = wanted.jobs.get(job_name).with_context(|| format!("unexpected job {job_name}"))?;
            ensure!(job["status"] == want.status.as_str(), "job {job_name} is {}", job["status"]);
            let time = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
            times.insert(job_name.to_owned(), (time("started_at"), time("stopped_at")));
            jobs::note(job, names);
            jobs::check(suite, slug, job, want, names).await.with_context(|| format!("job {job_name}"))?;
        }
    }
    for (first, second) in &expected.order {
        let at = |name: &String| times.get(name).with_context(|| format!("there is no job {name}"));
        let (ended, started) = (&at(first)?.1, &at(second)?.0);
        ensure!(
            !ended.is_empty() && ended <= started,
            "{second} started at {started}, {first} ended at {ended}"
        );
    }
    Ok(())
}

/// Secrets, contexts and requests need the project to exist: a push that builds nothing makes it.
async fn prepare(
    suite: &Suite,
    expected: &Expected,
    work: &Path,
    name: &str,
    slug: &str,
) -> anyhow::Result<()> {
    if expected.secrets.is_empty() && expected.contexts.is_empty() && expected.before.is_empty() {
        return Ok(());
    }
    let empty = work.join("empty");
    fs::create_dir_all(&empty)?;
    fs::write(empty.join("empty"), "")?;
    let side = work.join("side");
    suite.push_as(&side, name, &empty, "refs/heads/side", "Begin [skip ci]").await?;
    for (key, value) in &expected.secrets {
        let body = json!({ "name": key, "value": value });
        let (status, answer) = suite.post(&format!("/api/v2/project/{slug}/envvar"), &body).await?;
        ensure!(status == 201, "setting {key}: {status} {answer}");
    }
    let org = organization(suite).await?;
    for (context, values) in &expected.contexts {
        let body = json!({ "name": context, "owner": { "id": org, "type": "organization" } });
        let (status, made) = suite.post("/api/v2/context", &body).await?;
        ensure!(status == 200 || status == 201, "making context {context}: {status} {made}");
        for (key, value) in values {
            let id = made["id"].as_str().unwrap_or_default();
            let path = format!("/api/v2/context/{id}/environment-variable/{key}");
            let put = suite.request("PUT", &path).json(&json!({ "value": value })).send().await?;
            put.error_for_status()?;
        }
    }
    Ok(())
}

/// Id of the organisation that exists from the start.
pub async fn organization(suite: &Suite) -> anyhow::Result<Value> {
    let all = suite.get("/api/v2/me/collaborations").await?;
    let found = all.as_array().into_iter().flatten().find(|org| org["name"] == "local");
    Ok(found.context("no organisation local")?["id"].clone())
}
