//! Deliveries and triggers become pipelines: fetch the configuration, compile it, ask the policies, publish the plan.
//!
//! Owns the aggregate `pipeline` and the decision about each delivery, the orb registry (`orb_namespace`, `orb`) and
//! the organisations' config policies (`policies`). Consumes `delivery.received`; answers the requests of
//! [`contracts::pipelines`], [`contracts::orbs`], [`contracts::policies`] and [`contracts::delivery::GetDecision`].

mod compile;
mod continuation;
mod create;
mod deliveries;
mod dry;
mod fetch;
mod orbs;
mod policies;
mod queries;
mod retention;
mod trigger;
mod values;

use async_trait::async_trait;
use blobs::Blobs;
use bus::{Bus, Responder};
use contracts::{
    Request, RequestError, delivery::GetDecision, orbs as orb, pipelines as ask, policies as rule,
    retention::RunRetention,
};
use eventstore::Store;
use sqlx::PgPool;
use std::{path::PathBuf, sync::Arc, time::Duration};
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
    /// How long pipelines are kept.
    pub retention: Retention,
}

/// How long pipelines are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// After the end of their last workflow; `None`: for ever.
    pub keep: Option<Duration>,
    /// Between two looks.
    pub sweep: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { keep: None, sweep: Duration::from_secs(3600) }
    }
}

/// The running service.
pub struct Service {
    tasks: Vec<JoinHandle<()>>,
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
        policies: Arc::default(),
        bus: deps.bus.clone(),
        keep: deps.retention.keep,
    };
    deps.bus.register_source(&store);
    deps.bus.respond(NAME, Arc::new(state.clone()));
    let deliveries = Arc::new(deliveries::Deliveries(state.clone()));
    let mut tasks = vec![deps.bus.consume(&store, &["api"], deliveries, stop.clone())];
    if deps.retention.keep.is_some() {
        let sweeper = retention::sweeper(&state);
        tasks.push(tokio::spawn(sweeper.run(deps.retention.sweep, Arc::default(), stop)));
    }
    Ok(Service { tasks })
}

impl Service {
    /// Returns when the service was stopped and its loops have ended.
    ///
    /// # Errors
    /// A loop panicked.
    pub async fn join(self) -> anyhow::Result<()> {
        for task in self.tasks {
            task.await?;
        }
        Ok(())
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
    /// Parsed policies.
    pub(crate) policies: Arc<policies::Cache>,
    /// Asks the conductor what may go.
    pub(crate) bus: Bus,
    /// How long pipelines are kept after the end of their last workflow.
    pub(crate) keep: Option<Duration>,
}

#[async_trait]
impl Responder for State {
    async fn respond(&self, request: Request) -> Result<serde_json::Value, RequestError> {
        bus::answer!(self, request, {
            ask::TriggerPipeline => trigger::trigger,
            ask::GetPipeline => queries::get,
            ask::GetPipelineConfig => queries::config,
            ask::GetPipelineValues => values::get,
            ask::ContinuePipeline => continuation::go_on,
            ask::CompileConfig => dry::config,
            GetDecision => queries::decision,
            orb::CreateOrbNamespace => orbs::create_namespace,
            orb::GetOrbNamespace => orbs::get_namespace,
            orb::RenameOrbNamespace => orbs::rename_namespace,
            orb::DeleteOrbNamespace => orbs::delete_namespace,
            orb::CreateOrb => orbs::create,
            orb::GetOrb => orbs::get,
            orb::ListOrbs => orbs::list,
            orb::GetOrbVersion => orbs::version,
            orb::PublishOrb => orbs::publish,
            orb::PromoteOrb => orbs::promote,
            orb::SetOrbListed => orbs::set_listed,
            orb::ValidateOrb => orbs::validate,
            rule::GetPolicyBundle => policies::get,
            rule::PushPolicyBundle => policies::push,
            rule::GetPolicySettings => policies::settings,
            rule::SetPolicySettings => policies::set_settings,
            rule::DecidePolicy => policies::decide,
            rule::ListPolicyDecisions => policies::list,
            RunRetention => retention::run,
        })
    }
}
