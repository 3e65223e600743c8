//! Organisations, users, tokens and projects: who and what there is.
//!
//! Owns the aggregates `org`, `user`, `token` and `project`. Answers the requests of
//! [`contracts::domain`]; consumes nothing.

mod commands;
mod queries;
mod settings;

use async_trait::async_trait;
use bus::{Bus, Responder, route, unknown};
use contracts::{Request, RequestError, domain as ask, request::Ask};
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
        macro_rules! answer {
            ($ask:ty, $handler:path) => {
                route::<$ask, _, _>(&request, |ask, request| async move {
                    $handler(self, request, ask).await.map_err(|failure| failure.0)
                })
                .await
            };
        }
        match request.name.as_str() {
            ask::VerifyToken::NAME => answer!(ask::VerifyToken, queries::verify_token),
            ask::ListTokens::NAME => answer!(ask::ListTokens, queries::list_tokens),
            ask::GetProject::NAME => answer!(ask::GetProject, queries::get_project),
            ask::ListProjects::NAME => answer!(ask::ListProjects, queries::list_projects),
            ask::ListOrgs::NAME => answer!(ask::ListOrgs, queries::list_orgs),
            ask::Bootstrap::NAME => answer!(ask::Bootstrap, commands::bootstrap),
            ask::CreateToken::NAME => answer!(ask::CreateToken, commands::create_token),
            ask::RevokeToken::NAME => answer!(ask::RevokeToken, commands::revoke_token),
            ask::EnsureProject::NAME => answer!(ask::EnsureProject, commands::ensure_project),
            ask::GetProjectSettings::NAME => answer!(ask::GetProjectSettings, settings::get),
            ask::ChangeProjectSettings::NAME => answer!(ask::ChangeProjectSettings, settings::change),
            _ => Err(unknown(&request)),
        }
    }
}
