//! Query views: the tables of schema `projector`, made from the events of all producers.
//!
//! The views are read by `api` and decide nothing. They are written in batches without waiting for the disk:
//! what a crash loses is handed over again, because progress commits with the rows.

mod store;

use async_trait::async_trait;
use bus::{Bus, Fault, Group};
use bytes::Bytes;
use contracts::{
    Envelope, Event,
    conductor::{
        CancelRequested, JobEnded, JobOnHold, JobReady, JobRunning, JobsAdded, TurnWanted, WorkflowCreated,
        WorkflowFinished, WorkflowStatusChanged,
    },
    dispatcher::{TaskFinished, TaskQueued, TaskStarted},
    domain::ProjectCreated,
    output::StepReported,
    pipelines::{PipelineContinued, PipelineCreated},
    retention::PipelineExpired,
};
use eventstore::{Key, Store, Tx};
use ids::{JobId, PipelineId, WorkflowId};
use live::Live;
use sqlx::PgPool;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use store::Unprojected;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The service's own tables.
pub static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/projector");

/// Services whose events the views are made of.
const SOURCES: &[&str] = &["domain", "pipelines", "conductor", "dispatcher", "output-processor"];
/// Those of them that tell several events of each job.
const PER_JOB: [&str; 3] = ["conductor", "dispatcher", "output-processor"];

/// What the projector needs.
pub struct Deps {
    /// Pool of the installation's database.
    pub pool: PgPool,
    /// Bus.
    pub bus: Bus,
    /// Where changed pipelines are announced once their rows are committed.
    pub live: Arc<dyn Live>,
}

/// Topic of everything that the views show: the message names the pipelines that changed, a line each.
pub const VIEWS_TOPIC: &str = "views";

/// The running projector.
pub struct Service {
    consumer: JoinHandle<()>,
}

impl Service {
    /// Waits until it has stopped.
    pub async fn join(self) {
        // A panic of the consumer has been logged where it happened; there is nothing to add here.
        let _ = self.consumer.await;
    }
}

/// Installs the views and starts to fill them.
///
/// # Errors
/// The schema could not be installed.
pub async fn start(deps: Deps, stop: CancellationToken) -> anyhow::Result<Service> {
    let store = Store::open(deps.pool.clone(), "projector", &MIGRATOR).await?;
    let group = Arc::new(Views { pool: deps.pool, live: deps.live });
    let consumer = deps.bus.consume(&store, SOURCES, group, stop);
    Ok(Service { consumer })
}

struct Views {
    pool: PgPool,
    live: Arc<dyn Live>,
}

const WANTED: &[&str] = &[
    ProjectCreated::TYPE,
    PipelineCreated::TYPE,
    PipelineContinued::TYPE,
    PipelineExpired::TYPE,
    WorkflowCreated::TYPE,
    JobsAdded::TYPE,
    TurnWanted::TYPE,
    JobReady::TYPE,
    JobOnHold::TYPE,
    JobRunning::TYPE,
    JobEnded::TYPE,
    CancelRequested::TYPE,
    WorkflowStatusChanged::TYPE,
    WorkflowFinished::TYPE,
    TaskQueued::TYPE,
    TaskStarted::TYPE,
    TaskFinished::TYPE,
    StepReported::TYPE,
];

#[async_trait]
impl Group for Views {
    fn name(&self) -> &'static str {
        "projector.views"
    }

    fn wants(&self) -> &'static [&'static str] {
        WANTED
    }

    fn batch(&self) -> usize {
        256
    }

    /// Of what happens many times per job: far below what people see, and under load a fraction of the transactions.
    /// A pipeline that somebody just started is there at once.
    fn gather(&self, source: &str, _: &str) -> Duration {
        if PER_JOB.contains(&source) { Duration::from_millis(30) } else { Duration::ZERO }
    }

    fn relaxed(&self) -> bool {
        true
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        let mut workflows = BTreeMap::new();
        let mut changed = Changed::default();
        for event in batch {
            changed.note(event);
            if event.aggregate.kind == "workflow" {
                workflows.insert(event.aggregate.id, event.aggregate.version);
            }
            let db = tx.conn();
            let done = match event.kind.as_str() {
                ProjectCreated::TYPE => store::project_created(db, event).await,
                PipelineCreated::TYPE | PipelineContinued::TYPE => store::pipeline_created(db, event).await,
                PipelineExpired::TYPE => store::pipeline_expired(db, event).await,
                WorkflowCreated::TYPE => store::workflow_created(db, event).await,
                JobsAdded::TYPE => store::jobs_added(db, event).await,
                TurnWanted::TYPE => store::turn_wanted(db, event).await,
                JobReady::TYPE => store::job_ready(db, event).await,
                JobOnHold::TYPE => store::job_on_hold(db, event).await,
                JobRunning::TYPE => store::job_running(db, event).await,
                JobEnded::TYPE => store::job_ended(db, event).await,
                CancelRequested::TYPE => store::cancel_requested(db, event).await,
                WorkflowStatusChanged::TYPE => store::workflow_status(db, event).await,
                WorkflowFinished::TYPE => store::workflow_finished(db, event).await,
                TaskQueued::TYPE => store::task_queued(db, event).await,
                TaskStarted::TYPE => store::task_started(db, event).await,
                TaskFinished::TYPE => store::task_finished(db, event).await,
                StepReported::TYPE => store::step_reported(db, event).await,
                _ => Ok(()),
            };
            done.map_err(|error| match error {
                Unprojected::Unreadable(error) => Fault::Dead(
                    anyhow::Error::new(error).context(format!("event {} ({})", event.id, event.kind)),
                ),
                Unprojected::Db(error) => Fault::from(error),
            })?;
        }
        if !workflows.is_empty() {
            store::workflows_seen(tx.conn(), &workflows).await?;
        }
        store::pipelines_changed(tx.conn(), &changed).await?;
        Ok(())
    }

    async fn after_commit(&self, batch: &[Envelope]) {
        let mut all = Changed::default();
        batch.iter().for_each(|event| all.note(event));
        let Changed { pipelines: mut changed, workflows, jobs } = all;
        if !workflows.is_empty() || !jobs.is_empty() {
            let (workflows, jobs): (Vec<_>, Vec<_>) =
                (workflows.into_iter().collect(), jobs.into_iter().collect());
            match store::pipelines_of(&self.pool, &workflows, &jobs).await {
                Ok(found) => changed.extend(found),
                Err(error) => tracing::debug!(%error, "changed pipelines could not be announced"),
            }
        }
        let lines = changed.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for pipeline in &changed {
            self.announce(&live::pipeline_topic(*pipeline), Bytes::new()).await;
        }
        // Without a pipeline it was a project: lists show those too.
        self.announce(VIEWS_TOPIC, lines.into()).await;
    }
}

/// What a batch of events speaks of.
#[derive(Default)]
struct Changed {
    pipelines: BTreeSet<PipelineId>,
    workflows: BTreeSet<WorkflowId>,
    jobs: BTreeSet<JobId>,
}

impl Changed {
    fn note(&mut self, event: &Envelope) {
        if let Some(pipeline) = event.correlation_id {
            self.pipelines.insert(pipeline);
            return;
        }
        match event.aggregate.kind.as_str() {
            "pipeline" => drop(self.pipelines.insert(PipelineId(event.aggregate.id))),
            "workflow" => drop(self.workflows.insert(WorkflowId(event.aggregate.id))),
            _ => {
                let job = event.body.get("job_id").and_then(|id| id.as_str()?.parse::<JobId>().ok());
                self.jobs.extend(job);
            }
        }
    }
}

impl Views {
    /// A lost announcement is harmless: readers look again on a timer.
    async fn announce(&self, topic: &str, message: Bytes) {
        if let Err(error) = self.live.publish(topic, message).await {
            tracing::debug!(%error, topic, "not announced");
        }
    }
}
