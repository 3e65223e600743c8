//! Rows whose victims are agents, and who starts them.

use crate::world::Case;
use anyhow::Context;
use gantry_e2e::until;
use nix::sys::signal::{Signal, kill};
use std::time::Duration;

/// F15: an agent that Nomad started is part of its job: that job ends as lost with its lease, the others go on.
pub async fn killed(case: &Case<'_>) -> anyhow::Result<()> {
    let found = until("an agent", Duration::from_secs(60), || async {
        let found = case.world.stack.agents();
        Ok((!found.is_empty()).then_some(found))
    })
    .await?;
    let victim = found[case.draw(found.len())];
    kill(victim, Signal::SIGKILL)?;
    case.may_lose(1);
    case.saw(format!("one of {} agents killed", found.len()));
    case.back();
    Ok(())
}

/// F35: what runs goes on and renews without Nomad; what is new waits.
pub async fn nomad_away(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    let signal = case.pick(&["KILL", "INT", "STOP"]);
    stack.stop("nomad", signal).await?;
    case.saw(format!("SIG{signal} to nomad, {} jobs begun", case.ran()?));
    case.push_meanwhile().await;
    case.read_log().await;
    case.last().await;
    case.none_failed().await;
    case.back();
    stack.start("nomad").await
}

/// F36: Nomad starts no second copy of what a client runs, whether the client alone is gone, its machine with all that runs
/// there, or it is drained.
pub async fn client_gone(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    let client = case.pick(&["1", "2"]);
    let name = format!("nomad-client_{client}");
    match case.pick(&["killed", "lost", "drained"]) {
        "drained" => {
            // Its agents are told to end, and say so.
            let node = node(case, client).await?;
            case.may_lose(stack.agents_of(client).len());
            let drain = ["node", "drain", "-enable", "-deadline=2s", "-yes", "-detach", node.as_str()];
            stack.nomad(&drain).await?;
            case.saw(format!("{name} drained, {} jobs begun", case.ran()?));
            case.last().await;
            case.back();
            stack.nomad(&["node", "drain", "-disable", "-yes", node.as_str()]).await?;
            return Ok(());
        }
        "lost" => {
            stack.stop(&name, "KILL").await?;
            let lost = stack.agents_of(client);
            for agent in &lost {
                let _ = kill(*agent, Signal::SIGKILL);
            }
            case.may_lose(lost.len());
            case.saw(format!("{name} killed with its {} agents, {} jobs begun", lost.len(), case.ran()?));
        }
        _ => {
            stack.stop(&name, "KILL").await?;
            case.saw(format!("{name} killed, {} jobs begun", case.ran()?));
        }
    }
    case.push_meanwhile().await;
    case.last().await;
    case.back();
    stack.start(&name).await
}

/// Nomad's name for a client.
async fn node(case: &Case<'_>, client: &str) -> anyhow::Result<String> {
    let said: serde_json::Value =
        serde_json::from_str(&case.world.stack.nomad(&["node", "status", "-json"]).await?)?;
    let name = format!("client_{client}");
    let node = said.as_array().into_iter().flatten().find(|node| node["Name"] == name.as_str());
    Ok(node.and_then(|node| node["ID"].as_str()).with_context(|| format!("no {name}: {said}"))?.to_owned())
}
