//! Puts adapters and services together: the only place that names them side by side.

use crate::{
    config::{Config, DockerPolicy},
    isolation::Isolation,
    layout::Layout,
};
use anyhow::Context;
use axum::Router;
use blobs::{Blobs, FsBlobs};
use bus::Bus;
use compute::{Compute, Local, LocalConfig};
use contracts::{Actor, domain::Bootstrap};
use kit::keys::Keys;
use live::{Live, LocalLive};
use records::{PostgresRecords, Records};
use secrets::{Keyring, Secrets};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use std::{path::PathBuf, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Where the suite runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Public address.
    pub url: String,
    /// Data folder.
    pub layout: Layout,
    /// What keeps host jobs apart.
    pub isolation: Isolation,
}

/// All services, running.
pub struct Suite {
    bus: Bus,
    blobs: Router,
    compute: Arc<dyn Compute>,
    api: api::Service,
    projector: projector::Service,
    domain: domain::Service,
    permissions: permissions::Service,
    contexts: contexts::Service,
    pipelines: pipelines::Service,
    conductor: conductor::Service,
    dispatcher: dispatcher::Service,
    scheduler: scheduler::Service,
    output: output_processor::Service,
}

impl Suite {
    /// Opens the adapters and starts every service.
    ///
    /// # Errors
    /// A folder, a key or a schema cannot be had; the text names which.
    pub async fn start(
        config: &Config,
        place: &Place,
        pool: PgPool,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let layout = &place.layout;
        let keys = Keys::load_or_create(&layout.join("keys").join("signing")).context("the signing key")?;
        let keyring =
            Keyring::open_or_create(layout.join("keys").join("secrets.json")).context("the key ring")?;
        let secrets: Arc<dyn Secrets> = Arc::new(keyring);
        let files = FsBlobs::open(&layout.join("blobs"), &keys.sign("blob urls", b""))
            .await
            .context("the blobs' folder")?;
        let blob_routes = files.router();
        let blobs: Arc<dyn Blobs> = Arc::new(files);
        let live: Arc<dyn Live> = Arc::new(LocalLive::new());
        let records: Arc<dyn Records> =
            Arc::new(PostgresRecords::open(pool.clone()).await.context("the records")?);
        let compute: Arc<dyn Compute> =
            Arc::new(Local::open(local_compute(config, place)?).context("local compute")?);
        let bus = Bus::local(pool.clone());

        let domain = domain::start(domain::Deps { pool: pool.clone(), bus: bus.clone() }, stop.clone())
            .await
            .context("domain")?;
        let permissions =
            permissions::start(permissions::Deps { pool: pool.clone(), bus: bus.clone() }, stop.clone())
                .await
                .context("permissions")?;
        let contexts = contexts::start(
            contexts::Deps {
                pool: pool.clone(),
                bus: bus.clone(),
                secrets: Arc::clone(&secrets),
                keys: keys.clone(),
            },
            stop.clone(),
        )
        .await
        .context("contexts")?;
        let pipelines = pipelines::start(
            pipelines::Deps {
                pool: pool.clone(),
                bus: bus.clone(),
                blobs: Arc::clone(&blobs),
                git_root: layout.join("git"),
                git_url: place.url.clone(),
            },
            stop.clone(),
        )
        .await
        .context("pipelines")?;
        let conductor = conductor::start(
            conductor::Deps { pool: pool.clone(), bus: bus.clone(), blobs: Arc::clone(&blobs) },
            stop.clone(),
        )
        .await
        .context("conductor")?;
        let dispatcher = dispatcher::start(
            dispatcher::Deps {
                pool: pool.clone(),
                bus: bus.clone(),
                keys: keys.clone(),
                config: dispatching(config),
                public_url: place.url.clone(),
                git_url: place.url.clone(),
            },
            stop.clone(),
        )
        .await
        .context("dispatcher")?;
        let scheduler = scheduler::start(
            scheduler::Deps {
                pool: pool.clone(),
                bus: bus.clone(),
                keys: keys.clone(),
                compute: Arc::clone(&compute),
                config: scheduler::Config::default(),
            },
            stop.clone(),
        )
        .await
        .context("scheduler")?;
        let output = output_processor::start(
            output_processor::Deps {
                pool: pool.clone(),
                bus: bus.clone(),
                keys: keys.clone(),
                blobs: Arc::clone(&blobs),
                live: Arc::clone(&live),
                records: Arc::clone(&records),
                journal_dir: layout.join("journal"),
                config: output_processor::Config::default(),
            },
            stop.clone(),
        )
        .await
        .context("output-processor")?;
        let projector = projector::start(
            projector::Deps { pool: pool.clone(), bus: bus.clone(), live: Arc::clone(&live) },
            stop.clone(),
        )
        .await
        .context("projector")?;
        let api = api::start(
            api::Deps {
                pool,
                bus: bus.clone(),
                live,
                secrets,
                keys,
                config: api::Config::new(place.url.clone(), layout.join("git")),
            },
            stop,
        )
        .await
        .context("api")?;
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
        })
    }

    /// Makes the first administrator with this token, or gives them this token.
    ///
    /// # Errors
    /// The directory does not answer.
    pub async fn bootstrap(&self, token: &str) -> anyhow::Result<()> {
        let ask = Bootstrap { token_sha256: hex::encode(Sha256::digest(token)) };
        self.bus
            .ask(&Actor::service("gantry"), &ask)
            .await
            .context("the first administrator cannot be made")?;
        Ok(())
    }

    /// Routes for people and programs.
    pub fn public(&self) -> Router {
        self.api.router().merge(self.blobs.clone())
    }

    /// Routes for agents.
    pub fn agents(&self) -> Router {
        Router::new()
            .merge(self.dispatcher.agent_router())
            .merge(self.contexts.agent_router())
            .merge(self.output.agent_router())
            .merge(self.blobs.clone())
    }

    /// Ends all agents of this machine, jobs included.
    pub async fn end_jobs(&self) {
        match self.compute.list().await {
            Ok(running) => {
                for agent in running {
                    if let Err(error) = self.compute.stop(&agent.name).await {
                        tracing::warn!("{} was not ended: {error}", agent.name);
                    }
                }
            }
            Err(error) => tracing::warn!("running jobs cannot be listed: {error}"),
        }
    }

    /// Waits until every service has finished what it held.
    pub async fn join(self) {
        for (name, result) in [
            ("scheduler", self.scheduler.join().await),
            ("dispatcher", self.dispatcher.join().await),
            ("conductor", self.conductor.join().await),
            ("pipelines", self.pipelines.join().await),
            ("contexts", self.contexts.join().await),
            ("permissions", self.permissions.join().await),
            ("domain", self.domain.join().await),
        ] {
            if let Err(error) = result {
                tracing::warn!("{name} did not end well: {error:#}");
            }
        }
        self.output.join().await;
        self.projector.join().await;
        self.api.join().await;
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
    Ok(LocalConfig {
        data: layout.data.clone(),
        agent,
        endpoint: format!("unix:{}", layout.agent_socket().display()),
        isolation: place.isolation.word().to_owned(),
        job_user: match place.isolation {
            Isolation::User { uid, gid } => Some(agent_api::JobUser { uid, gid }),
            Isolation::Namespace | Isolation::None => None,
        },
        hide: vec![layout.data.clone(), layout.run.clone()],
        cgroups: true,
    })
}

fn dispatching(config: &Config) -> dispatcher::Config {
    let ours = &config.dispatcher;
    let processors =
        std::thread::available_parallelism().map_or(2, |count| u32::try_from(count.get()).unwrap_or(2));
    dispatcher::Config {
        slots: if ours.slots == 0 { processors * 2 } else { ours.slots },
        renew: ours.renew.0,
        unreachable: ours.unreachable.0,
        self_stop: ours.self_stop.0,
        lease: ours.lease.0,
        recovery_grace: ours.recovery_grace.0,
        claim_timeout: ours.claim_timeout.0,
        grace: ours.grace.0,
        job_timeout: ours.job_timeout.0,
        docker: match config.executors.docker {
            DockerPolicy::Host => dispatcher::Docker::Host,
            DockerPolicy::Refuse => dispatcher::Docker::Refuse,
        },
        ..dispatcher::Config::default()
    }
}
