//! The public edge: REST v2 and v1.1, GraphQL, logs, the embedded git server and the web page.
//!
//! Queries are answered from the views of `projector`; changes are asked of the aggregate's owner over the
//! bus. The edge owns one aggregate, the delivery: a push that was accepted.

mod artifacts;
mod auth;
mod configs;
mod error;
mod git;
mod graphql;
mod logs;
mod oidc;
mod orchestration;
mod page;
mod path;
mod policies;
mod rates;
mod restrictions;
mod runners;
mod setup;
mod ssh_keys;
mod state;
mod store;
mod streams;
mod text;
mod traced;
mod unstable;
mod user_keys;
mod v1;
mod v2;
mod view;

use axum::Router;
use blobs::Blobs;
use bus::Bus;
use kit::keys::Keys;
use live::Live;
use secrets::Secrets;
use sqlx::PgPool;
use state::App;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower_http::{
    catch_panic::CatchPanicLayer,
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
};

pub use auth::token;
pub use graphql::sdl;
pub use state::Config;

/// Name of the service and of its schema.
const NAME: &str = "api";

/// The service's own tables.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/api");

/// Largest body of a JSON request in bytes.
const BODY: usize = 1 << 20;

/// What the edge needs.
pub struct Deps {
    /// Pool of the installation's database.
    pub pool: PgPool,
    /// Bus.
    pub bus: Bus,
    /// Holds texts that are too large for a message.
    pub blobs: Arc<dyn Blobs>,
    /// Tells when views changed.
    pub live: Arc<dyn Live>,
    /// Seals values of variables on their way to `contexts`.
    pub secrets: Arc<dyn Secrets>,
    /// The installation's keys.
    pub keys: Keys,
    /// Settings.
    pub config: Config,
}

/// The running edge.
pub struct Service {
    app: App,
    background: JoinHandle<()>,
}

impl Service {
    /// All public routes.
    pub fn router(&self) -> Router {
        router(self.app.clone())
    }

    /// A code with which this person signs in once in a browser, within 30 minutes; an earlier one is void.
    pub fn sign_in_code(&self, user: ids::UserId) -> String {
        self.app.sign_in.issue(user)
    }

    /// Waits until background work has stopped.
    pub async fn join(self) {
        // A panic has been logged where it happened.
        let _ = self.background.await;
    }
}

/// Installs the tables and starts background work.
///
/// # Errors
/// The schema could not be installed.
pub async fn start(deps: Deps, stop: CancellationToken) -> anyhow::Result<Service> {
    let store = eventstore::Store::open(deps.pool.clone(), NAME, &MIGRATOR).await?;
    deps.bus.register_source(&store);
    let app = App::new(deps, store, stop);
    let background = tokio::spawn({
        let app = app.clone();
        async move { git::recover(&app).await }
    });
    Ok(Service { app, background })
}

fn router(app: App) -> Router {
    let json = Router::new()
        .merge(v2::routes())
        .merge(configs::routes())
        .merge(policies::routes())
        .merge(unstable::routes(&app))
        .merge(v1::routes())
        .merge(oidc::routes())
        .merge(orchestration::routes())
        .merge(logs::routes())
        .merge(artifacts::routes())
        .merge(graphql::routes(&app))
        .merge(page::routes())
        .merge(setup::routes())
        .merge(restrictions::routes())
        .merge(runners::routes())
        .layer(axum::extract::DefaultBodyLimit::max(BODY));
    // A push may have any size; git and the disk are its limits.
    let git = git::routes().layer(axum::extract::DefaultBodyLimit::disable());
    Router::new()
        .merge(json)
        .merge(git)
        .with_state(app)
        .layer(axum::middleware::from_fn(rates::told))
        .layer(axum::middleware::from_fn(traced::traced))
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(CatchPanicLayer::new())
}
