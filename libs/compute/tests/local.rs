//! The local adapter: the contract, and what is its own.

use gantry_compute::{Compute, Demand, Local, LocalConfig, Placement, contract};
use ids::TaskId;
use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

fn config(data: &Path, agent: &Path, cgroups: bool) -> LocalConfig {
    LocalConfig {
        data: data.to_owned(),
        agent: agent.to_owned(),
        endpoint: "unix:/nowhere/agent.sock".to_owned(),
        isolation: "none".to_owned(),
        job_user: None,
        hide: vec![data.to_owned()],
        cgroups,
        ssh: None,
    }
}

async fn contract_holds(cgroups: bool) {
    let data = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let make = |program: &Path| -> Arc<dyn Compute> {
        Arc::new(Local::open(config(data.path(), program, cgroups)).unwrap())
    };
    contract::suite(&make, scratch.path()).await;
}

#[tokio::test]
async fn contract_with_cgroups_where_they_can_be_had() {
    contract_holds(true).await;
}

#[tokio::test]
async fn contract_without_cgroups() {
    contract_holds(false).await;
}

#[tokio::test]
async fn the_launch_file_is_private_and_undelivered_output_is_kept() {
    let data = tempfile::tempdir().unwrap();
    let compute = Local::open(config(data.path(), Path::new("/bin/true"), false)).unwrap();
    let task_id = TaskId::new();
    let name = Placement::name_of(task_id, 2);
    let placement = Placement {
        name: name.clone(),
        task_id,
        epoch: 2,
        token: "one-time".to_owned(),
        demand: Demand::default(),
    };
    compute.start(&placement).await.unwrap();
    let folder = data.path().join("tasks").join(&name);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join(agent_api::LAUNCH_FILE)), 0o600);
    let launch: agent_api::LaunchFile =
        serde_json::from_slice(&fs::read(folder.join(agent_api::LAUNCH_FILE)).unwrap()).unwrap();
    assert_eq!(launch.token, "one-time");

    fs::create_dir_all(folder.join("spool")).unwrap();
    fs::write(folder.join("spool/1"), "bytes").unwrap();
    compute.remove(&name).await.unwrap();
    let listed = compute.list().await.unwrap();
    assert!(listed.iter().any(|running| running.name == name && running.unsent && !running.alive()));
    fs::remove_file(folder.join("spool/1")).unwrap();
    compute.remove(&name).await.unwrap();
    assert!(compute.list().await.unwrap().is_empty());
}
