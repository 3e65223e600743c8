//! A Nomad cluster of one server and two clients, whose parts a test may end and start again.

use crate::servers::{find, folder, free_ports, tool, wait_for_port, watched};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

/// How an agent is ended: what it started, which would run on, and what it mounted go too. Tasks name its folder in their
/// environment, the executors beside them in their arguments.
const END: &str = "kill -INT $(cat \"$DIR/pid\") 2>/dev/null; wait $server; \
    for at in /proc/[0-9]*; do grep -qs \"[\\\"=]$DIR/\" $at/environ $at/cmdline && kill -KILL ${at#/proc/} 2>/dev/null; done; \
    for at in $(awk -v dir=\"$DIR/\" 'index($2, dir) == 1 { print $2 }' /proc/mounts); do umount -l \"$at\"; done";

/// A process of the cluster.
#[derive(Debug)]
struct Agent {
    words: Vec<String>,
    folder: PathBuf,
    http: u16,
    /// Their standard inputs are the life lines, of this start and those before.
    watchers: Vec<Child>,
}

impl Agent {
    fn start(&mut self) -> Result<()> {
        self.watchers.push(watched(&self.folder, &self.words, &[], END)?);
        wait_for_port(self.http, &self.folder)
    }

    fn kill(&self) -> Result<()> {
        let pid: i32 = fs::read_to_string(self.folder.join("pid"))?.trim().parse()?;
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).context("the agent has ended already")
    }
}

/// The cluster, for one test. Gone with it, however it went.
#[derive(Debug)]
pub struct NomadCluster {
    /// Where it is.
    pub address: String,
    /// May do everything.
    pub token: String,
    program: PathBuf,
    server: Agent,
    clients: Vec<Agent>,
}

/// A fresh cluster, or `None` where Nomad is not built or may run nothing, which takes root. `extra` is more configuration
/// of its server; a cluster with one has no clients, and is not waited for.
///
/// # Panics
/// It is there and does not start.
pub async fn nomad(extra: Option<String>) -> Option<NomadCluster> {
    cluster(extra, None).await
}

/// The same, with clients that start containers on this engine too.
///
/// # Panics
/// It is there and does not start.
pub async fn nomad_with_engine(socket: &Path) -> Option<NomadCluster> {
    let plugin =
        format!("plugin \"docker\" {{\n  config {{ endpoint = \"unix://{}\" }}\n}}\n", socket.display());
    cluster(None, Some(plugin)).await
}

async fn cluster(extra: Option<String>, of_clients: Option<String>) -> Option<NomadCluster> {
    let program = find(&tool("nomad")).filter(|_| nix::unistd::geteuid().is_root());
    if program.is_none() {
        eprintln!("SKIPPED: Nomad is not built here (scripts/tools/get nomad), or this is not root");
        let all = env::var_os("GANTRY_REAL_SERVERS").is_some();
        assert!(!all, "Nomad is not there, and GANTRY_REAL_SERVERS asks for every server");
    }
    let program = program?;
    let started = tokio::task::spawn_blocking(move || NomadCluster::start(program, extra, of_clients));
    Some(started.await.expect("starting it does not panic").expect("Nomad starts"))
}

fn agent(role: &str, server_rpc: Option<u16>) -> Result<(Agent, u16)> {
    let folder = folder()?;
    let [http, rpc, serf] = free_ports()?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/tools/nomad-agent");
    let mut words = vec![script.to_owned(), role.to_owned(), folder.display().to_string()];
    words.extend([http, rpc, serf].into_iter().chain(server_rpc).map(|port| port.to_string()));
    Ok((Agent { words, folder, http, watchers: Vec::new() }, rpc))
}

impl NomadCluster {
    fn start(program: PathBuf, extra: Option<String>, of_clients: Option<String>) -> Result<Self> {
        let (mut server, rpc) = agent("server", None)?;
        if let Some(extra) = &extra {
            fs::write(server.folder.join("extra.hcl"), extra)?;
        }
        server.start()?;
        let address = format!("http://127.0.0.1:{}", server.http);
        let mut cluster = Self { address, token: String::new(), program, server, clients: Vec::new() };
        if extra.is_some() {
            return Ok(cluster);
        }
        // A server that has no leader yet refuses.
        cluster.token = cluster.patiently(&["acl", "bootstrap", "-json"], |text| field(text, "SecretID"))?;
        for _ in 0..2 {
            let (mut client, _) = agent("client", Some(rpc))?;
            if let Some(more) = &of_clients {
                fs::write(client.folder.join("extra.hcl"), more)?;
            }
            client.start()?;
            cluster.clients.push(client);
        }
        let ready = |text: &str| (count(text, "Status", "ready") == 2).then(String::new);
        cluster.patiently(&["node", "status", "-json"], ready)?;
        Ok(cluster)
    }

    /// Runs Nomad's own program against the cluster with all rights; its output.
    ///
    /// # Panics
    /// It fails.
    pub fn run(&self, words: &[&str]) -> String {
        self.try_run(words).expect("Nomad's program")
    }

    fn try_run(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(words).env("NOMAD_ADDR", &self.address).env("NOMAD_TOKEN", &self.token);
        let output = command.output()?;
        if !output.status.success() {
            bail!("nomad {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "waits on a condition with a limit, outside of any runtime"
    )]
    fn patiently(&self, words: &[&str], found: impl Fn(&str) -> Option<String>) -> Result<String> {
        let begun = Instant::now();
        loop {
            let said = self.try_run(words);
            if let Some(found) = said.as_deref().ok().and_then(&found) {
                return Ok(found);
            }
            if begun.elapsed() > Duration::from_secs(60) {
                bail!("nomad {} gives {said:?}", words.join(" "));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Makes the namespace `gantry` and a token with this policy; the token.
    ///
    /// # Panics
    /// Nomad refuses.
    pub fn scheduler_token(&self, policy: &Path) -> String {
        self.run(&["namespace", "apply", "gantry"]);
        self.run(&["acl", "policy", "apply", "gantry", &policy.display().to_string()]);
        let made = self.run(&["acl", "token", "create", "-policy=gantry", "-json"]);
        field(&made, "SecretID").expect("a token has a secret")
    }

    /// Kills a client with nothing done before; what it started runs on.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill_client(&self, at: usize) {
        self.clients[at].kill().expect("kill a client");
    }

    /// Starts a client again.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_client(&mut self, at: usize) {
        self.clients[at].start().expect("start a client");
    }

    /// Kills the server with nothing done before.
    ///
    /// # Panics
    /// It does not run.
    pub fn kill_server(&self) {
        self.server.kill().expect("kill the server");
    }

    /// Starts the server again.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_server(&mut self) {
        self.server.start().expect("start the server");
    }

    /// The folder of a start's task, on the machine that it runs on: what the task itself calls its directory lies in it.
    ///
    /// # Panics
    /// The job has no start.
    pub fn folder_of(&self, job: &str) -> PathBuf {
        let all = self.allocations(job);
        let id = all.first().and_then(|start| start["ID"].as_str()).expect("it was started");
        let at = |client: &Agent| client.folder.join("data/alloc").join(id).join("agent");
        self.clients.iter().map(at).find(|folder| folder.exists()).expect("a client has it")
    }

    /// Id and status of a client's node; `None`: the server does not know it.
    ///
    /// # Panics
    /// Nomad does not answer.
    pub fn node(&self, at: usize) -> Option<(String, String)> {
        let name = self.clients[at].folder.file_name()?.to_str()?;
        let all: Vec<Value> = serde_json::from_str(&self.run(&["node", "status", "-json"])).ok()?;
        let node = all.iter().find(|node| node["Name"] == name)?;
        Some((node["ID"].as_str()?.to_owned(), node["Status"].as_str()?.to_owned()))
    }

    /// What its clients say of each start of a job in the namespace `gantry`: `running`, `complete` …
    ///
    /// # Panics
    /// Nomad does not know the job.
    pub fn starts_of(&self, job: &str) -> Vec<String> {
        self.allocations(job)
            .iter()
            .filter_map(|start| Some(start["ClientStatus"].as_str()?.to_owned()))
            .collect()
    }

    fn allocations(&self, job: &str) -> Vec<Value> {
        let all = self.run(&["job", "allocs", "-namespace=gantry", "-json", job]);
        serde_json::from_str(&all).expect("a list")
    }

    /// Name of the client whose folder a path is in; `None`: it is no client's.
    pub fn client_of(&self, path: &Path) -> Option<usize> {
        self.clients.iter().position(|client| path.starts_with(&client.folder))
    }
}

fn field(text: &str, name: &str) -> Option<String> {
    let document: Value = serde_json::from_str(text).ok()?;
    Some(document.get(name)?.as_str()?.to_owned())
}

/// How many entries of a list have this text there.
fn count(text: &str, name: &str, wanted: &str) -> usize {
    let list: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
    list.iter().filter(|entry| entry[name] == wanted).count()
}
