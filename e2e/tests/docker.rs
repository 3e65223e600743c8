//! Jobs in containers, through the whole product: `gantry up` on a real engine.

use anyhow::{Context, ensure};
use gantry_e2e::{Suite, until};
use serde_json::{Value, json};
use std::{fs, path::Path, time::Duration};
use testkit::docker::{DOCKER_IMAGE, Engine, IMAGE};
use tokio::sync::Mutex;

const LIMIT: Duration = Duration::from_secs(120);
/// One test at a time: they count the containers of the engine that they share.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn up(engine: &Engine, data: &Path) -> anyhow::Result<Suite> {
    let socket = engine.socket.display().to_string();
    let environment = [
        ("GANTRY_EXECUTORS_DOCKER", "engine"),
        ("GANTRY_EXECUTORS_ENGINE_SOCKET", &socket),
        ("GANTRY_EXECUTORS_ENGINE_PULL", "never"),
        ("GANTRY_EXECUTORS_ENGINE_REMOTE_DOCKER_IMAGE", DOCKER_IMAGE),
    ];
    Suite::up_with(data, &[], &environment).await
}

/// Pushes a configuration of one workflow and returns the jobs once it has come to `ended`.
async fn push(suite: &Suite, work: &Path, name: &str, config: &str) -> anyhow::Result<()> {
    let files = work.join("files").join(name);
    fs::create_dir_all(files.join(".circleci"))?;
    fs::write(files.join(".circleci/config.yml"), config)?;
    suite.push(&work.join("repositories"), name, &files, "refs/heads/main").await?;
    Ok(())
}

async fn jobs(suite: &Suite, name: &str) -> anyhow::Result<Option<Vec<Value>>> {
    let pipeline = suite.get(&format!("/api/v2/project/git/local/{name}/pipeline/1")).await?;
    let id = pipeline["id"].as_str().context("no id")?;
    let workflows = suite.items(&format!("/api/v2/pipeline/{id}/workflow")).await?;
    let Some(workflow) = workflows.first() else { return Ok(None) };
    let id = workflow["id"].as_str().context("no id")?;
    Ok(Some(suite.items(&format!("/api/v2/workflow/{id}/job")).await?))
}

async fn ended(suite: &Suite, name: &str) -> anyhow::Result<Vec<Value>> {
    until("the jobs' end", LIMIT, || async {
        let jobs = jobs(suite, name).await?.unwrap_or_default();
        let over = !jobs.is_empty() && jobs.iter().all(|job| !job["stopped_at"].is_null());
        Ok(over.then_some(jobs))
    })
    .await
}

/// What a job's steps wrote, spin-up included.
async fn output(suite: &Suite, name: &str, job: &Value) -> anyhow::Result<String> {
    let number = job["job_number"].as_i64().context("no number")?;
    let build = suite.get(&format!("/api/v1.1/project/git/local/{name}/{number}")).await?;
    let mut all = String::new();
    for action in
        build["steps"].as_array().into_iter().flatten().flat_map(|step| step["actions"].as_array()).flatten()
    {
        let id = action["step_id"].as_str().context("no step id")?;
        all.push_str(&String::from_utf8_lossy(&suite.bytes(&format!("/logs/{id}/raw")).await?));
    }
    Ok(all)
}

/// What the first job's steps wrote, once they wrote this.
async fn says(suite: &Suite, name: &str, text: &str) -> anyhow::Result<String> {
    until(&format!("{text:?} from the job"), LIMIT, || async {
        let jobs = jobs(suite, name).await?.unwrap_or_default();
        let Some(job) = jobs.first().filter(|job| !job["job_number"].is_null()) else { return Ok(None) };
        Ok(output(suite, name, job).await.ok().filter(|said| said.contains(text)))
    })
    .await
}

/// Kills the agent that has a task, by the folders of tasks.
fn kill_agent(tasks: &Path) -> anyhow::Result<()> {
    let mut folders = fs::read_dir(tasks)?.flatten().map(|entry| entry.path());
    let at_work = folders.find(|task| task.join("lease.json").exists()).context("no task at work")?;
    let pid: i32 = fs::read_to_string(at_work.join("pid"))?.split(' ').next().context("no pid")?.parse()?;
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_run_in_containers() -> anyhow::Result<()> {
    let Some(engine) = testkit::docker::engine() else { return Ok(()) };
    let _alone = ALONE.lock().await;
    let work = tempfile::tempdir()?;
    let suite = up(engine, &work.path().join("data")).await?;
    let config = format!(
        r#"version: 2.1
jobs:
  inside:
    docker:
      - image: {IMAGE}
        environment: {{ OF_CONTAINER: seen }}
      - image: {IMAGE}
        name: side
        command: [sh, -c, "while :; do echo served | nc -l -p 7070; done"]
    resource_class: small
    shell: /bin/sh -eo pipefail
    steps:
      - run: echo $OF_CONTAINER; until nc side 7070; do sleep 0.05; done
  too-large:
    docker: [{{ image: {IMAGE} }}]
    resource_class: gigantic
    steps: [{{ run: echo no }}]
  missing:
    docker: [{{ image: "no-such-image:7" }}]
    steps: [{{ run: echo no }}]
workflows: {{ main: {{ jobs: [inside, too-large, missing] }} }}
"#
    );
    push(&suite, work.path(), "containers", &config).await?;
    let jobs = ended(&suite, "containers").await?;
    let find = |name: &str| jobs.iter().find(|job| job["name"] == name).context("a job is missing");
    let inside = find("inside")?;
    let said = output(&suite, "containers", inside).await?;
    ensure!(inside["status"] == "success", "{}: {said}", inside["status"]);
    for part in
        ["seen\n", "served\n", "Resource class small", "Limits: 1 vCPU, 2048 MiB of memory", "using image"]
    {
        ensure!(said.contains(part), "{part} is not in {said}");
    }
    ensure!(find("too-large")?["status"] == "infrastructure_fail");
    let missing = find("missing")?;
    ensure!(missing["status"] == "infrastructure_fail");
    let said = output(&suite, "containers", missing).await?;
    ensure!(said.contains("no-such-image:7 is not on this machine"), "{said}");
    until("nothing is left", LIMIT, || async { Ok(left(engine).is_empty().then_some(())) }).await?;
    suite.down().await
}

/// Containers and networks of jobs, a line each.
fn left(engine: &Engine) -> String {
    let of_jobs = |words: &[&str]| engine.client(&[words, &["--filter", "label=gantry.placement"]].concat());
    of_jobs(&["ps", "-aq"]) + &of_jobs(&["network", "ls", "-q"])
}

/// R-16 and R-21 for containers: the agent dies, the job ends once, nothing of it is left, the engine that was its own
/// included, and the next one is not affected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_leaves_no_containers() -> anyhow::Result<()> {
    let Some(engine) = testkit::docker::engine() else { return Ok(()) };
    let _alone = ALONE.lock().await;
    engine.docker_image(DOCKER_IMAGE);
    let work = tempfile::tempdir()?;
    let data = work.path().join("data");
    let suite = up(engine, &data).await?;
    let config = format!(
        r#"version: 2.1
jobs:
  victim:
    docker: [{{ image: {IMAGE} }}, {{ image: {IMAGE}, command: [sleep, "1000"] }}]
    shell: /bin/sh
    steps: [setup_remote_docker, {{ run: "echo alive; sleep 1000" }}]
workflows: {{ main: {{ jobs: [victim] }} }}
"#
    );
    push(&suite, work.path(), "victim", &config).await?;
    says(&suite, "victim", "alive").await?;
    ensure!(left(engine).lines().count() == 4, "not three containers and a network: {}", left(engine));
    kill_agent(&data.join("tasks"))?;
    let jobs = ended(&suite, "victim").await?;
    ensure!(jobs[0]["status"] == "infrastructure_fail", "the job is {}", jobs[0]["status"]);
    until("nothing is left", Duration::from_secs(60), || async { Ok(left(engine).is_empty().then_some(())) })
        .await?;
    let config = config.replace("sleep 1000\"", "true\"").replace("sleep, \"1000\"", "sleep, \"1\"");
    push(&suite, work.path(), "next", &config).await?;
    let jobs = ended(&suite, "next").await?;
    ensure!(jobs[0]["status"] == "success", "the next job is {}", jobs[0]["status"]);
    suite.down().await
}

/// R-21 for the engine: it is killed at moments that a seed chooses, while containers are made, run or are removed. Each job ends,
/// nothing of it is left, and the next one is not affected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_engine_leaves_nothing_of_a_job() -> anyhow::Result<()> {
    let Some(engine) = testkit::docker::engine() else { return Ok(()) };
    let _alone = ALONE.lock().await;
    let work = tempfile::tempdir()?;
    let before = groups();
    let suite = up(engine, &work.path().join("data")).await?;
    let config = format!(
        r#"version: 2.1
jobs:
  victim:
    docker: [{{ image: {IMAGE} }}, {{ image: {IMAGE}, command: [sleep, "1000"] }}]
    shell: /bin/sh
    steps: [{{ run: "echo alive; sleep 1" }}]
workflows: {{ main: {{ jobs: [victim] }} }}
"#
    );
    let seed = std::env::var("GANTRY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let mut random = fastrand::Rng::with_seed(seed);
    let moments = if std::env::var_os("GANTRY_FULL").is_some() { 20 } else { 3 };
    for moment in 0..moments {
        let name = format!("victim-{moment}");
        push(&suite, work.path(), &name, &config).await?;
        let after = Duration::from_millis(random.u64(..2_500));
        eprintln!("GANTRY_SEED={seed}: the engine is killed {after:?} after push {moment}");
        tokio::time::sleep(after).await;
        tokio::task::block_in_place(|| engine.crash())?;
        let jobs = ended(&suite, &name).await?;
        let status = jobs[0]["status"].as_str().unwrap_or_default().to_owned();
        ensure!(["success", "infrastructure_fail"].contains(&status.as_str()), "seed {seed}: {status}");
        until("nothing is left", Duration::from_secs(60), || async {
            Ok((left(engine).is_empty() && groups() <= before).then_some(()))
        })
        .await?;
    }
    push(&suite, work.path(), "next", &config).await?;
    let jobs = ended(&suite, "next").await?;
    ensure!(jobs[0]["status"] == "success", "seed {seed}: the next job is {}", jobs[0]["status"]);
    suite.down().await
}

/// Control groups of jobs, of all hierarchies.
fn groups() -> usize {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let ours = hierarchies.flat_map(|entry| fs::read_dir(entry.path().join("gantry"))).flatten().flatten();
    ours.filter(|group| group.file_name().to_string_lossy().ends_with(".bounds")).count()
}

/// A machine of its owner's with an engine runs jobs in containers (execution §25), and so does nobody else here: a dead agent's
/// are ended by its runner.
// Rules: runner.containers
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_with_an_engine_runs_jobs_in_containers() -> anyhow::Result<()> {
    const CLASS: &str = "local/boxes";
    let Some(engine) = testkit::docker::engine() else { return Ok(()) };
    let _alone = ALONE.lock().await;
    let work = tempfile::tempdir()?;
    let suite =
        Suite::up_with(&work.path().join("data"), &[], &[("GANTRY_EXECUTORS_DOCKER", "refuse")]).await?;
    let token = suite.runner_token(CLASS).await?;
    // Steps do not see the folder of the file.
    let (file, tasks) = (work.path().join("etc/runner.yml"), work.path().join("tasks"));
    fs::create_dir_all(work.path().join("etc"))?;
    let runner = json!({
        "name": "boxes-1", "working_directory": tasks,
        "engine": { "socket": engine.socket, "pull": "never" },
    });
    let text = json!({ "api": { "auth_token": token["token"], "url": suite.url }, "runner": runner });
    fs::write(&file, text.to_string())?;
    let program = gantry_e2e::binary().with_file_name("gantry-runner");
    let _runner =
        tokio::process::Command::new(program).arg("--config").arg(&file).kill_on_drop(true).spawn()?;

    let config = |command: &str| {
        format!(
            "version: 2.1
jobs:
  boxed:
    docker: [{{ image: {IMAGE}, user: circleci }}, {{ image: {IMAGE}, command: [sleep, \"1000\"] }}]
    resource_class: {CLASS}
    shell: /bin/sh -eo pipefail
    steps: [{{ run: {command} }}]
workflows: {{ main: {{ jobs: [boxed] }} }}
"
        )
    };
    push(&suite, work.path(), "boxed", &config("id -un; echo alive; sleep 1000")).await?;
    let said = says(&suite, "boxed", "alive\n").await?;
    ensure!(said.contains("circleci\nalive\n") && said.contains("Starting container"), "{said}");
    ensure!(left(engine).lines().count() == 2, "not two containers: {}", left(engine));

    kill_agent(&tasks)?;
    until("nothing is left", Duration::from_secs(60), || async { Ok(left(engine).is_empty().then_some(())) })
        .await?;
    // Long before its lease would have run out.
    let of_dead = ended(&suite, "boxed").await?;
    ensure!(of_dead[0]["status"] == "infrastructure_fail", "the job is {}", of_dead[0]["status"]);
    push(&suite, work.path(), "next", &config("echo done")).await?;
    let jobs = ended(&suite, "next").await?;
    ensure!(jobs[0]["status"] == "success", "the next job is {}", jobs[0]["status"]);
    suite.down().await
}

/// The sample for containers: a database on `localhost`, a cache hit in the second run, artifacts, results of tests, and a
/// split by timings, which the command itself looks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sample_for_containers_shows_what_it_promises() -> anyhow::Result<()> {
    const DATABASE: &str = "gantry-fixture-postgres:1";
    let Some(engine) = testkit::docker::engine() else { return Ok(()) };
    let _alone = ALONE.lock().await;
    engine.postgres_image(DATABASE);
    let work = tempfile::tempdir()?;
    let suite = up(engine, &work.path().join("data")).await?;
    let mut command = tokio::process::Command::new(gantry_e2e::binary());
    command.args(["try", "--docker", "--image", DATABASE, "--server", &suite.url, "--token", &suite.token]);
    let output =
        tokio::time::timeout(LIMIT, command.kill_on_drop(true).output()).await.context("no end")??;
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(output.status.success(), "{}: {said}", output.status);
    for part in ["Found a cache", "report/answer.txt", "Test results of job", "tests/d.sh"] {
        ensure!(said.contains(part), "{part} is not in: {said}");
    }
    suite.down().await
}
