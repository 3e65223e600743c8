//! `gantry admin`: looks after an instance.

mod verify;

use crate::{instance::Instance, layout::Layout};
use anyhow::Context;
use clap::Subcommand;
use sqlx::{
    AssertSqlSafe, PgPool, Row,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

/// `gantry admin …`
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Refold the events of a running instance and compare them with its state rows and blobs; exit 0 means clean
    Verify,
    /// List messages that a service gave up on
    DeadLetter,
}

/// Runs the command against the instance of the data folder.
///
/// # Errors
/// No instance runs there, or its database does not answer.
pub async fn run(command: Command, global: &cli::Global) -> anyhow::Result<ExitCode> {
    let data = global.data.clone().unwrap_or_else(|| PathBuf::from("gantry-data"));
    let (layout, pool) = connect(&data).await?;
    match command {
        Command::Verify => verify::run(&layout, &pool, global.json).await,
        Command::DeadLetter => dead_letters(&pool, global.json).await,
    }
}

async fn connect(data: &Path) -> anyhow::Result<(Layout, PgPool)> {
    Instance::read(data)
        .with_context(|| format!("no instance runs from {}; start it with gantry up", data.display()))?;
    let layout = Layout::open(data)?;
    let options =
        PgConnectOptions::new_without_pgpass().socket(&layout.run).username("gantry").database("postgres");
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .connect_with(options)
        .await
        .context("its database does not answer")?;
    Ok((layout, pool))
}

async fn dead_letters(pool: &PgPool, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    for service in crate::serve::ROLES {
        let schema = eventstore::schema_of(service);
        let query = format!("SELECT to_jsonb(d) AS letter FROM {schema}.dead_letters d");
        for row in sqlx::query(AssertSqlSafe(query)).fetch_all(pool).await? {
            let mut letter: serde_json::Value = row.try_get("letter")?;
            letter["service"] = service.into();
            found.push(letter);
        }
    }
    if as_json {
        println!("{}", serde_json::Value::Array(found));
    } else {
        for letter in &found {
            println!("{letter}");
        }
        eprintln!("{} dead letters", found.len());
    }
    Ok(ExitCode::SUCCESS)
}
