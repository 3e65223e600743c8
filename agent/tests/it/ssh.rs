//! Jobs that were rerun with SSH, entered with the client of OpenSSH (execution §26).

use crate::suite::{Suite, lease, run, step};
use agent_api::{JobUser, Lease, SshListen};
use model::{plan::Step, ssh::Access};
use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};
use tokio::{io::AsyncWriteExt, process::Command};

const LIMIT: Duration = Duration::from_secs(60);
/// Every test has ports of its own.
static PORTS: AtomicU16 = AtomicU16::new(0);
static FIRST_PORT: LazyLock<u16> =
    LazyLock::new(|| 20_000 + u16::try_from(std::process::id() % 1000).expect("small") * 12);

/// Whether there is a client; where there is none, a machine without root cannot get one.
fn has_client() -> bool {
    let found =
        std::process::Command::new("ssh").arg("-V").stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !found {
        eprintln!("NOT TESTED: there is no ssh (openssh-client)");
    }
    found
}

struct Keys(tempfile::TempDir);

impl Keys {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes a pair of keys; answers its public half.
    fn make(&self, name: &str, kind: &[&str]) -> String {
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-N", "", "-C", name, "-f"])
            .arg(self.path(name))
            .args(["-t"])
            .args(kind)
            .status()
            .unwrap();
        assert!(made.success());
        std::fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap().trim().to_owned()
    }

    fn known_hosts(&self) -> PathBuf {
        self.path("known_hosts")
    }

    fn fingerprint(&self, file: &Path) -> String {
        let shown = std::process::Command::new("ssh-keygen").arg("-lf").arg(file).output().unwrap();
        String::from_utf8(shown.stdout).unwrap().split(' ').nth(1).unwrap_or_default().to_owned()
    }
}

/// A suite whose next job can be entered with these keys.
fn suite(mut lease: Lease, keys: Vec<String>, change: impl FnOnce(&mut Lease)) -> Arc<Suite> {
    lease.spec.ssh = Some(Access { login: Some("ada".into()), keys });
    change(&mut lease);
    let suite = Suite::new(lease);
    let first_port = *FIRST_PORT + PORTS.fetch_add(1, Ordering::Relaxed);
    *suite.ssh.lock().unwrap() = Some(SshListen {
        address: "127.0.0.1".into(),
        advertise: String::new(),
        first_port,
        last_port: first_port,
    });
    suite
}

fn port(suite: &Suite) -> u16 {
    suite.ssh.lock().unwrap().as_ref().unwrap().first_port
}

/// A client of OpenSSH that asks nobody anything. `at` is its option for the port.
fn openssh(program: &str, suite: &Suite, keys: &Keys, key: &str, at: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=20"])
        .args(["-o", "StrictHostKeyChecking=accept-new", "-o", "IdentityAgent=none", "-o"])
        .arg(format!("UserKnownHostsFile={}", keys.known_hosts().display()))
        .arg("-i")
        .arg(keys.path(key))
        .args([at, &port(suite).to_string()])
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn client(suite: &Suite, keys: &Keys, key: &str, options: &[&str]) -> Command {
    let mut command = openssh("ssh", suite, keys, key, "-p");
    command.args(options).arg("someone@127.0.0.1");
    command
}

async fn ends(child: tokio::process::Child) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        tokio::time::timeout(LIMIT, child.wait_with_output()).await.expect("ssh ends").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

async fn ssh(suite: &Suite, keys: &Keys, key: &str, script: &str) -> (Option<i32>, String, String) {
    ends(client(suite, keys, key, &[]).arg(script).spawn().unwrap()).await
}

/// The same, with a text to read.
async fn ssh_with(
    suite: &Suite,
    keys: &Keys,
    options: &[&str],
    script: Option<&str>,
    input: &[u8],
) -> (Option<i32>, String, String) {
    let mut command = client(suite, keys, "mine", options);
    let mut child = command.args(script).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let write = async move {
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    tokio::join!(write, ends(child)).1
}

async fn waits(suite: &Suite, number: u32) {
    suite.until("the wait for SSH", |seen| seen.steps.contains_key(&number)).await;
}

fn steps() -> Vec<Step> {
    vec![run(r#"echo 'export LEFT="by a step"' >> "$BASH_ENV"; echo kept > file; exit 9"#)]
}

async fn enters(isolation: &str, job_user: Option<JobUser>) {
    let keys = Keys::new();
    let public = vec![keys.make("mine", &["ed25519"]), keys.make("rsa", &["rsa", "-b", "2048"])];
    keys.make("theirs", &["ed25519"]);
    let suite = suite(lease(steps()), public, |lease| {
        lease.spec.definition.environment = vec![("OF_JOB".into(), "job value".into())];
    });
    let agent = suite.agent(isolation, job_user, vec![]);
    waits(&suite, 102).await;

    // The key that the step shows is the one that the client meets.
    let (code, out, err) =
        ssh(&suite, &keys, "mine", "echo $OF_JOB, $LEFT, $CIRCLE_JOB; pwd; cat file; id -u").await;
    assert_eq!(code, Some(0), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    let home = suite.log(0).lines().find_map(|l| l.strip_prefix("Home folder ").map(str::to_owned)).unwrap();
    assert_eq!(lines[..3], ["job value, by a step, build", &format!("{home}/project"), "kept"]);
    let uid = job_user.map_or(nix::unistd::geteuid().as_raw(), |user| user.uid);
    // In a namespace of its own root is who the agent is.
    assert_eq!(lines[3], uid.to_string());
    let enable = suite.log(100);
    let host = keys.fingerprint(&keys.known_hosts());
    assert!(host.starts_with("SHA256:") && enable.contains(&host), "{host} is not in {enable}");
    assert!(enable.contains(&format!("$ ssh -p {} 127.0.0.1\n", port(&suite))), "{enable}");
    assert!(enable.starts_with("ada can enter"), "{enable}");

    // Streams, exit codes, what is read; RSA too.
    let (code, out, err) =
        ssh_with(&suite, &keys, &[], Some("cat; echo to errors >&2; exit 23"), b"typed\n").await;
    assert_eq!((code, out.as_str()), (Some(23), "typed\n"));
    assert!(err.ends_with("to errors\n"), "{err}");
    let (code, out, _) = ssh(&suite, &keys, "rsa", "kill -9 $$").await;
    assert_eq!((code, out.as_str()), (Some(137), ""));
    let large = "head -c 3000000 /dev/zero | tr '\\0' x";
    assert_eq!(ssh(&suite, &keys, "mine", large).await.1.len(), 3_000_000);
    // Without a terminal a shell reads commands.
    let (code, out, _) = ssh_with(&suite, &keys, &["-T"], None, b"echo $LEFT\nexit 4\n").await;
    assert_eq!((code, out.as_str()), (Some(4), "by a step\n"));

    // Another's key does not enter.
    let (code, out, err) = ssh(&suite, &keys, "theirs", "echo in").await;
    assert_eq!((code, out.as_str()), (Some(255), ""));
    assert!(err.contains("Permission denied (publickey)"), "{err}");

    // Several at once, and one that is there when the job is canceled.
    let stays = client(&suite, &keys, "mine", &[]).arg("echo stays; sleep 1000").spawn().unwrap();
    suite
        .until("the session that stays", |seen| {
            seen.sessions.iter().filter(|s| s.open).count() > seen.sessions.iter().filter(|s| !s.open).count()
        })
        .await;
    assert_eq!(ssh(&suite, &keys, "mine", "echo beside").await.1, "beside\n");
    suite.cancel();
    let (code, _, err) = ends(stays).await;
    assert_eq!(code, Some(255));
    assert!(err.contains("The job was canceled."), "{err}");

    // The steps say how the job ends, and what was done in sessions is nowhere.
    assert_eq!(suite.finished(agent).await, "failed");
    let seen = suite.seen.lock().unwrap();
    assert!(seen.finals[0].settled);
    assert_eq!(seen.steps[&102].status, "canceled");
    let mine = keys.fingerprint(&keys.path("mine.pub"));
    let open = |open: bool| seen.sessions.iter().filter(|s| s.open == open).count();
    assert_eq!((open(true), open(false)), (7, 7), "{:?}", seen.sessions);
    assert_eq!(seen.sessions.iter().filter(|s| s.key == mine).count(), 12);
    let text: Vec<u8> = seen.streams.values().flatten().copied().collect();
    let text = String::from_utf8_lossy(&text);
    assert!(!text.contains("beside") && !text.contains("to errors"), "{text}");
    assert!(text.contains(&mine) && std::net::TcpStream::connect(("127.0.0.1", port(&suite))).is_err());
}

#[tokio::test]
async fn the_owner_of_a_key_enters_the_job() {
    if has_client() {
        enters("none", None).await;
    }
}

#[tokio::test]
async fn sessions_run_as_steps_do() {
    if has_client() && nix::unistd::geteuid().is_root() {
        enters("user", Some(JobUser { uid: 65534, gid: 65534 })).await;
    }
}

#[tokio::test]
async fn a_terminal_is_a_login_shell_with_keys_and_sizes() {
    if !has_client() {
        return;
    }
    let keys = Keys::new();
    let suite = suite(lease(steps()), vec![keys.make("mine", &["ed25519"])], |_| {});
    let agent = suite.agent("none", None, vec![]);
    waits(&suite, 102).await;
    let said = "shopt -q login_shell && echo login; case $- in *i*) echo interactive;; esac; tty; echo $TERM; \
                echo \"$LEFT\"; command -v circleci; env | grep GANTRY_SSH; echo p=$PROMPT_COMMAND; exit 6\n";
    let (code, out, err) = ssh_with(&suite, &keys, &["-tt"], None, said.as_bytes()).await;
    assert_eq!(code, Some(6), "{out} {err}");
    for wanted in
        ["login\r\ninteractive\r\n/dev/pts/", "\r\nby a step\r\n", "/bin/circleci\r\n", "\r\np=\r\n"]
    {
        assert!(out.contains(wanted), "{wanted:?} is not in {out:?}");
    }
    assert!(out.starts_with("Job build (number 7) of local/demo."), "{out:?}");

    // A person at a terminal of their own, which changes its size and has keys that send signals.
    let python = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/ssh/person.py"))
        .arg(port(&suite).to_string())
        .arg(keys.path("mine"))
        .arg(keys.known_hosts())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (code, out, err) = ends(python).await;
    assert_eq!(code, Some(0), "{out} {err}");
    suite.cancel();
    assert_eq!(suite.finished(agent).await, "failed");
}

#[tokio::test]
async fn ports_of_the_job_are_forwarded() {
    if !has_client() {
        return;
    }
    let keys = Keys::new();
    let server = step(|s| {
        s.background = true;
        s.command =
            "python3 -u -c '\nimport socket\ns = socket.socket()\ns.bind((\"127.0.0.1\", 0))\ns.listen()\n\
                     open(\"port\", \"w\").write(str(s.getsockname()[1]))\nwhile True:\n c, _ = s.accept()\n \
                     c.sendall(b\"hello \" + c.recv(100)); c.close()\n'"
                .into();
    });
    let begun = run("until [ -s port ]; do sleep 0.05; done");
    let suite = suite(lease(vec![server, begun]), vec![keys.make("mine", &["ed25519"])], |_| {});
    let agent = suite.agent("none", None, vec![]);
    waits(&suite, 103).await;
    let there = ssh(&suite, &keys, "mine", "cat port").await.1;
    let through = format!("127.0.0.1:{there}");
    let (code, out, err) = {
        let mut command = client(&suite, &keys, "mine", &["-W", &through]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"there").await.unwrap();
        ends(child).await
    };
    assert_eq!((code, out.as_str()), (Some(0), "hello there"), "{err}");
    // Nobody listens: said, not waited for.
    let (code, _, err) = ends(client(&suite, &keys, "mine", &["-W", "127.0.0.1:1"]).spawn().unwrap()).await;
    assert_eq!(code, Some(255), "{err}");
    suite.cancel();
    assert_eq!(suite.finished(agent).await, "success");
}

/// One that copies, with the key `mine`.
fn copier(program: &str, suite: &Suite, keys: &Keys, args: &[&str]) -> Command {
    let mut command = openssh(program, suite, keys, "mine", "-P");
    command.args(args);
    command
}

async fn copies(isolation: &str, job_user: Option<JobUser>) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let keys = Keys::new();
    let steps = vec![run(
        "mkdir -p deep/er; head -c 3000000 /dev/urandom > deep/er/large; chmod 640 deep/er/large; \
                          touch -d @1000000000 deep/er/large; ln -s er/large deep/link; : > deep/empty",
    )];
    let suite = suite(lease(steps), vec![keys.make("mine", &["ed25519"])], |_| {});
    let agent = suite.agent(isolation, job_user, vec![]);
    waits(&suite, 102).await;
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    let shown = here.path().display().to_string();

    // There and back, with modes, times and folders.
    let args = ["-rp", "x@127.0.0.1:project/deep", shown.as_str()];
    let (code, _, err) = ends(copier("scp", &suite, &keys, &args).spawn().unwrap()).await;
    assert_eq!(code, Some(0), "{err}");
    let large = std::fs::read(at("deep/er/large")).unwrap();
    let metadata = std::fs::metadata(at("deep/er/large")).unwrap();
    assert_eq!(
        (large.len(), metadata.permissions().mode() & 0o777, metadata.mtime()),
        (3_000_000, 0o640, 1_000_000_000)
    );
    assert_eq!(std::fs::read(at("deep/link")).unwrap(), large);
    assert_eq!(std::fs::read(at("deep/empty")).unwrap(), b"");
    let from = format!("{shown}/deep");
    let args = ["-rp", from.as_str(), "x@127.0.0.1:~/back"];
    let (code, _, err) = ends(copier("scp", &suite, &keys, &args).spawn().unwrap()).await;
    assert_eq!(code, Some(0), "{err}");
    let same = "cmp ~/back/er/large deep/er/large && stat -c '%a %Y %u' ~/back/er/large && id -u";
    let (code, out, err) = ssh(&suite, &keys, "mine", same).await;
    let uid = job_user.map_or(nix::unistd::geteuid().as_raw(), |user| user.uid);
    assert_eq!((code, out), (Some(0), format!("640 1000000000 {uid}\n{uid}\n")), "{err}");

    // What else a client does with files.
    let batch = at("batch");
    let script = "cd project/deep\nmkdir made\nchmod 700 made\nrename empty made/moved\nln -s moved made/soft\n\
                  ls -ln made\nrm link\nrmdir er/../made2\n";
    std::fs::write(&batch, script).unwrap();
    let batch = batch.display().to_string();
    let args = ["-b", batch.as_str(), "x@127.0.0.1"];
    let (code, out, err) = ends(copier("sftp", &suite, &keys, &args).spawn().unwrap()).await;
    assert_eq!(code, Some(1), "{out} {err}");
    assert!(out.contains("lrwxrwxrwx") && out.contains("made/moved"), "{out}");
    assert!(err.contains("made2") && err.contains("No such file"), "{err}");
    let (_, out, _) = ssh(&suite, &keys, "mine", "cd deep; stat -c '%a' made; readlink made/soft; ls").await;
    assert_eq!(out, "700\nmoved\ner\nmade\n");
    // What steps may not, a copy may not.
    if isolation == "user" {
        let args = ["-p", "x@127.0.0.1:/etc/shadow", shown.as_str()];
        let (code, _, err) = ends(copier("scp", &suite, &keys, &args).spawn().unwrap()).await;
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains("Permission denied"), "{err}");
    }
    suite.cancel();
    assert_eq!(suite.finished(agent).await, "success");
}

#[tokio::test]
async fn files_are_copied_both_ways() {
    if has_client() {
        copies("none", None).await;
    }
}

#[tokio::test]
async fn copies_are_made_as_who_runs_the_steps() {
    if has_client() && nix::unistd::geteuid().is_root() {
        copies("user", Some(JobUser { uid: 65534, gid: 65534 })).await;
    }
}

#[tokio::test]
async fn the_environment_goes_when_nobody_is_connected_for_long_enough() {
    if !has_client() {
        return;
    }
    let keys = Keys::new();
    let suite = suite(lease(vec![run("echo done")]), vec![keys.make("mine", &["ed25519"])], |lease| {
        lease.timing.ssh_idle_ms = 3000;
    });
    let agent = suite.agent("none", None, vec![]);
    waits(&suite, 102).await;
    // Longer than that without being idle.
    let (code, out, _) = ssh(&suite, &keys, "mine", "sleep 4; echo still").await;
    assert_eq!((code, out.as_str()), (Some(0), "still\n"));
    assert_eq!(suite.finished(agent).await, "success");
    assert_eq!(suite.seen.lock().unwrap().steps[&102].status, "success");
    let log = suite.log(102);
    assert!(
        log.contains("began, with the key SHA256:") && log.contains("Nobody was connected for 3s."),
        "{log}"
    );
}

#[tokio::test]
async fn the_environment_goes_when_its_time_is_up_whoever_is_there() {
    if !has_client() {
        return;
    }
    let keys = Keys::new();
    let suite = suite(lease(vec![run("echo done")]), vec![keys.make("mine", &["ed25519"])], |lease| {
        lease.timing.ssh_total_ms = 4000;
    });
    let agent = suite.agent("none", None, vec![]);
    suite.until("how to connect", |seen| seen.steps.contains_key(&101)).await;
    let (code, _, err) = ssh(&suite, &keys, "mine", "sleep 1000").await;
    assert_eq!(code, Some(255));
    assert!(err.contains("The environment stayed for 4s."), "{err}");
    assert_eq!(suite.finished(agent).await, "success");
}

#[tokio::test]
async fn the_limit_of_the_job_holds_for_its_wait_too() {
    let keys =
        vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUDVpLFlN0OoYlKvSXMCcLZIoWqkVgKwyTOmdWvgpB/ x".to_owned()];
    let suite = suite(lease(vec![run("echo done")]), keys, |lease| lease.timing.job_timeout_ms = 4000);
    assert_eq!(suite.finished(suite.agent("none", None, vec![])).await, "success");
    assert_eq!(suite.seen.lock().unwrap().steps[&102].status, "timedout");
}

/// Nothing listens that nobody may enter, and it is said why.
#[tokio::test]
async fn a_job_that_nobody_may_enter_does_not_listen() {
    let listens = |suite: &Suite| std::net::TcpStream::connect(("127.0.0.1", port(suite))).is_ok();
    // Asked for by somebody without a key.
    let hold = || vec![run("until [ -e /tmp/never ] || [ \"$SECONDS\" -gt 1 ]; do sleep 0.1; done")];
    let without = suite(lease(hold()), Vec::new(), |_| {});
    let agent = without.agent("none", None, vec![]);
    without.until("the step", |seen| seen.steps.contains_key(&101)).await;
    assert!(!listens(&without));
    assert_eq!(without.finished(agent).await, "success");
    assert!(without.log(0).contains("gantry user-key add"), "{}", without.log(0));
    assert_eq!(without.summary().iter().map(|s| s.0).collect::<Vec<_>>(), [0, 99, 101]);
    // Not asked for.
    let plain = suite(lease(hold()), Vec::new(), |lease| lease.spec.ssh = None);
    let agent = plain.agent("none", None, vec![]);
    plain.until("the step", |seen| seen.steps.contains_key(&101)).await;
    assert!(!listens(&plain));
    assert_eq!(plain.finished(agent).await, "success");
    // Switched off on the machine.
    let keys =
        vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUDVpLFlN0OoYlKvSXMCcLZIoWqkVgKwyTOmdWvgpB/ x".to_owned()];
    let off = suite(lease(vec![run("echo done")]), keys, |_| {});
    *off.ssh.lock().unwrap() = None;
    assert_eq!(off.finished(off.agent("none", None, vec![])).await, "success");
    assert_eq!(off.summary()[2], (100, "failed".into(), None));
    assert!(off.log(100).contains("[executors.ssh]"), "{}", off.log(100));
    assert_eq!(off.summary().len(), 4);
}
