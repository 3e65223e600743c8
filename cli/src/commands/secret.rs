//! `gantry secret`: environment variables of a project. A value comes from standard input, never from an
//! argument: arguments end in shell histories and process lists.

use super::{done, print_list};
use crate::{Client, Exit, Failure, Global, place};
use clap::Subcommand;
use serde_json::json;
use std::io::Read;

/// `gantry secret …`
#[derive(Subcommand, Debug)]
pub enum Secret {
    /// Names, never values
    #[command(
        after_help = "Examples:\n  gantry secret list\n  gantry secret list --project git/local/app --json"
    )]
    List,
    /// Set one; the value is read from standard input
    #[command(
        after_help = "Examples:\n  gantry secret set API_KEY < key.txt\n  gantry secret set API_KEY --project git/local/app"
    )]
    Set {
        /// Its name
        name: String,
    },
    /// Remove one
    #[command(
        after_help = "Examples:\n  gantry secret remove API_KEY\n  gantry secret remove API_KEY --project git/local/app"
    )]
    Remove {
        /// Its name
        name: String,
    },
}

/// The value on standard input, without the line's end that `echo` adds.
pub(super) fn value_from_stdin() -> Result<String, Failure> {
    let mut value = String::new();
    std::io::stdin().read_to_string(&mut value)?;
    if value.ends_with('\n') {
        value.pop();
    }
    Ok(value)
}

impl Secret {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let client = Client::connect(global)?;
        let slug = place::project(global).await?;
        match self {
            Self::List => {
                let items = client.items(&format!("/api/v2/project/{slug}/envvar"), 1000).await?;
                print_list(global, &items, &["name", "value", "created_at"]);
            }
            Self::Set { name } => {
                let body = json!({ "name": name, "value": value_from_stdin()? });
                let answer = client.post(&format!("/api/v2/project/{slug}/envvar"), &body).await?;
                done(global, &answer, &format!("Set {name} of {slug}."));
            }
            Self::Remove { name } => {
                let answer = client.delete(&format!("/api/v2/project/{slug}/envvar/{name}")).await?;
                done(global, &answer, &format!("Removed {name} of {slug}."));
            }
        }
        Ok(Exit::Success)
    }
}
