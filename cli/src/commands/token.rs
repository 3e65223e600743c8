//! `gantry token`: API tokens of the caller.

use super::{done, print_list, text};
use crate::{Client, Exit, Failure, Global};
use clap::Subcommand;
use serde_json::{Value, json};

/// `gantry token …`
#[derive(Subcommand, Debug)]
pub enum Token {
    /// Your tokens, by label
    #[command(after_help = "Examples:\n  gantry token list\n  gantry token list --json")]
    List,
    /// Make one; it is printed once and never shown again
    #[command(after_help = "Examples:\n  gantry token create laptop\n  gantry token create laptop --json")]
    Create {
        /// What it is for
        label: String,
    },
    /// Revoke one
    #[command(
        after_help = "Examples:\n  gantry token revoke 0198c2f4-1111-7000-8000-000000000001\n  gantry token list | grep laptop | cut -f1 | xargs -n1 gantry token revoke"
    )]
    Revoke {
        /// Its id
        id: String,
    },
    /// Replace the first administrator's token, and the file in the data folder that holds it
    #[command(
        after_help = "Examples:\n  gantry token rotate --admin\n  gantry token rotate --admin --data /srv/gantry\n\nExits 0 when the new one is in the file, 13 when no instance runs on the data folder."
    )]
    Rotate {
        /// The first administrator's, which is the only one that lies in a file
        #[arg(long, required = true)]
        admin: bool,
    },
}

impl Token {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let client = Client::connect(global)?;
        match self {
            Self::List => {
                let answer =
                    graphql(&client, "{ viewer { tokens { id label createdAt } } }", json!({})).await?;
                let items =
                    answer.pointer("/viewer/tokens").and_then(Value::as_array).cloned().unwrap_or_default();
                print_list(global, &items, &["id", "label", "createdAt"]);
            }
            Self::Create { label } => {
                let query =
                    "mutation($label: String!) { createToken(label: $label) { token errors { message } } }";
                let answer = graphql(&client, query, json!({ "label": label })).await?;
                refused(&answer, "createToken")?;
                let made = answer.get("createToken").unwrap_or(&Value::Null);
                if global.json {
                    println!("{made}");
                } else {
                    println!("{}", text(made, "token"));
                }
            }
            Self::Revoke { id } => {
                let query = "mutation($id: ID!) { revokeToken(id: $id) { errors { message } } }";
                let answer = graphql(&client, query, json!({ "id": id })).await?;
                refused(&answer, "revokeToken")?;
                done(global, &json!({ "revoked": id }), &format!("Revoked {id}."));
            }
            // On the machine of the data folder only: the server's program does it.
            Self::Rotate { .. } => {
                return Err(Failure::new(
                    Exit::Usage,
                    "the administrator's token is replaced on the machine of its data folder, by the full `gantry`",
                ));
            }
        }
        Ok(Exit::Success)
    }
}

/// The first error in a mutation's payload.
fn refused(answer: &Value, mutation: &str) -> Result<(), Failure> {
    match answer.pointer(&format!("/{mutation}/errors/0/message")).and_then(Value::as_str) {
        Some(message) => Err(Failure::new(Exit::Invalid, message)),
        None => Ok(()),
    }
}

/// Runs a query and gives its data.
async fn graphql(client: &Client, query: &str, variables: Value) -> Result<Value, Failure> {
    let mut answer = client.post("/graphql", &json!({ "query": query, "variables": variables })).await?;
    if let Some(message) = answer.pointer("/errors/0/message").and_then(Value::as_str) {
        return Err(Failure::new(Exit::Server, message));
    }
    Ok(answer.get_mut("data").map(Value::take).unwrap_or_default())
}
