//! Client commands of `gantry`, as a library: what a person types in the daily loop.
//!
//! Standard output is data, standard error is talk (user-experience §2.4). Every command speaks to the public
//! API only.

mod client;
mod commands;
mod exit;
mod place;

pub use client::{Client, encode};
pub use commands::{Command, Token};
pub use exit::{Exit, Failure};

use clap::Args;

/// Where the server is and how to print.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Address of the server, for example http://127.0.0.1:8080
    #[arg(long, global = true, env = "GANTRY_SERVER")]
    pub server: Option<String>,
    /// API token
    #[arg(long, global = true, env = "GANTRY_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Data folder of an instance on this machine, to take address and token from
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<std::path::PathBuf>,
    /// Certificate to trust besides the usual authorities, PEM
    #[arg(long, global = true, env = "GANTRY_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<std::path::PathBuf>,
    /// Project, for example git/local/app; default: the git remote of this folder
    #[arg(long, global = true, env = "GANTRY_PROJECT")]
    pub project: Option<String>,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub json: bool,
}

/// Runs a client command and maps its result to an exit code.
pub async fn run(global: &Global, command: Command) -> Exit {
    match command.run(global).await {
        Ok(exit) => exit,
        Err(failure) => {
            if global.json {
                eprintln!(
                    "{}",
                    serde_json::json!({ "error": { "code": failure.exit.word(), "message": failure.to_string() } })
                );
            } else {
                anstream::eprintln!("gantry: {failure}");
            }
            failure.exit
        }
    }
}
