//! What the service consumes: pipelines, and what the dispatcher says of jobs.

use crate::{
    create::{self, Why},
    error::Error,
    key, me, now, redundant,
    step::{self, Cause},
    store,
};
use async_trait::async_trait;
use blobs::Blobs;
use bus::{Fault, Group};
use contracts::{
    Envelope, Event as _,
    dispatcher::{JobFinished, JobStarted},
    pipelines::{PipelineContinued, PipelineCreated},
};
use eventstore::{Key, Tx, trace};
use ids::{JobId, WorkflowId};
use model::{plan::Plan, workflow::Command};
use std::{sync::Arc, time::Duration};
use tokio::sync::Notify;

/// Makes the workflows of each pipeline, all of them in one transaction.
pub(crate) struct Pipelines {
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) due: Arc<Notify>,
}

#[async_trait]
impl Group for Pipelines {
    fn name(&self) -> &'static str {
        "conductor.pipelines"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[PipelineCreated::TYPE, PipelineContinued::TYPE]
    }

    fn locks(&self, _: &Envelope) -> Vec<Key> {
        // Its effects are new aggregates only.
        Vec::new()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            // The body of one that is continued has the same form: its second plan adds workflows.
            let pipeline: PipelineCreated = message.body_as().map_err(Error::from)?;
            let Some(plan) = self.plan(&pipeline).await? else { continue };
            // Who triggered the pipeline started its workflows.
            let cause = Cause { actor: message.actor.clone(), message: message.id };
            create::of_pipeline(tx, &pipeline, &plan, &cause, now()).await?;
            redundant::note(tx, message, &pipeline).await?;
        }
        Ok(())
    }

    async fn after_commit(&self, batch: &[Envelope]) {
        if batch.iter().any(redundant::may_be_noted) {
            self.due.notify_one();
        }
    }
}

/// How long a plan may take to come. Nothing has been written by then, so that the open transaction holds up no
/// reader; after 5 s Postgres would end it.
const PLAN_WITHIN: Duration = Duration::from_secs(4);

impl Pipelines {
    /// The plan of a pipeline, if it compiled: from its message, or, if it is large, from where it lies.
    async fn plan(&self, pipeline: &PipelineCreated) -> Result<Option<Plan>, Fault> {
        match (&pipeline.plan, &pipeline.plan_digest) {
            (Some(plan), _) => Ok(Some(plan.clone())),
            (None, None) => Ok(None),
            (None, Some(digest)) => {
                let plan =
                    tokio::time::timeout(PLAN_WITHIN, self.large_plan(digest)).await.map_err(|late| {
                        Fault::Away(anyhow::Error::new(late).context("the plan did not come in time"))
                    })??;
                Ok(Some(plan))
            }
        }
    }

    async fn large_plan(&self, digest: &str) -> Result<Plan, Fault> {
        let key = blobs::Key::new(format!("plans/{digest}")).map_err(|error| Fault::Dead(error.into()))?;
        let unread = |error: blobs::Error| match error {
            blobs::Error::Missing(_) | blobs::Error::Damaged(_) => Fault::Retry(error.into()),
            _ => Fault::Away(error.into()),
        };
        let get = self.blobs.get(&key, None).await.map_err(unread)?;
        if hex::encode(get.meta.sha256) != digest {
            return Err(Fault::Dead(anyhow::anyhow!("{key} is not the plan that its name says")));
        }
        let plan = get.bytes().await.map_err(unread)?;
        Ok(serde_json::from_slice(&plan)?)
    }
}

/// Goes on where a job started or ended.
pub(crate) struct Jobs;

fn news(message: &Envelope) -> Result<(WorkflowId, JobId, Command), Error> {
    if message.is::<JobStarted>() {
        let JobStarted { job_id, workflow_id, at } = message.body_as()?;
        Ok((workflow_id, job_id, Command::Started { at }))
    } else {
        let JobFinished { job_id, workflow_id, status, reason, settled, at } = message.body_as()?;
        Ok((workflow_id, job_id, Command::Finished { status, reason, settled, at }))
    }
}

#[async_trait]
impl Group for Jobs {
    fn name(&self) -> &'static str {
        "conductor.jobs"
    }

    fn wants(&self) -> &'static [&'static str] {
        &[JobStarted::TYPE, JobFinished::TYPE]
    }

    /// One commit for what comes at the same time: many small jobs end together.
    fn batch(&self) -> usize {
        32
    }

    /// That a job has started changes nothing for others, and its agent is busy just then. Its end is not to wait.
    fn gather(&self, _: &str, kind: &str) -> Duration {
        if kind == JobStarted::TYPE { Duration::from_millis(20) } else { Duration::ZERO }
    }

    fn locks(&self, message: &Envelope) -> Vec<Key> {
        // One that cannot be read fails in `handle`, where a failure can be told.
        news(message).map(|(workflow, ..)| key(workflow)).into_iter().collect()
    }

    async fn handle(&self, tx: &mut Tx, batch: &[Envelope]) -> Result<(), Fault> {
        for message in batch {
            let (id, job, command) = news(message)?;
            trace::following(message, go_on(tx, message, id, job, &command)).await?;
        }
        Ok(())
    }
}

/// Takes a message about a job to its last consequence.
pub(crate) async fn go_on(
    tx: &mut Tx,
    message: &Envelope,
    id: WorkflowId,
    job: JobId,
    command: &Command,
) -> Result<(), Error> {
    let unknown = || Error::Message(format!("{}: there is no job {job} in workflow {id}", message.kind));
    let mut workflow = store::workflow(tx.conn(), id).await?.ok_or_else(unknown)?;
    let job = store::job(tx.conn(), id, job).await?.ok_or_else(unknown)?;
    let (cause, now) = (Cause { actor: me(), message: message.id }, now());
    let changes = step::decide(tx, &workflow, job, command, now).await?;
    let ended = !workflow.root.status.is_terminal() && changes.root.status.is_terminal();
    step::commit(tx, &mut workflow, Vec::new(), &changes, &cause, now).await?;
    if ended && create::reruns_itself(tx.conn(), &workflow).await? {
        match create::rerun(tx, &workflow, Why::Automatic, &cause, now).await {
            // The limit of reruns is no failure of the step that met it.
            Ok(_) | Err(Error::Refused(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
