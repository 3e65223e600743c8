//! `gantry user-key`: SSH keys of the caller, with which they enter jobs that they rerun with SSH. Only public halves.

use super::{done, print_list, text};
use crate::{Client, Exit, Failure, Global};
use clap::Subcommand;
use serde_json::{Value, json};
use std::{io::Read, path::PathBuf};

/// Where the caller's keys are.
pub(super) const PATH: &str = "/api/v1.1/user/ssh-key";
/// Longest file that is read.
const LONGEST: u64 = 64 * 1024;

/// `gantry user-key …`
#[derive(Subcommand, Debug)]
pub enum UserKey {
    /// Your keys
    #[command(after_help = "Examples:\n  gantry user-key list\n  gantry user-key list --json")]
    List,
    /// Register a public key; prints its fingerprint
    #[command(
        after_help = "Examples:\n  gantry user-key add ~/.ssh/id_ed25519.pub\n  gantry user-key add --label laptop < key.pub"
    )]
    Add {
        /// File with the public key; default: standard input
        file: Option<PathBuf>,
        /// What to call it; default: the key's comment
        #[arg(long)]
        label: Option<String>,
    },
    /// Remove one
    #[command(
        alias = "delete",
        after_help = "Examples:\n  gantry user-key remove SHA256:4VzU7vI6WQk2tQ6ZfCVGfT9oFzC4Fz2m9eC8cqsCkd4\n  gantry user-key list | grep laptop | cut -f1 | xargs -n1 gantry user-key remove"
    )]
    Remove {
        /// Its fingerprint, SHA256
        fingerprint: String,
    },
}

impl UserKey {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let client = Client::connect(global)?;
        match self {
            Self::List => {
                let keys = client.get(PATH).await?;
                let keys: &[Value] = keys.as_array().map_or(&[], Vec::as_slice);
                print_list(global, keys, &["fingerprint", "label", "time"]);
            }
            Self::Add { file, label } => {
                let key = client.post(PATH, &json!({ "public_key": read(file)?, "label": label })).await?;
                if global.json {
                    println!("{key}");
                } else {
                    println!("{}", text(&key, "fingerprint"));
                    eprintln!("Registered the key: `gantry job ssh` enters jobs with it.");
                }
            }
            Self::Remove { fingerprint } => {
                let answer = client.delete_with(PATH, &json!({ "fingerprint": fingerprint })).await?;
                done(global, &answer, &format!("Removed {fingerprint}."));
            }
        }
        Ok(Exit::Success)
    }
}

/// A private key is refused here already: it must not even travel.
fn read(file: Option<PathBuf>) -> Result<String, Failure> {
    let mut key = String::new();
    let read = match &file {
        Some(path) => std::fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut key)),
        None => std::io::stdin().lock().take(LONGEST).read_to_string(&mut key),
    };
    let name = file.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    read.map_err(|error| Failure::new(Exit::Usage, format!("{name} cannot be read: {error}")))?;
    if key.contains("PRIVATE KEY") {
        let message =
            format!("{name} holds a private key, which stays with you; name the file that ends in .pub");
        return Err(Failure::new(Exit::Usage, message));
    }
    Ok(key)
}
