//! Deliveries and triggers become pipelines: fetch the configuration, compile it, publish the plan.
//!
//! Owns the aggregate `pipeline` and the decision about each delivery. Consumes `delivery.received`; answers
//! the requests of [`contracts::pipelines`] and [`contracts::delivery::GetDecision`].

mod compile;
mod create;
mod deliveries;
mod fetch;
mod queries;
mod trigger;

use async_trait::async_trait;
use blobs::Blobs;
use bus::{Bus, Responder, route, unknown};
use contracts::{Request, RequestError, delivery::GetDecision, pipelines as ask, request::Ask};
use eventstore::Store;
use sqlx::PgPool;
use std::{path::PathBuf, sync::Arc};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use vcs::Git;

/// Name of the service and of its schema.
pub const NAME: &str = "pipelines";

/// The service's own tables.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/pipelines");

/// What the service needs.
pub struct Deps {
    /// Its database.
    pub pool: PgPool,
    /// The bus.
    pub bus: Bus,
    /// Holds plans that are too large for a message.
    pub blobs: Arc<dyn Blobs>,
    /// Folder of the embedded git server's repositories, `<org>/<repo>.git`.
    pub git_root: PathBuf,
    /// Where clients reach the git server: `<git_url>/git/<org>/<repo>.git` is `pipeline.project.git_url`.
    pub git_url: String,
}

/// The running service.
pub struct Service {
    group: JoinHandle<()>,
}

/// Migrates the schema, begins to answer and to follow deliveries.
///
/// # Errors
/// The schema cannot be migrated.
pub async fn start(deps: Deps, stop: CancellationToken) -> anyhow::Result<Service> {
    let store = Store::open(deps.pool, NAME, &MIGRATOR).await?;
    let state = State {
        store: store.clone(),
        blobs: deps.blobs,
        git: Git::new(deps.git_root),
        git_url: deps.git_url.trim_end_matches('/').into(),
        decided: Arc::new(watch::Sender::new(0)),
    };
    deps.bus.register_source(&store);
    deps.bus.respond(NAME, Arc::new(state.clone()));
    let group = deps.bus.consume(&store, &["api"], Arc::new(deliveries::Deliveries(state)), stop);
    Ok(Service { group })
}

impl Service {
    /// Returns when the service was stopped and its group has ended.
    ///
    /// # Errors
    /// The group panicked.
    pub async fn join(self) -> anyhow::Result<()> {
        Ok(self.group.await?)
    }
}

#[derive(Clone)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) git: Git,
    pub(crate) git_url: Arc<str>,
    /// Ticks after each decision about a delivery.
    pub(crate) decided: Arc<watch::Sender<u64>>,
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
            ask::TriggerPipeline::NAME => answer!(ask::TriggerPipeline, trigger::trigger),
            ask::GetPipeline::NAME => answer!(ask::GetPipeline, queries::get),
            ask::GetPipelineConfig::NAME => answer!(ask::GetPipelineConfig, queries::config),
            GetDecision::NAME => answer!(GetDecision, queries::decision),
            _ => Err(unknown(&request)),
        }
    }
}
