//! `gantry runner`: classes, tokens and instances of self-hosted runners.

use super::{done, print_list, text};
use crate::{Client, Exit, Failure, Global, client::encode};
use clap::Subcommand;
use serde_json::{Value, json};

/// `gantry runner …`
#[derive(Subcommand, Debug)]
pub enum Runner {
    /// Resource classes that runners of your own serve
    #[command(subcommand)]
    ResourceClass(ResourceClass),
    /// Tokens with which runners serve a class
    #[command(subcommand)]
    Token(Token),
    /// Runners that were heard of
    #[command(subcommand)]
    Instance(Instance),
}

/// `gantry runner resource-class …`
#[derive(Subcommand, Debug)]
pub enum ResourceClass {
    /// Those of your organisations
    #[command(
        after_help = "Examples:\n  gantry runner resource-class list\n  gantry runner resource-class list acme --json"
    )]
    List {
        /// Only those of this namespace
        namespace: Option<String>,
    },
    /// Make one
    #[command(
        after_help = "Examples:\n  gantry runner resource-class create acme/gpu\n  gantry runner resource-class create acme/gpu --description 'two cards' --generate-token"
    )]
    Create {
        /// namespace/name
        resource_class: String,
        /// For people
        #[arg(long, default_value = "")]
        description: String,
        /// Make a token too, and print it
        #[arg(long)]
        generate_token: bool,
    },
    /// Remove one
    #[command(
        after_help = "Examples:\n  gantry runner resource-class delete acme/gpu\n  gantry runner resource-class delete acme/gpu --force"
    )]
    Delete {
        /// namespace/name
        resource_class: String,
        /// Its tokens go too
        #[arg(long)]
        force: bool,
    },
}

/// `gantry runner token …`
#[derive(Subcommand, Debug)]
pub enum Token {
    /// Those of a class, never their values
    #[command(
        after_help = "Examples:\n  gantry runner token list acme/gpu\n  gantry runner token list acme/gpu --json"
    )]
    List {
        /// namespace/name
        resource_class: String,
    },
    /// Make one; it is printed once and never shown again
    #[command(
        after_help = "Examples:\n  gantry runner token create acme/gpu rack-3\n  gantry runner token create acme/gpu rack-3 --json"
    )]
    Create {
        /// namespace/name
        resource_class: String,
        /// What it is for
        nickname: String,
    },
    /// Revoke one
    #[command(
        after_help = "Examples:\n  gantry runner token delete 0198c2f4-1111-7000-8000-000000000001\n  gantry runner token list acme/gpu | grep rack-3 | cut -f1 | xargs -n1 gantry runner token delete"
    )]
    Delete {
        /// Its id
        id: String,
    },
}

/// `gantry runner instance …`
#[derive(Subcommand, Debug)]
pub enum Instance {
    /// Those of a class, or of all your classes
    #[command(
        after_help = "Examples:\n  gantry runner instance list\n  gantry runner instance list acme/gpu --json"
    )]
    List {
        /// namespace/name
        resource_class: Option<String>,
    },
}

impl Runner {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let client = Client::connect(global)?;
        match self {
            Self::ResourceClass(ResourceClass::List { namespace }) => {
                let query = namespace.map(|name| format!("?namespace={}", encode(&name))).unwrap_or_default();
                let items = items(&client, &format!("/api/v3/runner/resource{query}")).await?;
                print_list(global, &items, &["resource_class", "description"]);
            }
            Self::ResourceClass(ResourceClass::Create { resource_class, description, generate_token }) => {
                let body = json!({ "resource_class": resource_class, "description": description });
                let mut made = client.post("/api/v3/runner/resource", &body).await?;
                if generate_token {
                    let token = create_token(&client, &resource_class, "default").await?;
                    if !global.json {
                        println!("{}", text(&token, "token"));
                    }
                    if let (Some(made), Some(token)) = (made.as_object_mut(), token.get("token")) {
                        made.insert("token".to_owned(), token.clone());
                    }
                }
                done(global, &made, &format!("Made the resource class {resource_class}."));
            }
            Self::ResourceClass(ResourceClass::Delete { resource_class, force }) => {
                let force = if force { "/force" } else { "" };
                let path =
                    format!("/api/v3/runner/resource/{}{force}", id_of(&client, &resource_class).await?);
                let answer = client.delete(&path).await?;
                done(global, &answer, &format!("Removed the resource class {resource_class}."));
            }
            Self::Token(Token::List { resource_class }) => {
                let path = format!("/api/v3/runner/token?resource-class={}", encode(&resource_class));
                print_list(global, &items(&client, &path).await?, &["id", "nickname", "created_at"]);
            }
            Self::Token(Token::Create { resource_class, nickname }) => {
                let token = create_token(&client, &resource_class, &nickname).await?;
                if global.json {
                    println!("{token}");
                } else {
                    println!("{}", text(&token, "token"));
                }
            }
            Self::Token(Token::Delete { id }) => {
                let answer = client.delete(&format!("/api/v3/runner/token/{}", encode(&id))).await?;
                done(global, &answer, &format!("Revoked {id}."));
            }
            Self::Instance(Instance::List { resource_class }) => {
                let query = resource_class.map(|name| format!("?resource-class={}", encode(&name)));
                let path = format!("/api/v3/runner{}", query.unwrap_or_default());
                let columns = ["resource_class", "name", "hostname", "status", "version", "last_connected"];
                print_list(global, &items(&client, &path).await?, &columns);
            }
        }
        Ok(Exit::Success)
    }
}

async fn create_token(client: &Client, resource_class: &str, nickname: &str) -> Result<Value, Failure> {
    let body = json!({ "resource_class": resource_class, "nickname": nickname });
    client.post("/api/v3/runner/token", &body).await
}

async fn items(client: &Client, path: &str) -> Result<Vec<Value>, Failure> {
    let answer = client.get(path).await?;
    Ok(answer.get("items").and_then(Value::as_array).cloned().unwrap_or_default())
}

/// The routes of a class want its id.
async fn id_of(client: &Client, resource_class: &str) -> Result<String, Failure> {
    let path = format!("/api/v3/runner/resource?resource-class={}", encode(resource_class));
    let found = items(client, &path).await?;
    let id = found.first().map(|class| text(class, "id").to_owned());
    id.ok_or_else(|| Failure::new(Exit::NotFound, format!("there is no resource class {resource_class}")))
}
