//! `gantry token`: API tokens of the caller.

use super::{print_list, text};
use crate::{Client, Exit, Failure, Global};
use clap::Subcommand;
use serde_json::{Value, json};

/// `gantry token …`
#[derive(Subcommand, Debug)]
pub enum Token {
    /// Your tokens, by label
    List,
    /// Make one; it is printed once and never shown again
    Create {
        /// What it is for
        label: String,
    },
    /// Revoke one
    Revoke {
        /// Its id
        id: String,
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
                let made = answer.get("createToken").unwrap_or(&Value::Null);
                if global.json {
                    println!("{made}");
                } else {
                    println!("{}", text(made, "token"));
                }
            }
            Self::Revoke { id } => {
                let query = "mutation($id: ID!) { revokeToken(id: $id) { errors { message } } }";
                graphql(&client, query, json!({ "id": id })).await?;
                eprintln!("Revoked {id}.");
            }
        }
        Ok(Exit::Success)
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
