//! Brings every schema to the version of this build (reliability §12).

use anyhow::Context;
use eventstore::{Databases, Store};
use serde::Serialize;
use sqlx::migrate::Migrator;

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
/// A database is away, or a step fails; what was done before it stays.
pub async fn all(databases: &Databases) -> anyhow::Result<Vec<Migrated>> {
    let mut done = Vec::new();
    for (service, migrations) in schemas() {
        Store::open(databases.of(service).clone(), service, migrations)
            .await
            .with_context(|| format!("the schema of {service} cannot be migrated"))?;
        let version = migrations.iter().map(|step| step.version).max().unwrap_or(0);
        done.push(Migrated { service, version });
    }
    bus::Bus::prepare(databases.common()).await.context("the tables of the bus cannot be made")?;
    records::PostgresRecords::open(databases.common().clone())
        .await
        .context("the records cannot be migrated")?;
    Ok(done)
}
