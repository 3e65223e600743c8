//! One module per command.

mod config;
mod context;
mod log;
mod nouns;
mod orb;
mod policy;
mod runner;
mod secret;
mod ssh;
mod ssh_key;
mod token;
mod try_it;
mod user_key;
mod verbs;
mod watch;
mod why;

pub use token::Token;

use crate::{Exit, Failure, Global};
use clap::Subcommand;
use serde_json::Value;
use std::path::PathBuf;

/// The client commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Watch a pipeline run, live, to its end
    #[command(
        after_help = "Examples:\n  gantry watch            the newest pipeline of this folder's project\n  gantry watch 12 --project git/local/app\n\nExits with the run's result: 0 success, 1 failed, 6 canceled, 11 on hold with --no-wait-approval."
    )]
    Watch {
        /// Pipeline number, or `latest`
        #[arg(default_value = "latest")]
        number: String,
        /// Exit with 11 when only an approval is missing
        #[arg(long)]
        no_wait_approval: bool,
    },
    /// Print the output of a job
    #[command(
        after_help = "Examples:\n  gantry log 7             job number 7\n  gantry log 7 --step 102 --follow\n  gantry log 7 --failed"
    )]
    Log {
        /// Job number
        job: i64,
        /// Only this step, by its number
        #[arg(long)]
        step: Option<u64>,
        /// Go on until the step ends
        #[arg(short, long)]
        follow: bool,
        /// Only failed steps
        #[arg(long)]
        failed: bool,
    },
    /// Say why a job waits, or why it failed
    #[command(
        after_help = "Examples:\n  gantry why 7\n  gantry why deploy                the job of that name in the newest pipeline\n  gantry why 7 --json --project git/local/app"
    )]
    Why {
        /// Number, name or id of the job
        job: String,
    },
    /// Build a configuration's pipelines by hand, list them, look at one
    #[command(subcommand)]
    Pipeline(nouns::Pipeline),
    /// Look at a workflow
    #[command(subcommand)]
    Workflow(nouns::Workflow),
    /// Look at a job
    #[command(subcommand)]
    Job(nouns::Job),
    /// Look at projects
    #[command(subcommand)]
    Project(nouns::Project),
    /// Secrets of a project, as environment variables
    #[command(subcommand)]
    Secret(secret::Secret),
    /// SSH keys of a project, for the step `add_ssh_keys`
    #[command(subcommand)]
    SshKey(ssh_key::SshKey),
    /// Your own SSH keys, with which you enter jobs
    #[command(subcommand)]
    UserKey(user_key::UserKey),
    /// Contexts: secrets that projects share
    #[command(subcommand)]
    Context(context::Context),
    /// Self-hosted runners: their classes, tokens and instances
    #[command(subcommand)]
    Runner(runner::Runner),
    /// API tokens
    #[command(subcommand)]
    Token(Token),
    /// Cancel a workflow, or with --job one job
    #[command(
        after_help = "Examples:\n  gantry cancel 0198c2f4-1111-7000-8000-000000000001\n  gantry cancel --job 0198c2f4-1111-7000-8000-000000000001"
    )]
    Cancel {
        /// Id of the workflow, or of the job with --job
        id: String,
        /// The id is a job's
        #[arg(long)]
        job: bool,
    },
    /// Approve what waits in a workflow
    #[command(
        after_help = "Examples:\n  gantry approve 0198c2f4-1111-7000-8000-000000000001\n  gantry approve 0198c2f4-1111-7000-8000-000000000001 hold"
    )]
    Approve {
        /// Id of the workflow
        workflow: String,
        /// Name or id of the approval job; not needed when only one waits
        job: Option<String>,
    },
    /// Run a workflow again
    #[command(
        after_help = "Examples:\n  gantry rerun 0198c2f4-1111-7000-8000-000000000001\n  gantry rerun 0198c2f4-1111-7000-8000-000000000001 --failed\n  gantry rerun 0198c2f4-1111-7000-8000-000000000001 --job test --ssh"
    )]
    Rerun {
        /// Id of the workflow
        workflow: String,
        /// Keep what succeeded
        #[arg(long)]
        failed: bool,
        /// Keep what succeeded, and run only the failed tests where `circleci tests run` runs them
        #[arg(long)]
        failed_tests: bool,
        /// Run only this job, by its name or id; again for more
        #[arg(long, conflicts_with_all = ["failed", "failed_tests"])]
        job: Vec<String>,
        /// Let the jobs that run be entered with your SSH keys; `gantry job ssh` does all of it at once
        #[arg(long, requires = "job")]
        ssh: bool,
    },
    /// Check a configuration without a server
    #[command(subcommand)]
    Config(config::Config),
    /// Orbs of the server: look, check, publish, import
    #[command(subcommand)]
    Orb(orb::Orb),
    /// Config policies: try them, push them, see what they decided
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Make a sample project, push it and watch it
    #[command(after_help = "Examples:\n  gantry try\n  gantry try --dir sample\n  gantry try --docker")]
    Try {
        /// Folder for the sample's repository; default: a temporary one
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Run its jobs in containers: a database, a cache, artifacts, and tests split over four nodes
        #[arg(long)]
        docker: bool,
        /// Image for them, with git, bash and a PostgreSQL that its entrypoint starts
        #[arg(long, requires = "docker", default_value = try_it::IMAGE)]
        image: String,
    },
}

impl Command {
    /// Runs the command.
    ///
    /// # Errors
    /// What was asked could not be done; the failure carries the exit code.
    pub async fn run(self, global: &Global) -> Result<Exit, Failure> {
        match self {
            Self::Watch { number, no_wait_approval } => watch::run(global, &number, no_wait_approval).await,
            Self::Log { job, step, follow, failed } => log::run(global, job, step, follow, failed).await,
            Self::Why { job } => why::run(global, &job).await,
            Self::Pipeline(command) => command.run(global).await,
            Self::Workflow(command) => command.run(global).await,
            Self::Job(command) => command.run(global).await,
            Self::Project(command) => command.run(global).await,
            Self::Secret(command) => command.run(global).await,
            Self::SshKey(command) => command.run(global).await,
            Self::Context(command) => command.run(global).await,
            Self::Runner(command) => command.run(global).await,
            Self::Token(command) => command.run(global).await,
            Self::Cancel { id, job } => verbs::cancel(global, &id, job).await,
            Self::Approve { workflow, job } => verbs::approve(global, &workflow, job.as_deref()).await,
            Self::UserKey(command) => command.run(global).await,
            Self::Rerun { workflow, failed, failed_tests, job, ssh } => {
                let which = verbs::Rerun { failed, failed_tests, jobs: job, ssh };
                verbs::rerun(global, &workflow, which).await
            }
            Self::Config(command) => command.run(global),
            Self::Orb(command) => command.run(global).await,
            Self::Policy(command) => command.run(global).await,
            Self::Try { dir, docker: true, image } => try_it::run_docker(global, dir, &image).await,
            Self::Try { dir, .. } => try_it::run(global, dir).await,
        }
    }
}

/// Reports a change: one JSON document, or a sentence in the past tense.
fn done(global: &Global, answer: &Value, sentence: &str) {
    if global.json {
        println!("{answer}");
    } else {
        eprintln!("{sentence}");
        for warning in answer["warnings"].as_array().into_iter().flatten() {
            eprintln!("warning: {}", text(warning, "message"));
        }
    }
}

/// A field as text; nothing for absent and null.
fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Prints a list: one JSON document, or one tab-separated line each.
fn print_list(global: &Global, items: &[Value], columns: &[&str]) {
    if global.json {
        println!("{}", Value::Array(items.to_vec()));
        return;
    }
    for item in items {
        println!("{}", columns.iter().map(|path| cell(item, path)).collect::<Vec<_>>().join("\t"));
    }
}

/// Prints one thing: one JSON document, or one `name<TAB>value` line each.
fn print_one(global: &Global, item: &Value, columns: &[&str]) {
    if global.json {
        println!("{item}");
        return;
    }
    for path in columns {
        println!("{path}\t{}", cell(item, path));
    }
}

/// A cell by its dotted path.
fn cell(item: &Value, path: &str) -> String {
    match path.split('.').try_fold(item, |value, key| value.get(key)) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}
