//! The first process of a container: starts commands on request, carries their bytes, reaps.
//!
//! One thread around one `poll`. Nothing in it waits for anything but that call, so that it notices the end of
//! the connection, which is its own, whatever commands and agent are doing.

use crate::{
    frames::{Decoder, Frame, Kind, WINDOW},
    helper,
    terminal::{self, Use},
    wire::{Ends, Event, Guest, Request, Spawn},
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{Pid, getuid, pipe2},
};
use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    process::Stdio,
};

/// First argument of the agent's program that makes it the first process of a container.
pub const GUEST: &str = "__guest";
const BUFFER: usize = 32 * 1024;
/// Commands are not read while so much waits to be sent.
const BACKLOG: usize = 1 << 20;
/// More than a terminal or a pipe holds.
const LEFT: usize = 1 << 20;

pub(crate) fn run(_setup: &str, _rest: Vec<String>) -> io::Result<i32> {
    // Commands of the same user must not look into it: requests carry the environment of all of them.
    let _ = prctl::set_dumpable(false);
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let (stdin, stdout) = (io::stdin(), io::stdout());
    for fd in [stdin.as_fd(), stdout.as_fd()] {
        nonblocking(fd)?;
    }
    let mut carrier = Carrier::default();
    carrier.say(&Event::Guest(look_around()));
    let mut decoder = Decoder::default();
    let mut buffer = vec![0u8; BUFFER];
    loop {
        let ready = carrier.wait(signals.as_fd(), stdin.as_fd(), stdout.as_fd())?;
        if ready.signaled {
            while let Ok(Some(_)) = signals.read_signal() {}
        }
        // First what was written, then who ended: that is the order in which it happened.
        carrier.read_outputs(&ready.outputs, &mut buffer);
        for (id, code) in helper::ended(&mut carrier.running) {
            carrier.inputs.remove(&id);
            carrier.say(&Event::Exited { id, code });
            carrier.part(id);
        }
        carrier.say_written();
        if ready.asked {
            match nix::unistd::read(&stdin, &mut buffer) {
                Ok(0) => return Ok(0),
                Ok(n) => decoder.push(&buffer[..n]),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            while let Some(frame) = decoder.next()? {
                carrier.take(frame);
            }
        }
        carrier.feed();
        carrier.flush(stdout.as_fd())?;
    }
}

fn nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Something that a command writes to.
struct Outgoing {
    id: u64,
    kind: Kind,
    fd: OwnedFd,
    credit: usize,
    /// Its command has ended: so many bytes, if there are as many, may still be what that had written.
    left: Option<usize>,
}

/// A command's standard input.
struct Incoming {
    fd: OwnedFd,
    pending: Vec<u8>,
    ended: bool,
}

#[derive(Default)]
struct Carrier {
    running: HashMap<Pid, u64>,
    outputs: Vec<Outgoing>,
    /// Ended commands of which not all that they had written has been sent.
    parting: Vec<u64>,
    inputs: HashMap<u64, Incoming>,
    /// To be sent to the agent.
    backlog: Vec<u8>,
    /// Processes that ended for want of memory, when that was asked last.
    oom_kills: u64,
}

struct Ready {
    signaled: bool,
    asked: bool,
    /// Indices of outputs.
    outputs: Vec<usize>,
}

impl Carrier {
    fn say(&mut self, event: &Event) {
        if let Ok(body) = serde_json::to_vec(event) {
            self.send(&Frame { kind: Kind::Said, id: 0, body });
        }
    }

    fn send(&mut self, frame: &Frame) {
        self.backlog.extend_from_slice(&frame.encode());
    }

    fn wait(
        &self,
        signals: std::os::fd::BorrowedFd<'_>,
        stdin: std::os::fd::BorrowedFd<'_>,
        stdout: std::os::fd::BorrowedFd<'_>,
    ) -> io::Result<Ready> {
        let mut fds = vec![PollFd::new(signals, PollFlags::POLLIN), PollFd::new(stdin, PollFlags::POLLIN)];
        let readable: Vec<usize> = match self.backlog.len() < BACKLOG {
            true => (0..self.outputs.len()).filter(|i| self.outputs[*i].credit > 0).collect(),
            false => Vec::new(),
        };
        fds.extend(readable.iter().map(|i| PollFd::new(self.outputs[*i].fd.as_fd(), PollFlags::POLLIN)));
        if !self.backlog.is_empty() {
            fds.push(PollFd::new(stdout, PollFlags::POLLOUT));
        }
        let waiting = self.inputs.values().filter(|input| !input.pending.is_empty());
        fds.extend(waiting.map(|input| PollFd::new(input.fd.as_fd(), PollFlags::POLLOUT)));
        // What a command has left is not only read when there is some: that there is none is to be told too.
        let parted = readable.iter().any(|i| self.outputs[*i].left.is_some());
        let limit = if parted { PollTimeout::ZERO } else { PollTimeout::NONE };
        match poll(&mut fds, limit) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let any = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let outputs = readable
            .iter()
            .zip(&fds[2..])
            .filter(|(index, fd)| any(fd) || self.outputs[**index].left.is_some())
            .map(|(index, _)| *index)
            .collect();
        Ok(Ready { signaled: any(&fds[0]), asked: any(&fds[1]), outputs })
    }

    fn read_outputs(&mut self, ready: &[usize], buffer: &mut [u8]) {
        let mut over = Vec::new();
        for index in ready {
            if self.read_output(*index, buffer) {
                over.push(*index);
            }
        }
        for index in over.into_iter().rev() {
            self.outputs.swap_remove(index);
        }
    }

    /// Reads once, or what an ended command has left; answers whether that was the end.
    fn read_output(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        loop {
            let output = &mut self.outputs[index];
            let (kind, id) = (output.kind, output.id);
            let room = buffer.len().min(output.credit);
            if room == 0 {
                return false;
            }
            let n = match nix::unistd::read(&output.fd, &mut buffer[..room]) {
                Err(Errno::EINTR) => continue,
                // Also what still lay in a terminal's queue has been read.
                Err(Errno::EAGAIN) => {
                    output.left = None;
                    return false;
                }
                // `EIO` of a terminal: nobody has it open any more.
                Ok(0) | Err(_) => 0,
                Ok(n) => n,
            };
            output.credit -= n;
            output.left = output.left.and_then(|left| left.checked_sub(n)).filter(|_| n > 0);
            let more = output.left.is_some();
            self.send(&Frame { kind, id, body: buffer[..n].to_vec() });
            if !more {
                return n == 0;
            }
        }
    }

    /// A command has ended: what it had written and nobody has read is read next, as far as it is credited.
    fn part(&mut self, id: u64) {
        self.parting.push(id);
        for output in self.outputs.iter_mut().filter(|output| output.id == id) {
            output.left = Some(LEFT);
        }
    }

    /// Tells of the ended commands all of whose output has been sent.
    fn say_written(&mut self) {
        let outputs = &self.outputs;
        let open = |id: &u64| outputs.iter().any(|output| output.id == *id && output.left.is_some());
        let (open, done): (Vec<u64>, Vec<u64>) =
            std::mem::take(&mut self.parting).into_iter().partition(open);
        self.parting = open;
        for id in done {
            self.say(&Event::Written { id });
        }
    }

    fn feed(&mut self) {
        let mut credits = Vec::new();
        self.inputs.retain(|id, input| {
            if !input.pending.is_empty() {
                match nix::unistd::write(&input.fd, &input.pending) {
                    Ok(n) => {
                        input.pending.drain(..n);
                        credits.push(Frame::credit(Kind::InputCredit, *id, n));
                    }
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    // The command reads no more; what is sent nevertheless is dropped.
                    Err(_) => return false,
                }
            }
            !(input.ended && input.pending.is_empty())
        });
        for credit in credits {
            self.send(&credit);
        }
    }

    fn flush(&mut self, stdout: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
        while !self.backlog.is_empty() {
            match nix::unistd::write(stdout, &self.backlog) {
                Ok(n) => drop(self.backlog.drain(..n)),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn take(&mut self, frame: Frame) {
        let kind = match frame.kind {
            Kind::Said => return self.answer(&frame.body),
            Kind::Input => {
                match self.inputs.get_mut(&frame.id) {
                    Some(input) if frame.body.is_empty() => input.ended = true,
                    Some(input) => input.pending.extend_from_slice(&frame.body),
                    // Who writes must not wait for a command that is gone.
                    None => self.send(&Frame::credit(Kind::InputCredit, frame.id, frame.body.len())),
                }
                return;
            }
            Kind::OutputCredit => Kind::Output,
            Kind::ErrorsCredit => Kind::Errors,
            Kind::Output | Kind::Errors | Kind::InputCredit => return,
        };
        let credited = self.outputs.iter_mut().find(|output| (output.id, output.kind) == (frame.id, kind));
        if let Some(output) = credited {
            output.credit += frame.credited();
        }
    }

    fn answer(&mut self, request: &[u8]) {
        let failed = |id: u64, e: io::Error| Event::Failed { id, message: e.to_string() };
        let event = match serde_json::from_slice(request) {
            Ok(Request::Spawn(spawn)) => {
                let id = spawn.id;
                match self.start(&spawn) {
                    Ok(()) => Event::Spawned { id },
                    Err(e) => failed(id, e),
                }
            }
            Ok(Request::Signal { id, signal }) => {
                if let (Some((pid, _)), Ok(signal)) =
                    (self.running.iter().find(|(_, i)| **i == id), Signal::try_from(signal))
                {
                    helper::signal_session(*pid, signal);
                }
                return;
            }
            Ok(Request::Resize { id, size }) => {
                let terminal = self.outputs.iter().find(|output| output.id == id);
                // One that has gone keeps its size, and nobody is told: an error would be the command's end.
                let _ = terminal.map(|output| terminal::resize(&output.fd, size));
                return;
            }
            Ok(Request::Write { id, path, text, mode }) => match write(&path, &text, mode) {
                Ok(()) => Event::Done { id, found: true },
                Err(e) => failed(id, e),
            },
            Ok(Request::Exists { id, path }) => Event::Done { id, found: path.exists() },
            Ok(Request::OutOfMemory { id }) => {
                let before = std::mem::replace(&mut self.oom_kills, oom_kills());
                Event::Done { id, found: self.oom_kills > before }
            }
            // The engine has put the container where it belongs.
            Ok(Request::Enter { id, .. }) => failed(id, io::Error::other("not in this environment")),
            Err(e) => Event::Unable { message: e.to_string() },
        };
        self.say(&event);
    }

    fn start(&mut self, spawn: &Spawn) -> io::Result<()> {
        let id = spawn.id;
        let mut outputs = Vec::new();
        let mut input = None;
        let io: [Stdio; 3] = match spawn.io {
            Ends::FramedTty { input: typed } => {
                let (ours, theirs) = terminal::pair(Use::Output)?;
                outputs.push((Kind::Output, ours));
                let stdin = if typed { theirs.try_clone()?.into() } else { Stdio::null() };
                [stdin, theirs.try_clone()?.into(), theirs.into()]
            }
            Ends::FramedSession { size } => {
                let (ours, theirs) = terminal::pair(Use::Session(size))?;
                input = Some(Incoming { fd: ours.try_clone()?, pending: Vec::new(), ended: false });
                outputs.push((Kind::Output, ours));
                [theirs.try_clone()?.into(), theirs.try_clone()?.into(), theirs.into()]
            }
            Ends::FramedPipes => {
                let (stdin, ours) = pipe2(OFlag::O_CLOEXEC)?;
                nonblocking(&ours)?;
                input = Some(Incoming { fd: ours, pending: Vec::new(), ended: false });
                let mut theirs = Vec::new();
                for kind in [Kind::Output, Kind::Errors] {
                    let (ours, end) = pipe2(OFlag::O_CLOEXEC)?;
                    nonblocking(&ours)?;
                    outputs.push((kind, ours));
                    theirs.push(Stdio::from(end));
                }
                let errors = theirs.pop().unwrap_or_else(Stdio::null);
                [stdin.into(), theirs.pop().unwrap_or_else(Stdio::null), errors]
            }
            Ends::Tty { .. } | Ends::Session { .. } | Ends::Fifos { .. } => {
                return Err(io::Error::other("the agent's files are not here"));
            }
        };
        let pid = helper::launch(&spawn.exec, &spawn.argv, &spawn.env, io)?;
        self.running.insert(pid, id);
        self.outputs.extend(outputs.into_iter().map(|(kind, fd)| Outgoing {
            id,
            kind,
            fd,
            credit: WINDOW,
            left: None,
        }));
        self.inputs.extend(input.map(|input| (id, input)));
        Ok(())
    }
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// What the container's own control group counts, of either version.
fn oom_kills() -> u64 {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"].iter().map(|group| cgroups::oom_kills(Path::new(group))).sum()
}

/// User, home folder and variables of the container; `HOME` is corrected where it is `/` (execution §11.3).
fn look_around() -> Guest {
    let mut environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let uid = getuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(uid)).then(|| (fields[0].to_owned(), fields.get(5).map(PathBuf::from)))
    });
    let (user, listed) = entry.unwrap_or_else(|| (uid.to_string(), None));
    let given = environment.get("HOME").filter(|home| !home.is_empty() && *home != "/").map(PathBuf::from);
    let fallback = || PathBuf::from(if uid == 0 { "/root" } else { "/" });
    let home = given.or(listed).unwrap_or_else(fallback);
    environment.remove("HOME");
    environment.remove("HOSTNAME");
    Guest { uid, user, data: data_folder(&home), home, environment }
}

/// The first place that may be written. An image made of one program may have no `/tmp`.
fn data_folder(home: &Path) -> PathBuf {
    let fallback = Path::new("/tmp/.gantry").to_owned();
    if !Path::new("/tmp").exists() && fs::create_dir("/tmp").is_ok() {
        let _ = fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777));
    }
    [fallback.clone(), home.join(".gantry"), PathBuf::from("/dev/shm/.gantry")]
        .into_iter()
        .find(|folder| fs::create_dir_all(folder).is_ok())
        .unwrap_or(fallback)
}
