//! `gantry down`: stops a running instance.

use crate::instance::Instance;
use anyhow::{Context, bail};
use clap::Args;
use cli::{Exit, Failure};
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
#[command(
    after_help = "Examples:\n  gantry down                          running jobs run on\n  gantry down --data /srv/gantry --with-jobs\n\nExits 0 when it has ended, 5 when none runs, 1 when it does not end within 15 s."
)]
pub struct Arguments {
    /// End its jobs too
    #[arg(long)]
    with_jobs: bool,
}

/// Stops the instance of the data folder and waits for its end.
///
/// # Errors
/// No instance runs there, or it does not end within 15 s.
pub async fn run(arguments: Arguments, data: Option<PathBuf>, as_json: bool) -> anyhow::Result<ExitCode> {
    let data = data.unwrap_or_else(|| PathBuf::from("gantry-data"));
    let nobody = || {
        Failure::new(
            Exit::NotFound,
            format!("no instance runs from {}; name its folder with --data", data.display()),
        )
    };
    // A file that a crash left behind may name a process that is another program by now.
    let instance = Instance::running(&data).ok_or_else(nobody)?;
    let pid = Pid::from_raw(i32::try_from(instance.pid)?);
    let signal = if arguments.with_jobs { Signal::SIGUSR1 } else { Signal::SIGTERM };
    match kill(pid, signal) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Err(nobody().into()),
        Err(error) => return Err(error).context("the instance cannot be signalled"),
    }
    let begun = Instant::now();
    while kill(pid, None).is_ok() {
        if begun.elapsed() > Duration::from_secs(15) {
            bail!("process {pid} still runs after 15 s");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if as_json {
        println!("{}", serde_json::json!({ "stopped": true, "pid": instance.pid }));
    } else {
        eprintln!("Stopped.");
    }
    Ok(ExitCode::SUCCESS)
}
