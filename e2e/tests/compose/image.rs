//! The services of `docker-compose.yml` as containers of an image that its Dockerfile makes of the distribution's packages, on
//! the servers of `scripts/stack`: no registry is needed. What differs from the file is in [`on_this_network`] and
//! [`configuration`], and nowhere else.
//!
//! Runs where `GANTRY_TEST_STACK` is set, as root, with the programs of `scripts/release` in the folder `GANTRY_BIN`. All of it,
//! servers and containers alike, has a network of its own.

use crate::{compose, root};
use anyhow::{Context, ensure};
use gantry_e2e::{
    binary,
    stack::{Stack, run},
    until,
};
use nix::unistd::geteuid;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use testkit::docker::{Engine, Network};
use tokio::process::Command;

/// Of the image in bytes, with a release build in it.
const LARGEST: i64 = 400 << 20;
/// The user that the Dockerfile makes.
const USER: &str = "10001";
/// What a health check of the file is patient for, and some.
const HEALTHY: Duration = Duration::from_secs(180);
/// A red and a green pipeline, on a machine that does other things too.
const TRIED: Duration = Duration::from_secs(300);

#[tokio::test]
async fn the_services_run_from_an_image_of_the_distribution() -> anyhow::Result<()> {
    if env::var_os("GANTRY_TEST_STACK").is_none() {
        eprintln!(
            "NOT TESTED: the image of docker-compose.yml: a release build and a stack are for scripts/test --full"
        );
        return Ok(());
    }
    if let Some(why) = impossible().await {
        eprintln!("NOT TESTED: the image of docker-compose.yml: {why}");
        return Ok(());
    }
    let words = compose().context("Compose is gone")?;
    // The mirrors are beyond the network that is left then.
    let base = run(&mut Command::new(root().join("scripts/tools/debian"))).await?;
    let network = Network::own()?;
    let engine = Engine::within(&network)?;
    // As in the file: one database.
    let stack = Stack::new(&[("GANTRY_STACK_DATABASES", "one")])?;
    let files = Files { folder: stack.folder.join("compose"), words, socket: engine.socket.clone() };
    let ended = services(&stack, &engine, &files, base.trim()).await;
    if ended.is_err() {
        eprintln!("{}\n{}", files.said().await, stack.complaints(3));
    }
    // Containers first: a drain asks the servers.
    let removed = files.compose(&["down", "--volumes"]).await;
    let engine = engine.end();
    let stack = stack.down().await;
    ended?;
    removed?;
    engine?;
    stack
}

/// Why this machine cannot say anything of it.
async fn impossible() -> Option<String> {
    if !geteuid().is_root() {
        return Some("containers need root".into());
    }
    for (program, version) in [("dockerd", "--version"), ("ip", "-V")] {
        if Command::new(program).arg(version).output().await.is_err() {
            return Some(format!("there is no {program} (scripts/setup --tests)"));
        }
    }
    if compose().is_none() {
        return Some("there is no Docker Compose (scripts/setup --tests)".into());
    }
    let agent = binary().with_file_name("gantry-runner");
    (!is_static(&agent).await).then(|| {
        format!(
            "{} is not static: run scripts/release, and name its folder with GANTRY_BIN=$PWD/target/release",
            agent.display()
        )
    })
}

/// As the Dockerfile asks.
async fn is_static(program: &Path) -> bool {
    let Ok(said) = Command::new("ldd").arg(program).output().await else { return false };
    let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    said.contains("statically linked") || said.contains("not a dynamic executable")
}

/// A checkout as a user has it before `docker compose up`: the file, what it names, and what `scripts/release` has built.
struct Files {
    folder: PathBuf,
    words: &'static [&'static str],
    socket: PathBuf,
}

impl Files {
    /// What Compose prints. The distribution's engine may have no other builder than the classic one.
    async fn compose(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(self.words[0]);
        command
            .args(&self.words[1..])
            .args(arguments)
            .current_dir(&self.folder)
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env("COMPOSE_PROJECT_NAME", "gantry")
            .env("DOCKER_BUILDKIT", "0")
            .env("COMPOSE_DOCKER_CLI_BUILD", "0");
        run(&mut command).await
    }

    fn make(&self) -> anyhow::Result<()> {
        for file in
            ["docker-compose.yml", ".dockerignore", "deploy/compose/Dockerfile", "deploy/compose/secrets.sh"]
        {
            let place = self.folder.join(file);
            fs::create_dir_all(place.parent().context("a file without a folder")?)?;
            fs::copy(root().join(file), place).with_context(|| file.to_owned())?;
        }
        let release = self.folder.join("target/release");
        fs::create_dir_all(&release)?;
        for program in ["gantry", "gantry-runner"] {
            let built = binary().with_file_name(program);
            fs::copy(&built, release.join(program)).with_context(|| built.display().to_string())?;
        }
        Ok(())
    }

    /// The containers of all services, by name.
    async fn containers(&self, engine: &Engine) -> anyhow::Result<BTreeMap<String, Value>> {
        let ids = self.compose(&["ps", "-q"]).await?;
        let mut found = BTreeMap::new();
        for id in ids.split_whitespace() {
            let said: Value = serde_json::from_str(&engine.client(&["inspect", id]))?;
            let name = said[0]["Config"]["Labels"]["com.docker.compose.service"].as_str();
            found.insert(name.context("a container of no service")?.to_owned(), said[0].clone());
        }
        Ok(found)
    }

    /// What a failure leaves to be understood by.
    async fn said(&self) -> String {
        let mut said = String::new();
        for words in [&["ps"][..], &["logs", "--no-color", "--tail=5"]] {
            said += &self.compose(words).await.unwrap_or_else(|error| format!("{error:#}"));
        }
        said
    }
}

/// From the stack's own processes to containers, a green pipeline, and their end.
async fn services(stack: &Stack, engine: &Engine, files: &Files, base: &str) -> anyhow::Result<()> {
    let mut suite = stack.suite().await?;
    for server in ["nomad", "mongo"] {
        ensure!(stack.has(server), "the stack has no {server}: scripts/setup --tests");
    }
    let own = stack.services()?;
    let ends = own.values().flatten().map(|name| stack.stop(name, "TERM"));
    futures::future::try_join_all(ends).await?;

    files.make()?;
    secrets(stack, &files.folder)?;
    let wanted: Value = serde_saphyr::from_str(&files.compose(&["config"]).await?)?;
    let roles: Vec<&str> = own.keys().map(String::as_str).collect();
    let wanted = on_this_network(wanted, &roles, stack)?;
    fs::write(files.folder.join("docker-compose.yml"), serde_json::to_vec_pretty(&wanted)?)?;

    let image = image(engine, files, base).await?;
    // Tasks run by the agent that the image carries.
    let agent = files.folder.join("gantry-runner");
    let container = engine.client(&["create", &image]);
    engine.client(&[
        "cp",
        &format!("{}:/usr/local/bin/gantry-runner", container.trim()),
        &agent.display().to_string(),
    ]);
    engine.client(&["rm", container.trim()]);
    ensure!(is_static(&agent).await, "the agent in the image is not static");
    fs::write(files.folder.join("deploy/compose/gantry.toml"), configuration(stack, &agent)?)?;

    let begun = Instant::now();
    files.compose(&["up", "-d"]).await?;
    healthy(engine, files, &roles).await?;
    println!("{} services are healthy after {:.1} s", roles.len(), begun.elapsed().as_secs_f64());
    let containers = files.containers(engine).await?;
    for role in &roles {
        held(role, &containers[*role])?;
    }

    // As the guide says. Its folder is new, and so is the token.
    let token = files.compose(&["exec", "-T", "api", "cat", "/var/lib/gantry/admin-token"]).await?;
    suite.token = token.trim().to_owned();
    let begun = Instant::now();
    let mut tried = Command::new(binary());
    tried.args(["try", "--server", &suite.url]).env("GANTRY_TOKEN", &suite.token).kill_on_drop(true);
    tokio::time::timeout(TRIED, run(&mut tried)).await.context("`gantry try` did not end")??;
    println!("`gantry try` is green after {:.1} s", begun.elapsed().as_secs_f64());
    suite.verify().await?;

    let begun = Instant::now();
    files.compose(&["stop"]).await?;
    println!("all of them have ended after {:.1} s", begun.elapsed().as_secs_f64());
    for (name, container) in files.containers(engine).await? {
        let state = &container["State"];
        ensure!(state["ExitCode"] == 0 && state["OOMKilled"] == false, "{name} has ended with {state}");
    }
    Ok(())
}

/// Builds the image that the file names, from its Dockerfile as it is.
async fn image(engine: &Engine, files: &Files, base: &str) -> anyhow::Result<String> {
    let recipe = fs::read_to_string(files.folder.join("deploy/compose/Dockerfile"))?;
    let from = recipe.lines().find_map(|line| line.strip_prefix("FROM ")).context("no FROM")?;
    let begun = Instant::now();
    engine.client(&["import", base, from]);
    files.compose(&["build", "migrate"]).await?;
    let text = fs::read_to_string(files.folder.join("docker-compose.yml"))?;
    let name = serde_json::from_str::<Value>(&text)?["services"]["migrate"]["image"].clone();
    let name = name.as_str().context("no name of the image")?.to_owned();
    let said: Value = serde_json::from_str(&engine.client(&["image", "inspect", &name]))?;
    let size = said[0]["Size"].as_i64().context("no size")?;
    println!("{name} has {} MB, after {:.1} s", size >> 20, begun.elapsed().as_secs_f64());
    ensure!(size < LARGEST, "{name} has {} MB, and {} are too many", size >> 20, LARGEST >> 20);
    Ok(name)
}

/// The file, without the stores and with the machine's network: every service has ports of its own, where the stack's balancer
/// looks for it.
fn on_this_network(mut file: Value, roles: &[&str], stack: &Stack) -> anyhow::Result<Value> {
    file.as_object_mut().context("no file")?.retain(|key, _| key != "networks" && !key.starts_with("x-"));
    let services = file["services"].as_object_mut().context("no services")?;
    services.retain(|name, _| name == "migrate" || roles.contains(&name.as_str()));
    ensure!(services.len() == roles.len() + 1, "not every role is a service of the file");
    for (name, service) in services {
        let service = service.as_object_mut().with_context(|| name.clone())?;
        service.remove("networks");
        service.insert("network_mode".into(), "host".into());
        if name == "migrate" {
            service.remove("depends_on");
            continue;
        }
        for (listener, port) in [("LISTEN", ""), ("AGENTS", "_agents"), ("INTERNAL", "_internal")] {
            let port = stack.port(&format!("{name}{port}_1"))?;
            service["environment"][&format!("GANTRY_SERVER_{listener}")] = json!(format!("127.0.0.1:{port}"));
        }
        let test = service["healthcheck"]["test"].as_array_mut().context("no health check")?;
        let probe = test.last_mut().context("an empty health check")?;
        let moved = probe
            .as_str()
            .context("no text")?
            .replace(":9090/", &format!(":{}/", stack.port(&format!("{name}_internal_1"))?));
        ensure!(*probe != moved.as_str(), "{name} is asked somewhere else: {probe}");
        *probe = moved.into();
    }
    Ok(file)
}

/// The file's own configuration, with the addresses and the tasks' machines of the stack.
fn configuration(stack: &Stack, agent: &Path) -> anyhow::Result<String> {
    let read = |file: &Path| -> anyhow::Result<toml::Table> { Ok(fs::read_to_string(file)?.parse()?) };
    let mut ours = read(&root().join("deploy/compose/gantry.toml"))?;
    let theirs = read(&stack.folder.join("gantry.toml"))?;
    for (section, key) in [
        ("blobs", "endpoint"),
        ("secrets", "address"),
        ("compute", "address"),
        ("compute", "pools"),
        ("agents", "url"),
        ("server", "public_url"),
    ] {
        ours[section].as_table_mut().context("no section")?.insert(key.into(), theirs[section][key].clone());
    }
    ours["blobs"]["public_endpoint"] = theirs["blobs"]["endpoint"].clone();
    ours["compute"]["pools"][0]["agent"] = agent.display().to_string().into();
    Ok(ours.to_string())
}

/// `deploy/compose/secrets.sh`, and the stack's in the place of those that it makes for other servers.
fn secrets(stack: &Stack, folder: &Path) -> anyhow::Result<()> {
    let made = std::process::Command::new(folder.join("deploy/compose/secrets.sh")).status()?;
    ensure!(made.success(), "secrets.sh: {made}");
    let theirs: toml::Table = fs::read_to_string(stack.folder.join("gantry.toml"))?.parse()?;
    let place = |name: &str| folder.join("deploy/compose/secrets").join(name);
    for (name, section) in
        [("database_url", "database"), ("bus_url", "bus"), ("live_url", "live"), ("records_url", "records")]
    {
        fs::write(place(name), theirs[section]["url"].as_str().with_context(|| name.to_owned())?)?;
    }
    for name in ["s3", "write_role_id", "write_secret_id", "deliver_role_id", "deliver_secret_id", "nomad"] {
        fs::write(place(name), fs::read(stack.folder.join("secret").join(name.replace('_', "-")))?)?;
    }
    Ok(())
}

/// Waits until the file's health checks have passed.
async fn healthy(engine: &Engine, files: &Files, roles: &[&str]) -> anyhow::Result<()> {
    until("the services are healthy", HEALTHY, || async {
        let containers = files.containers(engine).await?;
        let mut waits = Vec::new();
        for role in roles {
            let Some(container) = containers.get(*role) else {
                waits.push(format!("{role} is not there"));
                continue;
            };
            let health = &container["State"]["Health"];
            if health["Status"] != "healthy" {
                let last = health["Log"].as_array().and_then(|log| log.last());
                let said = last.map(|last| last["Output"].to_string()).unwrap_or_default();
                waits.push(format!("{role} is {}: {said}", health["Status"]));
            }
        }
        ensure!(waits.is_empty(), "{}", waits.join("; "));
        Ok(Some(()))
    })
    .await
}

/// What the kernel says of a service's process, whatever the file says.
fn held(role: &str, container: &Value) -> anyhow::Result<()> {
    let pid = container["State"]["Pid"].as_i64().context("no process")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| role.to_owned())?;
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>()
    };
    ensure!(of("Uid") == [USER; 4], "{role} runs as the users {:?}", of("Uid"));
    for kind in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(of(kind) == ["0000000000000000"], "{role} has the capabilities {kind} {:?}", of(kind));
    }
    ensure!(of("NoNewPrivs") == ["1"], "{role} may get privileges");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts"))?;
    // What is mounted over all of it comes first.
    let options = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let options =
        options.filter(|words| words[1] == "/").map(|words| words[3]).next_back().unwrap_or_default();
    ensure!(options.split(',').any(|option| option == "ro"), "{role} can write to its programs: {options}");
    Ok(())
}
