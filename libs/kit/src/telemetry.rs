//! Logs and metrics of one process.
//!
//! Call sites use `tracing` and the `metrics` facade, and know no backend. Metrics are kept for a scrape in the
//! Prometheus text format, and also sent as statsd where an address is configured; names are
//! `gantry.<service>.<thing>` in both (services §8), some with another name beside it ([`crate::aliases`]).

use crate::aliases::{ALIASES, Aliased};
use metrics_exporter_dogstatsd::DogStatsDBuilder;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::layers::FanoutBuilder;
use std::{sync::OnceLock, time::Duration};
use tracing_subscriber::EnvFilter;

/// What is logged where `GANTRY_LOG` says nothing.
const DEFAULT_FILTER: &str = "info,sqlx=warn";
/// Between two folds of what histograms gathered, so that a process that nobody scrapes does not grow.
const UPKEEP: Duration = Duration::from_secs(30);
/// Bounds of histograms in seconds, from a commit to a long job.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

static SCRAPE: OnceLock<PrometheusHandle> = OnceLock::new();

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON document per line.
    Json,
}

/// Why metrics cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The statsd address cannot be used.
    #[error(
        "the statsd address {address:?} cannot be used: {reason}; write it as host:port or unixgram:///path"
    )]
    Statsd {
        /// As configured.
        address: String,
        /// Why not.
        reason: String,
    },
}

/// Sends log lines to standard error; `GANTRY_LOG` filters them. A second call in one process changes nothing.
pub fn logs(format: LogFormat) {
    let filter = EnvFilter::try_from_env("GANTRY_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).try_init(),
    };
    drop(installed);
}

/// Gathers metrics for [`scrape`], and sends them to `statsd` (`host:port`, or a socket's path) where it is not
/// empty. To be called inside the runtime, once; later calls change nothing.
///
/// # Errors
/// The address is none.
pub fn metrics(statsd: &str) -> Result<(), Error> {
    if SCRAPE.get().is_some() {
        return Ok(());
    }
    let mut builder = PrometheusBuilder::new().set_buckets(&BUCKETS);
    // Other names may have other units.
    for alias in ALIASES.iter().filter(|alias| alias.factor > 1.0) {
        let name = Matcher::Full(alias.name.replace(['.', '-'], "_"));
        let bounds = BUCKETS.map(|bound| bound * alias.factor);
        builder = builder.and_then(|builder| builder.set_buckets_for_metric(name, &bounds));
    }
    let builder = builder.unwrap_or_else(|_| PrometheusBuilder::new());
    let prometheus = builder.build_recorder();
    let handle = prometheus.handle();
    let mut all = FanoutBuilder::default().add_recorder(prometheus);
    if !statsd.is_empty() {
        let refused = |reason: String| Error::Statsd { address: statsd.to_owned(), reason };
        let sender = DogStatsDBuilder::default()
            .with_remote_address(statsd)
            .map_err(|error| refused(error.to_string()))?
            // Telegraf and plain statsd know histograms, not distributions.
            .send_histograms_as_distributions(false)
            .with_telemetry(false)
            .build()
            .map_err(|error| refused(error.to_string()))?;
        all = all.add_recorder(sender);
    }
    if metrics::set_global_recorder(Aliased(all.build())).is_ok() && SCRAPE.set(handle.clone()).is_ok() {
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                handle.run_upkeep();
            }
        });
    }
    Ok(())
}

/// All metrics in the Prometheus text format; empty before [`metrics`].
pub fn scrape() -> String {
    SCRAPE.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// The method of a request as a label: one that the caller made up is `other`, so that their number is bounded.
#[must_use]
pub fn method(given: &str) -> &'static str {
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
        .into_iter()
        .find(|known| *known == given)
        .unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UdpSocket;

    #[tokio::test]
    async fn a_counter_is_scraped_and_sent() {
        let statsd = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        metrics(&statsd.local_addr().unwrap().to_string()).unwrap();
        metrics::counter!("gantry.kit.tested", "outcome" => "ok").increment(3);
        assert!(scrape().contains("gantry_kit_tested{outcome=\"ok\"} 3"), "{}", scrape());
        metrics::histogram!("gantry.dispatcher.claim_seconds").record(0.25);
        metrics::gauge!("gantry.scheduler.placements", "phase" => "runs").set(2.0);
        metrics::gauge!("gantry.scheduler.placements", "phase" => "other").set(5.0);
        metrics::counter!("gantry.scheduler.unplaced").increment(1);
        metrics::histogram!("gantry.conductor.workflow_seconds", "status" => "success").record(2.0);
        metrics::histogram!("gantry.http.request_seconds", "api_version" => "v2").record(0.5);
        for group in ["conductor.jobs", "dispatcher.ready"] {
            metrics::histogram!("gantry.bus.handle_seconds", "group" => group, "success" => "true")
                .record(0.1);
        }
        metrics::gauge!("gantry.dispatcher.queue", "of" => "classes").set(3.0);
        let said = scrape();
        for line in [
            "gantry_dispatcher_claim_seconds_sum 0.25",
            "circle_run_queue_latency_sum 250",
            "circle_run_queue_latency_bucket{le=\"250\"} 1",
            "gantry_scheduler_placements{phase=\"runs\"} 2",
            "circle_nomad_server_agent_jobs_running 2",
            "circle_dispatcher_find_containers_failed 1",
            "workflows_conductor_execute_workflow_time_to_complete_bucket{status=\"success\",le=\"2500\"} 1",
            "circle_http_request_count{api_version=\"v2\"} 1",
            "circle_http_request_sum{api_version=\"v2\"} 500",
            "workflows_conductor_engine_handler_messages_timing_count{success=\"true\"} 1",
            "circleci_distributor_gauge_dispatcher_job_queue_keys 3",
        ] {
            assert!(said.contains(line), "{line} is not in\n{said}");
        }
        let wanted = [
            "gantry.kit.tested:3|c|#outcome:ok",
            "gantry.dispatcher.claim_seconds:0.25|h",
            "circle.run-queue.latency:250",
            "circle.nomad.server_agent.jobs.running:2",
        ];
        let mut text = String::new();
        while !wanted.iter().all(|line| text.contains(line)) {
            let mut buffer = [0u8; 8192];
            let received = tokio::time::timeout(Duration::from_secs(30), statsd.recv(&mut buffer)).await;
            let length = received.unwrap_or_else(|_| panic!("not all of {wanted:?} is in {text}")).unwrap();
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }
}
