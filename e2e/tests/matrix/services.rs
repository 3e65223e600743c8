//! Rows whose victims are processes of the suite.

use crate::world::{Case, LIMITED, within};
use anyhow::{Context, ensure};
use serde_json::json;
use std::time::{Duration, Instant};

/// Kills a process and starts it at once.
async fn killed(case: &Case<'_>, role: &str) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    let names = stack.of(role)?;
    let name = &names[case.draw(names.len())];
    stack.stop(name, "KILL").await?;
    case.saw(format!("{name} killed, {} jobs begun", case.ran()?));
    case.back();
    stack.start(name).await
}

/// Takes all processes of some roles away by a signal that the seed gives; what it was.
async fn gone(case: &Case<'_>, roles: &[&str]) -> anyhow::Result<Vec<String>> {
    let signal = case.pick(&["KILL", "TERM", "STOP"]);
    let mut gone = Vec::new();
    for role in roles {
        for name in case.world.stack.of(role)? {
            case.world.stack.stop(&name, signal).await?;
            gone.push(name);
        }
    }
    case.saw(format!("SIG{signal} to {}", gone.join(", ")));
    Ok(gone)
}

async fn return_of(case: &Case<'_>, gone: &[String]) -> anyhow::Result<()> {
    case.back();
    for name in gone {
        case.world.stack.start(name).await?;
    }
    Ok(())
}

/// How many jobs began while something was away.
async fn began_meanwhile(case: &Case<'_>, during: impl Future<Output = ()>) -> anyhow::Result<usize> {
    let before = case.ran()?;
    during.await;
    Ok(case.ran()? - before)
}

/// F1: whoever repeats a request is served again.
pub async fn api_killed(case: &Case<'_>) -> anyhow::Result<()> {
    killed(case, "api").await?;
    let begun = Instant::now();
    gantry_e2e::until("an answer", Duration::from_secs(60), || async {
        let (status, text) = case.world.ask("GET", "/api/v2/me", None).await?;
        Ok((status == 200 && !text.is_empty()).then_some(()))
    })
    .await?;
    case.saw(format!("answers again after {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// F2: jobs run, start and report without it.
pub async fn api_away(case: &Case<'_>) -> anyhow::Result<()> {
    let gone = gone(case, &["api"]).await?;
    let begun = began_meanwhile(case, case.last()).await?;
    case.saw(format!("{begun} jobs began meanwhile"));
    ensure!(begun > 0 || case.ran()? >= crate::world::FAN.jobs - 1, "no job began without the edge");
    return_of(case, &gone).await
}

/// F3: nothing is granted and no change taken; what runs goes on.
pub async fn grants_away(case: &Case<'_>) -> anyhow::Result<()> {
    let gone = gone(case, &["domain", "permissions"]).await?;
    let body = json!({ "name": case.besides(), "owner": { "id": "00000000-0000-0000-0000-000000000000" } });
    case.refused("a new context", "POST", "/api/v2/context", Some(&body)).await;
    let read = async {
        let (status, text) = case.world.ask("GET", "/api/v2/me", None).await?;
        ensure!(status == 200, "answered {status} {text}");
        let jobs = within(LIMITED, case.world.jobs(&case.project)).await?;
        Ok(format!("{} jobs listed", jobs.len()))
    };
    case.claim("reads go on", read.await);
    case.last().await;
    return_of(case, &gone).await
}

/// F4: jobs with contexts wait.
pub async fn contexts_away(case: &Case<'_>) -> anyhow::Result<()> {
    let gone = gone(case, &["contexts"]).await?;
    case.push_meanwhile().await;
    case.last().await;
    case.none_failed().await;
    return_of(case, &gone).await
}

/// F7: all jobs of a workflow exist or none.
pub async fn conductor_killed(case: &Case<'_>) -> anyhow::Result<()> {
    case.push_meanwhile().await;
    killed(case, "conductor").await
}

/// F8: running jobs go on.
pub async fn conductor_away(case: &Case<'_>) -> anyhow::Result<()> {
    let gone = gone(case, &["conductor"]).await?;
    case.push_meanwhile().await;
    case.last().await;
    return_of(case, &gone).await
}

/// F9: an agent repeats its claim.
pub async fn dispatcher_killed(case: &Case<'_>) -> anyhow::Result<()> {
    killed(case, "dispatcher").await
}

/// F10: running jobs go on, and none is declared lost.
pub async fn dispatcher_away(case: &Case<'_>) -> anyhow::Result<()> {
    let gone = gone(case, &["dispatcher"]).await?;
    case.push_meanwhile().await;
    case.read_log().await;
    case.last().await;
    return_of(case, &gone).await
}

/// F11: the agent sends again from where the server stands.
pub async fn output_killed(case: &Case<'_>) -> anyhow::Result<()> {
    killed(case, "output-processor").await
}

/// F12: programs go on, their output comes late.
pub async fn output_away(case: &Case<'_>) -> anyhow::Result<()> {
    let gone = gone(case, &["output-processor"]).await?;
    case.push_meanwhile().await;
    case.last().await;
    case.none_failed().await;
    return_of(case, &gone).await
}

/// F39: power loss of the whole site; jobs' own processes survive where Nomad keeps them.
pub async fn everything(case: &Case<'_>) -> anyhow::Result<()> {
    let stack = &case.world.stack;
    // What Nomad was about to start, or had just started, may go with it; it is said to be lost.
    case.may_lose(case.ran()?);
    let mut names = stack.kill_all()?;
    case.saw(format!("{} processes killed at {} jobs begun", names.len(), case.ran()?));
    case.last().await;
    case.back();
    // Any order: the seed gives it. Vault opens itself when it is there.
    for last in (1..names.len()).rev() {
        names.swap(last, case.draw(last + 1));
    }
    case.saw(format!("started from {} to {}", names[0], names[names.len() - 1]));
    for name in &names {
        stack.start(name).await?;
    }
    within(Duration::from_secs(120), async {
        stack.suite().await.context("the stack is not whole").map(|_| ())
    })
    .await
}
