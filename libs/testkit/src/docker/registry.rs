//! A registry of images for tests: the distribution's, beside the engine, with one user.

use super::{Engine, on_path};
use crate::servers::free_ports;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Its user.
pub const USER: &str = "ci";
/// The user's password, and the line of a password file that holds it.
pub const PASSWORD: &str = "pull-me";
const LINE: &str = "ci:$2y$04$vkBsoOxsTFI5GtN3kyCTcuzhNQl16irIsmMFZ44RjHq0yRVS7EtCK\n";

/// A registry that runs. It ends with this.
pub struct Registry {
    /// What names of its images begin with.
    pub host: String,
    folder: tempfile::TempDir,
    child: Child,
}

impl Registry {
    /// Starts one that the engine reaches, and nobody else. `None`, said loudly, where the distribution's is missing.
    ///
    /// # Panics
    /// It is there and does not start.
    pub fn start(engine: &Engine) -> Option<Self> {
        let Some(program) = on_path("docker-registry") else {
            eprintln!("NOT TESTED: a registry needs docker-registry");
            return None;
        };
        Some(begin(engine, &program).expect("the registry starts"))
    }

    /// Puts an image of the engine there under a name such as `team/tool:1`; the whole name.
    ///
    /// # Panics
    /// Engine or registry refuse.
    pub fn push(&self, engine: &Engine, image: &str, name: &str) -> String {
        let whole = format!("{}/{name}", self.host);
        engine.client(&["tag", image, &whole]);
        let folder = self.folder.path().display().to_string();
        engine.client(&["--config", &folder, "push", "-q", &whole]);
        engine.client(&["rmi", &whole]);
        whole
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // One that has ended already needs neither.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn begin(engine: &Engine, program: &Path) -> Result<Registry> {
    let folder = tempfile::Builder::new().prefix("gtk-registry-").tempdir_in("/tmp")?;
    let at = |name: &str| folder.path().join(name);
    let home = engine.socket.parent().context("an engine without a folder")?;
    let engine_pid = fs::read_to_string(home.join("pid"))?.trim().to_owned();
    // The engine's own network: its loopback is the one place that it reaches without TLS.
    let inside = |program: &str| {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &engine_pid, program]);
        command
    };
    ensure!(inside("ip").args(["link", "set", "lo", "up"]).status()?.success(), "no loopback");
    // Free here is very likely free there, where next to nothing listens.
    let [port] = free_ports()?;
    let host = format!("127.0.0.1:{port}");
    fs::write(at("users"), LINE)?;
    let config = format!(
        "version: 0.1\nlog: {{ level: warn }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\n\
         http: {{ addr: \"{host}\" }}\nauth: {{ htpasswd: {{ realm: tests, path: {} }} }}\n",
        at("data").display(),
        at("users").display()
    );
    fs::write(at("config.yml"), config)?;
    // What a login would write: name and password in base64.
    let known = format!("{{\"auths\": {{\"{host}\": {{\"auth\": \"Y2k6cHVsbC1tZQ==\"}}}}}}");
    fs::write(at("config.json"), known)?;
    let log = fs::File::create(at("log"))?;
    let child = inside(&program.display().to_string())
        .arg("serve")
        .arg(at("config.yml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let registry = Registry { host, folder, child };
    wait_for(&inside, port, &registry)?;
    Ok(registry)
}

#[expect(clippy::disallowed_methods, reason = "waits on a condition with a limit, outside of any runtime")]
fn wait_for(inside: &dyn Fn(&str) -> Command, port: u16, registry: &Registry) -> Result<()> {
    let started = Instant::now();
    let open = format!("exec 3<>/dev/tcp/127.0.0.1/{port}");
    while !inside("bash").args(["-c", &open]).stderr(Stdio::null()).status()?.success() {
        if started.elapsed() > Duration::from_secs(30) {
            let log = fs::read_to_string(registry.folder.path().join("log")).unwrap_or_default();
            anyhow::bail!("docker-registry did not start: {log}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
