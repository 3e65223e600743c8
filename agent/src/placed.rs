//! An agent that a cluster's scheduler started: it has a folder, the identity that the scheduler gave to it, and what the
//! suite says about the start in its environment. With the identity it asks for its one-time token, so that none lies in
//! the description of its job (security §13).

use crate::{
    client::{Call, Client},
    control::{backoff, decode, encode},
    state, task,
};
use agent_api::{Identified, Identify, LAUNCH_FILE, LAUNCH_VARIABLE, LaunchFile};
use anyhow::Context;
use hyper::Method;
use std::{os::unix::fs::DirBuilderExt, path::Path, time::Duration};

/// Runs the task that the agent was started for to its end. Returns the exit code of the process.
pub fn run(dir: &Path, identity: &Path) -> i32 {
    crate::to_the_end(async move {
        prepare(dir, identity).await?;
        task::run(dir).await
    })
}

/// Makes the folder as compute leaves it on a machine of its own.
async fn prepare(dir: &Path, identity: &Path) -> anyhow::Result<()> {
    if dir.join(LAUNCH_FILE).exists() {
        return Ok(());
    }
    let text = std::env::var(LAUNCH_VARIABLE)
        .with_context(|| format!("{LAUNCH_VARIABLE} says how an agent is started, and is not set"))?;
    let mut launch: LaunchFile =
        serde_json::from_str(&text).with_context(|| format!("{LAUNCH_VARIABLE} cannot be read"))?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("the folder {} cannot be made", dir.display()))?;
    launch.token = token(&Client::new(&launch.endpoint)?, identity).await?;
    state::keep(dir, LAUNCH_FILE, &launch, false)?;
    Ok(())
}

/// Asks until there is an answer: the suite may be restarting. The identity is read anew each time, because it is renewed.
async fn token(client: &Client, identity: &Path) -> anyhow::Result<String> {
    for pause in backoff(client) {
        let proof = std::fs::read_to_string(identity)
            .with_context(|| format!("the identity {} cannot be read", identity.display()))?;
        let call = Call {
            method: Method::POST,
            path: "/v1/placement",
            bearer: None,
            header: None,
            body: encode(&Identify { proof: proof.trim().to_owned() }),
            timeout: Duration::from_secs(10),
        };
        match client.call(call).await {
            Ok(answer) => return Ok(decode::<Identified>(&answer)?.token),
            Err(failure) if failure.is_temporary() => {
                tracing::warn!(error = %failure, "there is no token for the task yet");
            }
            Err(failure) => return Err(failure).context("there is no token for this agent"),
        }
        tokio::time::sleep(pause).await;
    }
    anyhow::bail!("the pauses between requests never end")
}
