//! `gantry job ssh`: reruns a job with SSH and enters it.

use super::{log::actions, text, user_key};
use crate::{Client, Exit, Failure, Global, place};
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};
use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

/// A server that says nothing for so long is asked anyway.
const QUIET: Duration = Duration::from_secs(5);
/// The name of the step that says how to connect.
const STEP: &str = "Enable SSH";
/// What the host is called while it is known by its key alone: its address will be another job's.
const ALIAS: &str = "gantry-job";

/// What is asked for.
pub(super) struct Wanted {
    /// Number of the job.
    pub(super) number: i64,
    /// Its parallel index.
    pub(super) node: u64,
    /// Whether the command is printed and not run.
    pub(super) print: bool,
    /// The private key to show; none: those that `ssh` tries by itself.
    pub(super) identity: Option<PathBuf>,
    /// What is run there; none: a shell.
    pub(super) command: Vec<String>,
}

/// How to connect, as the step says.
#[derive(Debug, PartialEq)]
struct Address {
    port: u16,
    host: String,
    /// The host's public key.
    key: String,
}

/// Refuses who could not enter what they ask for.
pub(super) async fn has_key(client: &Client) -> Result<(), Failure> {
    let keys = client.get(user_key::PATH).await?;
    if keys.as_array().is_none_or(Vec::is_empty) {
        let message = "you have no SSH key registered, so that you could not enter the job; register one: \
                       gantry user-key add ~/.ssh/id_ed25519.pub";
        return Err(Failure::new(Exit::Conflict, message));
    }
    Ok(())
}

pub(super) async fn run(global: &Global, wanted: Wanted) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let slug = place::project(global).await?;
    has_key(&client).await?;
    let mut build = client.get(&format!("/api/v1.1/project/{slug}/{}", wanted.number)).await?;
    // One that runs and can be entered is: nothing is rerun for a second session.
    let open = text(&build, "lifecycle") == "running"
        && actions(&client, &slug, wanted.number).await?.iter().any(|action| text(action, "name") == STEP);
    if !open {
        build = client.post(&format!("/api/v1.1/project/{slug}/{}/ssh", wanted.number), &json!({})).await?;
        eprintln!(
            "Rerunning {} with SSH; waiting for its environment.",
            super::cell(&build, "workflows.job_name")
        );
    }
    let address = wait(&client, &slug, &build, wanted.node).await?;
    if wanted.print {
        if global.json {
            println!("{}", json!({ "host": address.host, "port": address.port, "host_key": address.key }));
        } else {
            println!("ssh -p {} {}", address.port, address.host);
        }
        return Ok(Exit::Success);
    }
    enter(&address, &wanted)
}

/// Waits until the job says how to connect.
async fn wait(client: &Client, slug: &str, build: &Value, node: u64) -> Result<Address, Failure> {
    let workflow = super::cell(build, "workflows.workflow_id");
    let job = super::cell(build, "workflows.job_id");
    let pipeline = client.get(&format!("/api/v2/workflow/{workflow}")).await?;
    let query = "subscription($id: ID!) { pipeline(id: $id) { id } }";
    let id = json!({ "id": text(&pipeline, "pipeline_id") });
    let mut nudges = std::pin::pin!(client.subscribe(query, id.clone()).await?);
    loop {
        let jobs = client.items(&format!("/api/v2/workflow/{workflow}/job"), 100_000).await?;
        let found = jobs.iter().find(|found| text(found, "id") == job).unwrap_or(&Value::Null);
        if let Some(number) = found.get("job_number").and_then(Value::as_i64) {
            let actions = actions(client, slug, number).await?;
            let step = actions.iter().find(|action| {
                text(action, "name") == STEP && action.get("index").and_then(Value::as_u64) == Some(node)
            });
            match step.map(|step| (text(step, "status"), text(step, "step_id"))) {
                Some(("success", id)) => {
                    if let Some(address) = parse(&said(client, id).await?) {
                        eprintln!("Job {number} can be entered.");
                        return Ok(address);
                    }
                }
                Some(("failed", id)) => {
                    return Err(Failure::new(Exit::Failed, said(client, id).await?.trim().to_owned()));
                }
                _ => {}
            }
        }
        if found.get("stopped_at").is_some_and(|at| !at.is_null()) {
            let message = format!(
                "the job ended ({}) and said nothing of SSH; `gantry log` shows why",
                text(found, "status")
            );
            return Err(Failure::new(Exit::Failed, message));
        }
        match tokio::time::timeout(QUIET, nudges.next()).await {
            Ok(Some(_)) => while nudges.next().now_or_never().flatten().is_some() {},
            Err(_) => {}
            Ok(None) => nudges.set(client.subscribe(query, id.clone()).await?),
        }
    }
}

/// What a step has written.
async fn said(client: &Client, step: &str) -> Result<String, Failure> {
    let mut bytes = std::pin::pin!(client.bytes(&format!("/logs/{step}/raw")).await?);
    let mut all = Vec::new();
    while let Some(part) = bytes.next().await {
        all.extend_from_slice(&part?);
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

fn parse(text: &str) -> Option<Address> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("$ ssh -p "))?;
    let (port, host) = line.split_once(' ')?;
    let key = text.lines().map(str::trim).find(|line| line.starts_with("ssh-ed25519 "))?;
    Some(Address { port: port.parse().ok()?, host: host.to_owned(), key: key.to_owned() })
}

/// Runs `ssh`, which knows the host by the key that the server told and asks nobody. How it ended is said.
fn enter(address: &Address, wanted: &Wanted) -> Result<Exit, Failure> {
    let unusable = |error: std::io::Error| Failure::new(Exit::Usage, format!("ssh cannot be run: {error}"));
    let mut known = tempfile::NamedTempFile::new().map_err(unusable)?;
    writeln!(known, "{ALIAS} {}", address.key).map_err(unusable)?;
    let mut command = Command::new("ssh");
    if let Some(identity) = &wanted.identity {
        command.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(identity);
    }
    let status = command
        .args(["-p", &address.port.to_string(), "-o", "StrictHostKeyChecking=yes", "-o"])
        .arg(format!("UserKnownHostsFile={}", known.path().display()))
        .args(["-o", &format!("HostKeyAlias={ALIAS}"), &address.host])
        .args(&wanted.command)
        .stdin(Stdio::inherit())
        .status()
        .map_err(unusable)?;
    match status.code() {
        Some(0) => Ok(Exit::Success),
        code => {
            drop(known);
            let code = code.map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
            Err(Failure::new(Exit::Failed, format!("ssh ended with {code}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_step_says_is_read() {
        let text = "ada can enter this job with the keys below, as any user:\n\n    $ ssh -p 64600 ci.example\n\n\
                    ED25519 key fingerprint of the host is\n    SHA256:abc\nand the key itself\n    ssh-ed25519 AAAA\n\n\
                    Keys that are accepted:\n    SHA256:def ada\n";
        let address = parse(text).unwrap();
        assert_eq!(
            address,
            Address { port: 64600, host: "ci.example".into(), key: "ssh-ed25519 AAAA".into() }
        );
        assert_eq!(parse("Nobody can enter this job"), None);
    }
}
