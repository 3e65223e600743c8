//! The rows, in the order of the matrix.

use crate::{agents, clock, network, services, stores, world::Case};
use futures::future::BoxFuture;

/// What a row does between the moment at which it begins and the component's return.
pub type Run = for<'a> fn(&'a Case<'a>) -> BoxFuture<'a, anyhow::Result<()>>;

/// How a row is shown.
#[derive(Clone, Copy)]
pub enum Proof {
    Here {
        /// Part of a short run: green, and over within seconds.
        quick: bool,
        /// Seconds of the outage, in a short run and in a full one.
        outage: (u64, u64),
        /// Seconds within which it has to work again, if the matrix says.
        within: Option<u64>,
        /// A process that a stack has only where its server could be had.
        needs: Option<&'static str>,
        run: Run,
    },
    /// Not on this stack, and why.
    Not(&'static str),
}

/// A row of the matrix.
pub struct Row {
    pub id: &'static str,
    pub fails: &'static str,
    pub proof: Proof,
}

const fn here(quick: bool, outage: (u64, u64), within: u64, run: Run) -> Proof {
    Proof::Here { quick, outage, within: Some(within), needs: None, run }
}

const fn open(quick: bool, outage: (u64, u64), run: Run) -> Proof {
    Proof::Here { quick, outage, within: None, needs: None, run }
}

const fn row(id: &'static str, fails: &'static str, proof: Proof) -> Row {
    Row { id, fails, proof }
}

pub static ROWS: [Row; 43] = [
    row(
        "F1",
        "one API process, kill -9",
        here(true, (0, 0), 10, |case| Box::pin(services::api_killed(case))),
    ),
    row(
        "F2",
        "all API processes are away",
        here(false, (4, 30), 10, |case| Box::pin(services::api_away(case))),
    ),
    row(
        "F3",
        "domain and permissions are away",
        here(true, (4, 30), 10, |case| Box::pin(services::grants_away(case))),
    ),
    row("F4", "contexts are away", here(false, (4, 30), 10, |case| Box::pin(services::contexts_away(case)))),
    row("F5", "the leader of cron, kill -9", Proof::Not("the suite has no schedules yet")),
    row("F6", "cron is away across a due instant", Proof::Not("the suite has no schedules yet")),
    row(
        "F7",
        "conductor, kill -9 while a workflow fans out",
        here(true, (0, 0), 15, |case| Box::pin(services::conductor_killed(case))),
    ),
    row(
        "F8",
        "all conductors are away",
        here(false, (4, 30), 15, |case| Box::pin(services::conductor_away(case))),
    ),
    row(
        "F9",
        "dispatcher, kill -9 in the middle of claims",
        here(false, (0, 0), 10, |case| Box::pin(services::dispatcher_killed(case))),
    ),
    row(
        "F10",
        "all dispatchers are away",
        here(true, (5, 120), 20, |case| Box::pin(services::dispatcher_away(case))),
    ),
    row(
        "F11",
        "output-processor, kill -9 in the middle of chunks",
        here(true, (0, 0), 10, |case| Box::pin(services::output_killed(case))),
    ),
    row(
        "F12",
        "all output-processors are away",
        here(false, (5, 60), 20, |case| Box::pin(services::output_away(case))),
    ),
    row(
        "F13",
        "the exporter of the audit is away",
        Proof::Not("the suite has no exporter yet; the events themselves are in Postgres"),
    ),
    row("F14", "the notifier is away", Proof::Not("the suite has no notifier yet")),
    row(
        "F15",
        "an agent, kill -9, its job alive",
        open(false, (0, 0), |case| Box::pin(agents::killed(case))),
    ),
    row("F16", "a runner's machine loses power", Proof::Not("takes machines")),
    row(
        "F17",
        "a runner's network is cut for a minute",
        here(false, (5, 60), 20, |case| Box::pin(network::agents_cut(case))),
    ),
    row(
        "F18",
        "a runner's network is cut for longer than its lease",
        // A lease is three minutes, in a short run too.
        here(false, (210, 210), 30, |case| Box::pin(network::agents_lost(case))),
    ),
    row(
        "F19",
        "half-open connections of a runner, no RST",
        here(false, (3, 30), 40, |case| Box::pin(network::half_open(case))),
    ),
    row(
        "F20",
        "a runner's disk is full",
        Proof::Not(
            "`e2e/tests/disk.rs` shows a machine's full disk, with a file system of its own for its tasks",
        ),
    ),
    row(
        "F21",
        "a runner's clock is off by days",
        Proof::Not("`agent/tests/it/clock.rs` shows it: a clock that only one process sees wrongly"),
    ),
    row(
        "F22",
        "Postgres restarts or stays silent",
        here(true, (4, 30), 15, |case| Box::pin(stores::postgres_away(case))),
    ),
    row(
        "F23",
        "Postgres takes no writes",
        open(false, (4, 30), |case| Box::pin(stores::postgres_read_only(case))),
    ),
    row(
        "F24",
        "a lock that everybody waits for",
        open(false, (8, 30), |case| Box::pin(stores::postgres_locked(case))),
    ),
    row(
        "F25",
        "MongoDB is away, or its data are gone",
        Proof::Here {
            quick: true,
            outage: (4, 30),
            within: Some(30),
            needs: Some("mongo"),
            run: |case| Box::pin(stores::mongo_away(case)),
        },
    ),
    row(
        "F26",
        "Redis is away, flushed or out of memory",
        here(true, (3, 30), 5, |case| Box::pin(stores::redis(case))),
    ),
    row("F27", "RabbitMQ is away", here(false, (4, 30), 30, |case| Box::pin(stores::rabbitmq_away(case)))),
    row(
        "F28",
        "RabbitMQ blocks publishers by an alarm",
        open(false, (4, 30), |case| Box::pin(stores::rabbitmq_alarm(case))),
    ),
    row(
        "F29",
        "RabbitMQ's data are wiped",
        here(true, (0, 0), 60, |case| Box::pin(stores::rabbitmq_wiped(case))),
    ),
    row("F30", "RabbitMQ is partitioned", Proof::Not("takes a cluster of machines")),
    row(
        "F31",
        "the S3 store is away, fails or is slow",
        here(true, (4, 60), 60, |case| Box::pin(stores::s3_away(case))),
    ),
    row(
        "F32",
        "the S3 store returns corrupt bytes",
        open(false, (0, 0), |case| Box::pin(stores::s3_corrupt(case))),
    ),
    row(
        "F33",
        "Vault is sealed or away",
        here(true, (4, 30), 15, |case| Box::pin(stores::vault_sealed(case))),
    ),
    row(
        "F34",
        "Vault's key is rotated under load",
        open(true, (0, 0), |case| Box::pin(stores::vault_rotated(case))),
    ),
    row(
        "F35",
        "Nomad's servers are away",
        here(false, (4, 60), 60, |case| Box::pin(agents::nomad_away(case))),
    ),
    row(
        "F36",
        "a Nomad client is gone",
        Proof::Here {
            quick: false,
            outage: (4, 60),
            within: Some(195),
            needs: Some("nomad"),
            run: |case| Box::pin(agents::client_gone(case)),
        },
    ),
    row(
        "F37",
        "the VCS provider is away or limits rates",
        Proof::Not("repositories lie in the suite itself; it has no provider"),
    ),
    row("F38", "an outbound endpoint never answers", Proof::Not("the suite has no outbound webhooks yet")),
    row(
        "F39",
        "everything at once, and a start in any order",
        here(true, (0, 5), 120, |case| Box::pin(services::everything(case))),
    ),
    row(
        "F40",
        "every store answers later and loses parcels",
        open(false, (6, 60), |case| Box::pin(network::slow(case))),
    ),
    row(
        "F41",
        "two releases at once",
        Proof::Not(
            "takes another build: the test `load` with GANTRY_OTHER_BIN upgrades to it under load, and back",
        ),
    ),
    row("F42", "a flag is rolled back", Proof::Not("the suite has no flags")),
    row(
        "clock",
        "a service's clock steps by minutes",
        open(false, (4, 30), |case| Box::pin(clock::stepped(case))),
    ),
];
