//! Organisations, users, tokens and projects: who and what there is.
//!
//! Owns the aggregates `org`, `user`, `token` and `project`. Answers the requests of
//! [`contracts::domain`]; consumes nothing.

mod commands;
mod keys;
mod queries;
mod settings;

use async_trait::async_trait;
use bus::{Bus, Responder};
use contracts::{Request, RequestError, domain as ask};
use eventstore::Store;
use sqlx::PgPool;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Name of the service and of its schema.
pub const NAME: &str = "domain";

/// The service's own tables.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/domain");

/// What the service needs.
pub struct Deps {
    /// Its database.
    pub pool: PgPool,
    /// The bus.
    pub bus: Bus,
}

/// The running service.
pub struct Service {
    stop: CancellationToken,
}

/// Migrates the schema and begins to answer.
///
/// # Errors
/// The schema cannot be migrated.
pub async fn start(deps: Deps, stop: CancellationToken) -> anyhow::Result<Service> {
    let store = Store::open(deps.pool, NAME, &MIGRATOR).await?;
    deps.bus.register_source(&store);
    deps.bus.respond(NAME, Arc::new(State { store }));
    Ok(Service { stop })
}

impl Service {
    /// Returns when the service was stopped; it has no work of its own to end.
    ///
    /// # Errors
    /// Never, as yet.
    pub async fn join(self) -> anyhow::Result<()> {
        self.stop.cancelled().await;
        Ok(())
    }
}

#[derive(Clone)]
pub(crate) struct State {
    pub(crate) store: Store,
}

#[async_trait]
impl Responder for State {
    async fn respond(&self, request: Request) -> Result<serde_json::Value, RequestError> {
        bus::answer!(self, request, {
            ask::VerifyToken => queries::verify_token,
            ask::ListTokens => queries::list_tokens,
            ask::GetProject => queries::get_project,
            ask::ListProjects => queries::list_projects,
            ask::ListOrgs => queries::list_orgs,
            ask::Bootstrap => commands::bootstrap,
            ask::CreateToken => commands::create_token,
            ask::RevokeToken => commands::revoke_token,
            ask::EnsureProject => commands::ensure_project,
            ask::AddUserKey => keys::add,
            ask::ListUserKeys => keys::list,
            ask::RemoveUserKey => keys::remove,
            ask::GetProjectSettings => settings::get,
            ask::ChangeProjectSettings => settings::change,
        })
    }
}
