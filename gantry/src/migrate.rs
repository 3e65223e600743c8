//! Brings every schema to the version of this build (reliability §12).

use crate::config::Database;
use anyhow::Context;
use eventstore::Store;
use serde::Serialize;
use sqlx::{PgPool, migrate::Migrator, postgres::PgConnectOptions};
use std::str::FromStr;

/// Every service with its own tables, in the order in which they are migrated.
fn schemas() -> [(&'static str, &'static Migrator); 11] {
    [
        ("domain", &domain::MIGRATOR),
        ("permissions", &permissions::MIGRATOR),
        ("contexts", &contexts::MIGRATOR),
        ("pipelines", &pipelines::MIGRATOR),
        ("conductor", &conductor::MIGRATOR),
        ("dispatcher", &dispatcher::MIGRATOR),
        ("scheduler", &scheduler::MIGRATOR),
        ("output-processor", &output_processor::MIGRATOR),
        ("test-results", &test_results::MIGRATOR),
        ("projector", &projector::MIGRATOR),
        ("api", &api::MIGRATOR),
    ]
}

/// A schema after its migration.
#[derive(Clone, Debug, Serialize)]
pub struct Migrated {
    /// Whose.
    pub service: &'static str,
    /// Its version.
    pub version: i64,
}

/// Migrates all schemas, one after the other, each under its own lock: a second one waits and finds nothing to do.
///
/// # Errors
/// The database is away, or a step fails; what was done before it stays.
pub async fn all(pool: &PgPool) -> anyhow::Result<Vec<Migrated>> {
    let mut done = Vec::new();
    for (service, migrations) in schemas() {
        Store::open(pool.clone(), service, migrations)
            .await
            .with_context(|| format!("the schema of {service} cannot be migrated"))?;
        let version = migrations.iter().map(|step| step.version).max().unwrap_or(0);
        done.push(Migrated { service, version });
    }
    bus::Bus::prepare(pool).await.context("the tables of the bus cannot be made")?;
    records::PostgresRecords::open(pool.clone()).await.context("the records cannot be migrated")?;
    Ok(done)
}

/// How to connect to the database that `[database] url` names.
///
/// # Errors
/// It is no URL of a database.
pub fn options(database: &Database) -> anyhow::Result<PgConnectOptions> {
    anyhow::ensure!(
        !database.url.is_empty(),
        "[database] kind = \"url\" needs the url key, for example postgres://gantry@db/gantry"
    );
    // The text of the error would show the password.
    PgConnectOptions::from_str(&database.url).map_err(|_| {
        anyhow::anyhow!("[database] url is no address of a database; write it as postgres://user@host/name")
    })
}
