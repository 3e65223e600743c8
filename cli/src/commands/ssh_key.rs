//! `gantry ssh-key`: additional SSH keys of a project, for the step `add_ssh_keys`. A private key comes from standard
//! input, never from an argument.

use super::{done, print_list, secret::value_from_stdin, text};
use crate::{Client, Exit, Failure, Global, place};
use clap::Subcommand;
use serde_json::{Value, json};

/// `gantry ssh-key …`
#[derive(Subcommand, Debug)]
pub enum SshKey {
    /// Fingerprints and hosts, never private keys
    #[command(
        after_help = "Examples:\n  gantry ssh-key list\n  gantry ssh-key list --project git/local/app --json"
    )]
    List,
    /// Keep a private key, read from standard input in OpenSSH's format; prints its fingerprint
    #[command(
        after_help = "Examples:\n  gantry ssh-key add --host github.com < ~/.ssh/deploy\n  gantry ssh-key add < ~/.ssh/deploy --project git/local/app"
    )]
    Add {
        /// The host that it is for; default: any
        #[arg(long)]
        host: Option<String>,
    },
    /// Remove one
    #[command(
        after_help = "Examples:\n  gantry ssh-key remove aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99\n  gantry ssh-key remove SHA256:4VzU7vI6WQk2tQ6ZfCVGfT9oFzC4Fz2m9eC8cqsCkd4 --host github.com"
    )]
    Remove {
        /// Its fingerprint, MD5 or SHA256
        fingerprint: String,
        /// Only the one for this host
        #[arg(long)]
        host: Option<String>,
    },
}

impl SshKey {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let client = Client::connect(global)?;
        let slug = place::project(global).await?;
        let path = format!("/api/v1.1/project/{slug}/ssh-key");
        match self {
            Self::List => {
                let keys = client.get(&path).await?;
                let keys: &[Value] = keys.as_array().map_or(&[], Vec::as_slice);
                print_list(global, keys, &["fingerprint", "sha256", "hostname"]);
            }
            Self::Add { host } => {
                let body = json!({ "hostname": host, "private_key": value_from_stdin()? });
                let key = client.post(&path, &body).await?;
                if global.json {
                    println!("{key}");
                } else {
                    println!("{}", text(&key, "fingerprint"));
                    eprintln!("Added the key to {slug}.");
                }
            }
            Self::Remove { fingerprint, host } => {
                let body = json!({ "fingerprint": fingerprint, "hostname": host });
                let answer = client.delete_with(&path, &body).await?;
                done(global, &answer, &format!("Removed {fingerprint} of {slug}."));
            }
        }
        Ok(Exit::Success)
    }
}
