//! Puts adapters and services together: the only place that names them side by side.

use crate::{
    adapters,
    adapters::Stored,
    config::{BlobsKind, ComputeKind, Config, RecordsKind},
    counted::counted,
    engine,
    isolation::Isolation,
    layout::Layout,
};
use anyhow::Context;
use axum::Router;
use blobs::Blobs;
use bus::Bus;
use compute::{Compute, Local, LocalConfig};
use contracts::{
    Actor,
    domain::{Bootstrap, User},
};
use eventstore::Databases;
use kit::keys::Keys;
use live::Live;
use records::Records;
use secrets::Secrets;
use sha2::{Digest, Sha256};
use std::{path::PathBuf, sync::Arc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Where the suite runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Public address.
    pub url: String,
    /// Address under which agents of this machine reach the git server.
    pub git_url: String,
    /// Data folder.
    pub layout: Layout,
    /// What keeps host jobs apart, of a process that starts agents on its own machine.
    pub isolation: Option<Isolation>,
    /// Where other processes of the same services reach this one's routes for agents; `None`: there are none.
    pub peer_url: Option<String>,
    /// Told what the start waits for.
    pub phase: watch::Sender<String>,
}

/// The services of this process, running.
pub struct Suite {
    bus: Bus,
    blobs: Router,
    compute: Option<Arc<dyn Compute>>,
    api: Option<api::Service>,
    projector: Option<projector::Service>,
    domain: Option<domain::Service>,
    permissions: Option<permissions::Service>,
    contexts: Option<contexts::Service>,
    pipelines: Option<pipelines::Service>,
    conductor: Option<conductor::Service>,
    dispatcher: Option<dispatcher::Service>,
    scheduler: Option<scheduler::Service>,
    output: Option<output_processor::Service>,
    test_results: Option<test_results::Service>,
}

/// Starts a service if it is among the wanted roles; readiness says meanwhile that it is waited for.
macro_rules! role {
    ($roles:expr, $phase:expr, $name:literal, $start:expr) => {
        if $roles.contains(&$name) {
            $phase.send_replace(concat!("the start of ", $name).to_owned());
            Some($start.await.context($name)?)
        } else {
            None
        }
    };
}

impl Suite {
    /// Opens the adapters and starts the services of `roles`.
    ///
    /// # Errors
    /// A folder, a key or a schema cannot be had; the text names which.
    pub async fn start(
        config: &Config,
        place: &Place,
        keys: &Keys,
        databases: &Databases,
        bus: Bus,
        roles: &[&str],
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let (layout, phase) = (&place.layout, &place.phase);
        let secrets: Arc<dyn Secrets> = adapters::secrets(config, layout, roles)?;
        phase.send_replace(match config.blobs.kind {
            BlobsKind::Fs => "the folder of the blobs".to_owned(),
            BlobsKind::S3 => format!("the bucket {} of the S3 store", config.blobs.bucket),
        });
        let stored = Stored::open(config, layout, keys).await?;
        stored.keep(stop.clone());
        let blob_routes = stored.routes();
        let blobs: Arc<dyn Blobs> = stored.port();
        let live: Arc<dyn Live> = adapters::live(config)?;
        phase.send_replace(match config.records.kind {
            RecordsKind::Postgres => "the records in the database".to_owned(),
            RecordsKind::Mongo => "the records in MongoDB".to_owned(),
        });
        let records: Arc<dyn Records> = adapters::records(config, databases.common()).await?;
        phase.send_replace("the container engine".to_owned());
        let docker = engine::policy(config).await;
        let compute: Option<Arc<dyn Compute>> = match config.compute.kind {
            _ if !roles.contains(&"scheduler") => None,
            ComputeKind::Local => {
                let local = Local::open(local_compute(config, place)?).context("local compute")?;
                Some(Arc::new(engine::equip(local, config, docker)))
            }
            ComputeKind::Nomad => Some(Arc::new(adapters::nomad(config)?)),
        };

        let of = |service| databases.of(service).clone();
        let domain = role!(
            roles,
            phase,
            "domain",
            domain::start(domain::Deps { pool: of("domain"), bus: bus.clone() }, stop.clone())
        );
        let permissions = role!(
            roles,
            phase,
            "permissions",
            permissions::start(permissions::Deps { pool: of("permissions"), bus: bus.clone() }, stop.clone())
        );
        let contexts = role!(
            roles,
            phase,
            "contexts",
            contexts::start(
                contexts::Deps {
                    pool: of("contexts"),
                    bus: bus.clone(),
                    secrets: Arc::clone(&secrets),
                    keys: keys.clone(),
                    public_url: place.url.clone(),
                    live: Arc::clone(&live),
                    deliveries: live::Quota::of(
                        config.contexts.deliveries_per_second,
                        config.contexts.deliveries_burst,
                    ),
                    refuse_unmaskable: config.contexts.refuse_unmaskable,
                },
                stop.clone(),
            )
        );
        let pipelines = role!(
            roles,
            phase,
            "pipelines",
            pipelines::start(
                pipelines::Deps {
                    pool: of("pipelines"),
                    bus: bus.clone(),
                    blobs: Arc::clone(&blobs),
                    git_root: layout.join("git"),
                    git_url: place.url.clone(),
                    retention: pipelines::Retention {
                        keep: config.retention.keep(),
                        sweep: config.retention.sweep.0,
                    },
                },
                stop.clone(),
            )
        );
        let conductor = role!(
            roles,
            phase,
            "conductor",
            conductor::start(
                conductor::Deps {
                    pool: of("conductor"),
                    bus: bus.clone(),
                    blobs: Arc::clone(&blobs),
                    config: conductor::Config {
                        reruns: config.retention.reruns.0,
                        sweep: config.retention.sweep.0,
                        ssh: config.executors.ssh.enabled,
                    },
                },
                stop.clone(),
            )
        );
        let dispatcher = role!(
            roles,
            phase,
            "dispatcher",
            dispatcher::start(
                dispatcher::Deps {
                    pool: of("dispatcher"),
                    bus: bus.clone(),
                    keys: keys.clone(),
                    blobs: Arc::clone(&blobs),
                    config: dispatching(config, docker),
                    public_url: place.url.clone(),
                    git_url: place.git_url.clone(),
                },
                stop.clone(),
            )
        );
        let scheduler = role!(
            roles,
            phase,
            "scheduler",
            scheduler::start(
                scheduler::Deps {
                    pool: of("scheduler"),
                    bus: bus.clone(),
                    keys: keys.clone(),
                    compute: compute.clone().context("compute")?,
                    config: scheduler::Config::default(),
                },
                stop.clone(),
            )
        );
        let output = role!(
            roles,
            phase,
            "output-processor",
            output_processor::start(
                output_processor::Deps {
                    pool: of("output-processor"),
                    bus: bus.clone(),
                    keys: keys.clone(),
                    blobs: Arc::clone(&blobs),
                    live: Arc::clone(&live),
                    records: Arc::clone(&records),
                    journal_dir: layout.join("journal"),
                    peer_url: place.peer_url.clone(),
                    config: output(config),
                },
                stop.clone(),
            )
        );
        let test_results = role!(
            roles,
            phase,
            "test-results",
            test_results::start(
                test_results::Deps {
                    pool: of("test-results"),
                    bus: bus.clone(),
                    keys: keys.clone(),
                    blobs: Arc::clone(&blobs),
                    config: test_results::Config {
                        retention_days: config.stores.test_days,
                        sweep_seconds: config.logs.sweep.0.as_secs().max(1),
                        ..test_results::Config::default()
                    },
                },
                stop.clone(),
            )
        );
        let projector = role!(
            roles,
            phase,
            "projector",
            projector::start(
                projector::Deps { pool: of("projector"), bus: bus.clone(), live: Arc::clone(&live) },
                stop.clone(),
            )
        );
        let api = role!(
            roles,
            phase,
            "api",
            api::start(
                api::Deps {
                    pool: of("api"),
                    bus: bus.clone(),
                    blobs: Arc::clone(&blobs),
                    live,
                    secrets,
                    keys: keys.clone(),
                    config: edge(config, place),
                },
                stop,
            )
        );
        Ok(Self {
            bus,
            blobs: blob_routes,
            compute,
            api,
            projector,
            domain,
            permissions,
            contexts,
            pipelines,
            conductor,
            dispatcher,
            scheduler,
            output,
            test_results,
        })
    }

    /// Makes the first administrator with this token, or gives them this token.
    ///
    /// # Errors
    /// The directory does not answer.
    pub async fn bootstrap(&self, token: &str) -> anyhow::Result<User> {
        let ask = Bootstrap { token_sha256: hex::encode(Sha256::digest(token)) };
        self.bus.ask(&Actor::service("gantry"), &ask).await.context("the first administrator cannot be made")
    }

    /// Routes for people and programs.
    pub fn public(&self) -> Router {
        let api = self.api.as_ref().map(api::Service::router);
        counted(api.unwrap_or_default(), "public").merge(self.blobs.clone())
    }

    /// Routes for agents.
    pub fn agents(&self) -> Router {
        self.agent_parts().merge(self.blobs.clone())
    }

    /// Both: runners of other machines come to the address that people know (execution §25).
    pub fn everything(&self) -> Router {
        self.public().merge(self.agent_parts())
    }

    fn agent_parts(&self) -> Router {
        let parts = [
            self.dispatcher.as_ref().map(dispatcher::Service::agent_router),
            self.contexts.as_ref().map(contexts::Service::agent_router),
            self.output.as_ref().map(output_processor::Service::agent_router),
            self.test_results.as_ref().map(test_results::Service::agent_router),
            self.scheduler.as_ref().map(scheduler::Service::agent_router),
        ];
        counted(parts.into_iter().flatten().fold(Router::new(), Router::merge), "agents")
    }

    /// A code with which this person signs in once in a browser; `None`: no edge runs here.
    pub fn sign_in_code(&self, user: &User) -> Option<String> {
        self.api.as_ref().map(|api| api.sign_in_code(user.id))
    }

    /// Ends all agents of this machine, jobs included.
    pub async fn end_jobs(&self) {
        let Some(compute) = &self.compute else { return };
        match compute.list().await {
            Ok(running) => {
                for agent in running {
                    if let Err(error) = compute.stop(&agent.name).await {
                        tracing::warn!("{} was not ended: {error}", agent.name);
                    }
                }
            }
            Err(error) => tracing::warn!("running jobs cannot be listed: {error}"),
        }
    }

    /// Waits until every service has finished what it held.
    pub async fn join(self) {
        macro_rules! ended {
            ($($name:ident),+) => { $(
                if let Some(service) = self.$name
                    && let Err(error) = service.join().await
                {
                    tracing::warn!("{} did not end well: {error:#}", stringify!($name));
                }
            )+ };
        }
        ended!(scheduler, dispatcher, conductor, pipelines, contexts, permissions, domain);
        if let Some(output) = self.output {
            output.join().await;
        }
        if let Some(test_results) = self.test_results {
            test_results.join().await;
        }
        if let Some(projector) = self.projector {
            projector.join().await;
        }
        if let Some(api) = self.api {
            api.join().await;
        }
    }
}

fn local_compute(config: &Config, place: &Place) -> anyhow::Result<LocalConfig> {
    let agent = if config.agents.binary.is_empty() {
        std::env::current_exe()?.with_file_name("gantry-runner")
    } else {
        PathBuf::from(&config.agents.binary)
    };
    anyhow::ensure!(
        agent.exists(),
        "the agent {} is missing; build it, or name it with [agents] binary",
        agent.display()
    );
    let layout = &place.layout;
    let isolation = place.isolation.as_ref().context("nothing was chosen to keep jobs apart")?;
    Ok(LocalConfig {
        data: layout.data.clone(),
        agent,
        endpoint: if config.agents.url.is_empty() {
            format!("unix:{}", layout.agent_socket().display())
        } else {
            config.agents.url.clone()
        },
        isolation: isolation.word().to_owned(),
        job_user: match *isolation {
            Isolation::User { uid, gid } => Some(agent_api::JobUser { uid, gid }),
            Isolation::Namespace | Isolation::None => None,
        },
        hide: vec![layout.data.clone(), layout.run.clone()],
        cgroups: true,
        ssh: config.executors.ssh.listen(),
    })
}

fn dispatching(config: &Config, docker: dispatcher::Docker) -> dispatcher::Config {
    let ours = &config.dispatcher;
    let processors =
        std::thread::available_parallelism().map_or(2, |count| u32::try_from(count.get()).unwrap_or(2));
    dispatcher::Config {
        slots: if ours.slots == 0 { processors * 2 } else { ours.slots },
        org_slots: (ours.org_slots > 0).then_some(ours.org_slots),
        project_slots: (ours.project_slots > 0).then_some(ours.project_slots),
        class_slots: ours.class_slots.clone(),
        disconnect_tolerance: ours
            .disconnect_tolerance
            .iter()
            .map(|(class, tolerance)| (class.clone(), tolerance.0))
            .collect(),
        renew: ours.renew.0,
        unreachable: ours.unreachable.0,
        self_stop: ours.self_stop.0,
        lease: ours.lease.0,
        recovery_grace: ours.recovery_grace.0,
        claim_timeout: ours.claim_timeout.0,
        queue_timeout: (!ours.queue_timeout.0.is_zero()).then_some(ours.queue_timeout.0),
        grace: ours.grace.0,
        job_timeout: ours.job_timeout.0,
        ssh_idle: config.executors.ssh.idle.0,
        ssh_total: config.executors.ssh.total.0,
        docker,
        classes: engine::classes(config),
        retention_sweep: config.retention.sweep.0,
        ..dispatcher::Config::default()
    }
}

fn edge(config: &Config, place: &Place) -> api::Config {
    let ours = &config.api;
    api::Config {
        requests: (ours.requests_per_second, ours.requests_burst),
        changes: (ours.changes_per_second, ours.changes_burst),
        org_requests: (ours.org_requests_per_second, ours.org_requests_burst),
        max_streams: ours.max_streams,
        max_streams_of_session: ours.max_streams_of_session,
        ..api::Config::new(place.url.clone(), place.layout.join("git"))
    }
}

fn output(config: &Config) -> output_processor::Config {
    let ours = &config.logs;
    output_processor::Config {
        retention_days: ours.retention_days,
        sweep_seconds: ours.sweep.0.as_secs().max(1),
        max_step_bytes: ours.max_step_mib << 20,
        max_task_bytes: ours.max_task_mib << 20,
        stores: config.stores.limits(),
        retention_sweep: config.retention.sweep.0,
        ..output_processor::Config::default()
    }
}
