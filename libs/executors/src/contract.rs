//! What every adapter of [`Environment`] must do; each adapter's tests call [`suite`]. The environments need
//! `/bin/sh`, `cat`, `sleep`, `stty` and `head`.

use crate::{Command, Environment, Error, Io, Process, Signal, Size};
use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LIMIT: Duration = Duration::from_secs(30);

/// Makes an environment; called several times.
pub type Make<'a> = &'a dyn Fn() -> std::pin::Pin<Box<dyn Future<Output = Arc<dyn Environment>> + Send>>;

/// Runs the whole suite.
///
/// # Panics
/// The adapter breaks the contract.
pub async fn suite(make: Make<'_>) {
    let environment = make().await;
    facts_hold(&*environment).await;
    a_terminal_changes_no_byte(&*environment).await;
    pipes_carry_everything(&*environment).await;
    exit_codes_tell_what_happened(&*environment).await;
    signals_do_as_they_should(&*environment).await;
    what_nobody_reads_holds_up_nobody(&*environment).await;
    what_a_command_wrote_is_there_when_that_is_said(&*environment).await;
    files_are_written_and_found(&*environment).await;
    an_interactive_shell_waits(&*environment).await;
    a_person_types_at_a_session(&*environment).await;
    the_environment_is_the_whole_one(&*environment).await;
    nothing_is_left(environment).await;
}

fn sh(environment: &dyn Environment, script: &str, io: Io) -> Command {
    let facts = environment.facts();
    let path = facts.environment.get("PATH").cloned().unwrap_or_else(|| "/bin:/usr/bin".to_owned());
    Command {
        argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
        env: vec![("PATH".into(), path), ("HOME".into(), facts.home.display().to_string())],
        dir: facts.home.join("project"),
        make_dir: true,
        io,
    }
}

async fn limited<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

/// All output, then the exit code.
async fn finish(mut process: Process) -> (String, i32) {
    drop(process.input.take());
    let mut bytes = Vec::new();
    let code = limited("a command's end", async {
        process.output.read_to_end(&mut bytes).await.expect("read");
        process.exit.await.expect("an exit code")
    })
    .await;
    (String::from_utf8(bytes).expect("text"), code)
}

/// What a script writes to its terminal, and its exit code.
pub async fn run(environment: &dyn Environment, script: &str) -> (String, i32) {
    finish(environment.spawn(sh(environment, script, Io::Terminal)).await.expect("spawn")).await
}

async fn facts_hold(environment: &dyn Environment) {
    let facts = environment.facts().clone();
    let script = format!(
        "cd && pwd; touch '{}/probe' && echo writable; id -un 2>/dev/null || id -u; '{}/circleci' --version",
        facts.data.display(),
        facts.bin.display()
    );
    let (text, code) = run(environment, &script).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(code, 0, "{text}");
    assert_eq!(lines[..3], [&*facts.home.display().to_string(), "writable", &*facts.user], "{text}");
    assert!(!facts.isolation.is_empty());
}

async fn a_terminal_changes_no_byte(environment: &dyn Environment) {
    let (text, code) = run(
        environment,
        "stty size </dev/stdout; [ -t 1 ] && [ ! -t 0 ] && printf 'a\\nb\\r\\n\\tc\\n'; cat",
    )
    .await;
    assert_eq!((text.as_str(), code), ("24 80\na\nb\r\n\tc\n", 0));
}

async fn pipes_carry_everything(environment: &dyn Environment) {
    let script = "cat; echo to stderr >&2; [ -t 1 ] || echo no terminal >&2";
    let mut process = environment.spawn(sh(environment, script, Io::Pipes)).await.expect("spawn");
    let (mut input, mut errors) =
        (process.input.take().expect("input"), process.errors.take().expect("errors"));
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 % 251) as u8).collect();
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        input.write_all(&copy).await.expect("write");
        input.shutdown().await.expect("close");
    });
    let (mut received, mut text) = (Vec::new(), String::new());
    let code = limited("three megabytes through cat", async {
        process.output.read_to_end(&mut received).await.expect("read");
        errors.read_to_string(&mut text).await.expect("read");
        process.exit.await.expect("an exit code")
    })
    .await;
    writer.await.expect("the writer");
    assert!(received == sent, "{} of {} bytes came back", received.len(), sent.len());
    assert_eq!((text.as_str(), code), ("to stderr\nno terminal\n", 0));

    // A command that reads nothing ends its input.
    let mut process = environment.spawn(sh(environment, "exit 4", Io::Pipes)).await.expect("spawn");
    let mut input = process.input.take().expect("input");
    let code = limited("the end of a command that reads nothing", &mut process.exit).await;
    assert_eq!(code.expect("an exit code"), 4);
    limited("the input's end", async { while input.write_all(&sent).await.is_ok() {} }).await;
}

async fn exit_codes_tell_what_happened(environment: &dyn Environment) {
    assert_eq!(run(environment, "exit 3").await.1, 3);
    assert_eq!(run(environment, "kill -9 $$").await.1, 137);
    let mut missing = sh(environment, "", Io::Terminal);
    missing.argv = vec!["/no/such/program".into()];
    let (text, code) = finish(environment.spawn(missing).await.expect("spawn")).await;
    assert_eq!(code, 127, "{text}");
    assert!(text.contains("/no/such/program"), "{text}");
    let mut nowhere = sh(environment, "echo not reached", Io::Terminal);
    (nowhere.dir, nowhere.make_dir) = (PathBuf::from("/no/such/folder"), false);
    let (text, code) = finish(environment.spawn(nowhere).await.expect("spawn")).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("/no/such/folder"), "{text}");
}

/// No signal is blocked or ignored, whoever started the agent, and each reaches the whole session.
///
/// # Panics
/// The adapter breaks the contract.
pub async fn signals_do_as_they_should(environment: &dyn Environment) {
    let (text, _) = run(environment, "grep -E '^Sig(Blk|Ign)' /proc/self/status").await;
    for line in text.lines() {
        let mask = line.split_whitespace().next_back().and_then(|mask| u64::from_str_radix(mask, 16).ok());
        // Beyond 31 are those of the C library and of real time, which no program of a step is to know. Busybox's shell
        // ignores SIGQUIT by itself.
        let ours = 0x7fff_ffff & !(1 << (Signal::SIGQUIT as u64 - 1));
        assert_eq!(mask.map(|mask| mask & ours), Some(0), "of a command: {line}");
    }
    assert_eq!(text.lines().count(), 2, "{text}");
    signals_reach_the_session(environment).await;
}

async fn signals_reach_the_session(environment: &dyn Environment) {
    let script = "sh -c 'trap \"echo child; exit 0\" TERM; echo up; while :; do sleep 0.05; done' & trap 'wait; exit 5' TERM; wait";
    let mut process = environment.spawn(sh(environment, script, Io::Terminal)).await.expect("spawn");
    let mut first = [0u8; 3];
    limited("the child", process.output.read_exact(&mut first)).await.expect("read");
    environment.signal(process.id, Signal::SIGTERM).await;
    let (text, code) = finish(process).await;
    assert!(text.ends_with("child\n") && code == 5, "{code}: {text}");
}

async fn what_nobody_reads_holds_up_nobody(environment: &dyn Environment) {
    let loud = environment.spawn(sh(environment, "cat /dev/zero", Io::Terminal)).await.expect("spawn");
    for _ in 0..3 {
        assert_eq!(run(environment, "echo still here").await, ("still here\n".to_owned(), 0));
    }
    environment.signal(loud.id, Signal::SIGKILL).await;
    assert_eq!(limited("the loud one's end", loud.exit).await.expect("an exit code"), 137);
    // What a command leaves running may go on writing.
    let script = "while :; do echo on; done & echo left";
    let mut left = environment.spawn(sh(environment, script, Io::Terminal)).await.expect("spawn");
    assert_eq!(limited("the end of its parent", left.exit).await.expect("an exit code"), 0);
    let mut buffer = [0u8; 4096];
    for _ in 0..100 {
        assert!(limited("what is left", left.output.read(&mut buffer)).await.expect("read") > 0);
    }
    assert_eq!(run(environment, "echo and here").await, ("and here\n".to_owned(), 0));
}

async fn what_a_command_wrote_is_there_when_that_is_said(environment: &dyn Environment) {
    // Something is left that has the output open, so that its end tells nothing.
    for _ in 0..20 {
        let script = "sleep 1000 & printf '%03000d' 7";
        let mut process = environment.spawn(sh(environment, script, Io::Terminal)).await.expect("spawn");
        assert_eq!(limited("its end", process.exit).await.expect("an exit code"), 0);
        limited("word of its output", process.written).await.expect("word");
        assert_eq!(at_once(&mut process.output).await, 3000);
    }
    // More than the terminal holds, or may be under way: that waits until it is read.
    let script = "sleep 1000 & head -c 1000000 /dev/zero";
    let mut process = environment.spawn(sh(environment, script, Io::Terminal)).await.expect("spawn");
    let (mut buffer, mut read) = (vec![0u8; 64 * 1024], 0);
    limited("a megabyte", async {
        loop {
            tokio::select! {
                n = process.output.read(&mut buffer) => read += n.expect("read"),
                word = &mut process.written => break word.expect("word"),
            }
        }
    })
    .await;
    assert_eq!(read + at_once(&mut process.output).await, 1_000_000);
}

/// Bytes that can be read without waiting.
async fn at_once(output: &mut crate::Output) -> usize {
    let (mut buffer, mut read) = (vec![0u8; 64 * 1024], 0);
    while let Ok(n) = tokio::time::timeout(Duration::ZERO, output.read(&mut buffer)).await {
        let n = n.expect("read");
        assert!(n > 0, "the output ended");
        read += n;
    }
    read
}

async fn files_are_written_and_found(environment: &dyn Environment) {
    let path = environment.facts().data.join("folder/script");
    assert!(!environment.exists(&path).await.expect("look"));
    environment.write(&path, "echo $0 runs\n", 0o755).await.expect("write");
    environment.write(&path, "echo it runs\n", 0o755).await.expect("write again");
    assert!(environment.exists(&path).await.expect("look"));
    assert_eq!(run(environment, &format!("sh {}", path.display())).await, ("it runs\n".to_owned(), 0));
    let (text, code) = run(environment, &format!("echo more >> {0} && rm {0}", path.display())).await;
    assert_eq!(code, 0, "the task's user owns the file: {text}");
    assert!(!environment.exists(&path).await.expect("look"));
}

/// Reads until the text is there.
async fn read_until(output: &mut crate::Output, text: &mut String, wanted: &str) {
    let mut buffer = [0u8; 4096];
    while !text.contains(wanted) {
        let n = limited(wanted, output.read(&mut buffer)).await.expect("read");
        assert!(n > 0, "the terminal closed before {wanted:?} in {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

async fn a_person_types_at_a_session(environment: &dyn Environment) {
    let size = Size { columns: 101, rows: 31 };
    let mut command = sh(environment, "", Io::Session(size));
    command.argv.truncate(1);
    let mut shell = environment.spawn(command).await.expect("spawn");
    let (mut text, mut input) = (String::new(), shell.input.take().expect("a keyboard"));
    let resize = shell.resize.take().expect("a size");
    input.write_all(b"stty size; echo o''ne\n").await.expect("type");
    read_until(&mut shell.output, &mut text, "one\r\n").await;
    assert!(text.contains("31 101\r\n"), "{text:?}");
    resize(Size { columns: 132, rows: 50 });
    input.write_all(b"stty size; echo t''wo\n").await.expect("type");
    read_until(&mut shell.output, &mut text, "two\r\n").await;
    assert!(text.contains("50 132\r\n"), "{text:?}");
    // Keys send signals, to what is in the foreground alone: which says itself that it is.
    input.write_all(b"sh -c 'echo wai\"\"ts; exec sleep 1000'\n").await.expect("type");
    read_until(&mut shell.output, &mut text, "waits\r\n").await;
    input.write_all(b"\x03").await.expect("type");
    input.write_all(b"echo t''hree; exit 5\n").await.expect("type");
    read_until(&mut shell.output, &mut text, "three\r\n").await;
    assert_eq!(limited("the shell's end", shell.exit).await, Ok(5));

    // Who leaves hangs up.
    let script = "trap 'exit 3' HUP; echo up; while :; do sleep 0.05; done";
    let command = sh(environment, script, Io::Session(Size::default()));
    let mut waits = environment.spawn(command).await.expect("spawn");
    read_until(&mut waits.output, &mut String::new(), "up").await;
    environment.signal(waits.id, Signal::SIGHUP).await;
    assert_eq!(limited("the end of who was hung up", waits.exit).await, Ok(3));
}

async fn an_interactive_shell_waits(environment: &dyn Environment) {
    let mut command = sh(environment, "", Io::Interactive);
    command.argv.truncate(1);
    let shell = environment.spawn(command).await.expect("spawn");
    assert_eq!(run(environment, "sleep 0.2; echo later").await.1, 0);
    environment.signal(shell.id, Signal::SIGKILL).await;
    let code = limited("the shell's end", shell.exit).await.expect("an exit code");
    assert_eq!(code, 137, "it did not end by itself");
}

async fn the_environment_is_the_whole_one(environment: &dyn Environment) {
    let mut command = sh(environment, "env", Io::Terminal);
    command.env.push(("ODD".into(), "two\nlines = 'and' \"quotes\"".into()));
    let (text, _) = finish(environment.spawn(command).await.expect("spawn")).await;
    assert!(text.contains("ODD=two\nlines = 'and' \"quotes\"\n"), "{text}");
    let names: Vec<&str> =
        text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    for name in names {
        let known = ["PATH", "HOME", "ODD", "PWD", "SHLVL", "OLDPWD", "_", "lines "].contains(&name);
        assert!(known, "{name} came from elsewhere");
    }
}

/// What the children of a shell left in sessions of their own.
async fn nothing_is_left(environment: Arc<dyn Environment>) {
    // Of this environment alone: others are tested at the same time.
    static MARKS: AtomicU32 = AtomicU32::new(0);
    let mark = format!("86399.{}{:03}", std::process::id(), MARKS.fetch_add(1, Ordering::Relaxed));
    let script = format!("setsid sleep {mark} & sleep {mark} & echo $!; wait");
    let mut process = environment.spawn(sh(&*environment, &script, Io::Terminal)).await.expect("spawn");
    let mut byte = [0u8; 1];
    limited("the sleepers", process.output.read_exact(&mut byte)).await.expect("read");
    let began = Instant::now();
    while sleepers(&mark) < 2 {
        assert!(began.elapsed() < LIMIT, "the sleepers do not run");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    limited("the end", environment.end()).await;
    assert_eq!(sleepers(&mark), 0, "processes outlive their environment");
    // Its code was lost or it was killed; it does not go on.
    assert!(limited("the exit", process.exit).await.is_ok_and(|code| code != 0) || sleepers(&mark) == 0);
    let refused = environment.spawn(sh(&*environment, "echo no", Io::Terminal)).await;
    assert!(matches!(refused, Err(Error::Lost)), "nothing starts after the end");
    environment.end().await;
    environment.remove().await;
    environment.remove().await;
}

/// Processes of this machine, those in containers included, that sleep for so long.
fn sleepers(mark: &str) -> usize {
    let marked = |pid: &str| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
            line.split(|b| *b == 0).collect::<Vec<_>>().starts_with(&[b"sleep", mark.as_bytes()])
        })
    };
    fs::read_dir("/proc")
        .expect("processes")
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(marked))
        .count()
}
