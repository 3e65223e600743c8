//! Self-hosted runners behind links that fail (execution §25, reliability R-15…R-18): each in a network namespace of its
//! own, which a proxy connects with the server's loopback. On the stack a runner is told to carry bytes to the S3 store
//! itself: what it finds at the store's port of its own loopback is a balancer, whose way goes over the same cable.

use crate::support::{LIMIT, World};
use anyhow::{Context, ensure};
use gantry_e2e::{SHORT_LEASES, Suite, binary, stack, until};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

const CLASS: &str = "local/far";
/// How a line carries bytes.
#[derive(Clone, Copy)]
struct Line {
    delay: Duration,
    bytes_per_second: u32,
}

const FAST: Line = Line { delay: Duration::ZERO, bytes_per_second: u32::MAX };
const SLOW: Line = Line { delay: Duration::from_millis(50), bytes_per_second: 256 << 10 };

/// A network namespace with one cable, at whose near end the server answers.
struct Link {
    name: String,
    near: String,
    /// Address of the near end.
    here: String,
    /// Of the server, as it is seen from there.
    url: String,
    proxy: JoinSet<()>,
}

fn run(words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(words[0]).args(&words[1..]).output().with_context(|| words.join(" "))?;
    ensure!(output.status.success(), "{}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Link {
    /// The number is the test's own. `None`, said loudly, where no namespace can be made.
    async fn new(number: u8, server: &str, line: Line) -> anyhow::Result<Option<Self>> {
        let pid = std::process::id();
        let (name, near, far) =
            (format!("gt{pid}-{number}"), format!("gt{pid}n{number}"), format!("gt{pid}f{number}"));
        if let Err(error) = run(&["ip", "netns", "add", &name]) {
            eprintln!("NOT TESTED: links that fail need network namespaces: {error:#}");
            return Ok(None);
        }
        let subnet = format!("10.213.{}", pid % 250);
        let (here, there) = (format!("{subnet}.{}", 4 * number + 1), format!("{subnet}.{}", 4 * number + 2));
        run(&["ip", "link", "add", &near, "type", "veth", "peer", "name", &far, "netns", &name])?;
        run(&["ip", "addr", "add", &format!("{here}/30"), "dev", &near])?;
        run(&["ip", "link", "set", &near, "up"])?;
        run(&["ip", "-n", &name, "addr", "add", &format!("{there}/30"), "dev", &far])?;
        run(&["ip", "-n", &name, "link", "set", &far, "up"])?;
        let mut link = Self { name, near, here, url: String::new(), proxy: JoinSet::new() };
        link.url = format!("http://{}", link.bring(server.trim_start_matches("http://"), line).await?);
        Ok(Some(link))
    }

    /// Lets the far end reach an address of loopback here; where, as it is seen from there.
    async fn bring(&mut self, server: &str, line: Line) -> anyhow::Result<SocketAddr> {
        let listener = TcpListener::bind((self.here.as_str(), 0)).await?;
        let address = listener.local_addr()?;
        let server = server.to_owned();
        self.proxy.spawn(async move {
            let mut carried = JoinSet::new();
            while let Ok((runner, _)) = listener.accept().await {
                carried.spawn(carry(runner, server.clone(), line));
            }
        });
        Ok(address)
    }

    /// The same port of the far end's own loopback leads there.
    async fn mirror(&mut self, port: u16, folder: &Path) -> anyhow::Result<tokio::process::Child> {
        let address = self.bring(&format!("127.0.0.1:{port}"), FAST).await?;
        run(&["ip", "-n", &self.name, "link", "set", "lo", "up"])?;
        let file = folder.join(format!("{}.cfg", self.name));
        let config = format!(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
             listen mirror\n  bind 127.0.0.1:{port}\n  server there {address}\n"
        );
        fs::write(&file, config)?;
        let mut command = tokio::process::Command::new("ip");
        command.args(["netns", "exec", &self.name, "haproxy", "-db", "-f"]).arg(file);
        Ok(command.kill_on_drop(true).spawn()?)
    }

    fn cut(&self) -> anyhow::Result<()> {
        run(&["ip", "link", "set", &self.near, "down"])
    }

    /// Drops what comes in (`INPUT`) or goes out (`OUTPUT`) at the far end, and tells nobody.
    fn drop_all(&self, chain: &str) -> anyhow::Result<()> {
        run(&["ip", "netns", "exec", &self.name, "iptables", "-A", chain, "-j", "DROP"])
    }

    fn mend(&self) -> anyhow::Result<()> {
        run(&["ip", "link", "set", &self.near, "up"])?;
        run(&["ip", "netns", "exec", &self.name, "iptables", "-F"])
    }

    /// A runner at the far end.
    fn runner(&self, world: &World, token: &str) -> anyhow::Result<tokio::process::Child> {
        let folder = world.work.path().join(&self.name);
        fs::create_dir_all(&folder)?;
        let (file, work) = (folder.join("runner.yml"), folder.join("work"));
        let runner = json!({ "name": self.name, "concurrency": 1, "working_directory": work });
        let config = json!({ "api": { "auth_token": token, "url": self.url }, "runner": runner });
        fs::write(&file, config.to_string())?;
        let program = binary().with_file_name("gantry-runner");
        let mut command = tokio::process::Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program).arg("--config").arg(file);
        Ok(command.kill_on_drop(true).spawn()?)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = run(&["ip", "netns", "del", &self.name]);
        let _ = run(&["ip", "link", "del", &self.near]);
    }
}

async fn carry(mut runner: TcpStream, server: String, line: Line) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let ((runner_out, runner_in), (server_out, server_in)) = (runner.split(), server.split());
    let _ = tokio::join!(copy(runner_out, server_in, line), copy(server_out, runner_in, line));
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    line: Line,
) -> std::io::Result<()> {
    let mut buffer = vec![0u8; 16 * 1024];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        let seconds = f64::from(u32::try_from(n).unwrap_or(u32::MAX)) / f64::from(line.bytes_per_second);
        let pause = line.delay + Duration::from_secs_f64(seconds);
        if line.bytes_per_second < u32::MAX {
            tokio::time::sleep(pause).await;
        }
        to.write_all(&buffer[..n]).await?;
    }
}

/// A configuration of jobs on runners: names and commands.
fn config(jobs: &[(&str, String)]) -> String {
    let body = |command: &String| {
        json!({
            "machine": true, "resource_class": CLASS,
            "steps": [{ "run": { "name": "work", "command": command } }, { "store_artifacts": { "path": "kept" } }],
        })
    };
    let all: serde_json::Map<_, _> = jobs.iter().map(|(name, c)| ((*name).to_owned(), body(c))).collect();
    let names: Vec<_> = jobs.iter().map(|(name, _)| name).collect();
    json!({ "version": 2.1, "jobs": all, "workflows": { "main": { "jobs": names } } }).to_string()
}

/// A suite whose class exists, and a token of it.
async fn world() -> anyhow::Result<(World, String)> {
    let world = World::up(&SHORT_LEASES).await?;
    let token = world.suite.runner_token(CLASS).await?;
    let token = token["token"].as_str().context("no token")?.to_owned();
    Ok((world, token))
}

async fn ended(world: &World, pipeline: &str) -> anyhow::Result<Value> {
    world.workflow(pipeline, |workflow| workflow["stopped_at"].is_string()).await
}

/// What the step `work` of a project's only job printed.
async fn output(world: &World, project: &str) -> anyhow::Result<String> {
    let build = world.suite.get(&format!("/api/v1.1/project/git/local/{project}/1")).await?;
    let steps = build["steps"].as_array().context("no steps")?;
    let step = steps.iter().find(|step| step["name"] == "work").context("no step")?;
    let id = step["actions"][0]["step_id"].as_str().context("no id")?;
    Ok(String::from_utf8(world.suite.bytes(&format!("/logs/{id}/raw")).await?)?)
}

fn count(file: &Path) -> u64 {
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

async fn counted(file: &Path, least: u64) -> anyhow::Result<()> {
    let what = format!("{least} lines written");
    until(&what, LIMIT, || async { Ok((count(file) >= least).then_some(())) }).await
}

// Rules: runner.short-cut
#[tokio::test]
async fn a_link_that_comes_back_in_time_costs_nothing() -> anyhow::Result<()> {
    let (world, token) = world().await?;
    let Some(link) = Link::new(0, &world.suite.url, FAST).await? else { return world.suite.down().await };
    comes_back(&world, &link, &token, 100).await?;
    world.suite.down().await
}

/// The same, from one machine to services of their own on real servers.
// Rules: runner.short-cut
#[tokio::test]
async fn a_link_that_comes_back_in_time_costs_nothing_on_the_stack() -> anyhow::Result<()> {
    let (Some(suite), Some(folder)) = (Suite::stack().await?, env::var_os("GANTRY_STACK")) else {
        eprintln!("left out: GANTRY_TEST_STACK and GANTRY_STACK are not set");
        return Ok(());
    };
    let world = World { suite, work: tempfile::tempdir()? };
    let ports = Path::new(&folder).join("ports");
    let port =
        |name: &str| stack::port(&ports, name).with_context(|| format!("the stack has no port {name}"));
    let token = world.suite.runner_token(CLASS).await?;
    let token = token["token"].as_str().context("no token")?;
    let Some(mut link) = Link::new(5, &format!("127.0.0.1:{}", port("agents")?), FAST).await? else {
        return Ok(());
    };
    let _store = link.mirror(port("s3")?, world.work.path()).await?;
    comes_back(&world, &link, token, 400).await
}

/// A job writes on while the line is away in each way, for as long as so many lines take it.
async fn comes_back(world: &World, link: &Link, token: &str, away: u64) -> anyhow::Result<()> {
    let _runner = link.runner(world, token)?;
    let (lines, go) = (world.work.path().join("lines"), world.work.path().join("go"));
    let command = format!(
        "i=0; until [ -e {go} ]; do i=$((i+1)); echo line $i; echo $i > {lines}.new; mv {lines}.new {lines}; sleep 0.02; done; echo kept > kept; echo end",
        go = go.display(),
        lines = lines.display()
    );
    let pipeline = world.push("cut", &config(&[("build", command)])).await?;
    counted(&lines, 20).await?;
    let ways: [&dyn Fn() -> anyhow::Result<()>; 3] =
        [&|| link.cut(), &|| link.drop_all("INPUT"), &|| link.drop_all("OUTPUT")];
    for take in ways {
        take()?;
        // It goes on writing meanwhile.
        counted(&lines, count(&lines) + away).await?;
        link.mend()?;
        counted(&lines, count(&lines) + 20).await?;
    }
    fs::write(&go, "")?;
    let workflow = ended(world, &pipeline).await?;
    ensure!(workflow["status"] == "success", "{workflow}");
    let wanted: String = (1..=count(&lines)).map(|i| format!("line {i}\n")).chain(["end\n".into()]).collect();
    ensure!(output(world, "cut").await? == wanted, "a line was lost or doubled");
    let kept = world.suite.items("/api/v2/project/git/local/cut/1/artifacts").await?;
    let url = kept.first().and_then(|artifact| artifact["url"].as_str()).context("no artifact")?;
    let path = url.strip_prefix(world.suite.url.as_str()).unwrap_or(url);
    ensure!(world.suite.bytes(path).await? == b"kept\n", "the artifact is another");
    Ok(())
}

// Rules: runner.unreachable
#[tokio::test]
async fn who_is_cut_off_for_long_stops_before_it_is_given_up() -> anyhow::Result<()> {
    let (world, token) = world().await?;
    let mut links = Vec::new();
    for number in 1..4 {
        let Some(link) = Link::new(number, &world.suite.url, FAST).await? else {
            return world.suite.down().await;
        };
        links.push(link);
    }
    let _runners =
        links.iter().map(|link| link.runner(&world, &token)).collect::<anyhow::Result<Vec<_>>>()?;
    let names = ["a", "b", "c"];
    let held: Vec<PathBuf> =
        names.iter().map(|name| world.work.path().join(format!("held-{name}"))).collect();
    // The kernel holds a lock as long as anything of the job lives.
    let jobs: Vec<_> = names
        .iter()
        .zip(&held)
        .map(|(name, file)| {
            (*name, format!("exec 9>>{file}; flock 9; echo began >&9; sleep 600", file = file.display()))
        })
        .collect();
    let pipeline = world.push("lost", &config(&jobs)).await?;
    for file in &held {
        until("each job on a runner", LIMIT, || async { Ok(file.exists().then_some(())) }).await?;
    }
    links[0].cut()?;
    links[1].drop_all("INPUT")?;
    links[2].drop_all("OUTPUT")?;
    for (name, file) in names.iter().zip(&held) {
        let workflow = world.workflow(&pipeline, |_| true).await?;
        let job = until("a lost job's end", LIMIT, || async {
            let job = world.job(&workflow, name).await?;
            Ok(job["stopped_at"].is_string().then_some(job))
        })
        .await?;
        ensure!(job["status"] == "infrastructure_fail", "{job}");
        let free = Flock::lock(fs::File::open(file)?, FlockArg::LockExclusiveNonblock);
        ensure!(free.is_ok(), "job {name} was given up while it ran");
        ensure!(fs::read_to_string(file)? == "began\n", "job {name} began more than once");
    }
    links.iter().try_for_each(Link::mend)?;
    let back = world.push("back", &config(&names.map(|name| (name, "echo back".to_owned())))).await?;
    let workflow = ended(&world, &back).await?;
    ensure!(workflow["status"] == "success", "{workflow}");
    let seen = world.suite.get(&format!("/api/v3/runner?resource-class={CLASS}")).await?;
    for link in &links {
        let runner = seen["items"].as_array().into_iter().flatten().find(|r| r["name"] == link.name.as_str());
        ensure!(
            runner.is_some_and(|runner| runner["status"] == "online"),
            "{} is not back: {seen}",
            link.name
        );
    }
    world.suite.down().await
}

// Rules: runner.slow-line
#[tokio::test]
async fn a_slow_line_loses_nothing() -> anyhow::Result<()> {
    let (world, token) = world().await?;
    let Some(link) = Link::new(4, &world.suite.url, SLOW).await? else { return world.suite.down().await };
    let _runner = link.runner(&world, &token)?;
    let pipeline = world.push("slow", &config(&[("build", "seq 100000".to_owned())])).await?;
    let workflow = ended(&world, &pipeline).await?;
    ensure!(workflow["status"] == "success", "{workflow}");
    let wanted: String = (1..=100_000).map(|i| format!("{i}\n")).collect();
    ensure!(output(&world, "slow").await? == wanted, "a line was lost or doubled");
    world.suite.down().await
}
