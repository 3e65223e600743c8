//! `gantry policy`: config policies, tried here or on the server.

mod files;
mod local;

use super::{print_list, text};
use crate::{Client, Exit, Failure, Global, encode};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// What a policy decides about.
#[derive(Args, Clone, Debug)]
pub struct Subject {
    /// Configuration
    #[arg(long, value_name = "FILE", default_value = ".circleci/config.yml")]
    input: PathBuf,
    /// `data.meta`, as JSON
    #[arg(long, value_name = "JSON", conflicts_with = "metafile")]
    meta: Option<String>,
    /// `data.meta`, from a JSON or YAML file
    #[arg(long, value_name = "FILE")]
    metafile: Option<PathBuf>,
    /// Do not add the compiled configuration as `input._compiled_`
    #[arg(long)]
    no_compile: bool,
    /// A pipeline parameter for compiling, NAME=VALUE; may be repeated
    #[arg(long = "param", value_name = "NAME=VALUE")]
    parameters: Vec<String>,
}

/// `gantry policy …`
#[derive(Subcommand, Debug)]
pub enum Policy {
    /// Say what policies decide about a configuration; exits 7 when they block it
    #[command(
        after_help = "Examples:\n  gantry policy decide policies/ --input .circleci/config.yml     here, without a server\n  gantry policy decide --org local                                with the server's bundle"
    )]
    Decide {
        /// Policy file or folder; none: the organisation's bundle on the server
        policies: Option<PathBuf>,
        #[command(flatten)]
        subject: Subject,
        /// Organisation
        #[arg(long, default_value = "local")]
        org: String,
    },
    /// Print the value of a query, without a server
    #[command(
        after_help = "Examples:\n  gantry policy eval policies/ --query data.org.enable_rule\n  gantry policy eval policies/ --query data.org --input .circleci/config.yml"
    )]
    Eval {
        /// Policy file or folder
        policies: PathBuf,
        #[command(flatten)]
        subject: Subject,
        /// Rego query
        #[arg(long, default_value = "data")]
        query: String,
    },
    /// Run the *_test.yaml files of a folder; exits 1 when one fails
    #[command(
        after_help = "Examples:\n  gantry policy test policies/\n  gantry policy test policies/ --run contexts"
    )]
    Test {
        /// Folder; each folder in it with tests is a bundle of its own
        policies: PathBuf,
        /// Only tests with this in their name
        #[arg(long, value_name = "TEXT")]
        run: Option<String>,
    },
    /// Replace the organisation's bundle
    #[command(
        after_help = "Examples:\n  gantry policy push policies/\n  gantry policy push policies/ --json"
    )]
    Push {
        /// Policy file or folder
        policies: PathBuf,
        /// Organisation
        #[arg(long, default_value = "local")]
        org: String,
    },
    /// Say what a push would change
    #[command(
        after_help = "Examples:\n  gantry policy diff policies/\n  gantry policy diff policies/ --json"
    )]
    Diff {
        /// Policy file or folder
        policies: PathBuf,
        /// Organisation
        #[arg(long, default_value = "local")]
        org: String,
    },
    /// Print the organisation's policies
    #[command(after_help = "Examples:\n  gantry policy fetch\n  gantry policy fetch my_policy")]
    Fetch {
        /// Only this one
        name: Option<String>,
        /// Organisation
        #[arg(long, default_value = "local")]
        org: String,
    },
    /// Decisions, newest first, or one of them
    #[command(
        after_help = "Examples:\n  gantry policy logs --status HARD_FAIL\n  gantry policy logs ID --policy-bundle"
    )]
    Logs {
        /// Id of a decision
        id: Option<String>,
        /// PASS, SOFT_FAIL, HARD_FAIL or ERROR
        #[arg(long)]
        status: Option<String>,
        /// Of pipelines of this branch
        #[arg(long)]
        branch: Option<String>,
        /// With an id: the bundle that decided
        #[arg(long, requires = "id")]
        policy_bundle: bool,
        /// Organisation
        #[arg(long, default_value = "local")]
        org: String,
    },
    /// Print whether policies decide about pipelines, or change it
    #[command(after_help = "Examples:\n  gantry policy settings\n  gantry policy settings --enabled true")]
    Settings {
        /// Whether they decide
        #[arg(long)]
        enabled: Option<bool>,
        /// Organisation
        #[arg(long, default_value = "local")]
        org: String,
    },
}

fn route(org: &str, rest: &str) -> String {
    format!("/api/v2/owner/{}/context/config/{rest}", encode(org))
}

impl Policy {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        match self {
            Self::Decide { policies: Some(policies), subject, .. } => local::decide(&policies, &subject),
            Self::Decide { policies: None, subject, org } => decide(global, &subject, &org).await,
            Self::Eval { policies, subject, query } => local::eval(&policies, &subject, &query),
            Self::Test { policies, run } => local::test(global, &policies, run.as_deref()),
            Self::Push { policies, org } => send(global, &policies, &org, false).await,
            Self::Diff { policies, org } => send(global, &policies, &org, true).await,
            Self::Fetch { name, org } => fetch(global, name.as_deref(), &org).await,
            Self::Logs { id: Some(id), policy_bundle, org, .. } => {
                let rest =
                    format!("decision/{}{}", encode(&id), if policy_bundle { "/policy-bundle" } else { "" });
                println!("{}", pretty(&Client::connect(global)?.get(&route(&org, &rest)).await?));
                Ok(Exit::Success)
            }
            Self::Logs { id: None, status, branch, org, .. } => logs(global, status, branch, &org).await,
            Self::Settings { enabled, org } => {
                let client = Client::connect(global)?;
                let path = route(&org, "decision/settings");
                let settings = match enabled {
                    None => client.get(&path).await?,
                    Some(enabled) => client.patch(&path, &json!({ "enabled": enabled })).await?,
                };
                println!("{settings}");
                Ok(Exit::Success)
            }
        }
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
}

/// Prints a decision; one that blocks is exit 7.
fn show(decision: &Value) -> Exit {
    println!("{}", pretty(decision));
    if ["HARD_FAIL", "ERROR"].contains(&text(decision, "status")) { Exit::Invalid } else { Exit::Success }
}

/// With the server's bundle, and compiled with the server's orbs.
async fn decide(global: &Global, subject: &Subject, org: &str) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let (source, mut input) = files::configuration(&subject.input)?;
    if !subject.no_compile {
        let parameters: Map<String, Value> = files::parameters(&subject.parameters)?;
        let body = json!({ "config_yaml": source, "options": { "pipeline_parameters": parameters } });
        let answer = client.post("/api/v2/compile-config-with-defaults", &body).await?;
        if answer.get("valid") != Some(&Value::Bool(true)) {
            let errors = answer.get("errors").and_then(Value::as_array);
            errors.into_iter().flatten().for_each(|error| eprintln!("{}", text(error, "message")));
            return Ok(Exit::Invalid);
        }
        input["_compiled_"] = files::data("the compiled configuration", text(&answer, "output-yaml"))?;
    }
    // JSON is YAML.
    let body = json!({ "input": input.to_string(), "metadata": files::meta(subject)? });
    Ok(show(&client.post(&route(org, "decision"), &body).await?))
}

async fn send(global: &Global, policies: &std::path::Path, org: &str, dry: bool) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let files = files::policies(policies)?;
    let path = route(org, if dry { "policy-bundle?dry=true" } else { "policy-bundle" });
    let changes = client.post(&path, &json!({ "policies": files })).await?;
    if global.json {
        println!("{changes}");
        return Ok(Exit::Success);
    }
    let mut any = false;
    for (sign, key) in [('+', "created"), ('~', "modified"), ('-', "deleted")] {
        for name in changes.get(key).and_then(Value::as_array).into_iter().flatten() {
            println!("{sign} {}", name.as_str().unwrap_or_default());
            any = true;
        }
    }
    if !any {
        eprintln!("Nothing changes.");
    }
    Ok(Exit::Success)
}

async fn fetch(global: &Global, name: Option<&str>, org: &str) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let rest = match name {
        Some(name) => format!("policy-bundle/{}", encode(name)),
        None => "policy-bundle".to_owned(),
    };
    let found = client.get(&route(org, &rest)).await?;
    match name {
        Some(_) if !global.json => print!("{}", text(&found, "content")),
        _ => println!("{}", pretty(&found)),
    }
    Ok(Exit::Success)
}

async fn logs(
    global: &Global,
    status: Option<String>,
    branch: Option<String>,
    org: &str,
) -> Result<Exit, Failure> {
    let client = Client::connect(global)?;
    let mut query = Vec::new();
    for (name, value) in [("status", status), ("branch", branch)] {
        query.extend(value.map(|value| format!("{name}={}", encode(&value))));
    }
    let rest = if query.is_empty() { "decision".to_owned() } else { format!("decision?{}", query.join("&")) };
    let found = client.get(&route(org, &rest)).await?;
    let items = found.as_array().cloned().unwrap_or_default();
    print_list(
        global,
        &items,
        &["created_at", "decision.status", "metadata.build_number", "metadata.vcs.branch", "id"],
    );
    Ok(Exit::Success)
}
