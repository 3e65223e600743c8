//! What every adapter of [`Compute`] must do; each adapter's tests call [`suite`].

use crate::{Compute, Demand, Placement};
use ids::TaskId;
use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Makes an adapter that starts the given program as agent. Called twice with one program it makes two adapters
/// over the same machine, as before and after a restart of the server.
pub type Make<'a> = &'a dyn Fn(&Path) -> Arc<dyn Compute>;

/// Runs the whole suite. `scratch` is an empty folder that agents can write.
///
/// # Panics
/// The adapter breaks the contract.
pub async fn suite(make: Make<'_>, scratch: &Path) {
    starting_twice_starts_once(make, &fresh(scratch, "twice")).await;
    stopping_ends_what_the_agent_left(make, &fresh(scratch, "stop")).await;
    the_next_server_adopts(make, &fresh(scratch, "adopt")).await;
    an_ended_agent_is_known_as_ended(make, &fresh(scratch, "ended")).await;
    strangers_are_no_error(make, &fresh(scratch, "strangers")).await;
}

fn fresh(scratch: &Path, name: &str) -> PathBuf {
    let folder = scratch.join(name);
    fs::create_dir_all(&folder).expect("scratch folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("scratch folder");
    folder
}

/// A program that notes its start in `starts`, leaves a child in a session of its own, and then does `then`.
fn agent(folder: &Path, then: &str) -> PathBuf {
    let program = folder.join("agent.sh");
    let script = format!(
        "#!/bin/sh\necho $$ >> '{0}/starts'\nsetsid sh -c 'echo $$ > \"{0}/left\"; exec sleep 600' &\n{then}\n",
        folder.display()
    );
    fs::write(&program, script).expect("write the script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("make it executable");
    program
}

fn placement() -> Placement {
    let task_id = TaskId::new();
    let demand = Demand {
        executor: "machine".to_owned(),
        class: "medium".to_owned(),
        cpu_millis: Some(100),
        memory_bytes: Some(32 << 20),
    };
    Placement { name: Placement::name_of(task_id, 1), task_id, epoch: 1, token: "token".to_owned(), demand }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let asked = Instant::now();
    while !holds() {
        assert!(asked.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn alive(compute: &dyn Compute, name: &str) -> Option<bool> {
    compute
        .list()
        .await
        .expect("list")
        .into_iter()
        .find(|running| running.name == name)
        .map(|running| running.alive())
}

/// A placement that ended is known as that until it is removed.
async fn becomes_ended(compute: &dyn Compute, name: &str) {
    let asked = Instant::now();
    loop {
        match alive(compute, name).await {
            Some(false) => return,
            known => assert!(known.is_some(), "a placement that ended is still known"),
        }
        assert!(asked.elapsed() < Duration::from_secs(30), "an agent that ended does not stay alive");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn starts(folder: &Path) -> usize {
    fs::read_to_string(folder.join("starts")).map_or(0, |text| text.lines().count())
}

fn left(folder: &Path) -> Option<u32> {
    fs::read_to_string(folder.join("left")).ok()?.trim().parse().ok()
}

/// Whether the process runs; a zombie does not.
fn process_runs(pid: u32) -> bool {
    let stat: io::Result<String> = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| {
        !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
    })
}

async fn starting_twice_starts_once(make: Make<'_>, folder: &Path) {
    let compute = make(&agent(folder, "exec sleep 600"));
    let placement = placement();
    let (one, two) = tokio::join!(compute.start(&placement), compute.start(&placement));
    one.expect("start");
    two.expect("start again");
    until("the agent starts", || left(folder).is_some()).await;
    compute.start(&placement).await.expect("start once more");
    assert_eq!(alive(&*compute, &placement.name).await, Some(true));
    assert_eq!(starts(folder), 1, "one agent was started");
    compute.remove(&placement.name).await.expect("remove");
    assert_eq!(alive(&*compute, &placement.name).await, None, "a removed placement is forgotten");
}

async fn stopping_ends_what_the_agent_left(make: Make<'_>, folder: &Path) {
    let compute = make(&agent(folder, "while [ ! -s starts.done ]; do sleep 0.05; done"));
    let placement = placement();
    compute.start(&placement).await.expect("start");
    until("the agent leaves a child", || left(folder).is_some()).await;
    let child = left(folder).expect("its number");
    assert!(process_runs(child));
    compute.stop(&placement.name).await.expect("stop");
    until("the child is gone", || !process_runs(child)).await;
    becomes_ended(&*compute, &placement.name).await;
    compute.stop(&placement.name).await.expect("stop again");
    compute.remove(&placement.name).await.expect("remove");
}

async fn the_next_server_adopts(make: Make<'_>, folder: &Path) {
    let program = agent(folder, "exec sleep 600");
    let placement = placement();
    let before = make(&program);
    before.start(&placement).await.expect("start");
    until("the agent starts", || left(folder).is_some()).await;
    drop(before);
    let after = make(&program);
    assert_eq!(alive(&*after, &placement.name).await, Some(true), "the agent outlives the server");
    after.start(&placement).await.expect("start again");
    assert_eq!(starts(folder), 1, "it is not started a second time");
    let child = left(folder).expect("its number");
    after.remove(&placement.name).await.expect("remove");
    until("the child is gone", || !process_runs(child)).await;
    assert_eq!(alive(&*after, &placement.name).await, None);
}

async fn an_ended_agent_is_known_as_ended(make: Make<'_>, folder: &Path) {
    // Not before it has left its child: some adapters end that with the agent.
    let compute = make(&agent(
        folder,
        &format!("while [ ! -s '{}/left' ]; do sleep 0.05; done; exit 3", folder.display()),
    ));
    let placement = placement();
    compute.start(&placement).await.expect("start");
    becomes_ended(&*compute, &placement.name).await;
    let child = left(folder).expect("its number");
    compute.remove(&placement.name).await.expect("remove");
    until("what it left is gone", || !process_runs(child)).await;
}

async fn strangers_are_no_error(make: Make<'_>, folder: &Path) {
    let compute = make(&agent(folder, "exit 0"));
    compute.stop("task-unknown-1").await.expect("stopping what never ran");
    compute.remove("task-unknown-1").await.expect("removing what never ran");
    compute.remove("../outside").await.expect_err("a name that leaves its folder is refused");
}
