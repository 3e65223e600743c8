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
    /// Restrictions of one
    #[command(
        after_help = "Examples:\n  gantry context restrictions deploy\n  gantry context restrictions deploy --json"
    )]
    Restrictions {
        /// Name of the context
        context: String,
        /// Organisation
        #[arg(long, default_value = "local")]
        org: String,
    },
    /// Let fewer jobs use one: all kinds of restrictions that it has must hold
    #[command(
        after_help = "Examples:\n  gantry context restrict deploy --to-project git/local/app\n  gantry context restrict deploy --if 'pipeline.git.branch == \"main\"'"
    )]
    Restrict {
        /// Name of the context
        context: String,
        /// Only jobs of this project, and of others that are named so
        #[arg(long, value_name = "SLUG", group = "how")]
        to_project: Option<String>,
        /// Only pipelines for which this expression holds
        #[arg(long = "if", value_name = "EXPRESSION", group = "how")]
        expression: Option<String>,
        /// Only jobs that a member of this group started or approved; an organisation's id means all its members
        #[arg(long, value_name = "ID", group = "how")]
        to_group: Option<String>,
        /// Organisation
        #[arg(long, default_value = "local")]
        org: String,
    },
    /// Remove all restrictions: every job of the organisation may use it again
    #[command(
        after_help = "Examples:\n  gantry context unrestrict deploy\n  gantry context unrestrict deploy --org local"
    )]
    Unrestrict {
        /// Name of the context
        context: String,
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
            Self::Restrictions { context, org } => {
                let found = find(&client, &org, &context).await?;
                let path = format!("/api/v2/context/{}/restrictions", text(&found, "id"));
                let items = client.items(&path, 1000).await?;
                print_list(global, &items, &["restriction_type", "name", "restriction_value", "id"]);
            }
            Self::Restrict { context, to_project, expression, to_group, org } => {
                let (kind, value) = match (to_project, expression, to_group) {
                    (Some(slug), _, _) => {
                        let project = client.get(&format!("/api/v2/project/{slug}")).await?;
                        ("project", text(&project, "id").to_owned())
                    }
                    (_, Some(expression), _) => ("expression", expression),
                    (_, _, Some(group)) => ("group", group),
                    _ => return Err(Failure::new(Exit::Usage, "say how: --to-project, --if or --to-group")),
                };
                let found = find(&client, &org, &context).await?;
                let path = format!("/api/v2/context/{}/restrictions", text(&found, "id"));
                let body = json!({ "restriction_type": kind, "restriction_value": value });
                let answer = client.post(&path, &body).await?;
                done(global, &answer, &format!("Restricted context {context} by {kind}."));
            }
            Self::Unrestrict { context, org } => {
                let found = find(&client, &org, &context).await?;
                let path = format!("/api/private/context/{}/unrestrict", text(&found, "id"));
                let answer = client.post(&path, &json!({})).await?;
                done(global, &answer, &format!("Every job of {org} may use context {context} again."));
            }
        }
        Ok(Exit::Success)
    }
}
