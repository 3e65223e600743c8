//! What every server process does beside its services: counting, and watching its disk.

use crate::{config::Config, disk, layout::Layout, operator::gauges};
use bus::Bus;
use eventstore::Databases;
use kit::telemetry;
use tokio_util::sync::CancellationToken;

/// Begins it, until `stop`.
///
/// # Errors
/// The metrics cannot be sent where the configuration says.
pub fn start(
    config: &Config,
    layout: &Layout,
    databases: &Databases,
    roles: &[&'static str],
    bus: &Bus,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    telemetry::metrics(&config.telemetry.statsd)?;
    if !config.telemetry.statsd.is_empty() {
        tokio::spawn(gauges::count_regularly(databases.clone(), roles.to_vec(), stop.clone()));
    }
    if config.disk.min_free_mib > 0 {
        let (data, gate) = (layout.data.clone(), bus.admission().clone());
        tokio::spawn(disk::watch(data, config.disk.min_free_mib, gate, stop.clone()));
    }
    Ok(())
}
