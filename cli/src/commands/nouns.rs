//! `list` and `get` of the things that run.

use super::{print_list, print_one};
use crate::{Client, Exit, Failure, Global, place};
use clap::Subcommand;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

const PIPELINE: &[&str] = &["number", "state", "vcs.branch", "vcs.tag", "vcs.revision", "created_at", "id"];
const WORKFLOW: &[&str] = &["name", "status", "created_at", "stopped_at", "id"];
const JOB: &[&str] = &["job_number", "name", "status", "type", "started_at", "stopped_at", "id"];

/// `gantry pipeline …`
#[derive(Subcommand, Debug)]
pub enum Pipeline {
    /// Newest first
    #[command(
        after_help = "Examples:\n  gantry pipeline list\n  gantry pipeline list --branch main --limit 5 --json"
    )]
    List {
        /// Only of this branch
        #[arg(long)]
        branch: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 30)]
        limit: usize,
    },
    /// One pipeline by its number, or `latest`
    #[command(after_help = "Examples:\n  gantry pipeline get 12\n  gantry pipeline get latest --json")]
    Get {
        /// Number or `latest`
        number: String,
    },
    /// Start one for a branch or tag
    #[command(
        after_help = "Examples:\n  gantry pipeline trigger --branch main\n  gantry pipeline trigger --tag v1.2.0 --param deploy=true --project git/local/app"
    )]
    Trigger {
        /// Branch; default: the project's
        #[arg(long, conflicts_with = "tag")]
        branch: Option<String>,
        /// Tag
        #[arg(long)]
        tag: Option<String>,
        /// Pipeline parameter `name=value`; may be repeated
        #[arg(long = "param", value_parser = parameter)]
        parameters: Vec<(String, Value)>,
    },
}

/// `name=value`: integers and booleans keep their type, everything else is text.
fn parameter(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    let value = match value {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        other => other.parse::<i64>().map_or_else(|_| Value::String(other.to_owned()), Value::from),
    };
    Ok((name.to_owned(), value))
}

/// The pipeline with this number, or the newest.
pub(super) async fn pipeline(client: &Client, slug: &str, number: &str) -> Result<Value, Failure> {
    if number != "latest" {
        return client.get(&format!("/api/v2/project/{slug}/pipeline/{number}")).await;
    }
    let mut newest = client.items(&format!("/api/v2/project/{slug}/pipeline"), 1).await?;
    newest
        .pop()
        .ok_or_else(|| Failure::new(Exit::NotFound, format!("{slug} has no pipeline yet; push to it first")))
}

impl Pipeline {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let client = Client::connect(global)?;
        let slug = place::project(global).await?;
        match self {
            Self::List { branch, limit } => {
                let filter = branch.map(|branch| format!("?branch={branch}")).unwrap_or_default();
                let items = client.items(&format!("/api/v2/project/{slug}/pipeline{filter}"), limit).await?;
                print_list(global, &items, PIPELINE);
            }
            Self::Get { number } => print_one(global, &pipeline(&client, &slug, &number).await?, PIPELINE),
            Self::Trigger { branch, tag, parameters } => {
                let mut body = json!({ "parameters": parameters.into_iter().collect::<Map<_, _>>() });
                if let Some(branch) = branch {
                    body["branch"] = branch.into();
                }
                if let Some(tag) = tag {
                    body["tag"] = tag.into();
                }
                let made = client.post(&format!("/api/v2/project/{slug}/pipeline"), &body).await?;
                print_one(global, &made, &["number", "state", "created_at", "id"]);
            }
        }
        Ok(Exit::Success)
    }
}

/// `gantry workflow …`
#[derive(Subcommand, Debug)]
pub enum Workflow {
    /// Workflows of a pipeline
    #[command(after_help = "Examples:\n  gantry workflow list\n  gantry workflow list 12 --json")]
    List {
        /// Number of the pipeline, or `latest`
        #[arg(default_value = "latest")]
        pipeline: String,
    },
    /// One workflow by its id
    #[command(
        after_help = "Examples:\n  gantry workflow get 0198c2f4-1111-7000-8000-000000000001\n  gantry workflow get 0198c2f4-1111-7000-8000-000000000001 --json"
    )]
    Get {
        /// Its id
        id: String,
    },
}

impl Workflow {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let client = Client::connect(global)?;
        match self {
            Self::List { pipeline: number } => {
                let slug = place::project(global).await?;
                let pipeline = pipeline(&client, &slug, &number).await?;
                let id = super::text(&pipeline, "id");
                print_list(
                    global,
                    &client.items(&format!("/api/v2/pipeline/{id}/workflow"), 1000).await?,
                    WORKFLOW,
                );
            }
            Self::Get { id } => {
                print_one(global, &client.get(&format!("/api/v2/workflow/{id}")).await?, WORKFLOW)
            }
        }
        Ok(Exit::Success)
    }
}

/// `gantry job …`
#[derive(Subcommand, Debug)]
pub enum Job {
    /// Jobs of a workflow
    #[command(
        after_help = "Examples:\n  gantry job list 0198c2f4-1111-7000-8000-000000000001\n  gantry job list 0198c2f4-1111-7000-8000-000000000001 --json"
    )]
    List {
        /// Id of the workflow
        workflow: String,
    },
    /// One job by its number
    #[command(
        after_help = "Examples:\n  gantry job get 7\n  gantry job get 7 --json --project git/local/app"
    )]
    Get {
        /// Its number
        number: i64,
    },
    /// Rerun a job with SSH and enter it with `ssh`; one that runs with SSH already is only entered
    #[command(
        after_help = "Examples:\n  gantry job ssh 7\n  gantry job ssh 7 --print         only say how to connect\n  gantry job ssh 7 -- make test    run a command there\n\nNeeds a key of yours: `gantry user-key add`. The job ends 10 minutes after the last session unless the server is set\notherwise; `gantry cancel --job` ends it at once."
    )]
    Ssh {
        /// Its number
        number: i64,
        /// Print the command and do not run it
        #[arg(long)]
        print: bool,
        /// Which node, of a job with parallelism
        #[arg(long, default_value_t = 0)]
        node: u64,
        /// The private key to show; default: those that `ssh` tries by itself
        #[arg(short, long)]
        identity: Option<PathBuf>,
        /// What to run there; default: a shell
        #[arg(last = true)]
        command: Vec<String>,
    },
}

impl Job {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let client = Client::connect(global)?;
        match self {
            Self::List { workflow } => {
                print_list(
                    global,
                    &client.items(&format!("/api/v2/workflow/{workflow}/job"), 100_000).await?,
                    JOB,
                );
            }
            Self::Get { number } => {
                let slug = place::project(global).await?;
                let job = client.get(&format!("/api/v2/project/{slug}/job/{number}")).await?;
                print_one(global, &job, &["number", "name", "status", "started_at", "stopped_at", "web_url"]);
            }
            Self::Ssh { number, print, node, identity, command } => {
                let wanted = super::ssh::Wanted { number, node, print, identity, command };
                return super::ssh::run(global, wanted).await;
            }
        }
        Ok(Exit::Success)
    }
}

/// `gantry project …`
#[derive(Subcommand, Debug)]
pub enum Project {
    /// All projects that you may see
    #[command(after_help = "Examples:\n  gantry project list\n  gantry project list --json")]
    List,
    /// One project
    #[command(
        after_help = "Examples:\n  gantry project get\n  gantry project get --project git/local/app --json"
    )]
    Get,
}

impl Project {
    pub(super) async fn run(self, global: &Global) -> Result<Exit, Failure> {
        let client = Client::connect(global)?;
        match self {
            Self::List => {
                let query = json!({ "query": "{ projects(first: 100) { nodes { id slug name } } }" });
                let answer = client.post("/graphql", &query).await?;
                let items = answer
                    .pointer("/data/projects/nodes")
                    .and_then(Value::as_array)
                    .cloned()
                    .unwrap_or_default();
                print_list(global, &items, &["slug", "id"]);
            }
            Self::Get => {
                let slug = place::project(global).await?;
                let project = client.get(&format!("/api/v2/project/{slug}")).await?;
                print_one(global, &project, &["slug", "name", "organization_name", "id"]);
            }
        }
        Ok(Exit::Success)
    }
}
