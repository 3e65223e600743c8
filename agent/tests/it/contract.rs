//! The contract of environments, held by the agent's own program as helper.

use executors::{Environment, Error, Isolation, Options, Sandbox};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_gantry-runner");
static COUNT: AtomicU32 = AtomicU32::new(0);

fn options(scratch: &Path, isolation: Isolation) -> Options {
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let short = PathBuf::from(format!("/tmp/gantry-contract-{}-{number}", std::process::id()));
    let work = scratch.join(format!("work-{number}"));
    std::fs::create_dir_all(&work).unwrap();
    Options {
        program: PathBuf::from(PROGRAM),
        isolation,
        work,
        place: short.clone(),
        own_place: short,
        hide: Vec::new(),
        cgroup: None,
    }
}

async fn holds(isolation: Isolation) {
    let scratch = tempfile::tempdir().unwrap();
    let place = std::sync::Mutex::new(None);
    executors::contract::suite(&|| {
        let options = options(scratch.path(), isolation);
        *place.lock().unwrap() = Some(options.place.clone());
        Box::pin(async move {
            let sandbox = Sandbox::start(options).await.expect("a sandbox");
            Arc::new(sandbox) as Arc<dyn Environment>
        })
    })
    .await;
    let place = place.into_inner().unwrap().expect("a place");
    let left = std::fs::read_dir(&place).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{} is not empty", place.display());
    let _ = std::fs::remove_dir(place);
}

#[tokio::test]
async fn a_sandbox_of_the_machine_holds_the_contract() {
    holds(Isolation::None).await;
}

/// A server that was started under `nohup`, or by what ignores signals for another reason.
#[tokio::test]
async fn a_sandbox_below_what_ignores_signals_holds_the_contract() {
    let scratch = tempfile::tempdir().unwrap();
    let program = scratch.path().join("deaf");
    let script = format!("#!/bin/sh\ntrap '' HUP INT QUIT TERM USR1\nexec {} \"$@\"\n", PROGRAM);
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let options = Options { program, ..options(scratch.path(), Isolation::None) };
    let place = options.place.clone();
    let sandbox: Arc<dyn Environment> = Arc::new(Sandbox::start(options).await.expect("a sandbox"));
    executors::contract::signals_do_as_they_should(&*sandbox).await;
    sandbox.end().await;
    sandbox.remove().await;
    let _ = std::fs::remove_dir(place);
}

#[tokio::test]
async fn a_sandbox_of_another_user_holds_the_contract() {
    if nix::unistd::geteuid().is_root() {
        holds(Isolation::User(executors::Identity { uid: 65534, gid: 65534 })).await;
    } else {
        eprintln!("NOT TESTED: only root can run commands as another user");
    }
}

/// The agent's program is one file for all tasks of a machine, and steps may have its owner's rights.
#[tokio::test]
async fn a_sandbox_with_hidden_folders_holds_the_contract_and_keeps_the_agent_as_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    let hidden = scratch.path().join("hidden");
    std::fs::create_dir(&hidden).unwrap();
    std::fs::write(hidden.join("token"), "secret").unwrap();
    let program = hidden.join("gantry-runner");
    std::fs::copy(PROGRAM, &program).unwrap();
    let options = Options {
        program: program.clone(),
        hide: vec![hidden.clone()],
        ..options(scratch.path(), Isolation::Namespace)
    };
    let sandbox: Arc<dyn Environment> = match Sandbox::start(options).await {
        Ok(sandbox) => Arc::new(sandbox),
        Err(Error::Isolation(why)) => {
            eprintln!("NOT TESTED: namespaces cannot be had here: {why}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let script = format!(
        "cat '{}/token' 2>/dev/null; cd '{}' && for try in 'echo >>' 'chmod 700' 'rm -f' 'touch'; do \
         eval \"$try gantry-runner\" 2>/dev/null && echo \"$try\"; done; ./circleci --version",
        hidden.display(),
        sandbox.facts().bin.display()
    );
    let (text, code) = executors::contract::run(&*sandbox, &script).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(env!("CARGO_PKG_VERSION")) && text.lines().count() == 1, "{text}");
    assert_eq!(std::fs::read(&program).unwrap(), std::fs::read(PROGRAM).unwrap());
    sandbox.end().await;
    sandbox.remove().await;
    holds(Isolation::Namespace).await;
}
