//! The `gantry` binary: a doorway. It parses, hands over, and maps the result to an exit code.

use clap::{Parser, Subcommand};
use gantry_server::{admin, down, serve, up};
use std::process::ExitCode;

/// Gantry: a self-hosted CI server for `.circleci/config.yml`
#[derive(Parser)]
#[command(
    name = "gantry",
    version,
    max_term_width = 110,
    after_help = "Examples:\n  gantry up                        start everything on this machine\n  gantry try                       a sample project, pushed and watched\n  gantry watch                     the newest run of this folder's project\n  gantry log 7 --follow            the output of job 7\n  gantry config validate           check .circleci/config.yml offline"
)]
struct Arguments {
    #[command(flatten)]
    global: cli::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the whole suite in one process tree on embedded defaults
    Up(up::Arguments),
    /// Start one or several services on the stores that the configuration names
    Serve(serve::Arguments),
    /// Stop a running instance
    Down(down::Arguments),
    /// Look after an instance
    #[command(subcommand)]
    Admin(admin::Command),
    /// Print the version
    Version,
    #[command(flatten)]
    Client(cli::Command),
}

fn main() -> ExitCode {
    let Arguments { global, command } = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("gantry: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    // The first provider installed wins; a second attempt is harmless.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let result = runtime.block_on(async {
        match command {
            Command::Up(arguments) => up::run(arguments, global.data.clone(), global.json).await,
            Command::Serve(arguments) => serve::run(arguments).await,
            Command::Down(arguments) => down::run(arguments, global.data.clone()).await,
            Command::Admin(command) => admin::run(command, &global).await,
            Command::Version => {
                println!("gantry {}", env!("CARGO_PKG_VERSION"));
                Ok(ExitCode::SUCCESS)
            }
            Command::Client(command) => Ok(ExitCode::from(cli::run(&global, command).await.code())),
        }
    });
    // Blocking reads of a pipe must not hold the process back.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        eprintln!("gantry: {error:#}");
        let bad_configuration = error.downcast_ref::<gantry_server::config::Invalid>().is_some();
        ExitCode::from(if bad_configuration { 78 } else { 1 })
    })
}
