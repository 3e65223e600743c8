//! `gantry serve`: one or several services on the stores that the configuration names.

use crate::config::Loaded;
use anyhow::bail;
use clap::Args;
use std::{path::PathBuf, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// Roles, each a service of its own.
pub const ROLES: [&str; 10] = [
    "api",
    "projector",
    "domain",
    "permissions",
    "contexts",
    "pipelines",
    "conductor",
    "dispatcher",
    "scheduler",
    "output-processor",
];

/// Arguments of `gantry serve`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Services to run
    roles: Vec<String>,
    /// Print the roles
    #[arg(long)]
    list: bool,
    /// Print every value and where it came from
    #[arg(long)]
    print_config: bool,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Log lines go to standard error; `GANTRY_LOG` filters them.
pub fn talk() {
    let filter = EnvFilter::try_from_env("GANTRY_LOG").unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    // A second call in one process keeps the first subscriber.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// Prints what was asked for. Services of their own need a bus between processes, which this build does not have.
///
/// # Errors
/// An unknown role, or a role that cannot run alone on the configured bus.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let loaded = Loaded::read(arguments.config.as_deref())?;
    if arguments.list {
        println!("{}", ROLES.join("\n"));
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.print_config {
        print!("{}", loaded.print());
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = arguments.roles.iter().find(|role| !ROLES.contains(&role.as_str())) {
        bail!("there is no role {unknown}; `gantry serve --list` prints them");
    }
    bail!(
        "[bus] kind = \"local\" lives in one process: services of their own need a networked bus, which this build does not have; use `gantry up`"
    )
}
