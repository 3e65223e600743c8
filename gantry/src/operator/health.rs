//! `/healthz`, `/readyz`, `/version` (reliability §12): open to everybody, since probes carry no token.

use crate::databases::holds;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bus::Bus;
use eventstore::Databases;
use futures::future::join_all;
use serde_json::{Map, Value, json};
use sqlx::PgPool;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A dependency that takes longer does not answer. Latency alone makes nothing unready.
const PATIENCE: Duration = Duration::from_secs(1);

/// What readiness depends on.
#[derive(Clone)]
pub struct Health {
    /// The bus, for its gate.
    pub bus: Bus,
    /// The databases: without those of its services a process does nothing useful.
    pub databases: Databases,
    /// Services that run in this process.
    pub roles: Vec<&'static str>,
    /// Set when the process is about to end.
    pub draining: CancellationToken,
}

impl Health {
    /// The databases that this process's services are in, by name.
    fn needed(&self) -> impl Iterator<Item = (String, &PgPool)> {
        let own = self.databases.own();
        let alone = |role: &&'static str| own.iter().any(|own| own.services.contains(role));
        let common =
            (!self.roles.iter().all(alone)).then(|| ("database".to_owned(), self.databases.common()));
        let own = own.iter().filter(|own| holds(&own.services, &self.roles));
        let own = own.map(|own| (format!("database of {}", own.services.join(", ")), &own.pool));
        common.into_iter().chain(own)
    }
}

/// The routes of a suite that has started.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/version", get(version))
        .with_state(health)
}

/// The routes while the suite starts; `phase` says what it waits for.
pub fn starting(phase: watch::Receiver<String>) -> Router {
    let not_yet = move || {
        let phase = phase.borrow().clone();
        async move {
            // Whoever asks again must find the routes of the suite, not this connection's.
            let headers = [(header::RETRY_AFTER, "1"), (header::CONNECTION, "close")];
            let body = json!({ "ready": false, "waiting_for": [phase], "message": format!("Gantry is starting: it waits for {phase}") });
            (StatusCode::SERVICE_UNAVAILABLE, headers, Json(body)).into_response()
        }
    };
    Router::new()
        .route("/healthz", get(|| async { ([(header::CONNECTION, "close")], "ok\n") }))
        .route("/version", get(version))
        .fallback(not_yet)
}

async fn ready(State(health): State<Health>) -> Response {
    let mut waiting: Vec<String> = Vec::new();
    let mut checks = Map::new();
    let asked = join_all(health.needed().map(async |(name, pool)| (name, answers(pool).await))).await;
    for (name, found) in asked {
        if let Err(reason) = found {
            waiting.push(name.clone());
            checks.insert(name, json!({ "ok": false, "reason": reason }));
        } else {
            checks.insert(name, json!({ "ok": true }));
        }
    }
    if health.draining.is_cancelled() {
        waiting.push("the end of this process".to_owned());
    }
    // Reads, running jobs and their logs go on without new work: this makes nothing unready.
    let new_work = match health.bus.admission().check() {
        Ok(()) => json!({ "ok": true }),
        Err(refusal) => json!({ "ok": false, "code": refusal.code, "reason": refusal.message }),
    };
    checks.insert("new_work".to_owned(), new_work);
    let ready = waiting.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({ "ready": ready, "waiting_for": waiting, "roles": health.roles, "checks": checks });
    (status, Json(body)).into_response()
}

async fn answers(pool: &PgPool) -> Result<(), &'static str> {
    match tokio::time::timeout(PATIENCE, sqlx::query("SELECT 1").execute(pool)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            tracing::debug!("a database is not ready: {error}");
            Err("it does not answer")
        }
        Err(_) => Err("it did not answer within 1 s"),
    }
}

async fn version() -> Json<Value> {
    Json(json!({ "name": "gantry", "version": env!("CARGO_PKG_VERSION") }))
}
