//! The public edge: REST v2 and v1.1, GraphQL, logs, the embedded git server and the web page.
//!
//! Queries are answered from the views of `projector`; changes are asked of the aggregate's owner over the
//! bus. The edge owns one aggregate, the delivery: a push that was accepted.

mod auth;
mod error;
mod git;
mod graphql;
mod logs;
mod page;
mod path;
mod state;
mod store;
mod v1;
mod v2;
mod view;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use bus::Bus;
use kit::keys::Keys;
use live::Live;
use secrets::Secrets;
use serde_json::json;
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
    let store = eventstore::Store::open(deps.pool.clone(), "api", &MIGRATOR).await?;
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
        .merge(v1::routes())
        .merge(logs::routes())
        .merge(graphql::routes(&app))
        .merge(page::routes())
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/version", get(version))
        .layer(axum::extract::DefaultBodyLimit::max(BODY));
    // A push may have any size; git and the disk are its limits.
    let git = git::routes().layer(axum::extract::DefaultBodyLimit::disable());
    Router::new()
        .merge(json)
        .merge(git)
        .with_state(app)
        .layer(PropagateRequestIdLayer::x_request_id())
        .layer(SetRequestIdLayer::x_request_id(MakeRequestUuid))
        .layer(CatchPanicLayer::new())
}

async fn ready(State(app): State<App>) -> Response {
    let database = app.views.ping().await.is_ok();
    let status =
        if database && !app.stop.is_cancelled() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": status == StatusCode::OK, "database": database }))).into_response()
}

async fn version(State(app): State<App>) -> Json<serde_json::Value> {
    Json(json!({ "name": "gantry", "version": app.config.version }))
}
