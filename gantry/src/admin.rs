//! `gantry admin`: looks after an instance.
//!
//! What needs a running suite is asked of it over HTTP, on this machine or elsewhere, with an administrator's
//! token. What must also work without one (`verify`, `migrate`) opens the database itself.

mod rebuild_records;

use crate::{
    adapters::Stored,
    config::{DatabaseKind, Loaded},
    databases,
    instance::{self, Instance},
    layout::Layout,
    migrate,
    operator::{
        topology,
        verify::{self, Report},
    },
    postgres::Postgres,
};
use anyhow::Context;
use clap::{Args, Subcommand};
use cli::{Client, Exit, Failure};
use serde_json::{Value, json};
use sqlx::PgPool;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};
use tokio_util::sync::CancellationToken;

/// `gantry admin …`
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Refold the events, compare them with state rows and blobs; exit 0 means clean
    #[command(
        after_help = "Examples:\n  gantry admin verify --data gantry-data     an instance of this machine, running or not\n  gantry admin verify --server https://ci.example.com --json\n\nExits 0 when clean, 1 when something differs."
    )]
    Verify,
    /// Check the promises that a query can show broken; exit 0 means all hold
    #[command(
        after_help = "Examples:\n  gantry admin invariants\n  gantry admin invariants --json | jq '.invariants[] | select(.violations > 0)'\n\nExits 0 when all hold, 1 when one is broken."
    )]
    Invariants,
    /// Show who talks to whom, how far each is behind, what waits in queues, and who leads
    #[command(
        after_help = "Examples:\n  gantry admin topology                 tables\n  gantry admin topology --json | jq '.services[].groups[] | select(.behind.events > 100)'\n  gantry admin topology --picture       a flowchart for a Markdown page, with what is behind\n\nBEHIND counts the events that a group wants and has not handled, OLDEST is the age of the first of them."
    )]
    Topology {
        /// Draw it, in Mermaid's language
        #[arg(long)]
        picture: bool,
    },
    /// Let pipelines go that are past `[retention] pipelines`, now instead of at the next sweep
    #[command(
        after_help = "Examples:\n  gantry admin retention --dry-run           what would go, by project\n  gantry admin retention\n  gantry admin retention --json --server https://ci.example.com\n\nWhat goes is archived in the blob store first; there is no way back into the lists."
    )]
    Retention {
        /// Only show what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Make documents of steps again that MongoDB, or what else keeps the records, has lost, while the suite serves
    #[command(
        after_help = "Examples:\n  gantry admin rebuild-records\n  gantry admin rebuild-records --json --server https://ci.example.com\n  gantry admin rebuild-records --after 0198…      go on where one was cut short\n\nReads what runs and the sealed record of every task that ended. What is as new stays as it is: repeat it at any time.\nExits 0 when all was made, 1 when a record cannot be read, which it names."
    )]
    RebuildRecords {
        /// Go on after this task
        #[arg(long, value_name = "TASK")]
        after: Option<String>,
    },
    /// List the points at which `GANTRY_FAILPOINTS` can stop a server, for tests of crashes
    #[command(
        after_help = "Examples:\n  gantry admin failpoints\n  gantry admin failpoints --json\n\nThen, for example: GANTRY_FAILPOINTS=conductor.commit.after=kill gantry up"
    )]
    Failpoints,
    /// Bring the database to the version of this build
    #[command(
        after_help = "Examples:\n  gantry admin migrate --config gantry.toml    the database that the file names\n  gantry admin migrate --data gantry-data      the private one of an instance that is stopped\n\n`gantry up` migrates by itself; `gantry serve` never does."
    )]
    Migrate {
        /// Configuration file (TOML)
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Messages that a service gave up on: list, replay, discard
    #[command(subcommand)]
    DeadLetter(DeadLetter),
}

/// `gantry admin dead-letter …`
#[derive(Subcommand, Debug)]
pub enum DeadLetter {
    /// List them, with the reason and the whole message
    #[command(
        after_help = "Examples:\n  gantry admin dead-letter list\n  gantry admin dead-letter list --service conductor --json"
    )]
    List(Which),
    /// Hand them out again, under their ids; what waits behind them follows
    #[command(
        after_help = "Examples:\n  gantry admin dead-letter replay --id 0198…\n  gantry admin dead-letter replay --all"
    )]
    Replay {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// All of them
        #[arg(long)]
        all: bool,
    },
    /// Give them up for good; what waits behind them goes on
    #[command(
        after_help = "Examples:\n  gantry admin dead-letter discard --id 0198… --why \"sent by a build that is gone\"\n  gantry admin dead-letter discard --group conductor.tasks --all --why \"restored from a backup\""
    )]
    Discard {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// All of them
        #[arg(long)]
        all: bool,
        /// The reason, which is kept
        #[arg(long)]
        why: String,
    },
}

/// Which dead letters; what is left out does not restrict.
#[derive(Args, Clone, Debug)]
pub struct Which {
    /// Of this service
    #[arg(long)]
    service: Option<String>,
    /// Of this group, for example conductor.tasks
    #[arg(long)]
    group: Option<String>,
    /// This message
    #[arg(long)]
    id: Option<String>,
    /// Of this event type, for example task.finished
    #[arg(long)]
    kind: Option<String>,
    /// With this reason
    #[arg(long, value_parser = ["rejected", "retries_exhausted", "unsupported_version"])]
    reason: Option<String>,
    /// Dead since then, RFC 3339
    #[arg(long)]
    since: Option<String>,
}

impl Which {
    fn fields(&self) -> Vec<(&'static str, &str)> {
        [
            ("service", &self.service),
            ("group", &self.group),
            ("id", &self.id),
            ("kind", &self.kind),
            ("reason", &self.reason),
            ("since", &self.since),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_deref()?)))
        .collect()
    }

    fn json(&self) -> Value {
        self.fields().into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
    }
}

/// Runs the command.
///
/// # Errors
/// No instance or database answers, or the token is no administrator's.
pub async fn run(command: Command, global: &cli::Global) -> anyhow::Result<ExitCode> {
    match command {
        Command::Verify => verify(global).await,
        Command::Invariants => invariants(global).await,
        Command::Topology { picture } => topology(global, picture).await,
        Command::Retention { dry_run } => Ok(retention(global, dry_run).await?),
        Command::RebuildRecords { after } => Ok(rebuild_records::run(global, after).await?),
        Command::Failpoints => {
            for role in crate::serve::ROLES {
                println!("{role}.commit.before\n{role}.commit.after");
            }
            println!("{}", failpoints::POINTS.join("\n"));
            Ok(ExitCode::SUCCESS)
        }
        Command::Migrate { config } => migrate(global, config.as_deref()).await,
        Command::DeadLetter(command) => Ok(dead_letters(global, command).await?),
    }
}

fn data_folder(global: &cli::Global) -> PathBuf {
    global.data.clone().unwrap_or_else(|| PathBuf::from("gantry-data"))
}

async fn verify(global: &cli::Global) -> anyhow::Result<ExitCode> {
    let report = if global.server.is_some() {
        let answer = Client::connect(global)?.get("/internal/verify").await?;
        serde_json::from_value::<Report>(answer).context("the server's report cannot be read")?
    } else {
        on_database(&data_folder(global), async |layout, pool| {
            verify::verify(&pool.into(), &Stored::for_audit(&Loaded::read(None)?.config, &layout)?).await
        })
        .await?
    };
    if global.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        for finding in &report.findings {
            println!("{}: {}", finding.check, finding.what);
        }
        eprintln!(
            "{} findings; {} blobs and {} archives read",
            report.findings.len(),
            report.blobs,
            report.archives
        );
    }
    Ok(if report.clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn invariants(global: &cli::Global) -> anyhow::Result<ExitCode> {
    let answer = Client::connect(global)?.get("/internal/invariants").await?;
    let clean = answer.get("clean").and_then(Value::as_bool).unwrap_or(false);
    if global.json {
        println!("{answer}");
    } else {
        for one in answer.get("invariants").and_then(Value::as_array).into_iter().flatten() {
            let text = |key: &str| one.get(key).and_then(Value::as_str).unwrap_or_default();
            let violations = one.get("violations").and_then(Value::as_i64).unwrap_or_default();
            println!(
                "{}\t{}\t{violations}\t{}",
                if violations == 0 { "ok" } else { "broken" },
                text("id"),
                text("promise")
            );
            for id in one.get("sample_ids").and_then(Value::as_array).into_iter().flatten() {
                println!("\t\t\t{}", id.as_str().unwrap_or_default());
            }
        }
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn retention(global: &cli::Global, dry_run: bool) -> Result<ExitCode, Failure> {
    let client = Client::connect(global)?;
    if dry_run {
        let report = client.get("/internal/retention").await?;
        if global.json {
            println!("{report}");
            return Ok(ExitCode::SUCCESS);
        }
        for project in report.get("projects").and_then(Value::as_array).into_iter().flatten() {
            let number = |key: &str| project.get(key).and_then(Value::as_i64).unwrap_or_default();
            println!(
                "{}\t{} pipelines\t{} to {}",
                project.get("project").and_then(Value::as_str).unwrap_or_default(),
                number("pipelines"),
                number("first"),
                number("last")
            );
        }
        let count = report.get("pipelines").and_then(Value::as_u64).unwrap_or_default();
        let before = report.get("before").and_then(Value::as_str).unwrap_or_default();
        let least = if report.get("more").and_then(Value::as_bool) == Some(true) { "at least " } else { "" };
        eprintln!("{least}{count} pipelines ended before {before} and would go.");
        return Ok(ExitCode::SUCCESS);
    }
    let mut gone = 0;
    loop {
        let report = client.post("/internal/retention", &json!({})).await?;
        let now = report.get("pipelines").and_then(Value::as_u64).unwrap_or_default();
        let more = report.get("more").and_then(Value::as_bool).unwrap_or_default();
        gone += now;
        // What could not go although it may is told by the server's log and tried again by its own sweep.
        if !more || now == 0 {
            if global.json {
                println!("{}", json!({ "pipelines": gone, "before": report.get("before"), "left": more }));
            } else {
                eprintln!("{gone} pipelines are gone; what belongs to them follows.");
                if more {
                    eprintln!("Some could not go: the server's log says why, and it tries again by itself.");
                }
            }
            return Ok(if more { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
    }
}

async fn topology(global: &cli::Global, picture: bool) -> anyhow::Result<ExitCode> {
    let answer = Client::connect(global)?.get("/internal/topology").await?;
    if global.json && !picture {
        println!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    let topology = serde_json::from_value(answer)
        .context("the server is of another version, and its answer cannot be read; use --json")?;
    let text = if picture { topology::picture(&topology) } else { topology::table(&topology) };
    if global.json {
        println!("{}", json!({ "mermaid": text }));
    } else {
        print!("{text}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn dead_letters(global: &cli::Global, command: DeadLetter) -> Result<ExitCode, Failure> {
    let client = Client::connect(global)?;
    let (answer, done) = match command {
        DeadLetter::List(which) => {
            let query = which
                .fields()
                .into_iter()
                .map(|(name, value)| format!("{name}={}", cli::encode(value)))
                .collect::<Vec<_>>()
                .join("&");
            let answer = client.get(&format!("/internal/dead-letters?{query}")).await?;
            let items = answer.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
            if global.json {
                println!("{}", Value::Array(items));
                return Ok(ExitCode::SUCCESS);
            }
            for letter in &items {
                let text = |key: &str| letter.get(key).and_then(Value::as_str).unwrap_or_default();
                let of = |key: &str| {
                    letter.pointer(&format!("/message/{key}")).and_then(Value::as_str).unwrap_or_default()
                };
                println!(
                    "{}\t{}\t{}\t{}\t{}\t{}",
                    of("id"),
                    text("group"),
                    of("type"),
                    text("reason"),
                    text("died_at"),
                    text("error")
                );
            }
            eprintln!("{} dead letters", items.len());
            return Ok(ExitCode::SUCCESS);
        }
        DeadLetter::Replay { which, all } => {
            meant(&which, all)?;
            let body = json!({ "which": which.json(), "all": all });
            (client.post("/internal/dead-letters/replay", &body).await?, "replayed")
        }
        DeadLetter::Discard { which, all, why } => {
            meant(&which, all)?;
            let body = json!({ "which": which.json(), "all": all, "why": why });
            (client.post("/internal/dead-letters/discard", &body).await?, "discarded")
        }
    };
    if global.json {
        println!("{answer}");
    } else {
        let count = answer.get(done).and_then(Value::as_u64).unwrap_or_default();
        eprintln!("{count} dead letters {done}.");
    }
    Ok(ExitCode::SUCCESS)
}

fn meant(which: &Which, all: bool) -> Result<(), Failure> {
    if which.fields().is_empty() && !all {
        let text = "say which dead letters (--id, --group, --service …), or --all";
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok(())
}

async fn migrate(global: &cli::Global, config: Option<&Path>) -> anyhow::Result<ExitCode> {
    let loaded = Loaded::read(config)?;
    let applied = match loaded.config.database.kind {
        DatabaseKind::Url => {
            let database = &loaded.config.database;
            migrate::all(&databases::open(database, 2, databases::Needed::All).await?).await?
        }
        DatabaseKind::Embedded => {
            on_database(&data_folder(global), async |_, pool| migrate::all(&pool.into()).await).await?
        }
    };
    if global.json {
        println!("{}", json!({ "schemas": applied }));
    } else {
        for schema in &applied {
            eprintln!("{} is at version {}", schema.service, schema.version);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Works on the private database of a data folder: the running instance's, or one that is started for this.
async fn on_database<T>(
    data: &Path,
    work: impl AsyncFnOnce(Layout, PgPool) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    anyhow::ensure!(
        data.join("postgres").exists(),
        "{} is no data folder of Gantry; name one with --data, or a server with --server",
        data.display()
    );
    let layout = Layout::open(data)?;
    if Instance::running(data).is_some() {
        let pool = connect(Postgres::options_in(&layout.run)).await?;
        return work(layout, pool).await;
    }
    let _held = instance::hold(&layout.data).await?;
    let server = Postgres::start(&layout.data, &layout.run).await?;
    let stop = CancellationToken::new();
    let options = server.options();
    let supervisor = tokio::spawn(server.supervise(stop.clone()));
    let result = async {
        let pool = connect(options).await?;
        let result = work(layout, pool.clone()).await;
        pool.close().await;
        result
    }
    .await;
    stop.cancel();
    supervisor.await?;
    result
}

async fn connect(options: sqlx::postgres::PgConnectOptions) -> anyhow::Result<PgPool> {
    eventstore::open_pool_with(options, 2).await.context("the instance's database does not answer")
}
