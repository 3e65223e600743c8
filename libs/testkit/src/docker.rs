//! A container engine for tests: the distribution's `dockerd`, one per test process, with images made of this
//! machine's own programs (no registry is needed).

mod registry;

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs,
    os::unix::{fs::PermissionsExt, fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

pub use registry::{PASSWORD, Registry, USER};

/// The image that tests use: busybox, bash, git, curl, pgrep, their libraries, and the user `circleci`
/// (3434). It has neither entrypoint nor labels.
pub const IMAGE: &str = "gantry-fixture:1";

/// The name that scenarios know an image of [`Engine::docker_image`] by.
pub const DOCKER_IMAGE: &str = "gantry-fixture-docker:1";

/// An engine that runs.
pub struct Engine {
    /// Its socket.
    pub socket: PathBuf,
    watcher: Child,
}

/// The network of a thread that has left the machine's: a loopback, shared with what the thread starts.
pub struct Network(());

impl Network {
    /// Leaves the machine's network for the rest of this thread; takes root and `ip`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn own() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("ip cannot be run")?;
        ensure!(up.success(), "there is no loopback: {up}");
        Ok(Self(()))
    }
}

static ENGINE: OnceLock<Result<Engine, String>> = OnceLock::new();

/// This process's own engine, with [`IMAGE`] in it. `None`, said loudly, where none can be: without root, or without
/// `dockerd` and a static `busybox` (Debian: docker.io, busybox-static).
///
/// # Panics
/// The engine is there and does not start: such a test cannot tell anything.
pub fn engine() -> Option<&'static Engine> {
    if !nix::unistd::geteuid().is_root() || on_path("dockerd").is_none() || on_path("busybox").is_none() {
        eprintln!("NOT TESTED: containers need root, dockerd and busybox-static");
        return None;
    }
    match ENGINE.get_or_init(|| with_image().map_err(|error| format!("{error:#}"))) {
        Ok(engine) => Some(engine),
        Err(error) => panic!("no container engine for this test: {error}"),
    }
}

impl Engine {
    /// An engine without images in this network: containers with the host's network reach the servers there.
    ///
    /// # Errors
    /// It does not start.
    pub fn within(_network: &Network) -> Result<Self> {
        // That a container has the network of its engine is held by a mount that nobody takes away.
        start("unshare --mount")
    }

    /// Ends it with its containers, and waits until nothing is left of it.
    ///
    /// # Errors
    /// Something is left.
    pub fn end(mut self) -> Result<()> {
        drop(self.watcher.stdin.take());
        self.watcher.wait()?;
        let folder = self.socket.parent().context("a socket without a folder")?;
        ensure!(!folder.exists(), "{} is still there", folder.display());
        Ok(())
    }

    /// Kills it (`kill -9`), and returns when it is there again, started anew.
    ///
    /// # Errors
    /// It was not there, or is not again.
    pub fn crash(&self) -> Result<()> {
        let folder = self.socket.parent().context("a socket without a folder")?;
        let pid = fs::read_to_string(folder.join("pid"))?.trim().parse()?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        wait_for(&self.socket, folder)
    }

    /// Makes another image of the same files, with instructions such as `ENTRYPOINT ["/bin/x"]`.
    ///
    /// # Panics
    /// The engine refuses.
    pub fn image(&self, name: &str, changes: &[&str]) {
        image(&self.socket, name, changes, |_| Ok(())).expect("the image is made");
    }

    /// Makes an image with this machine's PostgreSQL, which its entrypoint starts, as the well-known images of databases do:
    /// on port 5432, where everybody is trusted.
    ///
    /// # Panics
    /// The engine refuses.
    pub fn postgres_image(&self, name: &str) {
        image(&self.socket, name, &["ENTRYPOINT [\"/bin/start-postgres\"]"], postgres)
            .expect("the image is made");
    }

    /// Makes an image with this script in it, at this place.
    ///
    /// # Panics
    /// The engine refuses.
    pub fn script_image(&self, name: &str, place: &str, script: &str) {
        let fill = |root: &Path| {
            let file = inside(Path::new(place), root);
            fs::create_dir_all(file.parent().context("a script without a folder")?)?;
            fs::write(&file, script)?;
            Ok(fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?)
        };
        image(&self.socket, name, &[], fill).expect("the image is made");
    }

    /// Makes an image with this machine's own Docker, whose entrypoint serves it over TLS with certificates that it
    /// makes, as `docker:dind` does. Its containers have no network.
    ///
    /// # Panics
    /// The engine refuses.
    pub fn docker_image(&self, name: &str) {
        image(&self.socket, name, &["ENTRYPOINT [\"/bin/serve-docker\"]"], docker)
            .expect("the image is made");
    }

    /// Runs a command of the engine's own client, and returns what it prints.
    ///
    /// # Panics
    /// The client is missing or fails.
    pub fn client(&self, args: &[&str]) -> String {
        client(&self.socket, args).expect("docker")
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

fn with_image() -> Result<Engine> {
    let engine = start("unshare --net")?;
    image(&engine.socket, IMAGE, &[], |_| Ok(()))?;
    Ok(engine)
}

/// `enter`: what begins it, in namespaces of its own.
fn start(enter: &str) -> Result<Engine> {
    let dir = tempfile::Builder::new().prefix("gtk-docker-").tempdir_in("/tmp")?.keep();
    let socket = dir.join("docker.sock");
    // Never in the network namespace of the machine: an engine that starts makes the machine's packet filter and default bridge
    // its own, and another one's with it.
    let script = "trap '' INT TERM HUP; \
        serve() { \
            while [ ! -e \"$DIR/ending\" ]; do \
                rm -f \"$DIR/pid\"; \
                $ENTER dockerd --data-root \"$DIR/data\" --exec-root \"$DIR/exec\" --pidfile \"$DIR/pid\" \
                    -H \"unix://$DIR/docker.sock\" --bridge=none $RUNTIME; \
                sleep 0.2; \
            done; \
        }; \
        serve >\"$DIR/log\" 2>&1 </dev/null & engine=$!; \
        cat >/dev/null; \
        ids=$(docker -H \"unix://$DIR/docker.sock\" ps -aq 2>/dev/null); \
        [ -z \"$ids\" ] || docker -H \"unix://$DIR/docker.sock\" rm -fv $ids >/dev/null 2>&1; \
        docker -H \"unix://$DIR/docker.sock\" network prune -f >/dev/null 2>&1; \
        touch \"$DIR/ending\"; kill -TERM \"$(cat \"$DIR/pid\")\" 2>/dev/null; wait $engine; rm -rf \"$DIR\"";
    let watcher = Command::new("sh")
        .args(["-c", script])
        .env("DIR", &dir)
        .env("ENTER", enter)
        .env("RUNTIME", runtime(&dir)?)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    wait_for(&socket, &dir)?;
    Ok(Engine { socket, watcher })
}

/// Arguments by which privileged containers can be had on a machine that itself lacks a capability, as virtual machines
/// may: its engine would ask for all that there are.
fn runtime(dir: &Path) -> Result<String> {
    const SYS_RESOURCE: u32 = 24;
    const WITHOUT: &str = r#"#!/bin/sh
for word; do
  case $before in
    --bundle) file=$word/config.json ;;
    --process) file=$word ;;
  esac
  before=$word
done
[ -z "$file" ] || sed -i 's/,"CAP_SYS_RESOURCE"//g; s/"CAP_SYS_RESOURCE",//g' "$file"
exec runc "$@"
"#;
    let status = fs::read_to_string("/proc/self/status")?;
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("no CapBnd")?;
    if u64::from_str_radix(bounding.trim(), 16)? >> SYS_RESOURCE & 1 == 1 {
        return Ok(String::new());
    }
    let path = dir.join("runc");
    fs::write(&path, WITHOUT)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(format!("--add-runtime held={} --default-runtime held", path.display()))
}

#[expect(clippy::disallowed_methods, reason = "waits on a condition with a limit, outside of any runtime")]
fn wait_for(socket: &Path, dir: &Path) -> Result<()> {
    let started = Instant::now();
    while client(socket, &["version"]).is_err() {
        if started.elapsed() > Duration::from_secs(60) {
            anyhow::bail!(
                "dockerd did not start: {}",
                fs::read_to_string(dir.join("log")).unwrap_or_default()
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn client(socket: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new("docker")
        .arg("-H")
        .arg(format!("unix://{}", socket.display()))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("docker cannot be run")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "docker {args:?}: {}", text(&output.stderr));
    Ok(text(&output.stdout))
}

/// Makes an image out of this machine's programs and libraries; `fill` puts more into its root folder.
fn image(socket: &Path, name: &str, changes: &[&str], fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path();
    for folder in ["bin", "etc", "root", "tmp", "home/circleci", "lib64"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    std::os::unix::fs::chown(root.join("home/circleci"), Some(3434), Some(3434))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\ncircleci:x:3434:3434::/home/circleci:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\ncircleci:x:3434:\n")?;
    let busybox = on_path("busybox").context("busybox is missing")?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    let listed = Command::new(&busybox).arg("--list").output()?;
    for applet in String::from_utf8_lossy(&listed.stdout).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    for library in libraries(&std::env::current_exe()?)? {
        copy(&library, root)?;
    }
    for name in ["bash", "git", "curl", "pgrep"] {
        let program = on_path(name).with_context(|| format!("{name} is missing"))?;
        fs::copy(&program, root.join("bin").join(name))?;
        for library in libraries(&program)? {
            copy(&library, root)?;
        }
    }
    // What git runs to fetch over HTTP. It calls itself from there too.
    let core = Command::new("git").arg("--exec-path").output()?;
    let core = PathBuf::from(String::from_utf8(core.stdout)?.trim());
    install(&core.join("git-remote-http"), root)?;
    symlink("/bin/git", inside(&core.join("git"), root))?;
    fill(root)?;
    let archive = dir.path().with_extension("tar");
    let made = Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&archive).arg(".").status()?;
    ensure!(made.success(), "tar failed");
    let mut args = vec!["import"];
    for change in changes.iter().chain(&["ENV PATH=/bin"]) {
        args.extend(["-c", change]);
    }
    let file = archive.display().to_string();
    args.extend([file.as_str(), name]);
    let imported = client(socket, &args);
    fs::remove_file(&archive)?;
    imported.map(|_| ())
}

/// The place of a file of this machine in an image.
fn inside(file: &Path, root: &Path) -> PathBuf {
    root.join(file.strip_prefix("/").unwrap_or(file))
}

fn copy(file: &Path, root: &Path) -> Result<()> {
    let place = inside(file, root);
    fs::create_dir_all(place.parent().context("a file without a folder")?)?;
    fs::copy(file, place).with_context(|| file.display().to_string())?;
    Ok(())
}

/// Copies a program, or a library, with what it is linked with.
fn install(program: &Path, root: &Path) -> Result<()> {
    copy(program, root)?;
    libraries(program)?.iter().try_for_each(|library| copy(library, root))
}

/// Debian's PostgreSQL, at its own places: it looks for its files from where it lies.
fn postgres(root: &Path) -> Result<()> {
    const START: &str = "#!/bin/bash
if [ \"$(id -u)\" = 0 ]; then exec su -s /bin/bash circleci /bin/start-postgres; fi
set -e
initdb -D /tmp/database -U \"${POSTGRES_USER:-postgres}\" -A trust --no-sync > /dev/null
exec postgres -D /tmp/database -k /tmp -c listen_addresses=localhost
";
    let bin =
        fs::canonicalize(crate::program("initdb")?)?.parent().context("initdb lies nowhere")?.to_owned();
    for name in ["initdb", "postgres", "psql"] {
        install(&bin.join(name), root)?;
        symlink(bin.join(name), root.join("bin").join(name))?;
    }
    let home = bin.parent().context("no folder of PostgreSQL's own")?;
    for library in ["plpgsql.so", "dict_snowball.so"] {
        install(&home.join("lib").join(library), root)?;
    }
    let share = Path::new("/usr/share/postgresql").join(home.file_name().context("no version")?);
    let copied = Command::new("cp").args(["-r", "--parents"]).arg(&share).arg(root).status()?;
    ensure!(copied.success(), "{} cannot be copied", share.display());
    let start = root.join("bin/start-postgres");
    fs::write(&start, START)?;
    fs::set_permissions(&start, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// Debian's Docker, and what makes certificates.
fn docker(root: &Path) -> Result<()> {
    const SERVE: &str = "#!/bin/bash
set -e
cd \"$DOCKER_TLS_CERTDIR\" 2>/dev/null || { mkdir -p \"$DOCKER_TLS_CERTDIR\"; cd \"$DOCKER_TLS_CERTDIR\"; }
mkdir -p ca server client
key() { openssl ecparam -name prime256v1 -genkey -noout -out \"$1\"; }
key ca/key.pem
openssl req -new -x509 -key ca/key.pem -subj '/CN=of this container' -days 2 -out ca/cert.pem
for end in server client; do
  key $end/key.pem
  openssl req -new -key $end/key.pem -subj \"/CN=$end\" -out $end/csr.pem
  [ $end = server ] && more=\"subjectAltName = DNS:$(hostname)\" || more='extendedKeyUsage = clientAuth'
  echo \"$more\" > $end/more
  openssl x509 -req -in $end/csr.pem -CA ca/cert.pem -CAkey ca/key.pem -CAcreateserial -days 2 -extfile $end/more -out $end/cert.pem
  cp ca/cert.pem $end/ca.pem
done
exec dockerd --host=unix:///var/run/docker.sock --host=tcp://0.0.0.0:2376 --tlsverify \
  --tlscacert server/ca.pem --tlscert server/cert.pem --tlskey server/key.pem --bridge=none --iptables=false --ip6tables=false
";
    let programs = [
        "docker",
        "dockerd",
        "docker-proxy",
        "docker-init",
        "containerd",
        "containerd-shim-runc-v2",
        "runc",
        "iptables",
        "openssl",
    ];
    for name in programs {
        // Some are beside others, or of newer versions alone.
        let Some(program) = on_path(name) else { continue };
        let program = fs::canonicalize(program)?;
        install(&program, root)?;
        let place = root.join("bin").join(name);
        if !place.exists() {
            symlink(&program, place)?;
        }
    }
    let settings = Path::new("/etc/ssl/openssl.cnf");
    copy(&fs::canonicalize(settings)?, root)?;
    for place in ["usr/lib/ssl", "etc/ssl"] {
        fs::create_dir_all(root.join(place))?;
        fs::copy(settings, root.join(place).join("openssl.cnf"))?;
    }
    let start = root.join("bin/serve-docker");
    fs::write(&start, SERVE)?;
    fs::set_permissions(&start, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// What a program is linked with. This one's libraries are those of the tests' agent.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&listed.stdout);
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
