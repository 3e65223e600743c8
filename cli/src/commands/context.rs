//! `gantry context`: secrets that projects of an organisation share.

use super::{done, print_list, secret::value_from_stdin, text};
use crate::{Client, Exit, Failure, Global};
use clap::Subcommand;
use serde_json::{Value, json};

/// `gantry context …`
#[derive(Subcommand, Debug)]
pub enum Context {
    /// All contexts of an organisation
    #[command(after_help = "Examples:\n  gantry context list\n  gantry context list --org local --json")]
    List {
        /// Organisation
        #[arg(long, default_value = "local")]
        org: String,
    },
    /// Make one
    #[command(
        after_help = "Examples:\n  gantry context create deploy\n  gantry context create deploy --org local"
    )]
    Create {
        /// Its name
        name: String,
        /// Organisation
        #[arg(long, default_value = "local")]
        org: String,
    },
    /// Delete one with all its values
    #[command(
        after_help = "Examples:\n  gantry context delete deploy\n  gantry context delete deploy --org local"
    )]
    Delete {
        /// Its name
        name: String,
        /// Organisation
        #[arg(long, default_value = "local")]
        org: String,
    },
    /// Set a value; it is read from standard input
    #[command(
        after_help = "Examples:\n  gantry context set deploy API_KEY < key.txt\n  gantry context set deploy API_KEY --org local"
    )]
    Set {
        /// Name of the context
        context: String,
        /// Name of the variable
        name: String,
        /// Organisation
        #[arg(long, default_value = "local")]
        org: String,
    },
}

async fn owner(client: &Client, org: &str) -> Result<String, Failure> {
    let all = client.get("/api/v2/me/collaborations").await?;
    all.as_array()
        .into_iter()
        .flatten()
        .find(|found| text(found, "name") == org)
        .map(|found| text(found, "id").to_owned())
        .ok_or_else(|| Failure::new(Exit::NotFound, format!("there is no organisation {org}")))
}

async fn find(client: &Client, org: &str, name: &str) -> Result<Value, Failure> {
    let owner = owner(client, org).await?;
    let all = client.items(&format!("/api/v2/context?owner-id={owner}"), 10_000).await?;
    all.into_iter()
        .find(|found| text(found, "name") == name)
        .ok_or_else(|| Failure::new(Exit::NotFound, format!("there is no context {name}")))
}

impl Context {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let client = Client::connect(global)?;
        match self {
            Self::List { org } => {
                let owner = owner(&client, &org).await?;
                let items = client.items(&format!("/api/v2/context?owner-id={owner}"), 10_000).await?;
                print_list(global, &items, &["name", "created_at", "id"]);
            }
            Self::Create { name, org } => {
                let owner = owner(&client, &org).await?;
                let body = json!({ "name": name, "owner": { "id": owner, "type": "organization" } });
                let answer = client.post("/api/v2/context", &body).await?;
                done(global, &answer, &format!("Created context {name}."));
            }
            Self::Delete { name, org } => {
                let context = find(&client, &org, &name).await?;
                let answer = client.delete(&format!("/api/v2/context/{}", text(&context, "id"))).await?;
                done(global, &answer, &format!("Deleted context {name}."));
            }
            Self::Set { context, name, org } => {
                let found = find(&client, &org, &context).await?;
                let path = format!("/api/v2/context/{}/environment-variable/{name}", text(&found, "id"));
                let answer = client.put(&path, &json!({ "value": value_from_stdin()? })).await?;
                done(global, &answer, &format!("Set {name} of context {context}."));
            }
        }
        Ok(Exit::Success)
    }
}
