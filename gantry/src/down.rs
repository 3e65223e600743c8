//! `gantry down`: stops a running instance.

use crate::instance::Instance;
use anyhow::{Context, bail};
use clap::Args;
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

/// Arguments of `gantry down`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// End its jobs too
    #[arg(long)]
    with_jobs: bool,
}

/// Stops the instance of the data folder and waits for its end.
///
/// # Errors
/// No instance runs there, or it does not end within 15 s.
pub async fn run(arguments: Arguments, data: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let data = data.unwrap_or_else(|| PathBuf::from("gantry-data"));
    let instance =
        Instance::read(&data).with_context(|| format!("no instance runs from {}", data.display()))?;
    let pid = Pid::from_raw(i32::try_from(instance.pid)?);
    let signal = if arguments.with_jobs { Signal::SIGUSR1 } else { Signal::SIGTERM };
    match kill(pid, signal) {
        Ok(()) => {}
        Err(Errno::ESRCH) => bail!("no instance runs from {}", data.display()),
        Err(error) => return Err(error).context("the instance cannot be signalled"),
    }
    let begun = Instant::now();
    while kill(pid, None).is_ok() {
        if begun.elapsed() > Duration::from_secs(15) {
            bail!("process {pid} still runs after 15 s");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!("Stopped.");
    Ok(ExitCode::SUCCESS)
}
