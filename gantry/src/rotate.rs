//! `gantry token rotate --admin`: replaces the first administrator's token and the file that holds it.

use crate::{instance, up};
use anyhow::Context;
use cli::{Client, Exit, Failure};
use serde_json::json;
use std::{path::PathBuf, process::ExitCode};

/// Has the running instance of the data folder take a new token, then replaces the file. The old one is revoked.
///
/// # Errors
/// No instance runs on the data folder, or it does not answer.
pub async fn run(global: &cli::Global) -> anyhow::Result<ExitCode> {
    let data = global.data.clone().unwrap_or_else(|| PathBuf::from("gantry-data"));
    let file = data.join("admin-token");
    if instance::Instance::running(&data).is_none() {
        let text = format!(
            "no instance runs from {}; start it with `gantry up`, or remove admin-token there: the next start makes a new one",
            data.display()
        );
        return Err(Failure::new(Exit::Connection, text).into());
    }
    let client = Client::connect(&cli::Global { server: None, token: None, ..global.clone() })?;
    let token = up::new_admin_token()?;
    // When the answer is lost the file still holds the old token, and the next start makes that one good again.
    let draft = data.join("admin-token.next");
    instance::replace(&draft, token.as_bytes())?;
    client.post("/internal/admin-token", &json!({ "token": token })).await?;
    std::fs::rename(&draft, &file).with_context(|| format!("{} cannot be replaced", file.display()))?;
    if global.json {
        println!("{}", json!({ "rotated": true, "file": file }));
    } else {
        eprintln!(
            "Replaced the administrator's token; the old one opens nothing any more. It lies in {}.",
            file.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}
