//! `gantry why`: why a job waits, or why it failed, in words.

use super::{log::actions, text};
use crate::{Client, Exit, Failure, Global, place};
use serde_json::{Value, json};

pub(super) async fn run(global: &Global, job: i64) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let slug = place::project(global).await?;
    let found = client.get(&format!("/api/v2/project/{slug}/job/{job}")).await?;
    let status = text(&found, "status").to_owned();
    let mut reasons: Vec<String> = found
        .get("messages")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|message| text(message, "message").to_owned())
        .collect();
    for action in actions(&client, &slug, job).await? {
        if text(&action, "status") == "failed" {
            let code = action.get("exit_code").and_then(Value::as_i64);
            reasons.push(match code {
                Some(code) => format!("step \"{}\" failed with exit code {code}", text(&action, "name")),
                None => format!("step \"{}\" failed", text(&action, "name")),
            });
        }
    }
    if global.json {
        println!("{}", json!({ "job": job, "status": status, "reasons": reasons }));
    } else {
        println!("{} is {status}", text(&found, "name"));
        for reason in reasons {
            println!("  {reason}");
        }
    }
    Ok(Exit::Success)
}
