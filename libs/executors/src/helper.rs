//! The helper processes: single-threaded, without a runtime, and never the agent itself.

use crate::{
    guest,
    wire::{Ends, Event, Exec, Mode, Request, Setup, Spawn},
};
use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill, killpg},
        signalfd::{SfdFlags, SignalFd},
        stat::{Mode as FileMode, umask},
        statvfs::{FsFlags, statvfs},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid, getgid, getuid, setgid, setgroups, setsid, setuid},
};
use std::{
    collections::HashMap,
    fs,
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, atomic::AtomicBool},
};

pub(crate) const INIT: &str = "__init";
const FIRST: &str = "__first";
const EXEC: &str = "__exec";
/// The program itself, also where its path is hidden or means another file.
const SELF: &str = "/proc/self/exe";
const OOM_FILE: &str = "/proc/self/oom_score_adj";

/// Runs the helper that the arguments name, if they name one. Must be called before any thread is started.
pub fn main() -> Option<i32> {
    let mut args = std::env::args().skip(1);
    let run = match args.next()?.as_str() {
        INIT => init as fn(&str, Vec<String>) -> io::Result<i32>,
        FIRST => first,
        EXEC => exec,
        guest::GUEST => guest::run,
        _ => return None,
    };
    let setup = args.next().unwrap_or_default();
    Some(match run(&setup, args.collect()) {
        Ok(code) => code,
        Err(e) => {
            // Of a step it is its own terminal that this goes to.
            eprintln!("{e}");
            1
        }
    })
}

fn say(event: &Event) {
    let mut line = serde_json::to_vec(event).expect("events are plain data");
    line.push(b'\n');
    // An agent that is gone is noticed on standard input.
    let _ = io::stdout().lock().write_all(&line);
    let _ = io::stdout().lock().flush();
}

/// How much more the kernel likes to end a step for want of memory than what runs it: as if it used so many thousandths of the
/// limit beside what it does. Without the first process of its environment a job would be lost, and nobody told why. To lower the
/// score of that one instead is refused on many machines.
const OOM_SCORE: i32 = 200;

/// Enters the namespaces and starts their first process.
fn init(json: &str, _rest: Vec<String>) -> io::Result<i32> {
    let setup: Setup = serde_json::from_str(json)?;
    if let Err(e) = enclose(&setup) {
        say(&Event::Unable { message: e.to_string() });
        return Ok(97);
    }
    if setup.mode == Mode::Tree {
        return first(json, Vec::new());
    }
    let status = Command::new(SELF).args([FIRST, json]).status()?;
    Ok(status.code().unwrap_or(1))
}

fn enclose(setup: &Setup) -> io::Result<()> {
    if let Some(cgroup) = &setup.cgroup {
        // The group is a second means; the namespace ends the processes too.
        let _ = fs::write(cgroup.join("cgroup.procs"), "0");
    }
    std::env::set_current_dir("/")?;
    match setup.mode {
        Mode::Tree => return Ok(()),
        Mode::Namespaces => unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)?,
        Mode::UserNamespaces => {
            let (uid, gid) = (getuid(), getgid());
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)?;
            map_ids((0, uid.as_raw()), (0, gid.as_raw()))?;
        }
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    for bind in &setup.binds {
        mount(Some(&bind.from), &bind.to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
        if bind.read_only {
            protect(&bind.to)?;
        }
    }
    for path in &setup.hide {
        if path.is_dir() {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
            mount(Some("none"), path, Some("tmpfs"), flags, Some("size=0,mode=000"))?;
        }
    }
    Ok(())
}

/// Takes away the right to change what is bound there. What else holds for the mount stays: in a namespace of users it may not
/// be lifted.
fn protect(place: &Path) -> io::Result<()> {
    let held = statvfs(place)?.flags();
    let kept = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let kept: MsFlags =
        kept.into_iter().filter(|(flag, _)| held.contains(*flag)).map(|(_, flag)| flag).collect();
    let none: Option<&str> = None;
    Ok(mount(none, place, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept, none)?)
}

fn map_ids(uid: (u32, u32), gid: (u32, u32)) -> io::Result<()> {
    // Already denied where the namespace above denied it.
    let _ = fs::write("/proc/self/setgroups", "deny");
    fs::write("/proc/self/uid_map", format!("{} {} 1", uid.0, uid.1))?;
    fs::write("/proc/self/gid_map", format!("{} {} 1", gid.0, gid.1))
}

/// Starts steps and reaps, until standard input ends; then everything below ends.
fn first(json: &str, _rest: Vec<String>) -> io::Result<i32> {
    let setup: Setup = serde_json::from_str(json)?;
    let prepared = match setup.mode {
        Mode::Tree => prctl::set_child_subreaper(true),
        Mode::Namespaces | Mode::UserNamespaces => {
            let none: Option<&str> = None;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("proc"), "/proc", Some("proc"), flags, none)
        }
    };
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    let signals = prepared
        .and_then(|()| mask.thread_block())
        .and_then(|()| SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC));
    let signals = match signals {
        Ok(signals) => signals,
        Err(e) => {
            say(&Event::Unable { message: e.to_string() });
            return Ok(97);
        }
    };
    say(&Event::Ready);
    let mut running: HashMap<Pid, u64> = HashMap::new();
    let mut stdin = io::stdin().lock();
    let mut pending: Vec<u8> = Vec::new();
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        let mut fds =
            [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let (signaled, asked) = (fds[0].any().unwrap_or(false), fds[1].any().unwrap_or(false));
        if signaled {
            while let Ok(Some(_)) = signals.read_signal() {}
        }
        reap(&mut running);
        if asked {
            let n = match stdin.read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            if n == 0 {
                break;
            }
            pending.extend_from_slice(&buffer[..n]);
            while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(Request::Spawn(spawn)) => start(spawn, &mut running),
                    Ok(Request::Signal { id, signal }) => {
                        if let (Some((pid, _)), Ok(signal)) =
                            (running.iter().find(|(_, i)| **i == id), Signal::try_from(signal))
                        {
                            signal_session(*pid, signal);
                        }
                    }
                    Ok(Request::Enter { id, groups }) => {
                        // Nought: whoever writes it.
                        let entered =
                            groups.iter().try_for_each(|group| fs::write(group.join("cgroup.procs"), "0"));
                        say(&match entered {
                            Ok(()) => Event::Done { id, found: true },
                            Err(e) => Event::Failed { id, message: e.to_string() },
                        });
                    }
                    // The agent reaches files of this machine by itself.
                    Ok(
                        Request::Write { id, .. }
                        | Request::Exists { id, .. }
                        | Request::Resize { id, .. }
                        | Request::OutOfMemory { id },
                    ) => {
                        say(&Event::Failed { id, message: "not in this environment".into() });
                    }
                    Err(e) => eprintln!("{e}"),
                }
            }
        }
    }
    if setup.mode == Mode::Tree {
        kill_descendants();
    }
    Ok(0)
}

fn start(spawn: Spawn, running: &mut HashMap<Pid, u64>) {
    let id = spawn.id;
    match try_start(spawn) {
        Ok(pid) => {
            running.insert(pid, id);
            say(&Event::Spawned { id });
        }
        Err(e) => say(&Event::Failed { id, message: e.to_string() }),
    }
}

fn try_start(spawn: Spawn) -> io::Result<Pid> {
    let io = match &spawn.io {
        Ends::Tty { path, input } => {
            // Not as controlling terminal: what a step leaves running would be hung up with its shell.
            let tty =
                fs::File::options().read(true).write(true).custom_flags(nix::libc::O_NOCTTY).open(path)?;
            let stdin = if *input { tty.try_clone()?.into() } else { Stdio::null() };
            [stdin, tty.try_clone()?.into(), tty.into()]
        }
        Ends::Session { path } => {
            let tty =
                fs::File::options().read(true).write(true).custom_flags(nix::libc::O_NOCTTY).open(path)?;
            [tty.try_clone()?.into(), tty.try_clone()?.into(), tty.into()]
        }
        Ends::Fifos { input, output, errors } => {
            let write = |path: &Path| fs::File::options().write(true).open(path);
            [fs::File::open(input)?.into(), write(output)?.into(), write(errors)?.into()]
        }
        Ends::FramedTty { .. } | Ends::FramedSession { .. } | Ends::FramedPipes => {
            return Err(io::Error::other("this helper has no frames"));
        }
    };
    launch(&spawn.exec, &spawn.argv, &spawn.env, io)
}

/// Starts a command through the last helper. It is reaped with all others.
pub(crate) fn launch(
    exec: &Exec,
    argv: &[String],
    env: &[(String, String)],
    [stdin, stdout, stderr]: [Stdio; 3],
) -> io::Result<Pid> {
    let setup = serde_json::to_string(exec)?;
    let child = Command::new(SELF)
        .arg(EXEC)
        .arg(setup)
        .args(argv)
        .env_clear()
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .spawn()?;
    Ok(Pid::from_raw(child.id() as i32))
}

fn reap(running: &mut HashMap<Pid, u64>) {
    for (id, code) in ended(running) {
        say(&Event::Exited { id, code });
    }
}

/// Reaps whatever has ended; answers the commands among it.
pub(crate) fn ended(running: &mut HashMap<Pid, u64>) -> Vec<(u64, i32)> {
    let mut all = Vec::new();
    loop {
        let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(_) => return all,
            Ok(_) => continue,
        };
        if let Some(id) = running.remove(&pid) {
            all.push((id, code));
        }
    }
}

/// Process, parent and session ids of all processes that can be seen.
fn processes() -> Vec<(Pid, Pid, Pid)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name in parentheses may contain anything.
            let mut rest = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(1);
            let parent: i32 = rest.next()?.parse().ok()?;
            let session: i32 = rest.nth(1)?.parse().ok()?;
            Some((Pid::from_raw(pid), Pid::from_raw(parent), Pid::from_raw(session)))
        })
        .collect()
}

pub(crate) fn signal_session(leader: Pid, signal: Signal) {
    let _ = killpg(leader, signal);
    let _ = kill(leader, signal);
    for (pid, _, session) in processes() {
        // Job control of a shell puts commands into groups of their own.
        if session == leader && pid != leader {
            let _ = kill(pid, signal);
        }
    }
}

fn kill_descendants() {
    let me = Pid::this();
    loop {
        let all = processes();
        let mut below = vec![me];
        let mut i = 0;
        while i < below.len() {
            let parent = below[i];
            below.extend(all.iter().filter(|(_, p, _)| *p == parent).map(|(pid, ..)| *pid));
            i += 1;
        }
        if below.len() == 1 {
            return;
        }
        for pid in &below[1..] {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        // Orphans come to this process as their parents end.
        if matches!(waitpid(None, None), Err(nix::errno::Errno::ECHILD)) {
            return;
        }
    }
}

/// Takes the step's identity and place and becomes it.
fn exec(json: &str, argv: Vec<String>) -> io::Result<i32> {
    let exec: Exec = serde_json::from_str(json)?;
    setsid()?;
    if exec.controls {
        rustix::process::ioctl_tiocsctty(io::stdin())?;
    }
    // What the first helper blocks to be woken by it would never wake a shell that waits.
    SigSet::empty().thread_set_mask()?;
    heed_signals()?;
    go_first();
    umask(FileMode::from_bits_truncate(0o022));
    if let Some(ids) = &exec.identity {
        let groups: Vec<Gid> = ids.groups.iter().map(|g| Gid::from_raw(*g)).collect();
        setgroups(&groups)?;
        setgid(Gid::from_raw(ids.gid))?;
        setuid(Uid::from_raw(ids.uid))?;
    }
    if let Some((uid, gid)) = exec.inner {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        map_ids((uid, 0), (gid, 0))?;
    }
    if let Err(e) = enter(&exec.dir, exec.make_dir) {
        eprintln!("Cannot enter the working directory {}: {e}", exec.dir.display());
        return Ok(1);
    }
    let Some((program, args)) = argv.split_first() else {
        eprintln!("The shell is empty");
        return Ok(127);
    };
    let e = Command::new(program).args(args).env("PWD", &exec.dir).exec();
    eprintln!("Cannot run {program}: {e}");
    Ok(if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

/// Ignored signals stay ignored over an exec, and a shell cannot even trap them: whoever started the server under
/// `nohup` would have jobs that no hang-up ends. A handler does not last over an exec, it leaves the default behind:
/// so every ignored signal gets one.
fn heed_signals() -> io::Result<()> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    let heard = Arc::new(AtomicBool::new(false));
    for signal in (1..=31).filter(|signal| ignored & (1 << (signal - 1)) != 0) {
        if !signal_hook::consts::FORBIDDEN.contains(&signal) {
            signal_hook::flag::register(signal, Arc::clone(&heard))?;
        }
    }
    Ok(())
}

/// Raises the score of this process, and of what it starts, if it is lower.
fn go_first() {
    let score = fs::read_to_string(OOM_FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if score.is_some_and(|score| score < OOM_SCORE) {
        let _ = fs::write(OOM_FILE, OOM_SCORE.to_string());
    }
}

fn enter(dir: &Path, make: bool) -> io::Result<()> {
    if make {
        fs::create_dir_all(dir)?;
    }
    std::env::set_current_dir(dir)
}
