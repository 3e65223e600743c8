//! The agent: runs one task and tells the suite about it.
//!
//! It holds a lease and proves that it lives; it streams output through a spool on disk, so that neither a slow
//! nor an absent suite costs a byte; it ends every process of the task when it is told to, when the lease is
//! lost, and when it dies itself. See reliability and execution §10 to §14.

mod bounds;
mod checkout;
mod client;
mod clock;
mod containers;
mod control;
mod detach;
mod environment;
mod execute;
pub mod files;
mod helper;
pub mod injob;
mod output;
mod own_step;
pub mod placed;
pub mod reach;
mod registries;
mod sealed;
pub mod socket;
pub mod ssh;
mod ssh_keys;
pub mod standing;
mod state;
mod steps;
mod stores;
mod task;

use std::path::PathBuf;
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// Runs the task of a folder to its end. Returns the exit code of the process.
pub fn run(dir: PathBuf) -> i32 {
    to_the_end(async move {
        let _ours = detach::detach(&dir)?;
        task::run(&dir).await
    })
}

/// Runs an agent's work on a runtime of its own. Returns the exit code of the process.
fn to_the_end(work: impl Future<Output = anyhow::Result<()>>) -> i32 {
    log();
    // What the agent holds is not for the steps: no core dumps, no tracing of it, no reading of its memory.
    if let Err(e) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(error = %e, "the agent can be traced");
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("the runtime cannot be built: {e}");
            return 1;
        }
    };
    let code = match runtime.block_on(work) {
        Ok(()) => 0,
        Err(e) => {
            tracing::error!(error = format!("{e:#}"), "the task cannot be run");
            1
        }
    };
    // Nothing that still waits, a long poll say, may delay the end.
    runtime.shutdown_background();
    code
}

/// Has this process log to standard error: `GANTRY_LOG` is a level, or `target=level` with commas between. Without the
/// fuller syntax of filters, which compiles regular expressions at every start.
fn log() {
    let asked = std::env::var("GANTRY_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
}
